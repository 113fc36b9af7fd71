"""Several processes that ask for the same thing: one makes it, the others wait and open it, and a kill of the maker
harms nobody."""
import hashlib, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc/locks')
AT_ONCE, ROUNDS = 8, int(os.environ.get('CXR_ROUNDS', 6))

def bytes_of(folder):
    "A fingerprint of every file below a folder, but for the date and the seconds that a run notes"
    out = {}
    for file in sorted(o for o in Path(folder).rglob('*') if o.is_file()
                       and o.name not in ('history.csv', 'data.json', 'log.txt')):
        data = file.read_bytes()
        if file.name == 'config.json':
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != 'date'}).encode()
        out[str(file.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return out

def member(folder, number, gate):
    "One of the eight: a phantom, its cache, and the features and head of a run"
    import torch
    from cxr_nb.data.sources import load_nih
    from cxr_nb.data.phantom.release import make_phantom
    from cxr_nb.training.recipes import staged
    from cxr_nb.training.recipe import Stage
    from cxr_nb.training.engine import run_stage
    from cxr_nb.training.run import start_run
    torch.set_num_threads(1)
    recipe = staged(arch='test_resnet', size=32, weights='none', precision='float32',
                    stages=[Stage('head', 1, 1e-3, trainable=0, repeats=1)])
    gate.wait()
    data = load_nih(make_phantom(folder/'phantom', n_images=60, size=64, enrich=1., progress=False))
    run = start_run(data, recipe, folder/'run', cache=folder/'cache', device='cpu', progress=False, resume=True,
                    say=str)
    run_stage(run, run.recipe.stages[0], resume=True, every=.01)
    (folder/f'saw_{number}.json').write_text(json.dumps({o: bytes_of(folder/o) for o in ('phantom', 'cache', 'run')}))
    os._exit(0)

def holders(folder):
    "Processes that hold a lock in this folder"
    nodes = {str(o.stat().st_ino) for o in folder.glob('.*.lock')}
    rows = [o.split() for o in Path('/proc/locks').read_text().splitlines()]
    return [int(o[4]) for o in rows if o[1] == 'FLOCK' and o[5].split(':')[-1] in nodes]

def kill_a_holder(folder, alive, rng):
    "Wait a moment, then kill whoever holds a lock; its process number, or None if all had ended"
    time.sleep(rng.uniform(0, .4))
    while any(p.is_alive() for p in alive):
        for pid in holders(folder):
            if pid in [p.pid for p in alive]:
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(.0005)

def test_eight_at_once_with_kills_end_with_the_same_bytes(forks, tmp_path):
    rng, seen, kills = random.Random(0), [], 0
    for k in range(ROUNDS):
        folder = tmp_path/str(k)
        folder.mkdir()
        gate = forks.Barrier(AT_ONCE)
        some = [forks.Process(target=member, args=(folder, i, gate)) for i in range(AT_ONCE)]
        for p in some: p.start()
        killed = kill_a_holder(folder, some, rng) if k % 2 else None
        for p in some: p.join(120)
        codes = [p.exitcode for p in some]
        kills += killed is not None
        assert codes.count(0) == AT_ONCE - (killed is not None), (k, codes)
        assert codes.count(-signal.SIGKILL) == (killed is not None), (k, codes)
        seen += [o.read_text() for o in folder.glob('saw_*.json')]
        assert not list(folder.glob('.*.part')), 'what a killed process left was not cleared'
    assert kills == ROUNDS//2
    assert len(set(seen)) == 1 and len(json.loads(seen[0])['phantom']) > 60

def test_the_second_says_that_it_waits(tmp_path):
    from cxr_nb.core import one_at_a_time
    code = ('import sys\nfrom cxr_nb.core import one_at_a_time\n'
            'with one_at_a_time(sys.argv[1], "this run", patience=.05): print("in")')
    with one_at_a_time(tmp_path/'run'):
        p = subprocess.Popen([sys.executable, '-u', '-c', code, tmp_path/'run'], stdout=subprocess.PIPE, text=True)
        assert 'another process is busy with this run; waiting' in p.stdout.readline()
        assert p.poll() is None
    assert p.communicate(timeout=60)[0] == 'in\n' and p.returncode == 0

def test_two_resumed_trainings_in_one_folder_follow_each_other(run, phantom, forks, tmp_path):
    "Both end well, the second one finds a finished run"
    import threading
    args = ['--data', phantom, '--out', tmp_path/'run', '--arch', 'test_resnet', '--weights', 'none', '--size', 32,
            '--epochs', 1, '--recipe', 'single', '--device', 'cpu', '--resume']
    said = []
    both = [threading.Thread(target=lambda: said.append(run('cxr-train', *args))) for _ in range(2)]
    for t in both: t.start()
    for t in both: t.join()
    assert [o.returncode for o in said] == [0, 0], [o.stderr for o in said]
    text = '\n'.join(o.stdout for o in said)
    assert text.count('this run is finished; nothing is left to do') == 1 and text.count('report: ') == 2

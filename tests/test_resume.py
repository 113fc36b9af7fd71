"A training that is killed, at whatever moment, goes on and ends bit for bit as one that was left alone."
import errno, functools, json, os, random, re, resource, shutil, signal, subprocess, sys, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd, pytest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='needs fork and prlimit')
STAGE = dict(epochs=2, lr=1e-3, bs=16)
RECIPE = dict(arch='test_efficientnet', size=48, weights='none', dropout=.3, weighted=True, stages=[
    dict(STAGE, name='frozen_head', trainable=0, repeats=2), dict(STAGE, name='unfreeze', schedule='one_cycle'),
    dict(STAGE, name='fine_tune', lr=1e-4, bn='train')])

def child(argv, said, env):
    """cxr-train, with what it says in a file; heatmaps and report, which would take longer than the training here,
    are left out"""
    os.environ.update(env)
    from cxr_nb import cli
    from cxr_nb.commands import train as commands
    from cxr_nb.training import engine as training
    training.judge = functools.partial(training.judge, n_boot=50)
    commands.finish = lambda run: (run.path/'report.html').write_text('')
    with open(said, 'a', buffering=1) as f, redirect_stdout(f), redirect_stderr(f): code = cli.cxr_train(argv)
    os._exit(code)

@pytest.fixture(scope='module')
def start(forks, tmp_path_factory, env):
    "Start cxr-train in a process forked from one that has imported everything; gives the process"
    from cxr_nb.data.phantom.release import make_phantom
    tmp = tmp_path_factory.mktemp('resume')
    data = make_phantom(tmp/'nih', n_images=240, size=64, seed=0, progress=False)
    (tmp/'recipe.json').write_text(json.dumps(RECIPE))
    def _start(out, *more, every=.3):
        argv = ['--data', data, '--out', out, '--recipe', tmp/'recipe.json', '--cache', f'{out}_cache', '--device',
                'cpu', '--save-every', every, *more]
        p = forks.Process(target=child, args=([*map(str, argv)], f'{out}.txt', env))
        p.start()
        return p
    warm = forks.Process(target=int) # waits for the imports
    warm.start()
    warm.join()
    return _start

def ended(p):
    "Wait for its end; the exit code"
    p.join(120)
    return p.exitcode

def kill(p):
    "No warning; was it still alive?"
    alive = p.is_alive()
    if alive: os.kill(p.pid, signal.SIGKILL)
    p.join()
    return alive and p.exitcode == -signal.SIGKILL

@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    "A run that was left alone, and its seconds"
    out = tmp_path_factory.mktemp('whole')/'run'
    began = time.perf_counter()
    assert ended(start(out, every=45)) == 0, Path(f'{out}.txt').read_text()
    return out, time.perf_counter() - began

def same(a, b):
    "Everything that a run leaves, but for seconds and the date"
    files = ['model.safetensors',
             *(f'checkpoints/{o}.safetensors' for o in ('frozen_head', 'unfreeze', 'fine_tune', 'best', 'last')),
             'predictions_val.csv', 'predictions_test.csv',
             'metrics.json', 'thresholds.json', 'split.csv']
    for o in files: assert (a/o).read_bytes() == (b/o).read_bytes(), o
    h, g = (pd.read_csv(o/'history.csv', dtype=str).drop(columns='seconds') for o in (a, b))
    assert h.equals(g)
    c, d = ({k: v for k, v in json.loads((o/'config.json').read_text()).items() if k != 'date'} for o in (a, b))
    assert c == d
    assert {o.name for o in a.iterdir()} == {o.name for o in b.iterdir()}
    assert not (b/'resume').exists() and not list(b.rglob('*.part'))

AIMS = { # a moment, and how it shows
    'cache': lambda out: (o := Path(f'{out}_cache')/'plan.json').exists() and o.stat().st_size
        and not o.with_name('meta.json').exists(),
    'features': lambda out: any((out/'resume').glob('*.f32')),
    'state half written': lambda out: any((out/'resume').glob('state.safetensors.*.part')),
    'stage ended': lambda out: (out/'checkpoints'/'unfreeze.safetensors').exists(),
    'weights half written': lambda out: any((out/'checkpoints').glob('*.part')),
    'last stage': lambda out: (out/'checkpoints'/'fine_tune.safetensors').exists(),
    'judging': lambda out: (out/'predictions_val.csv').exists(),
    'judged': lambda out: (out/'metrics.json').exists(),
}

def test_killed_at_chosen_moments(start, whole, tmp_path):
    out, killed = tmp_path/'run', []
    for name, there in AIMS.items():
        p = start(out, '--resume', every=.02 if name in ('features', 'state half written') else .3)
        while p.is_alive() and not there(out): time.sleep(.0002)
        if kill(p): killed.append(name)
        # the state still knows the stage, whether its files were all written or not
        if name == 'stage ended' and killed[-1] == name:
            (out/'checkpoints'/'unfreeze.safetensors').unlink()
    assert ended(start(out, '--resume')) == 0, Path(f'{out}.txt').read_text()
    assert killed == list(AIMS)
    same(whole[0], out)

def test_killed_at_random_moments(start, whole, tmp_path):
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 20 and runs < 30:
        out, p, runs = tmp_path/f'run{runs}', None, runs + 1
        # of the time that a whole run took, which may have been a slow one
        for share in [rng.uniform(.03, .35) for _ in range(8)]:
            p = start(out, '--resume')
            p.join(share*whole[1])
            if not kill(p): break
            kills += 1
        assert ended(start(out, '--resume')) == 0, Path(f'{out}.txt').read_text()
        same(whole[0], out)
    assert kills >= 20

def begun(start, out):
    "A run that is in the middle of an epoch"
    from cxr_nb.training.state import StateFile, read_state
    p, file = start(out, every=.1), StateFile(out)
    middle = lambda: file.path.is_file() and 'epoch' in read_state(file.path)[1]
    while p.is_alive() and not middle(): time.sleep(.001)
    return p

def stopped_and_went_on(start, whole, p, out, more_room=lambda: None):
    """It ended in a line that names the mend, the last state is whole, and with more room it goes on from there.
    The state may be of an epoch, or of the start of a stage if the room was gone just there."""
    from cxr_nb.training.folder import resume_position
    assert ended(p) == 2
    said = Path(f'{out}.txt').read_text()
    assert 'error: ' + str(out) in said and 'no room is left on the disk' in said and '--resume' in said
    stands = resume_position(out)
    assert stands and not list((out/'resume').glob('*.part'))
    more_room()
    assert ended(start(out, '--resume')) == 0
    assert re.search(f'goes on (with )?{re.escape(stands)}', Path(f'{out}.txt').read_text())
    same(whole[0], out)

def test_no_room_for_long_files_leaves_the_last_state(start, whole, tmp_path):
    p = begun(start, tmp_path/'run')
    resource.prlimit(p.pid, resource.RLIMIT_FSIZE, (100_000, 100_000)) # from now on no file may be longer
    stopped_and_went_on(start, whole, p, tmp_path/'run')

def test_full_disk_leaves_the_last_state(start, whole, disk_of, tmp_path):
    small_disk = disk_of(128)
    (small_disk/'run.txt').symlink_to(tmp_path/'run.txt') # what a run says does not go on it
    p = begun(start, small_disk/'run')
    filler, chunk = small_disk/'filler', bytes(2**16)
    with open(filler, 'ab', buffering=0) as f:
        while p.is_alive(): # what a state gives back when the next takes its place is filled as well
            try: f.write(chunk)
            except OSError as e:
                assert e.errno == errno.ENOSPC
                time.sleep(.001)
    stopped_and_went_on(start, whole, p, small_disk/'run', filler.unlink)

def test_resume_says_what_it_does(start, whole, tmp_path):
    out = Path(shutil.copytree(whole[0], tmp_path/'run'))
    Path(shutil.copytree(f'{whole[0]}_cache', f'{out}_cache'))
    when = (out/'metrics.json').stat().st_mtime_ns
    assert ended(start(out, '--resume')) == 0
    assert 'this run is finished' in Path(f'{out}.txt').read_text() and (out/'metrics.json').stat().st_mtime_ns == when
    (out/'metrics.json').unlink()
    assert ended(start(out, '--resume')) == 0
    same(whole[0], out)
    assert ended(start(out, '--resume', '--recipe', 'single', '--size', 48)) == 2
    said = Path(f'{out}.txt').read_text()
    assert 'holds another run (recipe.' in said and 'goes on' not in said
    new = tmp_path/'new'
    p = start(new, '--resume')
    while not (new/'resume'/'state.safetensors').exists(): time.sleep(.001)
    kill(p)
    assert 'no run is there yet; a new one begins' in Path(f'{new}.txt').read_text()
    left = {o.name for o in new.iterdir()}
    assert ended(start(new)) == 2 and 'begin anew by --overwrite' in Path(f'{new}.txt').read_text()
    assert {o.name for o in new.iterdir()} == left
    assert ended(start(new, '--overwrite')) == 0
    same(whole[0], new)

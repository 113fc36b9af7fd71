"Fixtures for what needs a whole process: the shell commands, packaging, the processed site."
import gc, itertools, multiprocessing, os, socket, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

os.environ.setdefault('OMP_NUM_THREADS', '1') # two test workers side by side; before PyTorch is loaded
os.environ['COLUMNS'] = '200' # tables of commands are as wide as this
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
READY = ['cxr_nb.cli', 'cxr_nb.commands.use', 'cxr_nb.training.crossval', 'cxr_nb.report.classes',
         'cxr_nb.explain.sheet', 'cxr_nb.report.card', 'cxr_nb.deploy.predict', 'cxr_nb.data.checks',
         'cxr_nb.deploy.export', 'accelerate']

@pytest.fixture(scope='session')
def env(tmp_path_factory):
    "An environment with a cache folder of its own and no data of the user's"
    clean = {k: v for k, v in os.environ.items() if not k.startswith('CXR_') and k != 'IN_TEST'}
    return {**clean, 'CXR_CACHE': str(tmp_path_factory.mktemp('cache')),
            'KAGGLEHUB_CACHE': str(tmp_path_factory.mktemp('downloads'))}

@pytest.fixture(scope='session')
def run_alone(env):
    "Run a command of the package as a shell does; returns what it said"
    def _run(cmd, *args, timeout=600, **more):
        return subprocess.run([str(BIN/cmd), *map(str, args)], capture_output=True, text=True, env={**env, **more},
                              timeout=timeout)
    return _run

@pytest.fixture
def disk_of(tmp_path):
    "Mounts a disk of so many megabytes, to see what happens when it is full"
    disk = tmp_path/'disk'
    def _mount(megabytes):
        disk.mkdir()
        mount = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', disk]
        if subprocess.run(mount, capture_output=True).returncode: pytest.skip('only root can mount a tmpfs')
        return disk
    yield _mount
    if disk.is_mount(): subprocess.run(['umount', disk], check=True)

def as_command(name, argv, env, said):
    "In a new process: the environment, standard output and error of a command, and the command itself"
    gc.freeze() # what was imported before stays: no need to look through it again and again
    os.environ.clear()
    os.environ.update(env)
    for fd, file in ((1, f'{said}.out'), (2, f'{said}.err')):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), fd)
    from cxr_nb.cli import COMMANDS
    try: code = COMMANDS[name.removeprefix('cxr-')](argv)
    except SystemExit as e: code = e.code if isinstance(e.code, int) else bool(e.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)

@pytest.fixture(scope='session')
def forks(env):
    "A context that starts processes from one that has imported everything, which saves each of them ten seconds"
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(READY)
    return ctx

@pytest.fixture(scope='session')
def run(forks, env, tmp_path_factory):
    """Run a command of the package in a process of its own, forked from one that has imported everything;
    returns what it said"""
    folder, numbers = tmp_path_factory.mktemp('said'), itertools.count()
    def _run(cmd, *args, timeout=600, **more):
        said = folder/str(next(numbers)) # two threads may ask at once
        p = forks.Process(target=as_command, args=(cmd, list(map(str, args)), {**env, **more}, said))
        p.start()
        p.join(timeout)
        if p.exitcode is None:
            p.kill()
            pytest.fail(f'{cmd} {args} took over {timeout} s')
        out, err = (Path(f'{said}.{o}').read_text() for o in ('out', 'err'))
        return SimpleNamespace(args=[cmd, *args], returncode=p.exitcode, stdout=out, stderr=err)
    return _run

@pytest.fixture(scope='session')
def run_pair(forks, env):
    """Run a command as `torchrun` starts it: two processes told by their environment; exit codes, and where what
    each said lies"""
    def _run(cmd, *args, out, timeout=600):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        together = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                        OMP_NUM_THREADS='1')
        said = [out/f'said{rank}' for rank in range(2)]
        pair = []
        for rank in range(2):
            own = {**env, **together, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}
            pair.append(forks.Process(target=as_command, args=(cmd, list(map(str, args)), own, said[rank])))
            pair[-1].start()
        for p in pair: p.join(timeout)
        return [p.exitcode for p in pair], said
    return _run

@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    "A folder for what all test workers of this run share, each part of it made once"
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base)/'shared'
    folder.mkdir(exist_ok=True)
    return folder

@pytest.fixture(scope='session')
def phantom(shared):
    "A small folder in the NIH layout"
    from cxr_nb.data.phantom.release import make_phantom
    return make_phantom(shared/'nih', n_images=160, size=64, seed=0, enrich=.5, progress=False)

@pytest.fixture(scope='session')
def trained(run, phantom, shared):
    "A run folder, trained by cxr-train on the small phantom"
    made = shared/'trained'/'small'
    with FileLock(shared/'trained.lock'):
        if not (made/'report.html').is_file():
            said = run('cxr-train', '--data', phantom, '--out', made, '--arch', 'mobilenetv2_050', '--weights', 'none',
                       '--size', 64, '--epochs', 1, '--device', 'cpu', '--precision', 'float32', '--log', 'tensorboard')
            assert said.returncode == 0, said.stderr
    return made

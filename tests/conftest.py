"Fixtures for what needs a whole process: the shell commands, packaging, the processed site."
import os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

@pytest.fixture(scope='session')
def env(tmp_path_factory):
    "An environment with a cache folder of its own and no data of the user's"
    clean = {k: v for k, v in os.environ.items() if not k.startswith('CXR_') and k != 'IN_TEST'}
    return {**clean, 'CXR_CACHE': str(tmp_path_factory.mktemp('cache'))}

@pytest.fixture(scope='session')
def run(env):
    "Run a command of the package; returns what it said"
    def _run(cmd, *args, timeout=600, **more):
        return subprocess.run([str(BIN/cmd), *map(str, args)], capture_output=True, text=True, env={**env, **more}, timeout=timeout)
    return _run

@pytest.fixture(scope='session')
def phantom(tmp_path_factory):
    "A small folder in the NIH layout"
    from cxr_nb.phantom import make_phantom
    return make_phantom(tmp_path_factory.mktemp('phantom')/'nih', n_images=160, size=64, seed=0, progress=False)

@pytest.fixture(scope='session')
def trained(run, phantom, tmp_path_factory):
    "A run folder, trained by cxr-train on the small phantom"
    out = tmp_path_factory.mktemp('runs')/'small'
    said = run('cxr-train', '--data', phantom, '--out', out, '--arch', 'mobilenetv2_050', '--weights', 'none', '--size', 64, '--epochs', 1, '--device', 'cpu', '--precision', 'float32')
    assert said.returncode == 0, said.stderr
    return out

"A cache build that was killed goes on and ends with the same cache."
import signal, subprocess, time

import numpy as np
from conftest import BIN

def test_cache_survives_kill(run, env, tmp_path):
    from cxr_nb.data.cache import open_cache
    from cxr_nb.data.phantom.release import make_phantom
    data = make_phantom(tmp_path/'nih', n_images=600, size=128, progress=False)
    cmd = lambda out: ['cxr-prepare', '--data', str(data), '--size', '64', '--out', str(out), '--workers', '1']
    name, *args = cmd(tmp_path/'killed')
    p = subprocess.Popen([str(BIN/name), *args], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path/'killed'/'log.csv'
    while p.poll() is None and not (log.is_file() and log.stat().st_size): time.sleep(.002)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/'killed'/'meta.json').exists()
    for o in ('killed', 'whole'): assert run(*cmd(tmp_path/o)).returncode == 0
    a, b = open_cache(tmp_path/'killed'), open_cache(tmp_path/'whole')
    assert a.index.equals(b.index) and np.array_equal(a.images, b.images)

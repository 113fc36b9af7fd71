"A cache build that was killed, or had no room, goes on and ends with the same cache."
import signal, subprocess, time

import numpy as np, pandas as pd, pytest
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

def test_full_disk_is_told_and_a_larger_one_takes_the_rest(run, disk_of, tmp_path):
    from cxr_nb.data.cache import open_cache
    from cxr_nb.data.phantom.release import make_phantom
    data = make_phantom(tmp_path/'nih', n_images=300, size=128, progress=False)
    disk = disk_of(3)
    cmd = lambda out: ['cxr-prepare', '--data', data, '--size', '128', '--out', out] # 4.9 MB
    full = run(*cmd(disk/'cache'))
    assert full.returncode == 2 and 'cache: no room is left on the disk; free some' in full.stderr
    subprocess.run(['mount', '-o', 'remount,size=16m', disk], check=True)
    for out in (disk/'cache', tmp_path/'whole'): assert run(*cmd(out)).returncode == 0
    a, b = open_cache(disk/'cache'), open_cache(tmp_path/'whole')
    assert a.index.equals(b.index) and np.array_equal(a.images, b.images)

def test_half_a_table_is_never_left(disk_of):
    from cxr_nb.deploy.predict import write_rows
    out = disk_of(1)/'p.csv'
    write_rows(pd.DataFrame({'image': ['a.png']}), out)
    before = out.read_bytes()
    with pytest.raises(OSError): write_rows(pd.DataFrame({'image': ['x'*100]*50_000}), out)
    assert out.read_bytes() == before and [o.name for o in out.parent.iterdir()] == ['p.csv']

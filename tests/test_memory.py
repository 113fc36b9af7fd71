"The cache is mapped, never loaded: 112,120 films of 256x256 (7.3 GB) go through four gigabytes of memory."
import os, subprocess, sys

import pytest

SCRIPT = '''
import resource, sys
import numpy as np, torch
from pathlib import Path
from cxr_nb.data.augment import Augment
from cxr_nb.data.batches import Batches, to_device
from cxr_nb.models.nets import make_model, probabilities
torch.set_num_threads(1)
n, size, path = 112_120, 256, Path(sys.argv[1])
# a file with a hole: no disk is used
np.lib.format.open_memmap(path, mode='w+', dtype=np.uint8, shape=(n, size, size)).flush()
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
films, y = to_device(np.load(path, mmap_mode='r')), np.zeros((n, 14), np.uint8)
assert isinstance(films, np.memmap)
model = make_model('mobilenetv2_050', size=64)
train = Batches(films, np.arange(n), y, bs=32, train=True, aug=Augment(), size=64)
for i, (x, t) in zip(range(20), train): torch.nn.functional.binary_cross_entropy_with_logits(model(x), t).backward()
some = np.arange(0, n, 800)
assert probabilities(model, Batches(films, some, y[some], bs=64, size=64)).shape == (len(some), 14)
try: np.array(films)
except MemoryError: print('the whole does not fit')
'''

@pytest.mark.skipif(sys.platform != 'linux', reason='the limit on memory is that of Linux')
def test_every_film_in_four_gigabytes(tmp_path, env):
    said = subprocess.run([sys.executable, '-c', SCRIPT, str(tmp_path/'images.npy')], capture_output=True, text=True,
                          timeout=600, env=env)
    assert said.returncode == 0, said.stderr[-2000:]
    assert 'the whole does not fit' in said.stdout
    assert os.stat(tmp_path/'images.npy').st_size > 7e9

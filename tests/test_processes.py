"Two processes train as one does, and only the first of them writes."
import json, shutil, subprocess, sys
from pathlib import Path

import pandas as pd, pytest

SCRIPT = '''
import os, sys
from cxr_nb import cli
from cxr_nb.models import bundle
from cxr_nb.training import callbacks, run as folder
log = os.environ['WRITES']
def noted(f):
    def g(model, path):
        with open(log, 'a') as out: print(os.environ['RANK'], getattr(path, 'name', path), file=out)
        return f(model, path)
    return g
for module in (callbacks, folder, bundle): module.save_weights = noted(module.save_weights)
sys.exit(cli.cxr_train(sys.argv[1:]))
'''

@pytest.fixture(scope='module')
def both(phantom, tmp_path_factory, env):
    "The run of `trained`, by two processes, and a note of who wrote which weights"
    tmp = tmp_path_factory.mktemp('both')
    (tmp/'script.py').write_text(SCRIPT)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', tmp/'script.py']
    options = ['--data', phantom, '--out', tmp/'run', '--arch', 'mobilenetv2_050', '--weights', 'none', '--size', '64',
               '--epochs', '1', '--device', 'cpu', '--precision', 'float32']
    said = subprocess.run([*map(str, launch + options)], capture_output=True, text=True, timeout=600,
                          env={**env, 'WRITES': str(tmp/'writes'), 'OMP_NUM_THREADS': '1'})
    assert said.returncode == 0, said.stderr[-2000:]
    return tmp/'run', (tmp/'writes').read_text().split('\n')[:-1], said.stdout

def test_two_processes_have_the_losses_of_one(both, trained):
    a, b = (pd.read_csv(o/'history.csv').drop(columns='seconds') for o in (trained, both[0]))
    assert list(a.stage) == list(b.stage)
    for k in ('train_loss', 'valid_loss'): assert (a[k] - b[k]).abs().max() < 1e-3, k

def test_predictions_are_gathered_and_judged_once(both, trained):
    for name in ('val', 'test'):
        a, b = (pd.read_csv(o/f'predictions_{name}.csv') for o in (trained, both[0]))
        assert list(a.image) == list(b.image)
        assert (a.filter(like='prob_') - b.filter(like='prob_')).abs().to_numpy().max() < .01
    a, b = (json.loads((o/'metrics.json').read_text()) for o in (trained, both[0]))
    assert [a[k]['n'] for k in ('val', 'test')] == [b[k]['n'] for k in ('val', 'test')]
    assert both[2].count('test: macro AUROC') == 1

def test_weights_are_written_by_the_first_process_alone(both):
    ranks, names = zip(*(o.split() for o in both[1]))
    assert set(ranks) == {'0'}
    for stage in ('frozen_head', 'unfreeze', 'fine_tune'): assert names.count(f'{stage}.safetensors') == 1

def test_a_batch_that_cannot_be_dealt_is_one_line(run_pair, phantom, tmp_path):
    codes, said = run_pair('cxr-train', '--data', phantom, '--out', tmp_path/'run', '--weights', 'none', '--arch',
                           'mobilenetv2_050', '--size', 64,
                           '--batch-size', 15, '--recipe', 'single', '--epochs', 1, '--device', 'cpu', out=tmp_path)
    assert all(codes)
    error = 'error: batch size 15 cannot be dealt to 2 processes; make it a multiple of 2'
    assert error in Path(f'{said[0]}.err').read_text()

def test_two_processes_see_that_a_run_is_finished(run_pair, phantom, trained, tmp_path):
    again = shutil.copytree(trained, tmp_path/'again')
    codes, said = run_pair('cxr-train', '--data', phantom, '--out', again, '--arch', 'mobilenetv2_050', '--weights',
                           'none', '--size', 64, '--epochs', 1, '--device', 'cpu', '--precision', 'float32', '--resume',
                           out=tmp_path)
    assert codes == [0, 0] and 'nothing is left to do' in Path(f'{said[0]}.out').read_text()

def test_only_training_is_for_several_processes(run_pair, trained, tmp_path):
    codes, said = run_pair('cxr-eval', '--run', trained, out=tmp_path, timeout=60)
    assert codes == [2, 2]
    assert all('cxr-eval is for one; run it without torchrun' in Path(f'{o}.err').read_text() for o in said)

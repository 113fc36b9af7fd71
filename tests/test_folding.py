"Folded BatchNorm against plain BatchNorm, for the backbones of the comparison."
import copy, json, subprocess, sys
from pathlib import Path
from unittest.mock import patch

import pytest, torch
from cxr_nb.labels import FINDINGS
from cxr_nb.models import nets
from cxr_nb.models.folding import is_batchnorm
from cxr_nb.models.nets import ChestModel, Net, fix_batchnorm
from cxr_nb.training.backbones import BACKBONES, STAND_INS
from cxr_nb.training.callbacks import fused_adamw

def pair(name):
    """The same network with the same weights and statistics, folded and plain; narrow where it is large and has
    no BatchNorm"""
    torch.manual_seed(0)
    arch, kwargs = STAND_INS.get(name, (BACKBONES[name], {}))
    net = Net(arch, FINDINGS, 64, kwargs=kwargs)
    folded = ChestModel(net)
    with torch.no_grad():
        for norm in filter(is_batchnorm, folded.modules()):
            norm.running_mean.normal_(0, .1)
            norm.running_var.uniform_(.5, 2)
            norm.bias.normal_(0, .1)
    with patch.object(nets, 'fold_batchnorm', lambda model, pairs: model): plain = ChestModel(net)
    plain.load_state_dict(folded.state_dict())
    return folded, plain

def trained(model, steps=20):
    "Weights after some steps of the published fine-tuning"
    fix_batchnorm(model.train())
    opt = fused_adamw([list(model.parameters())], 1e-5)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        torch.manual_seed(2) # of dropout
        x, y = torch.randn(4, 1, model.size, model.size, generator=draw), torch.rand(4, 14, generator=draw) > .8
        torch.nn.functional.binary_cross_entropy_with_logits(model(x), y.float()).backward()
        opt.step()
        opt.zero_grad()
    return model.state_dict()

@pytest.mark.parametrize('name', BACKBONES)
def test_folded_is_plain(name):
    folded, plain = pair(name)
    x = torch.randn(2, 1, plain.size, plain.size)
    with torch.inference_mode(): a, b = folded.eval()(x), plain.eval()(x)
    assert (a - b).abs().max() <= 1e-5*b.abs().max()
    works = [m for m in folded.modules() if 'forward' in vars(m)]
    assert bool(works) == any(map(is_batchnorm, folded.modules()))
    if not works: return # the two are the same network
    start = copy.deepcopy(plain.state_dict())
    a, b = trained(folded), trained(plain)
    for key, w in b.items(): assert (a[key] - w).float().norm() <= 1e-4*w.float().norm(), key
    assert any(not torch.equal(start[k], b[k]) for k in b)

@pytest.mark.parametrize('arch', ['resnet18', 'mobilenetv2_050'])
def test_folded_with_gradients_can_be_traced(arch):
    model, x = ChestModel(Net(arch, FINDINGS, 64)).eval(), torch.randn(2, 1, 64, 64)
    traced = torch.jit.trace(model, (x,), check_trace=False)
    assert torch.allclose(traced(x), model(x), atol=1e-6) and model(x).requires_grad

def test_gpu_check_runs_without_a_card(tmp_path):
    script = Path(__file__).parents[1]/'tools'/'gpu_check.py'
    argv = [sys.executable, script, '--device', 'cpu', '--only', 'folding,captured', '--out', tmp_path/'gpu.json']
    said = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.count('no card') == 5, said.stdout + said.stderr
    rows = json.loads((tmp_path/'gpu.json').read_text())
    assert all(o['ours'] >= o['bar'] if o['better'] == 'higher' else o['ours'] < o['bar'] for o in rows)

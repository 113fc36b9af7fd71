"Passes on a processor through onnxruntime: the same answers as PyTorch, and the same features after an interruption."
import sys, warnings
from dataclasses import replace

import numpy as np, pytest, torch
from cxr_nb.data.batches import Batches
from cxr_nb.data.sources import phantom_data
from cxr_nb.labels import FINDINGS
from cxr_nb.models import inference
from cxr_nb.models.nets import ChestModel, Net, probabilities
from cxr_nb.training import frozen
from cxr_nb.training.recipe import Recipe, Stage, change
from cxr_nb.training.run import start_run
from cxr_nb.training.state import StateFile

NETS = [Net('mobilenetv2_100'), Net('resnet18'), Net('vit_tiny_patch16_224', kwargs={'depth': 3}),
        Net('eva02_base_patch16_clip_224', kwargs={'depth': 2, 'embed_dim': 96, 'num_heads': 2}),
        Net('test_efficientnet', neck='fpn', hidden=(8,), tabular=('age', 'sex'), views=2, crop=.9)]

def settled(net):
    "A network whose statistics fit its weights, so that numbers neither vanish nor grow through its layers"
    torch.manual_seed(0)
    model = ChestModel(replace(net, findings=tuple(FINDINGS), size=64)).train()
    with torch.no_grad():
        for _ in range(10): model(torch.randn(8, 1, 64, 64))
    return model.eval()

def answers(model, minimum, monkeypatch):
    "Probabilities of ten images, and how many sessions were made for them"
    made, session = [], inference._session
    monkeypatch.setattr(inference, '_session', lambda *args: made.append(1) or session(*args))
    monkeypatch.setattr(inference, 'MIN_PIXELS', minimum*model.size**2)
    images = np.random.default_rng(0).integers(0, 256, (10, model.size, model.size), dtype=np.uint8)
    tab = np.zeros((10, 2*len(model.net.tabular)), np.float32) if model.net.tabular else None
    batches = Batches(images, np.arange(10), np.zeros((10, 14)), bs=4, tab=tab)
    p = probabilities(model, batches)
    monkeypatch.undo()
    return p, len(made)

@pytest.mark.parametrize('net', NETS, ids=lambda net: f'{net.arch}-{net.neck}')
def test_onnxruntime_is_pytorch(net, monkeypatch):
    model = settled(net)
    (a, none), (b, one) = (answers(model, minimum, monkeypatch) for minimum in (11, 10))
    assert (none, one) == (0, 1)
    assert np.abs(a - b).max() <= 1e-4 and a.std() > 0 # as for files of cxr-export
    assert not any('forward' in vars(o) for o in (model.backbone, model))

def test_without_onnxruntime(monkeypatch):
    model = settled(Net('mobilenetv2_050'))
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not inference.pays_in_onnxruntime(model.backbone, 10**10)

def test_a_failure_is_said_and_pytorch_goes_on(monkeypatch):
    model, x = settled(Net('mobilenetv2_050')), torch.randn(3, 1, 64, 64)
    def fails(network, img): raise RuntimeError('no such operator')
    monkeypatch.setattr(inference, '_session', fails)
    with torch.inference_mode(), inference.in_onnxruntime(model, 10_000):
        with pytest.warns(UserWarning, match='for this network: RuntimeError: no such operator'): got = model(x)
    with torch.inference_mode(): assert torch.equal(got, model(x))

class Killed(Exception): pass

def test_features_after_an_interruption(tmp_path, monkeypatch):
    data = phantom_data(n_images=220, size=64, progress=False)
    recipe = change(Recipe(), arch='mobilenetv2_050', size=64, weights='none', precision='float32',
                    stages=[Stage('head', 1, 1e-3, trainable=0)])
    run = start_run(data, recipe, tmp_path/'run', device='cpu', progress=False)
    images = len(run.part('train')) + len(run.part('val'))
    monkeypatch.setattr(inference, 'MIN_PIXELS', images*64**2) # so that what is left is too little by itself
    made, session = [], inference._session
    monkeypatch.setattr(inference, '_session', lambda *args: made.append(1) or session(*args))
    whole = frozen.kept_features(run)
    file, add, seen = StateFile(run.path, every=0), frozen.Pass.add, []
    def add_or_stop(self, x):
        if len(seen) == 2: raise Killed
        seen.append(1)
        return add(self, x)
    with monkeypatch.context() as m:
        m.setattr(frozen.Pass, 'add', add_or_stop)
        with pytest.raises(Killed): frozen.kept_features(run, file)
    assert (run.path/'resume'/'train.f32').stat().st_size > 0
    again = frozen.kept_features(run, file)
    assert len(made) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole, again))

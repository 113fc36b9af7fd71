"""Every network of the comparison by name: trains a stage, is saved, comes back the same to the bit, explains a film;
and what must be refused."""
import json
from dataclasses import replace

import numpy as np, pytest, torch
from cxr_nb.models import nets as models
from cxr_nb.training import backbones, engine as training
from cxr_nb.training.backbones import BACKBONES, compare_backbones
from cxr_nb.data.sources import load_nih
from cxr_nb.explain.cam import cam_layer, gradcam
from cxr_nb.labels import FINDINGS
from cxr_nb.models.weights import ModelError, load_backbone, read_weights
from cxr_nb.models.bundle import load_bundle, load_weights, save_bundle, save_weights
from cxr_nb.models.nets import make_model
from cxr_nb.training.recipe import Stage, TrainError
from cxr_nb.training.recipes import staged
from cxr_nb.training.engine import run_stage
from cxr_nb.training.run import start_run

# the layers left out are like those that stay
NARROW = {'vgg16': dict(mlp_ratio=1/64), 'vit_base_patch16_224': dict(depth=3)}
SIZES = {'vit_base_patch16_224': 32}
STAGE = Stage('whole', 1, 1e-3, bs=16, bn='train')

@pytest.fixture(scope='module')
def films(phantom):
    data = load_nih(phantom)
    return replace(data, table=data.table.iloc[:80])

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('films')

def recipe(arch, **kwargs):
    return staged(**dict(arch=arch, findings=FINDINGS, size=SIZES.get(arch, 64), weights='none', split='random',
                         stages=[STAGE], kwargs=NARROW.get(arch, {})) | kwargs)

@pytest.mark.parametrize('arch', BACKBONES.values())
def test_trains_comes_back_and_explains(arch, films, cache, tmp_path):
    r = recipe(arch)
    run = start_run(films, r, tmp_path, cache=cache/str(r.size), device='cpu', progress=False)
    before = {k: o.clone() for k, o in run.model.state_dict().items()}
    run_stage(run, STAGE)
    last = read_weights(tmp_path/'checkpoints'/'last.safetensors')
    assert np.isfinite(run.history[0]['train_loss'])
    assert all(not torch.equal(last[k], before[k]) for k, o in run.model.named_parameters()
               if o.ndim > 1), 'a layer did not learn'
    back, cfg = load_bundle(tmp_path)
    assert (cfg['arch'], back.findings) == (arch, run.recipe.findings)
    same_answers(run, back)
    explains(run, back)

def same_answers(run, back):
    "Bitwise, in the memory layout of a run"
    x, back = next(iter(run.batches('val')))[0], back.to(memory_format=torch.channels_last)
    with torch.inference_mode(): assert torch.equal(run.model.eval()(x), back(x))

def explains(run, model):
    "Heatmaps of two films at the layer that was found by itself; one finding beside the package grad-cam"
    layer, name = cam_layer(model, name=True)
    x = next(iter(run.batches('val', bs=2)))[0]
    maps = gradcam(model, x)
    assert name.startswith('backbone.')
    assert maps.shape == (2, len(run.recipe.findings), run.recipe.size, run.recipe.size)
    assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() == pytest.approx(1, abs=1e-3)
    assert np.abs(maps[:, :1] - gradcam(model, x, run.recipe.findings[:1], fast=False)).max() < 1e-2

@pytest.mark.parametrize('wrong,near', [('efficientnet_b9', 'efficientnet_b'), ('densnet121', 'densenet121'),
                                        ('mobilenet_v2', 'mobilenetv2'), ('vit_base_patch16', 'vit_base_patch16')])
def test_a_wrong_name_suggests_near_ones(wrong, near, films, tmp_path):
    with pytest.raises(ModelError, match=f'{wrong}.*near it: .*{near}'):
        compare_backbones(films, recipe('resnet18'), {'good': 'resnet18', 'wrong': wrong}, home=tmp_path)
    assert not list(tmp_path.iterdir()), 'something was trained before the name was looked at'

def test_weights_of_another_architecture_are_refused(tmp_path):
    save_weights(make_model('resnet18', size=64), tmp_path/'r.safetensors')
    with pytest.raises(ModelError, match='does not (fit|fill).*another architecture'):
        load_backbone(make_model('mobilenetv2_050', size=64), tmp_path/'r.safetensors')

def test_a_bundle_whose_weights_are_of_another_architecture_is_refused(tmp_path):
    save_bundle(make_model('mobilenetv2_050', size=64), tmp_path/'a')
    save_weights(make_model('resnet10t', size=64), tmp_path/'a'/'model.safetensors')
    with pytest.raises(ModelError, match='resnet10t|do not belong together'): load_bundle(tmp_path/'a')

def test_weights_in_another_finding_order_are_refused(tmp_path):
    swapped = ['Cardiomegaly', 'Atelectasis', *FINDINGS[2:]]
    assert sorted(swapped) == sorted(FINDINGS)
    save_weights(make_model('mobilenetv2_050', swapped, size=64), tmp_path/'w.safetensors')
    model = make_model('mobilenetv2_050', size=64)
    with pytest.raises(ModelError, match="'Cardiomegaly' there and 'Atelectasis' here"):
        load_weights(model, tmp_path/'w.safetensors')

def test_a_bundle_with_another_finding_order_is_refused(tmp_path):
    save_bundle(make_model('mobilenetv2_050', size=64), tmp_path/'a')
    cfg = json.loads((tmp_path/'a'/'config.json').read_text())
    (tmp_path/'a'/'config.json').write_text(json.dumps(cfg | dict(findings=cfg['findings'][::-1])))
    with pytest.raises(ModelError, match='another order'): load_bundle(tmp_path/'a')

def test_eval_with_weights_of_another_architecture_ends_in_a_line(run, trained, tmp_path):
    save_weights(make_model('resnet10t', size=64), tmp_path/'r.safetensors')
    for cmd in ('cxr-eval', 'cxr-gradcam'):
        said = run(cmd, '--run', trained, '--weights', tmp_path/'r.safetensors', '--out', tmp_path/'out', '--device',
                   'cpu')
        assert said.returncode == 2 and 'resnet10t' in said.stderr and 'Traceback' not in said.stderr

def test_out_of_memory_suggests_a_batch_size(films, cache, tmp_path, monkeypatch):
    def full(*args): raise torch.OutOfMemoryError('CUDA out of memory')
    monkeypatch.setattr(training, '_train_net', full)
    with pytest.raises(TrainError, match='resnet18: out of memory with 16 images of 64x64 a batch; try batches of 8'):
        compare_backbones(films, recipe('resnet18'), {'r': 'resnet18'}, home=tmp_path, cache=cache/'64', device='cpu',
                          progress=False)

def test_a_killed_comparison_goes_on(films, cache, tmp_path, monkeypatch):
    archs, real = {'one': 'mobilenetv2_050', 'two': 'mobilenetv3_small_050'}, backbones.train
    def killed(data, recipe, *args, **kwargs):
        if recipe.arch == archs['two']: raise KeyboardInterrupt
        return real(data, recipe, *args, **kwargs)
    monkeypatch.setattr(backbones, 'train', killed)
    kwargs = dict(home=tmp_path, cache=cache/'64', device='cpu', progress=False)
    with pytest.raises(KeyboardInterrupt): compare_backbones(films, recipe('resnet18'), archs, **kwargs)
    written = (tmp_path/'one-0'/'history.csv').stat().st_mtime_ns
    monkeypatch.setattr(backbones, 'train', real)
    runs = compare_backbones(films, recipe('resnet18'), archs, **kwargs)
    assert runs.network.tolist() == ['one', 'two'] and (tmp_path/'one-0'/'history.csv').stat().st_mtime_ns == written

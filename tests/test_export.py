"""Networks of three kinds leave as ONNX and give the same; a configuration from a stranger builds nothing that it
should not."""
import hashlib, json, subprocess, sys

import numpy as np, pytest, torch
from cxr_nb.deploy.export import ExportError, export_onnx, from_pretrained, load_onnx
from cxr_nb.models.weights import ModelError, read_weights
from cxr_nb.models.bundle import bounded, load_bundle, save_bundle
from cxr_nb.models.nets import make_model
from cxr_nb.deploy.predict import Classifier, load_classifier, probabilities_of

KINDS = {'resnet10t': dict(layers=(1, 1, 1, 0), channels=(8, 8, 16, 16)), 'vit_tiny_patch16_224': dict(depth=3),
         'densenet121': dict(block_config=(2, 2, 2, 2))}

@pytest.mark.parametrize('arch', KINDS)
def test_onnx_gives_what_pytorch_gives(arch, tmp_path):
    net = make_model(arch, size=64, prevalence=np.full(14, .2), **KINDS[arch])
    torch.nn.init.normal_(net.head[-1].weight, std=.2) # probabilities that differ between films
    run = save_bundle(net, tmp_path/'run', model_kwargs=KINDS[arch])
    done = export_onnx(run, tmp_path/'model.onnx')
    films = np.random.default_rng(1).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    p = probabilities_of(load_classifier(run), films)
    assert done.difference < 1e-4 and np.abs(load_onnx(done.path).probabilities_of(films) -
                                             p).max() < 1e-4 and p.std(0).max() > 1e-3
    assert b'/torch/' not in done.path.read_bytes() and str(tmp_path).encode() not in done.path.read_bytes()

def test_a_pickle_is_never_run(tmp_path):
    "Nor when it is named as the weights of a bundle, nor when weights are given by name"
    import os, pickle
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'was_run'),)
    save_bundle(make_model('mobilenetv2_050', size=64), tmp_path/'run')
    for name in ('a.pkl', 'a.pth', 'run/model.safetensors'):
        (tmp_path/name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(ModelError): read_weights(tmp_path/name)
    cfg = json.loads((tmp_path/'run'/'config.json').read_text())
    sha = hashlib.sha256((tmp_path/'run'/'model.safetensors').read_bytes()).hexdigest()
    (tmp_path/'run'/'config.json').write_text(json.dumps(cfg | dict(weights_sha256=sha)))
    with pytest.raises(ModelError, match='not a file of plain tensors'): load_bundle(tmp_path/'run')
    del cfg['weights_sha256']
    (tmp_path/'run'/'config.json').write_text(json.dumps(cfg))
    with pytest.raises(ModelError, match='names no fingerprint'): load_bundle(tmp_path/'run')
    assert not (tmp_path/'was_run').exists()

HOSTILE = [dict(arch='vit_7b_patch16_dinov3'), dict(arch='eva02_enormous_patch14_clip_224'),
           dict(model_kwargs=dict(depth=10_000)), dict(model_kwargs=dict(embed_dim=9_999, depth=9_999)),
           dict(size=2048, model_kwargs=dict(patch_size=1)),
           dict(model_kwargs=dict(size=3)), dict(model_kwargs=dict(dropout='much')),
           dict(model_kwargs=dict(pretrained=True)),
           dict(model_kwargs=dict(pretrained_cfg=dict(url='http://localhost/x.pth'))),
           dict(model_kwargs=dict(checkpoint_path='/etc/passwd')), dict(model_kwargs=dict(norm_layer='os.system')),
           dict(model_kwargs=[1]), dict(size=True), dict(size=1e3), dict(findings=[]), dict(findings='Mass'),
           dict(arch=['a']), dict(arch={})]

@pytest.mark.parametrize('change', HOSTILE, ids=lambda o: json.dumps(o)[:50])
def test_a_hostile_configuration_is_refused_in_little_memory(change, tmp_path, env):
    save_bundle(make_model('vit_tiny_patch16_224', size=64, depth=1), tmp_path, model_kwargs=dict(depth=1))
    cfg = json.loads((tmp_path/'config.json').read_text())
    older = {k: v for k, v in cfg.items() if k not in ('net', 'format')} | change
    net = cfg['net'] | {k.replace('model_kwargs', 'kwargs'): v for k, v in change.items()}
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for said in (older, cfg | change, cfg | change | dict(net=net)):
        (tmp_path/'config.json').write_text(json.dumps(said))
        with pytest.raises(ModelError): load_bundle(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, 'more than 1 GB'

def test_networks_can_still_be_built_beside_and_after_a_refused_one(tmp_path):
    "The limit is gone with the call, and is none for others"
    run = save_bundle(make_model('mobilenetv2_050', size=64), tmp_path)
    with pytest.raises(ModelError, match='larger than its weights'):
        bounded(lambda: make_model('resnet50', size=64), run/'model.safetensors')
    make_model('resnet50', size=64)

def test_an_onnx_file_that_says_something_else_is_refused(tmp_path):
    import onnx
    net = make_model('resnet10t', size=64, layers=(1, 1, 1, 0), channels=(8, 8, 16, 16))
    path = export_onnx(Classifier(net, {}, torch.device('cpu')), tmp_path/'m.onnx').path
    assert load_onnx(path).thresholds is None
    for change, why in ((dict(findings='["Mass"]'), 'takes and gives'), (dict(size='96'), 'takes and gives'),
                        (dict(size='1e9'), 'size is'), (dict(findings='[['), 'cannot be read'),
                        (dict(arch='x'), 'no timm model'), (dict(thresholds='{"Mass": 1}'), 'one number a finding')):
        m = onnx.load(path)
        for o in list(m.metadata_props):
            if o.key in change: m.metadata_props.remove(o)
        for k, v in change.items(): m.metadata_props.add(key=k, value=v)
        onnx.save(m, tmp_path/'bad.onnx')
        with pytest.raises(ExportError, match=why): load_onnx(tmp_path/'bad.onnx')

@pytest.mark.parametrize('kind', ['fusion', 'vit'])
def test_other_kinds_of_networks_are_named(kind, tmp_path):
    "Those of version 0.1.0: the message says how they are made ones of today"
    run = save_bundle(make_model('test_efficientnet', size=64), tmp_path/'run', **{kind: dict(width=8)})
    for open_it in (from_pretrained, lambda run: export_onnx(run, tmp_path/'m.onnx')):
        with pytest.raises(ModelError, match='older version; cxr-check --convert'): open_it(run)

def test_command(run, trained, tmp_path):
    said = run('cxr-export', '--run', trained, '--out', tmp_path/'model.onnx')
    assert said.returncode == 0 and 'largest difference' in said.stdout and 'MB' in said.stdout, said.stderr
    assert load_onnx(tmp_path/'model.onnx').size == 64
    for args, why in (([], '--run'), (['--run', trained], '--out'),
                      (['--run', trained, '--push', 'chest'], 'OWNER/NAME')):
        said = run('cxr-export', *args)
        assert said.returncode == 2 and why in said.stderr and 'Traceback' not in said.stderr

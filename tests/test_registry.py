"""Every entry of the registry: builds, takes a file of its own layout, says the same as its makers' network, learns
and explains; a wrong file is refused."""
import re
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

import numpy as np, pandas as pd, pytest, timm, torch
from safetensors.torch import save_file
from cxr_nb.core import read_json
from cxr_nb.data.augment import normalise
from cxr_nb.data.sources import load_nih
from cxr_nb.data.phantom.anatomy import phantom_body
from cxr_nb.data.phantom.findings import phantom_image
from cxr_nb.deploy.predict import Classifier, predict_files
from cxr_nb.explain.cam import grad_cam, gradcam
from cxr_nb.labels import FINDINGS
from cxr_nb.models import published
from cxr_nb.models.nets import ChestModel, Net, make_model
from cxr_nb.models.peers import load_published
from cxr_nb.models.published import check_start, load_start, net_options
from cxr_nb.models.registry import PACKAGE, entries, start_sentence
from cxr_nb.models.weights import ModelError, timm_network
from cxr_nb.report.card import write_model_card
from cxr_nb.report.html import write_report
from cxr_nb.training.folder import plain_recipe, start_weights
from cxr_nb.training.engine import run_stage
from cxr_nb.training.recipe import STAGED
from cxr_nb.training.recipes import single, staged
from cxr_nb.training.run import save_run, start_run

NAMED = [o for o in entries().values() if o.arch and o.source != PACKAGE]
WHOLE = ['eva-x-tiny', 'eva-x-base', 'eva-x-small-chexpert', 'rad-dino', 'biomedclip', 'xrv-densenet121-chex',
         'xrv-resnet50-all', 'dinov3-convnext-tiny', 'dinov3-vit-small']
LIKE = {'eva-x-small': 'eva-x-tiny', 'eva-x-tiny-chexpert': 'eva-x-small-chexpert',
        'eva-x-tiny-nih': 'eva-x-small-chexpert', 'eva-x-small-nih': 'eva-x-small-chexpert',
        'eva-x-base-nih': 'eva-x-base', 'rad-dino-maira-2': 'rad-dino', 'dinov3-convnext-small': 'dinov3-convnext-tiny',
        'dinov3-convnext-base': 'dinov3-convnext-tiny',
        **{f'xrv-densenet121-{o}': 'xrv-densenet121-chex'
           for o in ('all', 'nih', 'pc', 'mimic_nb',
                     'mimic_ch')}} # the same network, or a wider or deeper one of its kind
# Of the file and of the network: timm resamples the positions of the patches
SIZES = {'eva-x-tiny': (224, 448), 'rad-dino': (518, 224)}
GRIDS = {'eva-x-tiny': 28, 'rad-dino': 16}
SMALLEST = dict(eva02_tiny_patch14_224=32, eva02_small_patch14_224=32, eva02_base_patch14_224=32,
                vit_base_patch14_dinov2=28, vit_base_patch16_224=32, vit_small_patch16_dinov3=32)
NARROW = { # One of each family as a real file: the blocks left out are like those that stay
    'eva-x-tiny': dict(depth=3), 'eva-x-base': dict(embed_dim=48, depth=2, num_heads=2),
          'rad-dino': dict(embed_dim=48, depth=2, num_heads=2),
    'biomedclip': dict(embed_dim=48, depth=2, num_heads=2), 'xrv-densenet121-chex': {},
          'xrv-resnet50-all': dict(layers=[1, 1, 1, 1]),
    'dinov3-convnext-tiny': dict(depths=[1, 1, 1, 1], dims=[8, 16, 24, 32]),
          'dinov3-vit-small': dict(embed_dim=48, depth=2, num_heads=2)}

def their_network(entry, size, **kwargs):
    "The network as its makers have it: three channels, or one, and a last layer for a classifier"
    channels = 1 if entry.layout == 'torchxrayvision' else 3
    options = dict(in_chans=channels, num_classes=len(entry.findings), **(entry.kwargs | kwargs))
    try: return timm.create_model(entry.arch, img_size=size, **options)
    except TypeError: return timm.create_model(entry.arch, **options)

EVA = {'.mlp.fc1_g.': '.mlp.w1.', '.mlp.fc1_x.': '.mlp.w2.', '.mlp.fc1.': '.mlp.w12.', '.mlp.fc2.': '.mlp.w3.',
       '.mlp.norm.': '.mlp.ffn_ln.',
       '.attn.norm.': '.attn.inner_attn_ln.', '.q_proj.bias': '.q_bias', '.v_proj.bias': '.v_bias'}

def own_layout(entry, tensors):
    "Tensors under the names that their makers gave them"
    if entry.layout == 'open_clip':
        return {f'visual.trunk.{k}': v for k, v in tensors.items()} | {'text.any': torch.zeros(1)}
    if entry.layout == 'transformers': return as_transformers(tensors)
    if entry.layout != 'eva': return dict(tensors)
    out = {'rope.freqs_cos': torch.zeros(4, 2)}
    for name, tensor in tensors.items():
        for ours, theirs in EVA.items(): name = name.replace(ours, theirs)
        out[name if entry.findings else name.replace('fc_norm.', 'norm.')] = tensor
    width = tensors['cls_token'].shape[-1]
    return out if entry.findings else out | {'mask_token': torch.zeros(1, 1, width),
                                             'lm_head.weight': torch.zeros(7, width), 'lm_head.bias': torch.zeros(7)}

TRANSFORMERS = {'patch_embed.proj': 'embeddings.patch_embeddings.projection',
                'pos_embed': 'embeddings.position_embeddings', 'cls_token': 'embeddings.cls_token',
                'blocks.': 'encoder.layer.', '.attn.proj.': '.attention.output.dense.',
                '.ls1.gamma': '.layer_scale1.lambda1', '.ls2.gamma': '.layer_scale2.lambda1'}

def as_transformers(tensors):
    "DINOv2 of timm as the package transformers writes it"
    out = {'embeddings.mask_token': torch.zeros(1, tensors['cls_token'].shape[-1])}
    for name, tensor in tensors.items():
        for ours, theirs in TRANSFORMERS.items(): name = name.replace(ours, theirs)
        name = re.sub(r'^norm\.', 'layernorm.', name)
        parts = zip(('query', 'key', 'value'), tensor.chunk(3)) if '.attn.qkv.' in name else [('', tensor)]
        for part, value in parts: out[name.replace('attn.qkv', f'attention.attention.{part}')] = value
    return out

def written(entry, tensors, folder):
    "A file as its makers write theirs"
    if entry.layout == 'eva':
        torch.save(dict(model=tensors, optimizer=dict(state={}), args=Namespace(lr=.1), epoch='best'),
                   folder/entry.file)
        return folder/entry.file
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder/'model.safetensors')
    return folder/'model.safetensors'

def net_for(entry, findings=('Mass', 'Edema'), size=None, **kwargs):
    "The network of an entry"
    needed = net_options(entry)
    neck = 'token' if entry.layout in ('transformers', 'open_clip') else 'pool'
    return Net(findings=findings, size=size or SMALLEST.get(entry.arch, 64), neck=neck,
               **needed | dict(kwargs=needed['kwargs'] | kwargs))

@pytest.mark.parametrize('name', WHOLE)
def test_fits_a_file_of_its_own_layout(name):
    """At full width, without memory: every name and every shape of the network is filled, and so is that of the last
    layer"""
    entry = entries()[name]
    of_file, size = SIZES.get(name, (SMALLEST.get(entry.arch, 64),)*2)
    with torch.device('meta'):
        theirs = own_layout(entry, their_network(entry, of_file).state_dict())
        with patch.object(published, 'read_weights',
                          return_value=theirs), patch('cxr_nb.models.weights.read_weights', return_value=theirs):
            model = load_published(f'{entry.name}=meta.pt', size=size) if entry.findings else load_start(
                ChestModel(net_for(entry, size=size)), f'{entry.name}=meta.pt')
    assert sum(o.numel() for o in model.backbone.parameters()) > 5e6
    if entry.findings: assert model.findings == [o for o in FINDINGS if o in entry.findings]
    if name in GRIDS:
        assert model.backbone.pos_embed.shape[1] == GRIDS[name]**2 + 1
        assert model.backbone.patch_embed.proj.weight.shape[1] == 1

def test_the_others_are_like_one_of_these():
    """Their networks build, with tensors of the same names, so what holds of one file holds of the other; and what
    the table says makes sense"""
    assert {*WHOLE, *LIKE} == {o.name for o in NAMED}
    names = {}
    for entry in NAMED:
        one = entries()[LIKE.get(entry.name, entry.name)]
        with torch.device('meta'):
            for arch in {entry.arch, one.arch} - set(names):
                names[arch] = {re.sub(r'blocks\.\d+', 'blocks', o)
                               for o in timm_network(arch, 224, **entry.kwargs).state_dict()}
        assert names[entry.arch] == names[one.arch]
        assert {**net_options(entry), 'arch': ''} == {**net_options(one), 'arch': ''}
        assert (entry.layout, entry.mean, entry.std) == (one.layout, one.mean, one.std)
        assert len(entry.mean) == len(entry.std) in (1, 3) and entry.url.startswith('https://')
        assert entry.pixels % 14 in (0, 4, 8) and entry.licence and entry.note

@pytest.mark.parametrize('name', NARROW)
def test_says_the_same_learns_and_explains(name, tmp_path):
    "A gray image, as its makers normalise it and through our one channel; then a step, and a heatmap"
    entry, size = entries()[name], 2*SMALLEST.get(entries()[name].arch, 32)
    torch.manual_seed(0)
    theirs = with_statistics(their_network(entry, size, **NARROW[name])).eval()
    file = written(entry, own_layout(entry, theirs.state_dict()), tmp_path)
    model = make_model(net_for(entry, size=size, **NARROW[name]), weights=f'{name}={file}', prevalence=[.5, .5])
    gray = torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(o).view(1, -1, 1, 1) for o in (entry.mean, entry.std))
    with torch.no_grad():
        wanted = theirs.forward_head(
            theirs.forward_features((gray/255 -
                                     mean).expand(-1, 1 if entry.layout == 'torchxrayvision' else 3, -1, -1)/std),
            pre_logits=True)
        ours = model.features(normalise(gray))
    assert (ours - wanted).abs().max() < 1e-3*wanted.abs().max()
    learns(model, gray)
    maps = gradcam(model, normalise(gray))
    assert maps.shape == (2, 2, size, size) and np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1

def with_statistics(network):
    "Norms such as a trained network has"
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d): 
            module.running_mean.normal_(0, .1)
            for values in (module.running_var, module.weight.data): values.uniform_(.5, 2)
    return network

def learns(model, gray):
    "A small step makes the loss smaller, and every layer has a part in it"
    x, y = normalise(gray), torch.tensor([[1., 0], [0, 1]])
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=1.), torch.nn.BCEWithLogitsLoss()
    first = loss(model(x), y)
    first.backward()
    assert all(o.grad.abs().max() > 0 for k, o in model.named_parameters() if o.ndim > 1), 'a layer does not learn'
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    with torch.no_grad(): assert loss(model(x), y) < first

def test_the_weights_of_the_package_need_no_network_and_know_something(phantom, tmp_path, monkeypatch):
    """They lie in the package, fill every tensor, learn, and tell findings of drawn images apart better than random
    weights do, through a linear head alone"""
    entry = entries()['phantom']
    monkeypatch.setattr('socket.create_connection', lambda *args, **kwargs: pytest.fail('asked for a network'))
    model = make_model(net_for(entry), weights='phantom', prevalence=[.5, .5])
    learns(model, torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8))
    scores = {}
    for weights in ('phantom', 'none'):
        recipe = staged(weights=weights, size=64, arch=entry.arch, kwargs=entry.kwargs, stages=STAGED[:1])
        run = start_run(load_nih(phantom), recipe, tmp_path/weights, cache=tmp_path/'cache', device='cpu',
                        progress=False)
        run_stage(run, recipe.stages[0])
        scores[weights] = max(o['auroc'] for o in run.history)
    assert scores['phantom'] > scores['none'] + .05
    assert 'drawn images alone' in start_sentence('phantom')

@pytest.fixture(scope='module')
def eva_file(tmp_path_factory):
    "EVA-X tiny trained on CheXpert, with random weights; the file and the network"
    torch.manual_seed(1)
    entry = entries()['eva-x-tiny-chexpert']
    theirs = their_network(entry, 64).eval()
    torch.nn.init.normal_(theirs.head.weight)
    return written(entry, own_layout(entry, theirs.state_dict()), tmp_path_factory.mktemp('eva')), theirs

def test_a_published_classifier_predicts_and_explains_like_ones_own(eva_file, tmp_path):
    """Recognised by the name of its file; five findings in our order; a file on disk through the gate; a heatmap;
    a bundle from the shell's function"""
    file, theirs = eva_file
    model, entry = load_published(file, size=64), entries()['eva-x-tiny-chexpert']
    assert model.findings == ['Atelectasis', 'Cardiomegaly', 'Effusion', 'Consolidation', 'Edema']
    gray = torch.randint(0, 256, (1, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        ours, wanted = model(normalise(gray)), theirs((gray/255 - entry.mean[0]).expand(-1, 3, -1, -1)/entry.std[0])
    assert torch.allclose(ours, wanted[:, [entry.findings.index(o) for o in model.findings]], atol=1e-4)
    pixels = phantom_image(phantom_body(seed=0))
    from PIL import Image
    Image.fromarray(np.asarray(pixels if isinstance(pixels, np.ndarray) else pixels[0])).save(tmp_path/'a.png')
    clf = Classifier(model, {}, torch.device('cpu'))
    rows = predict_files(clf, tmp_path/'a.png')
    assert rows.filter(like='prob_').notna().all(axis=None) and len(rows.filter(like='prob_').columns) == 5
    assert grad_cam(clf, tmp_path/'a.png', 'Edema').shape == (64, 64)

def test_only_the_one_class_is_allowed(eva_file, tmp_path):
    "Options of a training are let through; a path beside them is not, and the line names its class"
    entry, tensors = entries()['eva-x-tiny'], torch.load(eva_file[0], weights_only=False)['model']
    torch.save(dict(model=tensors, args=Namespace(folder=Path('/'))), tmp_path/'more.pt')
    with pytest.raises(ModelError, match='refused .*it holds a pathlib'):
        load_published(f'eva-x-tiny-chexpert={tmp_path/"more.pt"}', size=64)

def test_a_wrong_file_is_refused_with_the_names_that_do_not_fit(eva_file, tmp_path):
    "A file of another network, half a file, and another recipe's network"
    file = eva_file[0]
    tensors = torch.load(file, weights_only=False)['model']
    torch.save(tensors, tmp_path/'eva.pt')
    with pytest.raises(ModelError, match=r'does not fill 604 of .*\(features.conv0.weight, '):
        load_published(f'xrv-densenet121-chex={tmp_path/"eva.pt"}', size=64)
    half = dict(list(tensors.items())[:40])
    torch.save(half, tmp_path/'half.pt')
    with pytest.raises(ModelError, match='does not fi.*blocks'):
        make_model(net_for(entries()['eva-x-tiny']), weights=f'eva-x-tiny={tmp_path/"half.pt"}')
    with pytest.raises(ModelError, match='eva-x-tiny: needs a network with arch eva02_tiny_patch14_224'):
        check_start('eva-x-tiny', Net('resnet18'))

def test_a_run_that_began_with_them_says_so(phantom, eva_file, tmp_path):
    """The network comes with the weights; page and card say what they had seen, and no folder is named. Another
    spelling is the same start."""
    file, data = eva_file[0], load_nih(phantom)
    data.table = data.table.iloc[:40]
    spellings = [f'eva-x-tiny-chexpert={file}', file, 'eva-x-tiny-chexpert']
    recipes = [single(weights=o, size=32, split='random') for o in spellings]
    run = start_run(data, recipes[0], tmp_path/'run', cache=tmp_path/'cache', device='cpu', progress=False)
    save_run(run)
    config = read_json(tmp_path/'run'/'config.json')
    assert [config[o]
            for o in ('arch', 'start_weights')] == ['eva02_tiny_patch14_224',
                                                    'eva-x-tiny-chexpert'] and str(file.parent) not in str(config)
    for recipe in recipes:
        assert plain_recipe(recipe) == plain_recipe(recipes[0]) and start_weights(recipe) == start_weights(recipes[0])
    sentence = 'The run began with the published weights eva-x-tiny-chexpert (licence MIT, arXiv:2405.05237).'
    pd.DataFrame(dict(stage='single', epoch=[1], lr=1e-4, train_loss=.2, valid_loss=.2, auroc=.5, ap=.1,
                      seconds=1.)).to_csv(tmp_path/'run'/'history.csv', index=False)
    for page in (write_report(tmp_path/'run'), write_model_card(tmp_path/'run')):
        assert sentence in page.read_text().replace('\\', '')

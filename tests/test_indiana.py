"""A cross-validation of 35 classes: what it leaves, what it refuses, and the tower of open_clip. That it goes on after
a kill is in test_every_recipe."""
import json

import numpy as np, pandas as pd, pytest

TINY = dict(epochs=4, lr=2e-3, budgets=(1, 2, 4))

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Drawn images of 80 reports, and a folder for their cache"
    from cxr_nb.data.indiana import indiana_phantom, load_indiana
    home = tmp_path_factory.mktemp('indiana')
    return load_indiana(indiana_phantom(home/'images', n_reports=80, size=64)), home/'cache'

@pytest.fixture(scope='module')
def recipe():
    from cxr_nb.training.recipes import make_recipe
    return make_recipe('indiana', fast=True, folds=4, **TINY)

def cross(images, recipe, out, **kwargs):
    from cxr_nb.training.crossval import cross_validate
    return cross_validate(images[0], recipe, out, n_boot=50, cache=images[1], device='cpu', progress=False, say=str,
                          **kwargs)

@pytest.fixture(scope='module')
def whole(images, recipe, tmp_path_factory):
    "A run that nothing interrupted"
    return cross(images, recipe, tmp_path_factory.mktemp('runs')/'whole').path

def test_what_a_run_leaves(whole):
    from cxr_nb.data.indiana import INDIANA
    from cxr_nb.models.bundle import load_bundle
    from cxr_nb.training.crossval import best_epochs, fold_histories
    m, split = json.loads((whole/'metrics.json').read_text()), pd.read_csv(whole/'split.csv', index_col='image').part
    assert set(m['test']['findings']) == set(INDIANA) and m['test']['n'] == (split == 'test').sum()
    absent = [f for f, o in m['test']['findings'].items() if not o['positives']]
    assert absent and all(m['test']['findings'][f]['auroc']['value'] is None for f in absent)
    assert m['test']['macro']['auroc']['n_findings'] == 35 - len(absent)
    oof, val = pd.read_csv(whole/'results'/'tables'/'out_of_fold.csv'), pd.read_csv(whole/'predictions_val.csv')
    assert sorted(oof.image) == sorted(split.index[split != 'test']) and oof.fold.nunique() == 4
    assert set(val.image) == set(split.index[split == 'val']) == set(oof.image[oof.fold == m['sweep']['fold']])
    histories = fold_histories(whole)
    assert len(histories) == 4 and best_epochs(histories[m['sweep']['fold']],
                                               [m['sweep']['budget']]) == {m['sweep']['budget']: m['sweep']['epoch']}
    model, cfg = load_bundle(whole)
    assert model.findings == INDIANA and cfg['chosen'] == m['sweep']
    assert str(whole) not in (whole/'config.json').read_text()

def test_the_tower_has_not_moved_and_the_heads_have(whole):
    "Between two folds, whose networks began alike"
    from safetensors.torch import load_file
    a, b = (load_file(whole/f'fold{k}'/'model.safetensors') for k in (0, 1))
    frozen = [k for k in a if k.startswith('backbone.patch_embed')]
    assert frozen and all(a[k].equal(b[k]) for k in frozen) and not a['head.0.weight'].equal(b['head.0.weight'])

def test_thresholds_do_not_depend_on_the_test_part(whole):
    from cxr_nb.metrics.thresholds import fit_thresholds, load_thresholds
    from cxr_nb.training.judging import align
    a, t = align(None, pd.read_csv(whole/'predictions_val.csv')), load_thresholds(whole/'thresholds.json')
    assert np.allclose(t.threshold, fit_thresholds(a.y, a.p, a.findings).threshold, equal_nan=True)
    assert (t.threshold.isna() == (a.y.sum(0) == 0)).all()

def test_other_choices_are_refused_in_the_same_folder(images, recipe, whole):
    from cxr_nb.core import CxrError
    from cxr_nb.training.recipe import change
    with pytest.raises(CxrError, match='recipe.budgets'):
        cross(images, change(recipe, budgets=(3,)), whole, resume=True)
    with pytest.raises(CxrError, match='holds a finished run'): cross(images, recipe, whole)

def test_the_published_head_has_404_515_parameters():
    from cxr_nb.models.nets import ChestModel, count_parameters
    from cxr_nb.training.recipes import indiana
    import torch
    with torch.device('meta'): net = ChestModel(indiana().net)
    assert count_parameters(net)['head'] == 404_515

def test_the_tower_of_open_clip(tmp_path, monkeypatch):
    """What open_clip itself says of an image in three channels, from a checkpoint that it has written and fetches
    as from the hub"""
    open_clip = pytest.importorskip('open_clip')
    import torch
    from huggingface_hub.errors import LocalEntryNotFoundError
    from cxr_nb.data.augment import normalise
    from cxr_nb.models.nets import Net, make_model
    from cxr_nb.models.weights import CLIP_MEAN, CLIP_STD
    vision = dict(image_size=224, timm_model_name='vit_tiny_patch16_224', timm_model_pretrained=False, timm_pool='',
                  timm_proj='linear')
    cfg = dict(embed_dim=512, vision_cfg=vision,
               text_cfg=dict(context_length=8, vocab_size=64, width=32, heads=2, layers=1))
    (tmp_path/'tiny_chest.json').write_text(json.dumps(cfg))
    open_clip.add_model_config(tmp_path/'tiny_chest.json')
    torch.manual_seed(0)
    theirs = open_clip.create_model('tiny_chest').eval()
    (tmp_path/'hub').mkdir()
    torch.save(theirs.state_dict(), tmp_path/'hub'/'open_clip_pytorch_model.bin')
    (tmp_path/'hub'/'open_clip_config.json').write_text(
        json.dumps(dict(model_cfg=cfg, preprocess_cfg=dict(mean=CLIP_MEAN, std=CLIP_STD))))
    asked = []
    def hub(repo_id, filename):
        "What huggingface_hub does, for a page with these two files"
        asked.append((repo_id, filename))
        if not (tmp_path/'hub'/filename).is_file(): raise LocalEntryNotFoundError(filename)
        return str(tmp_path/'hub'/filename)
    monkeypatch.setattr('cxr_nb.models.weights.hf_hub_download', hub)
    ours = make_model(Net('vit_tiny_patch16_224', ('a',), neck='token', width=512), weights='hf-hub:some/page')
    assert {o for o, _ in asked} == {'some/page'} and asked[-1][1] == 'open_clip_pytorch_model.bin'
    image = torch.randint(0, 256, (2, 1, 224, 224), dtype=torch.uint8)
    m, s = (torch.tensor(o).view(1, 3, 1, 1) for o in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad(): a, b = ours.features(normalise(image)), theirs.encode_image((image/255 - m)/s)
    assert a.shape == (2, 512) and torch.allclose(a, b, atol=1e-3*float(b.abs().max()))

"Two runs of one split become one classifier, and every command that takes a run takes it."
import json, shutil
from types import SimpleNamespace

import numpy as np, pytest, torch
from filelock import FileLock

TINY = dict(arch='resnet10t', size=64, kwargs=dict(layers=[1, 1, 1, 0], channels=[8, 8, 16, 16]), weights='none',
            precision='float32', findings=('Cardiomegaly', 'Effusion', 'Infiltration', 'Mass'))

def trained_run(phantom, path, **options):
    "A run of a tiny network for one epoch"
    from cxr_nb.data.sources import load_data
    from cxr_nb.training.engine import train
    from cxr_nb.training.recipe import Recipe, Stage, change
    stages = [Stage('whole', 1, 3e-3, bs=16, bn='train')]
    return train(load_data(phantom), change(Recipe(), stages=stages, **TINY | options), path, cache=path.parent/'cache',
                 device='cpu', progress=False)

@pytest.fixture(scope='session')
def made(run, phantom, shared):
    "Two runs, their ensemble, and what the command said"
    home = shared/'ensemble'
    with FileLock(shared/'ensemble.lock'):
        if not (home/'said.json').is_file():
            for seed in range(2): trained_run(phantom, home/f'seed{seed}', seed=seed, split_seed=0)
            said = run('cxr-ensemble', home/'seed0', home/'seed1', '--out', home/'both', '--device', 'cpu')
            assert said.returncode == 0, said.stderr
            (home/'said.json').write_text(json.dumps(said.stdout))
    return SimpleNamespace(home=home, both=home/'both', members=[home/'seed0', home/'seed1'],
                           said=json.loads((home/'said.json').read_text()))

def test_it_is_the_mean_and_judged_as_every_run(made):
    from cxr_nb.metrics.predictions import align
    for part in ('val', 'test'):
        of_member = [align(None, o/f'predictions_{part}.csv') for o in made.members]
        mean = align(None, made.both/f'predictions_{part}.csv')
        assert mean.images == of_member[0].images and (mean.y == of_member[1].y).all()
        np.testing.assert_allclose(mean.p, (of_member[0].p + of_member[1].p)/2, atol=1e-6)
    metrics, own = (json.loads((o/'metrics.json').read_text()) for o in (made.both, made.members[0]))
    # heatmaps were made and scored
    assert set(metrics) == {*own, 'members', 'localisation'} and set(metrics['test']) == set(own['test'])
    assert [o['run'] for o in metrics['members']] == ['seed0', 'seed1']
    for record, path in zip(metrics['members'], made.members):
        alone = json.loads((path/'metrics.json').read_text())['test']['macro']
        for score in ('auroc', 'ap'):
            assert record[score]['value'] == pytest.approx(alone[score]['value'])
            assert record[f'{score}_gain']['value'] == pytest.approx(
                metrics['test']['macro'][score]['value'] - alone[score]['value'])
        assert f'{record["run"]}: macro AUROC {record["auroc"]["value"]:.3f}; the ensemble less it' in made.said

def test_thresholds_are_fitted_on_the_averaged_validation_predictions(made):
    from cxr_nb.metrics.predictions import align
    from cxr_nb.metrics.thresholds import fit_thresholds
    val = align(None, made.both/'predictions_val.csv')
    written = json.loads((made.both/'thresholds.json').read_text())['findings']
    for finding, value in fit_thresholds(val.y, val.p, val.findings).threshold.items():
        assert written[finding]['threshold'] == pytest.approx(value, nan_ok=True)

def test_bundle_card_and_report_say_what_it_is_made_of(made):
    config = json.loads((made.both/'config.json').read_text())
    own = [json.loads((o/'config.json').read_text()) for o in made.members]
    assert [o['weights_sha256'] for o in config['members']] == [o['weights_sha256'] for o in own]
    assert [o['recipe']
            for o in config['members']] == [o['recipe'] for o in own] and not {'recipe', 'net', 'seed'} & set(config)
    for file in ('MODEL_CARD.md', 'report.html'):
        text = (made.both/file).read_text()
        for o in own: assert o['weights_sha256'][:12] in text, file
        assert 'ensemble of 2 resnet10t' in text, file
        assert 'No history' not in text and 'One network, no ensemble' not in text, file

def test_it_predicts_and_explains_a_png(made, phantom):
    from cxr_nb.deploy.app import answer
    from cxr_nb.data.gate import judge_file
    from cxr_nb.deploy.predict import load_classifier, predict_files
    png = sorted(phantom.rglob('*.png'))[0]
    both, *members = (load_classifier(o) for o in (made.both, *made.members))
    mean = np.mean([o(png) for o in members], axis=0)
    np.testing.assert_allclose(both(png), mean, atol=1e-6)
    columns = [f'prob_{o}' for o in both.findings]
    np.testing.assert_allclose(predict_files(both, [png], force=True)[columns].to_numpy()[0], mean, atol=1e-6)
    got = judge_file(png)
    said = answer(both, got.pixels, got.verdict)
    assert said.cams.shape == (len(both.findings), 64, 64) and said.cams.max() == 255

@pytest.mark.parametrize('args', [['cxr-eval'], ['cxr-check', '--quick']], ids=lambda o: o[0])
def test_commands_take_it(run, made, tmp_path, args):
    path = shutil.copytree(made.both, tmp_path/'both')
    before = json.loads((path/'metrics.json').read_text())
    said = run(args[0], '--run', path, *args[1:])
    assert said.returncode == 0 and 'Traceback' not in said.stderr, said.stdout + said.stderr
    after = json.loads((path/'metrics.json').read_text())
    assert after['members'] == before['members']
    wanted = pytest.approx(before['test']['macro']['auroc'], abs=1e-6)
    assert after['test']['macro']['auroc'] == wanted

def test_members_of_other_kinds_sizes_and_orders(tmp_path):
    "One bundle, one graph, one map: of two architectures, at two sizes, with the findings in another order"
    from cxr_nb.deploy.export import export_onnx, load_onnx
    from cxr_nb.explain.cam import gradcam
    from cxr_nb.models.bundle import load_bundle, save_bundle
    from cxr_nb.models.ensemble import ensemble_of
    from cxr_nb.models.nets import make_model
    small = make_model('vit_tiny_patch16_224', ['Mass', 'Nodule'], 64, seed=1, depth=1)
    large = make_model('resnet10t', ['Nodule', 'Mass'], 96, **TINY['kwargs'])
    for o in (small, large): torch.nn.init.normal_(o.head[-1].weight, std=.3)
    both, _ = load_bundle(save_bundle(ensemble_of([small, large], [dict(seed=1), dict(seed=0)]), tmp_path/'both'))
    x = torch.randn(2, 1, 96, 96, generator=torch.manual_seed(0))
    with torch.no_grad(): mean = (small(both.resized(x, small)).sigmoid() + large(x).sigmoid()[:, [1, 0]])/2
    torch.testing.assert_close(both(x).sigmoid().detach(), mean, atol=1e-6, rtol=0)
    assert export_onnx(tmp_path/'both', tmp_path/'both.onnx').difference < 1e-4
    assert [o['seed'] for o in load_onnx(tmp_path/'both.onnx').config['members']] == [1, 0]
    assert gradcam(both, x, 'Nodule').shape == (2, 1, 96, 96)

def changed(path, to, **config):
    "A copy of a run whose config.json says something else"
    shutil.copytree(path, to)
    (to/'config.json').write_text(json.dumps(json.loads((to/'config.json').read_text()) | config))
    return to

def test_what_cannot_be_averaged_is_refused(run, made, tmp_path):
    from cxr_nb.core import CxrError
    from cxr_nb.training.ensembling import make_ensemble
    first, second = made.members
    own = json.loads((second/'config.json').read_text())
    (tmp_path/'nothing').mkdir()
    findings = [*own['findings'][:3], 'Nodule']
    other = changed(second, tmp_path/'other_findings', thresholds=None, findings=findings,
                    net=own['net'] | dict(findings=findings))
    fold = own['recipe'] | dict(split=own['recipe']['split'] | dict(kind='folds'))
    unfinished = changed(second, tmp_path/'unfinished', stages_done=[])
    cases = {'two runs or more': [first], 'no config.json there': [first, tmp_path/'nothing'],
             'Mass, Nodule is known to only one': [first, other],
             'of different splits': [first, changed(second, tmp_path/'other_split', split='abc')],
             'folds of a cross-validation never': [first, changed(second, tmp_path/'fold', split='abc', recipe=fold)],
             'other labels': [first, changed(second, tmp_path/'other_labels', labels='abc')],
             'go on with it by cxr-train --resume': [first, unfinished],
             'hold the same weights': [first, second, first], 'is an ensemble itself': [made.both, first]}
    for why, runs in cases.items():
        with pytest.raises(CxrError, match=why): make_ensemble(runs, tmp_path/'new', device='cpu', progress=False)
    assert not (tmp_path/'new'/'config.json').exists()
    said = run('cxr-ensemble', *cases['of different splits'], '--out', tmp_path/'new')
    assert said.returncode == 2 and len(said.stderr.splitlines()) == 1 and '--split-seed 0' in said.stderr, said.stderr

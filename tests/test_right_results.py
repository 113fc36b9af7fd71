"No figure may be silently wrong: each test is named after what it protects."
import json, re, subprocess, sys, time
from dataclasses import FrozenInstanceError, replace

import numpy as np, pandas as pd, pytest, torch

@pytest.fixture(scope='module')
def films(phantom):
    from cxr_nb.data import load_nih
    return load_nih(phantom)

@pytest.fixture(scope='module')
def tiny():
    from cxr_nb.recipe import Recipe, Stage
    stages = [Stage('head', 1, 1e-3, freeze=True, repeats=1, bs=16), Stage('whole', 1, 1e-3, bs=16), Stage('slow', 1, 1e-4, bs=16)]
    return Recipe(arch='test_resnet', size=32, weights='none', precision='float32', stages=stages)

def begun(films, tiny, path, tmp_path_factory, **kwargs):
    from cxr_nb.training import start_run
    return start_run(films, tiny, path, cache=tmp_path_factory.getbasetemp()/'cache32', device='cpu', progress=False, say=str, **kwargs)

def test_lower_precision_ends_with_a_step_that_fails(films, tiny, tmp_path, tmp_path_factory):
    "What follows an error in the forward pass must not be computed in bfloat16"
    from cxr_nb.training import Mixed, net_learner
    run = begun(films, tiny, tmp_path/'run', tmp_path_factory)
    learn = net_learner(run, tiny.stages[1], [Mixed('bfloat16')])
    def full(x): raise torch.OutOfMemoryError('out of memory')
    learn.model.backbone.forward = full
    with pytest.raises(torch.OutOfMemoryError), learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-3)
    assert not torch.is_autocast_enabled('cpu') and (torch.eye(2) @ torch.eye(2)).dtype == torch.float32

def test_a_stage_draws_other_films_than_the_one_before(films, tiny, tmp_path, tmp_path_factory, monkeypatch):
    from cxr_nb.loaders import Batches
    from cxr_nb.training import run_stage
    run, drawn, gather = begun(films, tiny, tmp_path/'run', tmp_path_factory), [], Batches._gather
    monkeypatch.setattr(Batches, '_gather', lambda self, idx: (self.train and drawn[-1].append(idx.tolist()), gather(self, idx))[1])
    for s in tiny.stages:
        drawn.append([])
        run_stage(run, s)
    assert drawn[1] and drawn[2] and drawn[1] != drawn[2]

def test_weights_of_which_a_few_tensors_fit_are_refused_by_name(tmp_path):
    import timm
    from cxr_nb.models import ModelError, make_model
    whole = timm.create_model('test_resnet', num_classes=1000).state_dict()
    torch.save(dict(list(whole.items())[:20]), tmp_path/'few.pth')
    with pytest.raises(ModelError, match=r'does not fill \d+ of the \d+ tensors of test_resnet \(\w+'): make_model('test_resnet', size=32, weights=tmp_path/'few.pth')
    torch.save({k: v for k, v in whole.items() if not k.startswith('fc.')}, tmp_path/'all.pth')
    make_model('test_resnet', size=32, weights=tmp_path/'all.pth')

def test_a_run_of_another_recipe_is_not_handed_out(films, tiny, tmp_path, tmp_path_factory, monkeypatch):
    from cxr_nb.training import TrainError, series_run
    monkeypatch.setenv('CXR_CACHE', str(tmp_path_factory.getbasetemp()/'series'))
    mine = replace(tiny, stages=tiny.stages[:1])
    run = series_run(films, tmp_path, mine, progress=False)
    assert series_run(films, tmp_path, mine, progress=False).history == run.history
    for field, other in dict(arch='test_resnet2', loss='focal', seed=7, size=48).items():
        if field == 'arch': other = 'test_vit'
        with pytest.raises(TrainError, match=f'recipe.{field}'): series_run(films, tmp_path, replace(mine, **{field: other}), progress=False)

def test_weights_are_known_by_what_is_in_them(films, tiny, tmp_path, tmp_path_factory):
    from cxr_nb.models import make_model, save_weights
    from cxr_nb.resume import ResumeError
    from cxr_nb.training import run_stage
    for i, name in enumerate('ab'): save_weights(make_model('test_resnet', size=32, seed=i), tmp_path/f'{name}.safetensors')
    recipe = replace(tiny, weights=str(tmp_path/'a.safetensors'))
    run_stage(begun(films, recipe, tmp_path/'run', tmp_path_factory), tiny.stages[0])
    (tmp_path/'a.safetensors').rename(tmp_path/'c.safetensors')
    begun(films, replace(recipe, weights=str(tmp_path/'c.safetensors')), tmp_path/'run', tmp_path_factory, resume=True) # another name, the same weights
    (tmp_path/'b.safetensors').rename(tmp_path/'a.safetensors')
    with pytest.raises(ResumeError, match='start_weights'): begun(films, recipe, tmp_path/'run', tmp_path_factory, resume=True)

def test_records_are_frozen_and_check_themselves():
    from cxr_nb.loaders import Augment
    from cxr_nb.recipe import STAGED, Recipe, Stage, TrainError
    with pytest.raises(FrozenInstanceError): Recipe().stages[0].epochs = 99
    assert STAGED[0].epochs == 5
    for bad in (lambda: Stage('a', 1, 1e-3, bn='fix'), lambda: Stage('a', 1, 1e-3, schedule='onecycle'), lambda: Recipe(loss='bse'), lambda: Recipe(size=0)):
        with pytest.raises(TrainError, match='must be'): bad()
    with pytest.raises(ValueError, match='flip is 2'): Augment(flip=2)

def test_a_recipe_file_is_told_in_a_line_and_does_not_hide_other_options(run, phantom, tmp_path):
    for text, words in (('{"size": 32', 'is not valid JSON'), ('{"sise": 32}', "no 'sise'"), ('{"stages": [{"name": "a"}]}', 'missing 2 required'), ('[]', 'one JSON object')):
        (tmp_path/'r.json').write_text(text)
        said = run('cxr-train', '--data', phantom, '--recipe', tmp_path/'r.json', '--out', tmp_path/'run')
        assert said.returncode == 2 and words in said.stderr and 'Traceback' not in said.stderr and len(said.stderr.strip().splitlines()) == 1, said.stderr
    (tmp_path/'r.json').write_text('{"arch": "test_resnet", "size": 48, "weights": "none", "seed": 3, "stages": [{"name": "whole", "epochs": 4, "lr": 0.01}]}')
    said = run('cxr-train', '--data', phantom, '--recipe', tmp_path/'r.json', '--out', tmp_path/'run', '--epochs', 1, '--size', 32, '--device', 'cpu')
    recipe = json.loads((tmp_path/'run'/'config.json').read_text())['recipe']
    assert said.returncode == 0 and (recipe['size'], recipe['seed'], recipe['stages'][0]['epochs']) == (32, 3, 1), said.stderr

def two_models(n=400, gain=.3):
    "Truth, two sets of predictions of which the second is better, and patients of two films"
    from cxr_nb.metrics import align
    rng = np.random.default_rng(0)
    y = rng.random((n, 3)) < .3
    a = 1/(1 + np.exp(-(rng.normal(size=y.shape) + y)))
    b = 1/(1 + np.exp(-(np.log(a/(1 - a)) + gain*y + .5*rng.normal(size=y.shape))))
    make = lambda p: align(None, pd.DataFrame({'image': [f'{i}.png' for i in range(n)], 'patient': np.arange(n)//2, **{f'prob_{k}': p[:, i] for i, k in enumerate('ABC')}, **{f'true_{k}': y[:, i].astype(int) for i, k in enumerate('ABC')}}))
    return make(a), make(b)

def test_all_pages_use_one_interval_method():
    from cxr_nb.explain import score_boxes
    from cxr_nb.metrics import bootstrap_mean, compare
    from cxr_nb.report import changes
    before, after = two_models()
    a = changes(before, after)[['low', 'high']]
    b = compare(before.y, before.p, after.p, before.findings, before.patients).table[['low', 'high']]
    assert np.allclose(a.loc['Macro mean'], b.loc['macro mean']) and np.allclose(a.loc['A'], b.loc['A'])
    rng = np.random.default_rng(1)
    boxes = pd.DataFrame(dict(image=[f'{i}.png' for i in range(60)], finding='Mass', x=rng.uniform(0, 800, 60), y=rng.uniform(0, 800, 60), w=200., h=200.))
    peaks = boxes.assign(x=boxes.x + rng.uniform(-150, 150, 60), y=boxes.y + 50)[['image', 'finding', 'x', 'y']]
    who = {f'{i}.png': i//3 for i in range(60)}
    row = score_boxes(peaks, boxes, who).loc['All']
    from cxr_nb.explain import pointing_game
    hit = pointing_game(peaks, boxes)
    low, high = bootstrap_mean(hit.hit.to_numpy(float)[:, None], [who[o] for o in hit.image]).interval('mean')
    assert (row.low, row.high) == (low[0], high[0])

def test_a_tie_needs_the_whole_interval():
    from cxr_nb.metrics import verdict
    assert verdict(.004, .001, .020, tie=.005) == 'unclear'
    assert verdict(.001, -.003, .004, tie=.005) == 'tie' and verdict(.02, .01, .03, tie=.005) == 'better'

def test_words_allow_for_how_many_are_compared():
    from cxr_nb.metrics import compare
    before, after = two_models(gain=.4)
    one = compare(before.y, before.p, after.p, before.findings, before.patients)
    many = compare(before.y, before.p, after.p, before.findings, before.patients, many=10_000)
    assert (one.table[['low', 'high']] == many.table[['low', 'high']]).all(axis=None)
    assert one.table.verdict['macro mean'] == 'better' and many.table.verdict.eq('unclear').any()
    assert 'allows for 30000 comparisons' in many._repr_markdown_() and 'allows for 3 comparisons' in one._repr_markdown_()

def test_the_checklist_tells_the_truth_about_other_networks():
    from cxr_nb.checklists import STATEMENTS, run_facts
    config = dict(library='cxr_nb', arch='densenet121', size=224, findings=['Mass'], in_chans=1, versions=dict(timm='1'), recipe={})
    plain, fused, vit = (run_facts({**config, **o}) for o in ({}, dict(fusion=dict(columns=['age', 'sex', 'view'])), dict(vit=dict(width=512))))
    assert 'no age, sex, view' in STATEMENTS['input'](plain) and 'age, sex and view' in STATEMENTS['input'](fused)
    assert 'load_fusion' in STATEMENTS['bundle'](fused) and 'load_vit' in STATEMENTS['bundle'](vit) and 'load_bundle' in STATEMENTS['bundle'](plain)
    assert 'age, sex and view' in STATEMENTS['model'](fused) and 'then a linear layer' not in STATEMENTS['model'](fused)

def test_metrics_keep_all_digits_and_the_bundle_holds_its_calibration(trained):
    from cxr_nb.metrics import align, auroc
    a, m = align(None, trained/'predictions_test.csv'), json.loads((trained/'metrics.json').read_text())
    config = json.loads((trained/'config.json').read_text())
    each = dict(zip(a.findings, auroc(a.y, a.p)))
    assert all(o['auroc']['value'] == (None if np.isnan(each[f]) else each[f]) for f, o in m['test']['findings'].items())
    assert config['calibration']['findings'] == config['findings'] and config['calibration']['method'] == 'platt'

def test_a_changed_prediction_is_noticed(run, trained, phantom, tmp_path):
    import shutil
    bad = shutil.copytree(trained, tmp_path/'run')
    df = pd.read_csv(bad/'predictions_test.csv', dtype=str)
    df.loc[3, 'prob_' + json.loads((bad/'config.json').read_text())['findings'][0]] = '0.987654'
    df.to_csv(bad/'predictions_test.csv', index=False)
    said = run('cxr-check', '--run', bad, '--data', phantom, '--quick', '--out', tmp_path/'c.json')
    wrong = {o['check'] for o in json.loads((tmp_path/'c.json').read_text()) if o['verdict'] == 'violation'}
    assert said.returncode == 1 and wrong == {'run: predictions as they were judged'}, said.stdout
    assert run('cxr-check', '--run', trained, '--data', phantom, '--quick').returncode == 0

def test_a_bundle_without_a_fingerprint_is_refused(run, trained, tmp_path):
    import shutil
    bad = shutil.copytree(trained, tmp_path/'run')
    config = json.loads((bad/'config.json').read_text())
    del config['weights_sha256']
    (bad/'config.json').write_text(json.dumps(config))
    said = run('cxr-predict', '--run', bad, trained/'report.html')
    assert said.returncode == 2 and 'names no fingerprint of its weights' in said.stderr

def test_an_unknown_position_of_the_patient_is_noticed(tmp_path):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    from cxr_nb.gate import read_film
    from cxr_nb.phantom import anatomy, film
    a = film(anatomy(4), size=256)[0]
    def verdict(**tags):
        ds, ds.file_meta = Dataset(), FileMetaDataset()
        ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3'
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.BodyPartExamined, ds.PhotometricInterpretation = '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3', 'DX', 'CHEST', 'MONOCHROME2'
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.PixelData = *a.shape, 1, 8, 8, 7, 0, a.tobytes()
        for k, v in tags.items(): setattr(ds, k, v)
        ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
        return read_film(tmp_path/'a.dcm').verdict
    assert verdict(ViewPosition='PA', PatientOrientation=['L', 'F']).codes == []
    for why, tags in dict(position=dict(PatientOrientation=['L', 'R']), turned=dict(PatientOrientation=['L', 'H']), view=dict(ViewPosition='XYZ')).items():
        got = verdict(**{'ViewPosition': 'PA', **tags})
        assert got.status == 'warning' and why in got.codes, (why, got)

def test_no_network_is_told_in_a_line_and_soon(run, phantom, tmp_path):
    said = run('cxr-train', '--data', phantom, '--out', tmp_path/'run', '--weights', 'imagenet', '--arch', 'resnet18', HF_ENDPOINT='https://localhost:9')
    lines = [o for o in said.stderr.splitlines() if o.strip()]
    if 'resnet18 cannot be downloaded' not in said.stderr: pytest.skip('the hub is within reach here')
    assert said.returncode == 2 and len(lines) == 1 and not (tmp_path/'run').exists(), said.stderr

def test_numpy_lines_of_an_export_make_the_square_that_was_trained_with(tmp_path):
    from cxr_nb.export import about, square_in_numpy
    from cxr_nb.images import to_square
    from cxr_nb.models import make_model
    from cxr_nb.phantom import anatomy, film
    from cxr_nb.predict import Classifier
    said = about(Classifier(make_model('test_resnet', size=64), {}, torch.device('cpu')))
    scope = {'np': np}
    exec(said['square_numpy'], scope)
    big = film(anatomy(2), size=512)[0]
    for shape in ((512, 512), (301, 200), (90, 333), (40, 40), (64, 64)):
        a = np.ascontiguousarray(big[:shape[0], :shape[1]])
        assert abs(scope['square_in_numpy'](a, 64).astype(int) - to_square(a, 64)).max() <= 1, shape
    assert 'INTER_AREA' in said['square'] and callable(square_in_numpy)

def test_waiting_threads_sleep_unless_somebody_has_decided():
    code = 'import os, cxr_nb; print(os.environ.get("OMP_WAIT_POLICY"))'
    import os
    clean = {k: v for k, v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')}
    said = [subprocess.run([sys.executable, '-c', code], env=o, capture_output=True, text=True).stdout.strip() for o in (clean, {**clean, 'GOMP_SPINCOUNT': '9'})]
    assert said == ['PASSIVE', 'None']

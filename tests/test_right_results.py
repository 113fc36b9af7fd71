"No figure may be silently wrong: each test is named after what it protects."
import json, re, shutil, subprocess, sys, time
from dataclasses import FrozenInstanceError, replace

import numpy as np, pandas as pd, pytest, torch
from cxr_nb.training.recipe import change

@pytest.fixture(scope='module')
def films(phantom):
    from cxr_nb.data.sources import load_nih
    return load_nih(phantom)

@pytest.fixture(scope='module')
def tiny():
    from cxr_nb.training.recipes import staged
    from cxr_nb.training.recipe import Stage
    stages = [Stage('head', 1, 1e-3, trainable=0, repeats=1, bs=16), Stage('whole', 1, 1e-3, bs=16),
              Stage('slow', 1, 1e-4, bs=16)]
    return staged(arch='test_resnet', size=32, weights='none', precision='float32', stages=stages)

def begun(films, tiny, path, tmp_path_factory, **kwargs):
    from cxr_nb.training.run import start_run
    return start_run(films, tiny, path, cache=tmp_path_factory.getbasetemp()/'cache32', device='cpu', progress=False,
                     say=str, **kwargs)

def test_lower_precision_ends_with_a_step_that_fails(films, tiny, tmp_path, tmp_path_factory):
    "What follows an error in the forward pass must not be computed in bfloat16"
    from cxr_nb.training.callbacks import Mixed
    from cxr_nb.training.engine import net_learner
    run = begun(films, tiny, tmp_path/'run', tmp_path_factory)
    learn = net_learner(run, tiny.stages[1], [Mixed('bfloat16')])
    def full(x): raise torch.OutOfMemoryError('out of memory')
    learn.model.backbone.forward = full
    with pytest.raises(torch.OutOfMemoryError), learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-3)
    assert not torch.is_autocast_enabled('cpu') and (torch.eye(2) @ torch.eye(2)).dtype == torch.float32

def test_a_stage_draws_other_films_than_the_one_before(films, tiny, tmp_path, tmp_path_factory, monkeypatch):
    from cxr_nb.data.batches import Batches
    from cxr_nb.training.engine import run_stage
    run, drawn, gather = begun(films, tiny, tmp_path/'run', tmp_path_factory), [], Batches._gather
    monkeypatch.setattr(Batches, '_gather',
                        lambda self, idx: (self.train and drawn[-1].append(idx.tolist()), gather(self, idx))[1])
    for s in tiny.stages:
        drawn.append([])
        run_stage(run, s)
    assert drawn[1] and drawn[2] and drawn[1] != drawn[2]

def test_weights_of_which_a_few_tensors_fit_are_refused_by_name(tmp_path):
    import timm
    from cxr_nb.models.weights import ModelError
    from cxr_nb.models.nets import make_model
    whole = timm.create_model('test_resnet', num_classes=1000).state_dict()
    torch.save(dict(list(whole.items())[:20]), tmp_path/'few.pth')
    with pytest.raises(ModelError, match=r'does not fill \d+ of the \d+ tensors of test_resnet \(\w+'):
        make_model('test_resnet', size=32, weights=tmp_path/'few.pth')
    torch.save({k: v for k, v in whole.items() if not k.startswith('fc.')}, tmp_path/'all.pth')
    make_model('test_resnet', size=32, weights=tmp_path/'all.pth')

def test_a_run_of_another_recipe_is_not_handed_out(films, tiny, tmp_path, tmp_path_factory, monkeypatch):
    from cxr_nb.training.recipe import TrainError
    from cxr_nb.training.series import series_run
    monkeypatch.setenv('CXR_CACHE', str(tmp_path_factory.getbasetemp()/'series'))
    mine = replace(tiny, stages=tiny.stages[:1])
    run = series_run(films, tmp_path, mine, progress=False)
    assert series_run(films, tmp_path, mine, progress=False).history == run.history
    for field, other in {'net.arch': dict(arch='test_vit'), 'loss.name': dict(loss='focal'), 'seed': dict(seed=7),
                         'net.size': dict(size=48)}.items():
        with pytest.raises(TrainError, match=f'recipe.{field}'):
            series_run(films, tmp_path, change(mine, **other), progress=False)

def test_weights_are_known_by_what_is_in_them(films, tiny, tmp_path, tmp_path_factory):
    from cxr_nb.models.nets import make_model
    from cxr_nb.models.bundle import save_weights
    from cxr_nb.training.state import ResumeError
    from cxr_nb.training.engine import run_stage
    for i, name in enumerate('ab'):
        save_weights(make_model('test_resnet', size=32, seed=i), tmp_path/f'{name}.safetensors')
    recipe = replace(tiny, weights=str(tmp_path/'a.safetensors'))
    run_stage(begun(films, recipe, tmp_path/'run', tmp_path_factory), tiny.stages[0])
    (tmp_path/'a.safetensors').rename(tmp_path/'c.safetensors')
    # another name, the same weights
    begun(films, replace(recipe, weights=str(tmp_path/'c.safetensors')), tmp_path/'run', tmp_path_factory, resume=True)
    (tmp_path/'b.safetensors').rename(tmp_path/'a.safetensors')
    with pytest.raises(ResumeError, match='start_weights'):
        begun(films, recipe, tmp_path/'run', tmp_path_factory, resume=True)

def test_records_are_frozen_and_check_themselves():
    from cxr_nb.core import CxrError
    from cxr_nb.data.augment import Augment
    from cxr_nb.training.recipe import STAGED, Recipe, Stage, TrainError
    with pytest.raises(FrozenInstanceError): Recipe().stages[0].epochs = 99
    assert STAGED[0].epochs == 5
    for bad in (lambda: Stage('a', 1, 1e-3, bn='fix'), lambda: Stage('a', 1, 1e-3, schedule='onecycle'),
                lambda: change(Recipe(), loss='bse'), lambda: change(Recipe(), size=0)):
        with pytest.raises(CxrError, match='must be'): bad()
    with pytest.raises(ValueError, match='flip is 2'): Augment(flip=2)

def test_a_recipe_file_is_told_in_a_line_and_does_not_hide_other_options(run, phantom, tmp_path):
    for text, words in (('{"size": 32', 'is not valid JSON'), ('{"sise": 32}', "no 'sise'"),
                        ('{"stages": [{"name": "a"}]}', 'missing 2 required'), ('[]', 'one JSON object')):
        (tmp_path/'r.json').write_text(text)
        said = run('cxr-train', '--data', phantom, '--recipe', tmp_path/'r.json', '--out', tmp_path/'run')
        assert said.returncode == 2 and words in said.stderr and 'Traceback' not in said.stderr, said.stderr
        assert len(said.stderr.strip().splitlines()) == 1, said.stderr
    (tmp_path/'r.json').write_text(
        '{"arch": "test_resnet", "size": 48, "weights": "none", "seed": 3, "stages": [{"name": "whole", "epochs": 4, '
        '"lr": 0.01}]}')
    said = run('cxr-train', '--data', phantom, '--recipe', tmp_path/'r.json', '--out', tmp_path/'run', '--epochs', 1,
               '--size', 32, '--device', 'cpu')
    recipe = json.loads((tmp_path/'run'/'config.json').read_text())['recipe']
    assert said.returncode == 0 and (recipe['net']['size'], recipe['seed'],
                                     recipe['stages'][0]['epochs']) == (32, 3, 1), said.stderr

def two_models(n=400, gain=.3):
    "Truth, two sets of predictions of which the second is better, and patients of two films"
    from cxr_nb.metrics.predictions import align
    rng = np.random.default_rng(0)
    y = rng.random((n, 3)) < .3
    a = 1/(1 + np.exp(-(rng.normal(size=y.shape) + y)))
    b = 1/(1 + np.exp(-(np.log(a/(1 - a)) + gain*y + .5*rng.normal(size=y.shape))))
    make = lambda p: align(None, pd.DataFrame({'image': [f'{i}.png' for i in range(n)], 'patient': np.arange(n)//2,
                                               **{f'prob_{k}': p[:, i] for i, k in enumerate('ABC')},
                                               **{f'true_{k}': y[:, i].astype(int) for i, k in enumerate('ABC')}}))
    return make(a), make(b)

def test_all_pages_use_one_interval_method():
    from cxr_nb.explain.boxes import score_boxes
    from cxr_nb.metrics.bootstrap import bootstrap_mean
    from cxr_nb.metrics.compare import compare
    from cxr_nb.report.plots import changes
    before, after = two_models()
    a = changes(before, after)[['low', 'high']]
    b = compare(before.y, before.p, after.p, before.findings, before.patients).table[['low', 'high']]
    assert np.allclose(a.loc['Macro mean'], b.loc['macro mean']) and np.allclose(a.loc['A'], b.loc['A'])
    rng = np.random.default_rng(1)
    boxes = pd.DataFrame(dict(image=[f'{i}.png' for i in range(60)], finding='Mass', x=rng.uniform(0, 800, 60),
                              y=rng.uniform(0, 800, 60), w=200., h=200.))
    peaks = boxes.assign(x=boxes.x + rng.uniform(-150, 150, 60), y=boxes.y + 50)[['image', 'finding', 'x', 'y']]
    who = {f'{i}.png': i//3 for i in range(60)}
    row = score_boxes(peaks, boxes, who).loc['All']
    from cxr_nb.explain.boxes import pointing_game
    hit = pointing_game(peaks, boxes)
    low, high = bootstrap_mean(hit.hit.to_numpy(float)[:, None], [who[o] for o in hit.image]).interval()
    assert (row.low, row.high) == (low[0], high[0])

def test_a_tie_needs_the_whole_interval():
    from cxr_nb.metrics.compare import verdict
    assert verdict(.004, .001, .020, tie_band=.005) == 'unclear'
    assert verdict(.001, -.003, .004, tie_band=.005) == 'tie' and verdict(.02, .01, .03, tie_band=.005) == 'better'

def test_words_allow_for_how_many_are_compared():
    from cxr_nb.metrics.compare import compare
    before, after = two_models(gain=.4)
    one = compare(before.y, before.p, after.p, before.findings, before.patients)
    many = compare(before.y, before.p, after.p, before.findings, before.patients, many=10_000)
    assert (one.table[['low', 'high']] == many.table[['low', 'high']]).all(axis=None)
    assert one.table.verdict['macro mean'] == 'better' and many.table.verdict.eq('unclear').any()
    assert 'allows for 30000 comparisons' in many._repr_markdown_()
    assert 'allows for 3 comparisons' in one._repr_markdown_()

def test_the_checklist_tells_the_truth_about_other_networks():
    from cxr_nb.report.statements import answers, run_facts
    config = dict(library='cxr_nb', arch='densenet121', size=224, findings=['Mass'], in_chans=1,
                  versions=dict(timm='1'), recipe={})
    nets = {}, dict(net=dict(neck='fpn', hidden=[128],
                             tabular=['age', 'sex', 'view'])), dict(net=dict(neck='token', hidden=[512]))
    plain, fused, vit = (answers(run_facts(config | o)) for o in nets)
    assert 'no age, sex, view' in plain['input'] and 'age, sex and view' in fused['input']
    assert 'load_bundle' in plain['bundle'] and 'then a linear layer' in plain['model']
    assert 'age, sex and view' in fused['model'] and 'then a linear layer' not in fused['model']
    assert 'a projection and a head of 2 linear layers' in vit['model']

def test_metrics_keep_all_digits_and_the_bundle_holds_its_calibration(trained):
    from cxr_nb.metrics.predictions import align
    from cxr_nb.metrics.ranking import auroc
    a, m = align(None, trained/'predictions_test.csv'), json.loads((trained/'metrics.json').read_text())
    config = json.loads((trained/'config.json').read_text())
    each = dict(zip(a.findings, auroc(a.y, a.p)))
    assert all(o['auroc']['value'] == (None if np.isnan(each[f]) else each[f])
               for f, o in m['test']['findings'].items())
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
    from cxr_nb.data.gate import judge_file
    from cxr_nb.data.phantom.anatomy import phantom_body
    from cxr_nb.data.phantom.findings import phantom_image
    a = phantom_image(phantom_body(4), size=256)[0]
    def verdict(**tags):
        ds, ds.file_meta = Dataset(), FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
        ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
        ds.SOPClassUID, ds.SOPInstanceUID = '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3'
        ds.Modality, ds.BodyPartExamined, ds.PhotometricInterpretation = 'DX', 'CHEST', 'MONOCHROME2'
        ds.Rows, ds.Columns = a.shape
        ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 8, 8, 7, 0
        ds.PixelData = a.tobytes()
        for k, v in tags.items(): setattr(ds, k, v)
        ds.save_as(tmp_path/'a.dcm', enforce_file_format=True)
        return judge_file(tmp_path/'a.dcm').verdict
    assert verdict(ViewPosition='PA', PatientOrientation=['L', 'F']).codes == []
    for why, tags in dict(position=dict(PatientOrientation=['L', 'R']), turned=dict(PatientOrientation=['L', 'H']),
                          view=dict(ViewPosition='XYZ')).items():
        got = verdict(**{'ViewPosition': 'PA', **tags})
        assert got.status == 'warning' and why in got.codes, (why, got)

def test_no_network_is_told_in_a_line_and_soon(run_alone, phantom, tmp_path):
    nowhere = dict(HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(tmp_path/'hub'), no_proxy='127.0.0.1',
                   NO_PROXY='127.0.0.1')
    said = run_alone('cxr-train', '--data', phantom, '--out', tmp_path/'run', '--weights', 'imagenet', '--arch',
                     'resnet18', **nowhere)
    lines = [o for o in said.stderr.splitlines() if o.strip()]
    assert 'resnet18 cannot be downloaded' in said.stderr
    assert said.returncode == 2 and len(lines) == 1 and not (tmp_path/'run').exists(), said.stderr

def test_numpy_lines_of_an_export_make_the_square_that_was_trained_with(tmp_path):
    from cxr_nb.deploy.export import about, square_in_numpy
    from cxr_nb.data.images import to_square
    from cxr_nb.models.nets import make_model
    from cxr_nb.data.phantom.anatomy import phantom_body
    from cxr_nb.data.phantom.findings import phantom_image
    from cxr_nb.deploy.predict import Classifier
    said = about(Classifier(make_model('test_resnet', size=64), {}, torch.device('cpu')))
    scope = {'np': np}
    exec(said['square_numpy'], scope)
    big = phantom_image(phantom_body(2), size=512)[0]
    for shape in ((512, 512), (301, 200), (90, 333), (40, 40), (64, 64)):
        a = np.ascontiguousarray(big[:shape[0], :shape[1]])
        assert abs(scope['square_in_numpy'](a, 64).astype(int) - to_square(a, 64)).max() <= 1, shape
    assert 'INTER_AREA' in said['square'] and callable(square_in_numpy)

def test_waiting_threads_sleep_unless_somebody_has_decided():
    code = 'import os, cxr_nb; print(os.environ.get("OMP_WAIT_POLICY"))'
    import os
    clean = {k: v for k, v in os.environ.items() if k not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')}
    said = [subprocess.run([sys.executable, '-c', code], env=o, capture_output=True, text=True).stdout.strip()
            for o in (clean, {**clean, 'GOMP_SPINCOUNT': '9'})]
    assert said == ['PASSIVE', 'None']

@pytest.fixture
def small_run(phantom, tmp_path):
    "A begun run of one stage in a folder, and how it is started"
    from cxr_nb.data.sources import own_data
    from cxr_nb.labels import read_table
    from cxr_nb.training.recipes import staged
    from cxr_nb.training.recipe import Stage
    from cxr_nb.training.run import start_run
    data = own_data(read_table(phantom/'Data_Entry_2017.csv'), phantom)
    recipe = staged(arch='test_efficientnet', size=32, weights='none', stages=[Stage('head', 1, 1e-3, trainable=0)])
    def start(recipe=recipe, data=data, **more):
        return start_run(data, recipe, tmp_path/'run', cache=tmp_path/'cache', device='cpu', progress=False,
                         say=lambda o: None, **more)
    return start, recipe, data

def test_a_folder_that_is_no_run_loses_nothing(small_run, tmp_path):
    "Not by overwrite, nor by resume, whatever its files are called"
    start, recipe, _ = small_run
    mine = tmp_path/'run'
    for o in ('figures', 'results'): (mine/o).mkdir(parents=True)
    for o in ('figures/a.png', 'results/b.csv', 'log.txt'): (mine/o).write_text('mine')
    for how in ('overwrite', 'resume'):
        start(**{how: True})
        assert all((mine/o).read_text() == 'mine' for o in ('figures/a.png', 'results/b.csv', 'log.txt'))
        for o in ('config.json', 'model.safetensors'): (mine/o).unlink()

def test_a_bundle_of_another_kind_is_not_resumed_over(small_run, tmp_path):
    from cxr_nb.models.nets import make_model
    from cxr_nb.models.bundle import save_bundle
    from cxr_nb.runs import RunError
    start, *_ = small_run
    save_bundle(make_model('test_efficientnet', size=32), tmp_path/'run')
    before = (tmp_path/'run'/'model.safetensors').read_bytes()
    with pytest.raises(RunError, match='cannot be resumed'): start(resume=True)
    with pytest.raises(RunError, match='another kind'): start()
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == before

def test_overwriting_waits_until_the_new_run_can_begin(small_run, tmp_path):
    from cxr_nb.core import CxrError
    from cxr_nb.runs import RunError
    start, recipe, _ = small_run
    start()
    before = (tmp_path/'run'/'model.safetensors').read_bytes()
    (tmp_path/'bad.pth').write_bytes(b'no weights')
    with pytest.raises(CxrError): start(replace(recipe, weights=str(tmp_path/'bad.pth')), overwrite=True)
    with pytest.raises(RunError, match='not both'): start(overwrite=True, resume=True)
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == before
    start(replace(recipe, seed=1), overwrite=True)
    assert (tmp_path/'run'/'model.safetensors').read_bytes() != before

def test_what_a_killed_writer_left_is_gone_when_the_run_goes_on(small_run, tmp_path):
    "Each process writes under a name of its own, so nobody else would write over it; what is the user's stays"
    from cxr_nb.training.engine import run_stage
    start, recipe, _ = small_run
    run_stage(start(), recipe.stages[0])
    ours = ['config.json.4711.part', 'metrics.json.4711.part', 'results/tables/metrics.json.4711.part']
    (tmp_path/'run'/'results'/'tables').mkdir(parents=True)
    for o in (*ours, 'notes.txt.4711.part'): (tmp_path/'run'/o).write_text('half')
    start(resume=True)
    assert [str(o.relative_to(tmp_path/'run')) for o in (tmp_path/'run').rglob('*.part')] == ['notes.txt.4711.part']

def test_a_run_keeps_the_fingerprint_of_its_first_weights(small_run, tmp_path):
    "Also after it was opened, copied and saved where that file is not known"
    from cxr_nb.models.nets import make_model
    from cxr_nb.models.bundle import save_weights
    from cxr_nb.training.series import copy_run
    from cxr_nb.training.run import open_run, save_run
    start, recipe, data = small_run
    save_weights(make_model('test_efficientnet', size=32).backbone, tmp_path/'first.safetensors')
    start(replace(recipe, weights=str(tmp_path/'first.safetensors')))
    first = json.loads((tmp_path/'run'/'config.json').read_text())['start_weights']
    (tmp_path/'first.safetensors').unlink()
    again = copy_run(open_run(tmp_path/'run', data, 'cpu', progress=False), tmp_path/'copy')
    save_run(again)
    assert json.loads((tmp_path/'copy'/'config.json').read_text())['start_weights'] == first and len(first) == 64

def test_a_run_of_fewer_findings_is_not_handed_out(small_run):
    from cxr_nb.training.recipe import TrainError
    from cxr_nb.training.series import refuse_other_recipe
    from cxr_nb.training.run import run_config
    start, recipe, data = small_run
    asked = ['Effusion', 'Infiltration']
    one = start(change(recipe, findings=asked[:1]))
    with pytest.raises(TrainError, match='findings'):
        refuse_other_recipe(one.path, run_config(one), change(recipe, findings=asked))
    none = replace(data, table=data.table.assign(Effusion=0))
    left_out = start(change(recipe, findings=asked), none, overwrite=True)
    assert left_out.left_out == ['Effusion']
    refuse_other_recipe(left_out.path, run_config(left_out), change(recipe, findings=asked))

def test_other_images_under_some_known_names_are_not_taken_for_the_runs_own(small_run):
    from cxr_nb.training.recipe import TrainError
    from cxr_nb.training.judging import judge, judge_images
    from cxr_nb.training.engine import run_stage
    start, recipe, data = small_run
    run = start()
    run_stage(run, recipe.stages[0])
    judge(run, n_boot=20)
    assert judge_images(run, n_boot=20)['test']['n'] == (run.split == 'test').sum()
    names = {o: o if i % 2 else f'x{o}' for i, o in enumerate(data.table.index)}
    run.data = replace(data, table=data.table.rename(names))
    with pytest.raises(TrainError, match='have names of images that this run knows'): judge_images(run, n_boot=20)

def test_a_phantom_is_not_drawn_over_files_of_the_users(phantom, tmp_path):
    from cxr_nb.core import CxrError
    from cxr_nb.data.phantom.release import make_phantom
    here = shutil.copytree(phantom, tmp_path/'nih')
    (here/'runs').mkdir()
    (here/'runs'/'night').write_text('of work')
    with pytest.raises(CxrError, match='holds runs, which is not part'):
        make_phantom(here, n_images=10, size=64, progress=False)
    (here/'phantom.json').unlink()
    with pytest.raises(CxrError, match='give an empty or new folder'):
        make_phantom(here, n_images=10, size=64, progress=False)
    assert (here/'runs'/'night').read_text() == 'of work' and len(list(here.rglob('*.png'))) == 160

def test_heatmaps_of_other_weights_leave_the_figures_of_the_run(run, trained, tmp_path):
    mine = shutil.copytree(trained, tmp_path/'run')
    before = {o: (mine/o).read_bytes() for o in ('metrics.json', 'figures/heatmaps.png')}
    said = run('cxr-gradcam', '--run', mine, '--samples', 1, '--weights', mine/'checkpoints'/'frozen_head.safetensors',
               '--out', tmp_path/'maps')
    assert said.returncode == 0, said.stderr
    assert {o: (mine/o).read_bytes() for o in before} == before and len(list((tmp_path/'maps').glob('*.png'))) > 1

def test_predictions_are_not_judged_into_a_trained_run(run, trained, tmp_path):
    mine = shutil.copytree(trained, tmp_path/'run')
    before = (mine/'config.json').read_bytes()
    said = run('cxr-eval', '--predictions', mine/'predictions_test.csv', '--out', mine)
    assert said.returncode == 2 and 'holds a trained run' in said.stderr and (mine/'config.json').read_bytes() == before

def test_a_recipe_file_with_a_wrong_kind_of_value_is_one_line(tmp_path):
    from cxr_nb.training.recipe import TrainError, read_recipe
    for text in ('{"weights": 3}', '{"kwargs": null}', '{"size": 224.0}',
                 '{"stages": [{"name": "a", "epochs": 2.0, "lr": 1}]}', '{"seed": Infinity}', '{"compile": 1}'):
        (tmp_path/'r.json').write_text(text)
        with pytest.raises(TrainError): read_recipe(tmp_path/'r.json')

def test_a_column_called_label_may_hold_one_finding(tmp_path):
    from cxr_nb.labels import read_table
    (tmp_path/'a.csv').write_text('image,label\na.png,1\nb.png,0\n')
    table = read_table(tmp_path/'a.csv')
    assert table.label.tolist() == [1, 0]

"What was wrong once: names, numbers and files as people have them."
import os, shutil, time
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest
from cxr_nb.core import CxrError, write_csv, write_whole
from cxr_nb.labels import LabelError, findings_of, nih_table, official_test_patients, read_list, read_table

def test_the_official_split_knows_patients_by_image_names():
    "Whatever a table of the release calls them: no patient crosses a part, and the test part is the official one"
    from cxr_nb.data.splits import official_split
    table = nih_table().iloc[::97]
    own = table.index.str[:8]
    tested = own.astype(int).isin(official_test_patients())
    for patients in (np.arange(len(table)), own, pd.factorize(own)[0]):
        split = official_split(table.assign(patient=patients))
        assert ((split == 'test') == tested).all()
        assert split.groupby(own.to_numpy()).nunique().max() == 1

@pytest.mark.parametrize('text, findings, want', [
    ('image,finding,Mass,Edema\na.png,opacity at the left,1,0\nb.png,"clear, normal heart",0,1\n', ['Mass', 'Edema'],
     [[1, 0], [0, 1]]),
    ('image,label,Mass,Edema\na.png,1,0,1\nb.png,0,1,0\n', ['Mass', 'Edema'], [[0, 1], [1, 0]]),
    ('image,labels\na.png,Mass\nb.png,\n', ['Mass', 'Hernia'], [[1, 0], [0, 0]])])
def test_findings_that_are_asked_for(text, findings, want, tmp_path):
    (tmp_path/'a.csv').write_text(text)
    table = read_table(tmp_path/'a.csv', findings=findings)
    assert findings_of(table) == findings and table[findings].to_numpy().tolist() == want

@pytest.mark.parametrize('text, findings, why', [
    ('image,labels\na.png,Pleural Thickening\nb.png,Mass\n', ['Pleural_Thickening'], "'Pleural Thickening' meant"),
    ('image,labels\na.png,Mass\nb.png,Edema\n', ['Hernia'], "no row says 'Hernia'; there are 'Edema', 'Mass'"),
    ('image,label\na.png,0\nb.png,1\nc.png,\n', None, 'fill in or drop those rows'),
    ('image,labels\na.png,\nb.png,\n', None, 'names no finding'),
    ('image,labels\na.png,Mass\n,\n', None, 'row 2 names no image')])
def test_labels_that_cannot_be_meant(text, findings, why, tmp_path):
    (tmp_path/'a.csv').write_text(text)
    with pytest.raises(LabelError, match=why): read_table(tmp_path/'a.csv', findings=findings)

def test_a_list_that_windows_wrote(tmp_path):
    (tmp_path/'list.txt').write_bytes('\ufeff00000001_000.png\r\n00000002_000.png\r\n'.encode())
    assert read_list(tmp_path/'list.txt') == ['00000001_000.png', '00000002_000.png']
    (tmp_path/'list.txt').write_text('00000001_000.png', encoding='utf-16')
    with pytest.raises(LabelError, match='UTF-8'): read_list(tmp_path/'list.txt')

def test_a_nih_folder_with_an_indiana_folder_below_it(phantom, tmp_path):
    from cxr_nb.data.indiana import indiana_phantom
    from cxr_nb.data.opening import open_data
    (tmp_path/'images').symlink_to(phantom/'images_001')
    (tmp_path/'Data_Entry_2017.csv').write_bytes((phantom/'Data_Entry_2017.csv').read_bytes())
    indiana_phantom(tmp_path/'indiana', 12, 64)
    assert 'Normal' not in open_data(tmp_path).table

def test_names_of_digits_in_a_cache_and_in_a_table_of_ages(phantom, tmp_path):
    from cxr_nb.data.cache import open_cache, build_cache
    from cxr_nb.deploy.predict import read_known
    first = next(phantom.glob('images_*/images/*.png'))
    build_cache({'0012': first, '0013': first}, tmp_path/'cache', 32, progress=False)
    assert list(open_cache(tmp_path/'cache').index.index) == ['0012', '0013']
    (tmp_path/'ages.csv').write_text('image,age\n0012,90\n')
    assert list(read_known(tmp_path/'ages.csv').index) == ['0012']

def test_predictions_keep_the_zeros_of_names(tmp_path):
    from cxr_nb.metrics.predictions import align
    (tmp_path/'p.csv').write_text('image,patient,prob_Mass,true_Mass\n0001,7,.1,0\n0002,07,.8,1\n0003,007,.2,0\n')
    a = align(None, tmp_path/'p.csv')
    assert list(a.images) == ['0001', '0002', '0003'] and len(set(a.patients)) == 3

def test_renaming_onto_a_column_that_is_there(tmp_path):
    from cxr_nb.metrics.predictions import read_predictions
    (tmp_path/'p.csv').write_text('image,filename,p_mass\n1,a.png,.1\n2,b.png,.2\n')
    p = read_predictions(tmp_path/'p.csv', names={'filename': 'image', 'p_mass': 'Mass'})
    assert list(p.index) == ['a.png', 'b.png'] and list(p.columns) == ['prob_Mass']

def test_a_file_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(b'M\xfcller.png')
    write_whole(tmp_path/'a.txt', name)
    write_csv(tmp_path/'a.csv', pd.DataFrame({'image': [name]}))
    assert 'udcfc' in (tmp_path/'a.txt').read_text() and 'udcfc' in (tmp_path/'a.csv').read_text()

@pytest.mark.parametrize('text', ['', 'image,side\na.png,1\n'])
def test_a_damaged_split_is_said_in_a_line(text, tmp_path):
    from cxr_nb.data.run_checks import read_split
    (tmp_path/'split.csv').write_text(text)
    with pytest.raises(CxrError, match='is damaged'): read_split(tmp_path)

def test_a_damaged_cache_is_said_in_a_line(phantom, tmp_path):
    from cxr_nb.data.cache import build_cache, open_cache
    build_cache({'a': next(phantom.glob('images_*/images/*.png'))}, tmp_path/'cache', 32, progress=False)
    (tmp_path/'cache'/'images.npy').write_bytes(b'')
    with pytest.raises(CxrError, match='a damaged cache'): open_cache(tmp_path/'cache')

def test_overwriting_a_run_whose_checkpoints_lie_elsewhere(tmp_path):
    from cxr_nb.runs import clear_run
    (tmp_path/'run').mkdir()
    (tmp_path/'disk').mkdir()
    (tmp_path/'run'/'config.json').write_text('{"format": 1}')
    (tmp_path/'run'/'model.safetensors').touch()
    (tmp_path/'run'/'checkpoints').symlink_to(tmp_path/'disk')
    clear_run(tmp_path/'run')
    assert not (tmp_path/'run'/'checkpoints').is_symlink() and (tmp_path/'disk').is_dir()

def test_a_finding_that_could_not_be_calibrated_is_not_moved():
    "By a prevalence of zero: one such finding spoilt the mean of all"
    from cxr_nb.metrics.audit import calibration_audit
    from cxr_nb.metrics.predictions import Aligned
    rng = np.random.default_rng(0)
    def part(n, rare):
        y = np.c_[rng.random((n, 2)) < .2, np.arange(n) < rare].astype(np.uint8)
        p = np.clip(.15 + .3*y + rng.normal(0, .1, y.shape), .01, .99)
        names = [f'{n}-{i}' for i in range(n)]
        return Aligned(y, p, np.arange(n), ['a', 'b', 'rare'], names, [], [])
    table = calibration_audit(part(1000, 0), part(999, 9))['table']
    assert table['platt, true prevalence']['ece'] < .1

def test_a_network_without_thresholds_calls_nothing():
    from cxr_nb.deploy.app import Answer, bars_html
    from cxr_nb.data.gate import Verdict
    fields = {o: None for o in Answer.__dataclass_fields__}
    a = Answer(**{**fields, 'probs': np.array([.9, .1]), 'verdict': Verdict})
    said = bars_html(a, SimpleNamespace(findings=['Mass', 'Edema'], thresholds=None))
    assert 'no thresholds' in said and 'nan' not in said and 'No Finding' not in said

def test_thresholds_of_other_findings_are_refused():
    from cxr_nb.metrics.operating import thresholds_for
    p = pd.DataFrame({'Effusion': [.3], 'Mass': [.3]})
    with pytest.raises(CxrError): thresholds_for(p, {'Hernia': .1, 'Edema': .9})
    assert thresholds_for(p.to_numpy(), {'Hernia': .1, 'Edema': .9}).tolist() == [.1, .9]

def test_one_patient_that_a_model_was_trained_on():
    from cxr_nb.metrics.readers import _named_among
    assert _named_among('13', [1, 3, 13]).tolist() == [False, False, True]

def test_differences_that_are_no_mirror_images_are_two():
    from cxr_nb.metrics.subgroups import FIGURES, _looks
    rows = pd.MultiIndex.from_product([['sex'], ['F', 'M']], names=['by', 'group'])
    for other, looks in ((.07, 1), (.05, 2)):
        table = pd.DataFrame({f'{o}_difference': np.nan for o in FIGURES}, rows)
        table[f'{next(iter(FIGURES))}_difference'] = [-.07, other]
        assert _looks(table) == looks

@pytest.fixture(scope='module')
def drawn(phantom):
    from cxr_nb.data.sources import load_nih
    return load_nih(phantom)

def tiny(stages, **more):
    "A recipe of a small network on small images"
    from cxr_nb.training.recipe import Recipe, change
    return change(Recipe(), arch='test_efficientnet', size=32, weights='none', augment=None, stages=stages, **more)

def stage(name='a', epochs=1, lr=1e-3, **more):
    from cxr_nb.training.recipe import Stage
    return Stage(name, epochs, lr, **{'bs': 32, **more})

def begun(data, recipe, path):
    from cxr_nb.training.run import start_run
    return start_run(data, recipe, path/'run', cache=path/'cache', device='cpu', progress=False, say=str)

def test_early_stopping_counts_through_interruptions(drawn, tmp_path):
    from fastai.callback.core import Callback
    from cxr_nb.training.engine import train
    class Die(Callback):
        order = 85 # after the state was saved
        def after_epoch(self): raise KeyboardInterrupt
    recipe = tiny([stage(epochs=9, lr=1e-7, early_stop=2)])
    more = dict(cache=tmp_path/'cache', device='cpu', progress=False, say=str)
    whole = train(drawn, recipe, tmp_path/'whole', **more)
    for _ in range(len(whole.history) - 1):
        with pytest.raises(KeyboardInterrupt): train(drawn, recipe, tmp_path/'run', resume=True, cbs=Die(), **more)
    assert len(train(drawn, recipe, tmp_path/'run', resume=True, **more).history) == len(whole.history) < 9

def test_a_budget_keeps_the_statistics_of_its_epoch(drawn, tmp_path):
    from cxr_nb.data.indiana import indiana_split
    from cxr_nb.models.weights import read_weights
    from cxr_nb.training.crossval import train_fold
    recipe = tiny([stage(epochs=2, lr=3e-3, bn='train')], budgets=(1, 2))
    split = indiana_split(drawn.table, 0, .2, 2)
    run = train_fold(drawn, recipe, tmp_path, split, 'fold0', cache=tmp_path/'cache', device='cpu', progress=False)
    for file in (run.path/'checkpoints').glob('epoch_*.safetensors'):
        assert any('running_mean' in name for name in read_weights(file)), file

def test_a_projection_that_learns_is_not_kept(drawn, tmp_path):
    "Features behind it would be those of its random weights, and another run's"
    from cxr_nb.training.engine import has_linear_head
    from cxr_nb.training.frozen import can_keep
    for width, kept in ((16, False), (0, True)):
        run = begun(drawn, tiny([stage(trainable=0)], width=width), tmp_path/str(width))
        assert (can_keep(run, run.recipe.stages[0]), has_linear_head(run)) == (kept, kept)

def test_weights_by_hand_of_findings_without_an_image(drawn, tmp_path):
    from cxr_nb.training.engine import stage_loss
    from cxr_nb.training.losses import Loss
    by_hand = Loss('pos_weight', by_hand={'Pneumonia': 4., 'Mass': 3.})
    from dataclasses import replace
    data = replace(drawn, table=drawn.table.assign(Pneumonia=0))
    run = begun(data, tiny([stage(loss=by_hand)]), tmp_path)
    weights = stage_loss(run, run.recipe.stages[0]).pos_weight
    assert run.left_out == ['Pneumonia'] and weights[run.recipe.findings.index('Mass')] == 3

def test_a_stage_that_ends_before_its_first_epoch(drawn, tmp_path):
    from fastai.callback.core import Callback, CancelFitException
    from cxr_nb.training.engine import train
    from cxr_nb.training.recipe import TrainError
    class Stop(Callback):
        def after_batch(self): raise CancelFitException
    with pytest.raises(TrainError, match='a callback ended it'):
        train(drawn, tiny([stage()]), tmp_path/'run', cache=tmp_path/'cache', device='cpu', progress=False, cbs=Stop())

def test_predicting_within_a_stage_leaves_fixed_batchnorm_fixed(drawn, tmp_path):
    from cxr_nb.models.nets import probabilities
    run = begun(drawn, tiny([stage()]), tmp_path)
    run.model.train()
    fixed = [o for o in run.model.modules() if 'BatchNorm' in type(o).__name__]
    for o in fixed: o.eval()
    probabilities(run.model, run.batches('val'))
    assert fixed and run.model.training and not any(o.training for o in fixed)

@pytest.mark.parametrize('values', [{'budgets': 5}, {'budgets': None}, {'loss': {'by_hand': None}}, {'stages': [3]}])
def test_recipes_of_odd_values(values):
    from cxr_nb.training.recipe import Recipe
    try: Recipe.from_dict(values)
    except CxrError: pass

def test_averages_go_on_only_where_the_same_weights_learn():
    from cxr_nb.training.recipe import TrainError
    with pytest.raises(TrainError, match='the same trainable'):
        tiny([stage('a', trainable=1), stage('b', trainable=2, go_on=True)])

def test_a_resumed_stage_keeps_the_batch_that_it_began_with(drawn, tmp_path, monkeypatch):
    from cxr_nb.training import batch_size
    run = begun(drawn, tiny([stage(bs='auto')]), tmp_path)
    left = {}, dict(stage=dict(name='a', bs=48, lr=2e-3))
    monkeypatch.setattr(batch_size, 'read_checkpoint', lambda path: left)
    sized = batch_size.sized(run, run.recipe.stages[0], resume=True)
    assert (sized.bs, sized.lr) == (48, 2e-3)
    assert batch_size.sized(run, run.recipe.stages[0]).bs == 32

def test_heads_side_by_side_have_their_own_batches():
    "A loss that compares images must not compare those of one head with those of another"
    import torch
    from cxr_nb.training.frozen import HeadsLoss
    pred, y = torch.randn(5, 2, 3), torch.ones(5, 3)
    def ranks(z, y): return (z[1:] - z[:-1]).relu().mean() + z.std()
    class Two(torch.nn.Module):
        shape = (2, 3)
        def penalty(self): return torch.zeros(())
    loss = HeadsLoss(Two(), ranks)
    assert torch.allclose(loss(pred, y), ranks(pred[:, 0], y) + ranks(pred[:, 1], y))

@pytest.mark.parametrize('text', ['image,labels\na.png,effusion\nb.png,Effusion\n', 'image,Mass,mass\na.png,1,0\n'])
def test_a_finding_in_two_spellings(text, tmp_path):
    (tmp_path/'a.csv').write_text(text)
    for findings in (None, ['effusion']) if 'labels' in text else (None,):
        with pytest.raises(LabelError, match='says both'): read_table(tmp_path/'a.csv', findings=findings)

def test_usual_names_in_capitals(tmp_path):
    (tmp_path/'a.csv').write_text('Filename,Patient,Labels\na.png,x,Mass\nb.png,x,\n')
    assert read_table(tmp_path/'a.csv').patient.nunique() == 1

def test_the_configuration_of_a_run_is_no_recipe():
    from cxr_nb.training.recipe import Recipe
    with pytest.raises(CxrError, match="its part 'recipe'"): Recipe.from_dict({'recipe': {}, 'net': {}})

def test_a_run_that_was_trained_further_is_not_judged_with_older_weights(drawn, tmp_path):
    from cxr_nb.training.engine import run_stage, train
    from cxr_nb.training.judging import judge
    from cxr_nb.training.recipe import TrainError
    recipe = tiny([stage('a'), stage('b')])
    more = dict(cache=tmp_path/'cache', device='cpu', progress=False)
    older = begun(drawn, recipe, tmp_path)
    run_stage(older, recipe.stages[0])
    train(drawn, recipe, tmp_path/'run', resume=True, say=str, **more)
    with pytest.raises(TrainError, match='open it again'): judge(older)

def test_a_column_that_is_nearly_a_finding_is_named(phantom, tmp_path):
    from cxr_nb.data.sources import load_data
    names = [o.name for o in phantom.glob('images_*/images/*.png')][:10]
    cells = [f'{name},{i % 2},{2 if i == 3 else i % 2}' for i, name in enumerate(names)]
    (tmp_path/'a.csv').write_text('\n'.join(['image,Mass,Edema', *cells]))
    data = load_data(csv_path=tmp_path/'a.csv', img_root=phantom)
    assert findings_of(data.table) == ['Mass'] and "Column 'Edema' holds 0 and 1 in most rows" in data.caveat

def test_stages_in_another_order_are_another_recipe():
    from cxr_nb.training.state import differences
    a, b = dict(name='a', lr=1), dict(name='b', lr=2)
    assert differences({'stages': [a, b]}, {'stages': [b, a]}) and not differences({'stages': [a, b]}, {'stages': [a, b]})

def test_a_head_that_stands_last_may_be_worse(drawn, tmp_path):
    "Then the one before it stays; and the run knows its own rows when it is opened"
    from cxr_nb.training.engine import train
    from cxr_nb.training.judging import val_auroc
    from cxr_nb.training.recipe import Stage
    from cxr_nb.training.recipes import staged
    from cxr_nb.training.run import open_run
    from dataclasses import replace
    some = replace(drawn, table=drawn.table[drawn.table.age < 60])
    stages = [Stage('whole', 2, 1e-3, bn='train'), Stage('head', 1, 1e-9, trainable=0, repeats=1)]
    recipe = staged(arch='mobilenetv2_050', size=64, weights='none', stages=stages)
    run = train(some, recipe, tmp_path/'run', device='cpu', progress=False, cache=tmp_path/'cache')
    assert val_auroc(run) >= max(row['auroc'] for row in run.history) - 1e-6
    assert len(open_run(run.path, device='cpu', progress=False).data.table) == len(some.table) < len(drawn.table)

def test_a_column_that_is_there_twice(tmp_path):
    (tmp_path/'a.csv').write_text('image, image,Mass\na.png,a.png,1\nb.png,b.png,0\n')
    with pytest.raises(LabelError, match="two columns are called 'image'"): read_table(tmp_path/'a.csv')

@pytest.mark.parametrize('file, name', [
    ('1.2.A.png', '1.2.A'), ('St. Mary 1.png', 'St. Mary 1'), ('a.PNG', 'a.png'), ('1.png', 1),
    ('a\u0308.png', 'a\u0308.png'), ('a\u0308.png', '\xe4.png'), ('\xe4.png', 'a\u0308')])
def test_a_table_made_by_hand_names_its_files(file, name, tmp_path):
    "A dot within a name is no suffix, and an umlaut is written in one way or the other"
    from cxr_nb.data.sources import own_data
    (tmp_path/file).touch()
    table = pd.DataFrame(dict(patient=[1], Mass=[1]), index=[name])
    for files in (tmp_path, {file: tmp_path/file}): assert not own_data(table, files).missing

def test_a_folder_that_is_called_like_a_file_is_none(tmp_path):
    "As Kaggle unpacks some; and half of a collection does not hide a whole one"
    from cxr_nb.data.indiana import PROJECTIONS, REPORTS, indiana_folder
    from cxr_nb.data.sources import LABEL_FILES, kaggle_mount
    (tmp_path/'a'/LABEL_FILES[1]).mkdir(parents=True)
    (tmp_path/'a'/REPORTS).touch()
    assert kaggle_mount(tmp_path) is None and indiana_folder(tmp_path) is None
    (tmp_path/'b'/'c').mkdir(parents=True)
    for name in (LABEL_FILES[1], REPORTS, PROJECTIONS): (tmp_path/'b'/'c'/name).touch()
    assert kaggle_mount(tmp_path) == indiana_folder(tmp_path) == tmp_path/'b'/'c'

def test_room_for_download_and_cache_in_one_folder(tmp_path, monkeypatch):
    from cxr_nb.data import downloads
    for name in ('KAGGLEHUB_CACHE', 'CXR_CACHE'): monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv('KAGGLE_KERNEL_RUN_TYPE', raising=False)
    monkeypatch.setattr(downloads.shutil, 'disk_usage', lambda path: SimpleNamespace(free=8e9))
    with pytest.raises(downloads.DownloadError, match='needs 10.2 GB'): downloads.check_room('224')

def test_no_finding_may_be_a_finding():
    from cxr_nb.data.splits import eda_summary, split_table
    table = nih_table().iloc[:40]
    table['No Finding'] = 1
    split = pd.Series('train', table.index)
    assert split_table(table, split)['No Finding'].tolist() == [1.]
    assert 'No Finding 100.0%' in eda_summary(table, split)

def test_own_pictures_in_a_folder_of_drawn_ones(tmp_path):
    "They are no reason to draw again"
    from cxr_nb.data.phantom.release import make_phantom
    def draw(): return make_phantom(tmp_path/'drawn', n_images=3, size=64, progress=False)
    (draw()/'figure.png').touch()
    assert (draw()/'figure.png').exists()

@pytest.mark.parametrize('findings', [None, {'Mass': {'threshold': .3}, 'Edema': {'f1': .2}}])
def test_thresholds_that_are_not_all_there(findings, tmp_path):
    "A finding without one would never be called"
    from cxr_nb.core import write_json
    from cxr_nb.metrics.thresholds import ThresholdError, load_thresholds
    write_json(tmp_path/'t.json', {'findings': findings})
    with pytest.raises(ThresholdError, match='is no thresholds file'): load_thresholds(tmp_path/'t.json')

def test_why_there_is_no_interval():
    "Where a finding is the same in every resample that has it, the notes say so"
    from cxr_nb.metrics.evaluation import evaluate
    y = np.arange(40)[:, None] < [3, 20]
    notes = evaluate(y, np.where(y, .9, .1), ['A', 'B'], np.arange(40), n_boot=50).notes
    assert 'AUROC the same in every resample, so without an interval: A, B' in notes

@pytest.mark.parametrize('ours, theirs', [
    ('a\u0308.png', 'a\u0308.png'), ('\xe4.png', 'a\u0308.png'), ('a\u0308.png', '\xe4.png')])
def test_an_umlaut_in_truth_and_predictions(ours, theirs):
    "No image is lost for the way in which its name is written"
    from cxr_nb.metrics.predictions import align
    table = pd.DataFrame(dict(patient=[1, 2], Mass=[1, 0]), index=[ours, 'b.png'])
    assert align(table, pd.DataFrame(dict(image=[theirs, 'b.png'], prob_Mass=[.1, .2]))).y.shape == (2, 1)

def test_an_interrupted_drawing_does_not_go_on(tmp_path, monkeypatch):
    from cxr_nb.data.phantom import release
    drawn = []
    def draw(job, size):
        drawn.append(job)
        time.sleep(.01)
    def interrupted(images, **how): raise KeyboardInterrupt
    monkeypatch.setattr(release, '_write_image', draw)
    monkeypatch.setattr(release, 'tqdm', interrupted)
    with pytest.raises(KeyboardInterrupt): release.make_phantom(tmp_path/'drawn', n_images=600, size=64, workers=2)
    assert len(drawn) < 300

def test_labels_that_are_none_have_a_mark_too():
    from cxr_nb.data.splits import label_fingerprint
    marks = {label_fingerprint(pd.DataFrame({'Mass': o}, index=['a', 'b']), ['Mass'])
             for o in ([100, 0], [1, 0], [1., 0.], [True, False], ['x', 0], [np.nan, 0], [-1, 0])}
    assert len(marks) == 5

def test_a_run_goes_on_with_the_folds_that_it_was_given(run, phantom, trained, tmp_path):
    again = shutil.copytree(trained, tmp_path/'again')
    said = run('cxr-train', '--data', phantom, '--out', again, '--arch', 'mobilenetv2_050', '--weights', 'none',
               '--size', 64, '--epochs', 1, '--device', 'cpu', '--precision', 'float32', '--folds', 5, '--resume')
    assert said.returncode == 0, said.stderr

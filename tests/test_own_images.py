"A stranger with films of his own: own names, own columns, patients called P-007, two findings, and nothing else known."
import json, os, re, signal, time
from itertools import combinations
from pathlib import Path

import cv2, numpy as np, pandas as pd, pytest

NET = ['--arch', 'test_resnet', '--weights', 'none', '--size', 64, '--epochs', 1, '--recipe', 'single', '--batch-size',
       16, '--device', 'cpu']

@pytest.fixture(scope='module')
def clinic(tmp_path_factory):
    """Sixty drawn films in folders of their own, and a table in a stranger's words; Hernia is a column without
    a positive"""
    from cxr_nb.data.phantom.anatomy import phantom_body
    from cxr_nb.data.phantom.findings import phantom_image
    root, rng, rows = tmp_path_factory.mktemp('clinic'), np.random.default_rng(0), []
    for i in range(60):
        dx = [f for f in ('Mass', 'Effusion') if rng.random() < .4]
        name = f'{"east" if i % 2 else "west"}/scan_{i:03d}.png'
        (root/'films'/name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root/'films'/name), phantom_image(phantom_body(i//2), dx, seed=i, size=128)[0])
        rows.append({'scan': Path(name).name, 'person': f'P-{i//2:03d}', 'dx': ';'.join(dx), 'age': 40 + i % 30,
                     'sex': 'MF'[i//2 % 2], 'view': ['PA', 'AP'][i % 2]})
    table = pd.DataFrame(rows)
    table.to_csv(root/'mine.csv', index=False)
    return root

@pytest.fixture(scope='module')
def own(run, clinic, tmp_path_factory):
    "A run on these films, by the shell"
    out = tmp_path_factory.mktemp('own')/'run'
    said = run('cxr-train', '--csv-path', clinic/'mine.csv', '--img-root', clinic/'films', '--image-col', 'scan',
               '--patient-col', 'person', '--label-col', 'dx', '--out', out, *NET)
    assert said.returncode == 0, said.stderr
    return out, said

def small(data, path, **kwargs):
    "A tiny run in Python"
    from cxr_nb.training.recipes import staged
    from cxr_nb.training.recipe import Stage
    from cxr_nb.training.engine import train
    recipe = staged(arch='test_resnet', size=32, weights='none', stages=[Stage('whole', 1, 1e-3, bs=16, bn='train')])
    return train(data, recipe, path, device='cpu', progress=False, say=str, **kwargs)

def test_own_columns_findings_and_patients_come_out_as_they_went_in(own):
    out, said = own
    config, p = (json.loads((out/'config.json').read_text()), pd.read_csv(out/'predictions_test.csv'))
    assert config['findings'] == ['Effusion',
                                  'Mass'] and [o for o in p if o.startswith('prob_')] == ['prob_Effusion', 'prob_Mass']
    assert p.patient.str.fullmatch(r'P-\d{3}').all() and p.image.str.fullmatch(r'scan_\d{3}\.png').all()
    assert 'split: at random, by patient' in said.stdout and config['split_kind'] == 'random'

def test_umlauts_and_suffixes_of_another_system_are_the_same_names(tmp_path):
    "macOS writes an umlaut as two characters; .PNG in the table is .png on the disk"
    from unicodedata import normalize
    from cxr_nb.data.sources import load_data
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    (tmp_path/'films').mkdir()
    for name in (normalize('NFD', 'M\u00fcller.png'), 'b.png', 'c.PNG', 'd.png'):
        (tmp_path/'films'/name).write_bytes(cv2.imencode('.png', pixels)[1])
    mine = pd.DataFrame({'image': ['M\u00fcller.png', 'b.PNG', 'c.png', 'd'], 'labels': ['Mass', '', 'Mass', '']})
    mine.to_csv(tmp_path/'mine.csv', index=False)
    data = load_data(csv_path=tmp_path/'mine.csv', img_root=tmp_path/'films')
    assert not data.missing and list(data.table.index) == ['M\u00fcller.png', 'b.png', 'c.PNG', 'd.png']

def test_a_column_of_yes_and_no_with_a_gap_is_told(clinic, tmp_path):
    from cxr_nb.data.sources import load_data
    table = pd.read_csv(clinic/'mine.csv')[['scan']].rename(columns={'scan': 'image'})
    table['Mass'] = ['yes', 'no']*30
    table['Edema'] = ['yes', 'no']*29 + ['no', None]
    table.to_csv(tmp_path/'gap.csv', index=False)
    data = load_data(csv_path=tmp_path/'gap.csv', img_root=clinic/'films')
    assert "Column 'Edema' holds 0 and 1 in most rows" in data.caveat and 'Edema' not in data.table

def test_the_official_split_is_not_applied_to_other_peoples_patients(phantom, tmp_path):
    "By bare patient number a fifth of these would be test patients of the release"
    from cxr_nb.data.sources import load_nih, own_data
    from cxr_nb.labels import nih_table, official_test_patients
    from cxr_nb.data.splits import official_split, split_kind
    table = nih_table()
    table = table[table.patient <= 500].rename(lambda o: 'mine_' + o)
    assert table.patient.isin(official_test_patients()).any()
    assert split_kind(table.index) == 'random'
    with pytest.raises(ValueError, match='choose a random split'): official_split(table)
    assert split_kind(nih_table().index[:50]) == 'official'
    data = load_nih(phantom)
    assert split_kind(data.table.index, data.lists) == 'official'

@pytest.mark.parametrize('gone', [g for n in range(4) for g in combinations(('age', 'sex', 'view'), n)],
                         ids=lambda g: '+'.join(g) or 'none')
def test_every_optional_column_may_be_absent_in_python(clinic, tmp_path, gone):
    from cxr_nb.data.sources import load_data
    from cxr_nb.report.html import write_report
    from cxr_nb.report.card import write_model_card
    pd.read_csv(clinic/'mine.csv').drop(columns=list(gone)).to_csv(tmp_path/'some.csv', index=False)
    data = load_data(csv_path=tmp_path/'some.csv', img_root=clinic/'films',
                     columns=dict(image='scan', patient='person', labels='dx'))
    r = small(data, tmp_path/'run', cache=clinic/'cache')
    page = write_report(r.path).read_text()
    write_model_card(r.path)
    assert ('so there are no subgroups' in page) == (set(gone) == {'age', 'sex', 'view'})

def test_every_optional_column_may_be_absent_in_the_shell(run, clinic, tmp_path):
    pd.read_csv(clinic/'mine.csv')[['scan', 'dx']].to_csv(tmp_path/'bare.csv', index=False)
    own = ['--csv-path', tmp_path/'bare.csv', '--img-root', clinic/'films', '--image-col', 'scan']
    said = run('cxr-train', *own, '--out', tmp_path/'run', *NET)
    assert said.returncode == 0 and 'Patients are not named in the table' in said.stdout, said.stderr
    said = run('cxr-eval', '--run', tmp_path/'run')
    assert said.returncode == 0, said.stderr
    assert 'Patients are not named' in (tmp_path/'run'/'report.html').read_text()

def test_a_finished_run_is_not_destroyed_by_leaving_out_resume(run, own):
    out, _ = own
    before = {o.name: o.read_bytes() for o in out.iterdir() if o.is_file()}
    said = run('cxr-train', '--csv-path', out.parent/'none.csv', '--img-root', out.parent, '--out', out)
    assert said.returncode == 2
    config = json.loads((out/'config.json').read_text())
    said = run('cxr-train', '--out', out, '--weights', 'none')
    assert said.returncode == 2 and 'holds a finished run' in said.stderr, said.stderr
    assert '--resume' in said.stderr and '--overwrite' in said.stderr, said.stderr
    assert {o.name: o.read_bytes() for o in out.iterdir() if o.is_file()} == before and config['metrics']

def test_overwriting_leaves_nothing_of_the_old_run(clinic, tmp_path):
    from cxr_nb.data.sources import load_data
    data = load_data(csv_path=clinic/'mine.csv', img_root=clinic/'films', columns=dict(image='scan', patient='person'))
    old = small(data, tmp_path/'run', cache=clinic/'cache')
    for name in ('report.html', 'MODEL_CARD.md', 'figures/x.png', 'results/x.txt'):
        (old.path/name).parent.mkdir(exist_ok=True)
        (old.path/name).write_text('old')
    (old.path/'notes.txt').write_text('mine')
    from cxr_nb.training.run import start_run
    start_run(data, old.recipe, tmp_path/'run', cache=clinic/'cache', device='cpu', progress=False, overwrite=True,
              say=str)
    assert {o.name for o in old.path.iterdir()} == {'config.json', 'model.safetensors', 'split.csv', 'data.json',
                                                    'results', 'notes.txt'}

def test_an_unfinished_run_says_so_wherever_it_is_used(run, clinic, tmp_path):
    from cxr_nb.deploy.app import make_page
    from cxr_nb.data.sources import load_data
    from cxr_nb.deploy.predict import load_classifier
    from cxr_nb.training.recipes import staged
    from cxr_nb.training.recipe import Stage
    from cxr_nb.report.html import write_report
    from cxr_nb.training.engine import run_stage
    from cxr_nb.training.run import start_run
    data = load_data(csv_path=clinic/'mine.csv', img_root=clinic/'films', columns=dict(image='scan', patient='person'))
    recipe = staged(arch='test_resnet', size=32, weights='none',
                    stages=[Stage(o, 1, 1e-3, bs=16) for o in ('one', 'two')])
    r = start_run(data, recipe, tmp_path/'run', cache=clinic/'cache', device='cpu', progress=False, say=str)
    run_stage(r, r.recipe.stages[0])
    film = next((clinic/'films').rglob('*.png'))
    said = run('cxr-predict', '--run', r.path, film, '--out', tmp_path/'p.csv')
    assert 'not finished (1 of 2 stages)' in said.stdout, said.stderr
    assert 'not finished (1 of 2 stages)' in write_report(r.path).read_text()
    assert 'not finished (1 of 2 stages)' in str(make_page(load_classifier(r.path), tmp_path).config)
    assert 'not finished (1 of 2 stages)' in run('cxr-eval', '--run', r.path).stdout

def test_a_finding_that_was_never_learnt_has_no_probability(run, clinic, tmp_path):
    table = pd.read_csv(clinic/'mine.csv')
    for f in ('Mass', 'Effusion', 'Hernia'): table[f] = table.dx.fillna('').str.contains(f).astype(int)
    table.drop(columns='dx').to_csv(tmp_path/'wide.csv', index=False)
    own = ['--csv-path', tmp_path/'wide.csv', '--img-root', clinic/'films', '--image-col', 'scan', '--patient-col',
           'person', '--findings', 'Mass,Effusion,Hernia']
    said = run('cxr-train', *own, '--out', tmp_path/'run', *NET)
    assert said.returncode == 0 and 'left out: Hernia' in said.stdout, said.stderr
    assert run('cxr-predict', '--run', tmp_path/'run', next((clinic/'films').rglob('*.png')), '--out',
               tmp_path/'p.csv').returncode in (0, 3)
    assert not [o for o in pd.read_csv(tmp_path/'p.csv') if 'Hernia' in o]
    assert 'Left out: Hernia' in (tmp_path/'run'/'report.html').read_text()

def test_no_finding_of_two_findings_is_called_what_it_is(run, own, clinic, tmp_path):
    said = run('cxr-predict', '--run', own[0], clinic/'films', '--out', tmp_path/'p.csv')
    df = pd.read_csv(tmp_path/'p.csv')
    assert said.returncode in (0, 3) and 'No Finding' not in df and 'None of Effusion, Mass' in df, said.stderr
    assert 'No Finding' not in re.sub('<pre>.*?</pre>', '', (own[0]/'report.html').read_text(),
                                      flags=re.S).replace('False No Finding', '').replace('false No Finding', '')

def test_the_table_reads_like_a_spreadsheet(run, own, clinic, tmp_path):
    """Thresholds beside probabilities, few digits, two files of one name told apart, the gate's columns named, what
    was skipped said, and the help explains them"""
    for side in ('a', 'b'):
        (tmp_path/'in'/side).mkdir(parents=True)
        (tmp_path/'in'/side/'film.png').write_bytes(sorted((clinic/'films').rglob('*.png'))[side == 'b'].read_bytes())
    (tmp_path/'in'/'readme.txt').write_text('two films')
    said = run('cxr-predict', '--run', own[0], tmp_path/'in', '--out', tmp_path/'p.csv')
    df = pd.read_csv(tmp_path/'p.csv', dtype=str)
    at = list(df).index('prob_Mass')
    assert list(df)[at:at + 3] == ['prob_Mass', 'threshold_Mass',
                                   'call_Mass'] and list(df)[-3:] == ['gate_codes', 'gate_reason', 'gate_confidence']
    assert all(len(re.sub(r'^0\.0*|[.]', '', o)) <= 6
               for o in df.prob_Mass) and df.image.nunique() == 2 and df.path.nunique() == 2
    assert '1 other files' in said.stdout and 'readme.txt' in said.stdout
    said = run('cxr-predict', '--help').stdout
    assert all(o in said for o in ('prob_X', 'threshold_X', 'call_X', 'gate_reason', 'probabilities'))

def test_calibrated_probabilities_on_request_and_said(run, own, clinic, tmp_path):
    film = next((clinic/'films').rglob('*.png'))
    a, b = (run('cxr-predict', '--run', own[0], film, '--out', tmp_path/f'{k}.csv', *more)
            for k, more in (('a', []), ('b', ['--calibrated'])))
    a_table, b_table = (pd.read_csv(tmp_path/f'{k}.csv') for k in 'ab')
    assert 'probabilities are calibrated' in b.stdout and 'probabilities are' not in a.stdout, b.stderr
    assert (a_table.probabilities[0], b_table.probabilities[0]) == ('network', 'calibrated')
    assert (a_table.call_Mass == b_table.call_Mass).all() and a_table.prob_Mass[0] != b_table.prob_Mass[0]

def test_judging_others_says_what_is_missing_and_takes_their_names(run, tmp_path):
    rng = np.random.default_rng(0)
    n = 80
    truth = pd.DataFrame({'image': [f'{i}.png' for i in range(n)], 'patient': [f'p{i//2}' for i in range(n)],
                          **{f: rng.integers(0, 2, n) for f in ('Mass', 'Pleural_Thickening', 'Edema')}})
    truth.to_csv(tmp_path/'truth.csv', index=False)
    theirs = pd.DataFrame({'scan': truth.image, 'score_m': rng.random(n), 'prob_pleural thickening': rng.random(n)})
    theirs.to_csv(tmp_path/'theirs.csv', index=False)
    said = run('cxr-eval', '--predictions', tmp_path/'theirs.csv', '--labels', tmp_path/'truth.csv', '--names',
               'scan=image,score_m=Mass', '--out', tmp_path/'out')
    assert said.returncode == 0, said.stderr
    m = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert set(m['test']['findings']) == {'Mass', 'Pleural_Thickening'}
    words, page = 'No predictions of Edema', tmp_path/'out'/'report.html'
    assert words in said.stdout or words in page.read_text()
    assert (tmp_path/'out'/'predictions_all.csv').is_file() and not (tmp_path/'out'/'predictions_test.csv').exists()
    said = run('cxr-eval', '--predictions', tmp_path/'theirs.csv', '--labels', tmp_path/'truth.csv', '--names', 'scan',
               '--out', tmp_path/'bad')
    assert said.returncode == 2 and 'give pairs such as' in said.stderr

def test_ctrl_c_says_how_to_go_on(forks, env, clinic, tmp_path):
    from conftest import as_command
    args = ['--csv-path', clinic/'mine.csv', '--img-root', clinic/'films', '--image-col', 'scan', '--patient-col',
            'person', '--out', tmp_path/'run', *NET[:-4], '--batch-size', 2, '--epochs', 500, '--device', 'cpu',
            '--overwrite']
    p = forks.Process(target=interruptible, args=('cxr-train', [str(o) for o in args], env, tmp_path/'said'))
    p.start()
    until = time.monotonic() + 120
    while not (tmp_path/'run'/'resume'/'state.safetensors').exists() and p.is_alive() and time.monotonic() < until:
        time.sleep(.02)
    os.kill(p.pid, signal.SIGINT)
    p.join(60)
    assert p.exitcode == 130
    said = (tmp_path/'said.err').read_text().strip().splitlines()[-1]
    assert said.startswith('interrupted; go on with: cxr-train ') and said.endswith('--resume')
    assert '--overwrite' not in said

def interruptible(*args):
    "A process that was started in the background may not hear of Ctrl-C"
    from conftest import as_command
    signal.signal(signal.SIGINT, signal.default_int_handler)
    as_command(*args)

def test_help_shows_defaults_and_one_spelling(run):
    import cxr_nb.cli as cli
    for name in cli.COMMANDS:
        said = run(f'cxr-{name}', '--help').stdout
        flags = re.findall(r'(?<![\w-])--[a-zA-Z][\w-]*', said)
        assert flags and not [o for o in flags if '_' in o and o != '--nproc_per_node'], name
    said = ' '.join(run('cxr-train', '--help').stdout.split())
    for text in ('224 if not given', 'that of the recipe if not given', '0 if not given', 'staged (three stages)'):
        assert text in said, text

def test_notebooks_alone_say_how_to_get_on_without_a_network():
    "Both the variable for the notebooks and the argument in Python stand in the message"
    from cxr_nb.models.weights import OTHER_WEIGHTS
    assert all(o in OTHER_WEIGHTS for o in ('CXR_WEIGHTS', "Recipe(weights=", '--weights'))

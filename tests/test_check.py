"cxr-check, as a shell or a script meets it: exit codes, the table, and what it says of a run."
import json, shutil

import pandas as pd, pytest

def sound(said):
    "No traceback, whatever was wrong"
    assert 'Traceback' not in said.stderr, said.stderr
    return said

@pytest.fixture
def copy(phantom, tmp_path):
    "A phantom that may be spoilt"
    return shutil.copytree(phantom, tmp_path/'nih')

def test_a_clean_folder_is_0(run, phantom, tmp_path):
    said = sound(run('cxr-check', '--data', phantom, '--out', tmp_path/'checks.json'))
    assert said.returncode == 0 and ' 0 violation' in said.stdout, said.stdout
    rows = json.loads((tmp_path/'checks.json').read_text())
    assert len(rows) > 10 and set(rows[0]) == {'check', 'verdict', 'seen', 'expected',
                                               'mend'} and not {o['verdict'] for o in rows} & {'warning', 'violation'}

def test_violations_are_1_and_named(run, copy, tmp_path):
    films = sorted(copy.rglob('*.png'))
    films[0].write_bytes(films[0].read_bytes()[:-200])
    films[1].unlink()
    shutil.copy(films[2], films[-1])
    said = sound(run('cxr-check', '--data', copy, '--quick', '--out', tmp_path/'checks.csv'))
    assert said.returncode == 1 and max(map(len, said.stdout.splitlines())) <= 120, said.stdout
    got = pd.read_csv(tmp_path/'checks.csv').query('verdict == "violation"').set_index('check').seen
    assert set(got.index) == {'missing files', 'broken files', 'identical files, two patients'}
    assert films[0].name in got['broken files'] and films[1].name in got['missing files']
    assert films[-1].name in got['identical files, two patients']

def test_a_patient_in_both_lists_is_1(run, copy):
    both = copy/'train_val_list.txt', copy/'test_list.txt'
    names = both[1].read_text().split()
    both[0].write_text(both[0].read_text() + names[0] + '\n')
    said = sound(run('cxr-check', '--data', copy, '--quick'))
    assert said.returncode == 1 and 'images listed twice' in said.stdout and names[0] in said.stdout

@pytest.mark.parametrize('args', [['--data', 'nowhere'], ['--run', 'nowhere'], ['--out', 'checks.txt'], ['--nonsense']],
                         ids=' '.join)
def test_usage_errors_are_2(run, args):
    said = sound(run('cxr-check', *args))
    assert said.returncode == 2 and said.stderr

def test_a_run_is_checked_by_itself_and_after_tampering(run, trained, phantom, tmp_path):
    said = sound(run('cxr-check', '--run', trained, '--quick'))
    assert said.returncode == 0 and 'run: split as in config.json' in said.stdout, said.stdout
    bad = shutil.copytree(trained, tmp_path/'run')
    split = pd.read_csv(bad/'split.csv')
    split.loc[split.part.eq('test').idxmax(), 'part'] = 'train'
    split.to_csv(bad/'split.csv', index=False)
    (bad/'model.safetensors').write_bytes((bad/'model.safetensors').read_bytes()[:5000])
    said = sound(run('cxr-check', '--run', bad, '--data', phantom, '--quick', '--out', tmp_path/'c.json'))
    worse = {o['check'] for o in json.loads((tmp_path/'c.json').read_text()) if o['verdict'] == 'violation'}
    assert said.returncode == 1 and worse >= {'run: files', 'run: weights as in config.json',
                                              'run: split as in config.json', 'run: test part as in the lists'}

def test_thresholds_that_somebody_changed_are_told(run, trained, phantom, tmp_path):
    "Predictions are held against those of config.json, so another file of thresholds changes nothing"
    made = shutil.copytree(trained, tmp_path/'run')
    (made/'thresholds.json').write_text('{}')
    said = run('cxr-check', '--run', made, '--data', phantom, '--quick')
    assert said.returncode == 0 and '1 warning' in said.stdout, said.stdout + said.stderr
    assert 'predictions take those of config.json' in ' '.join(said.stdout.split())

def test_a_run_that_is_being_trained_is_not_called_damaged(run, trained, phantom, tmp_path):
    made = shutil.copytree(trained, tmp_path/'run')
    config = json.loads((made/'config.json').read_text())
    config['stages_done'].pop()
    (made/'config.json').write_text(json.dumps(config))
    for name in ('metrics.json', 'thresholds.json', 'history.csv'): (made/name).unlink()
    said = run('cxr-check', '--run', made, '--data', phantom, '--quick')
    assert said.returncode == 0 and 'the run is not finished' in said.stdout, said.stdout + said.stderr
    assert 'restore' not in said.stdout and 'wait until it is trained' in ' '.join(said.stdout.split())

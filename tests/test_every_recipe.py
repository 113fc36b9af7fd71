"Every command for every recipe: five recipes, ten things each, on a small phantom."
import json, re, shutil, signal, time
from pathlib import Path

import cv2, numpy as np, pandas as pd, pytest
from filelock import FileLock
from test_app import CHROMIUM, browser, drop, files, needs_browser, visit

RECIPES = ['staged', 'single', 'fusion', 'indiana', 'strong']
FINDINGS = dict(indiana=35)

@pytest.fixture(scope='session')
def reports(shared):
    "Drawn images of a few reports in the layout of the Indiana collection"
    from cxr_nb.data.indiana import indiana_phantom
    with FileLock(shared/'indiana.lock'): return indiana_phantom(shared/'indiana', n_reports=80, size=64)

@pytest.fixture(scope='session')
def command(phantom, reports):
    "The options of `cxr-train` for a recipe at the smallest size"
    def _command(name, out, *more):
        data = reports if name == 'indiana' else phantom
        fewer = ['--folds', 3] if name == 'indiana' else []
        return ['--recipe', name, '--fast', '--data', data, '--out', out, '--device', 'cpu', *fewer, *more]
    return _command

@pytest.fixture(scope='session')
def made(run, command, shared):
    "The run of a recipe, trained once, and what the command said"
    def _made(name):
        out = shared/'every'/name
        with FileLock(shared/f'{name}.lock'):
            if not (out/'report.html').is_file():
                said = run('cxr-train', *command(name, out))
                assert said.returncode == 0, said.stderr
                (shared/f'{name}.said').write_text(said.stdout)
        return out
    return _made

def read(path): return json.loads(path.read_text())

@pytest.mark.parametrize('name', RECIPES)
def test_train(made, shared, name):
    run = made(name)
    assert {'config.json', 'model.safetensors', 'history.csv', 'split.csv', 'thresholds.json', 'metrics.json',
            'predictions_val.csv',
            'predictions_test.csv', 'report.html', 'MODEL_CARD.md', 'figures',
            'results'} <= {o.name for o in run.iterdir()}
    assert 'test: macro AUROC' in (shared/f'{name}.said').read_text()
    assert len(read(run/'metrics.json')['test']['findings']) == FINDINGS.get(name, 14)
    assert (run/'results'/'log.txt').is_file() and (run/'results'/'tables'/'metrics.txt').is_file()
    assert (run/'figures'/'predictions.png').is_file()
    assert ((run/'fold0' if name == 'indiana' else run)/'checkpoints'/'best.safetensors').is_file()
    if name == 'fusion': assert (run/'checkpoints'/'optimizer.safetensors').is_file()
    if name == 'indiana':
        assert (run/'figures'/'epoch_search.png').is_file() and (run/'results'/'tables'/'folds.csv').is_file()

def left(run):
    "What must be the same, byte for byte"
    names = ['model.safetensors', 'predictions_val.csv', 'predictions_test.csv', 'metrics.json', 'thresholds.json',
             'split.csv']
    history = pd.read_csv(run/'history.csv', dtype=str).drop(columns='seconds').to_csv()
    return {o: (run/o).read_bytes() for o in names} | {'history': history}

@pytest.mark.parametrize('name', RECIPES)
def test_killed_and_resumed(forks, env, command, made, tmp_path, name):
    from conftest import as_command
    whole, out = made(name), tmp_path/'run'
    argv = list(map(str, command(name, out, '--resume', '--save-every', '.05')))
    p = forks.Process(target=as_command, args=('cxr-train', argv, env, tmp_path/'said'))
    p.start()
    while p.is_alive() and not list(out.rglob('state.safetensors')): time.sleep(.001)
    time.sleep(.3) # some way into a stage
    assert p.is_alive(), (tmp_path/'said.err').read_text()
    p.kill()
    p.join()
    assert p.exitcode == -signal.SIGKILL and not (out/'metrics.json').is_file()
    p = forks.Process(target=as_command, args=('cxr-train', argv, env, tmp_path/'said'))
    p.start()
    p.join()
    assert p.exitcode == 0, (tmp_path/'said.err').read_text()
    assert left(out) == left(whole)

@pytest.mark.parametrize('name', RECIPES)
def test_two_processes(run_pair, command, made, tmp_path, name):
    codes, said = run_pair('cxr-train', *command(name, tmp_path/'run'), out=tmp_path)
    assert codes == [0, 0], Path(f'{said[1]}.err').read_text()[-2000:]
    a, b = (pd.read_csv(o/'history.csv') for o in (made(name), tmp_path/'run'))
    assert list(a.stage) == list(b.stage) and (a.valid_loss - b.valid_loss).abs().max() < .02
    assert [Path(f'{o}.out').read_text().count('test: macro AUROC') for o in said] == [1, 0]

@pytest.mark.parametrize('name', RECIPES)
def test_eval(run, made, tmp_path, name):
    again = shutil.copytree(made(name), tmp_path/'again')
    before = read(again/'metrics.json')
    assert run('cxr-eval', '--run', again, '--device', 'cpu').returncode == 0
    after = read(again/'metrics.json')
    assert after['test']['macro'] == before['test']['macro'] and set(after) == set(before)
    said = run('cxr-eval', '--run', again, '--subset', 20, '--out', tmp_path/'few')
    assert said.returncode == 0 and (tmp_path/'few'/'metrics.txt').is_file(), said.stderr

@pytest.mark.parametrize('name', RECIPES)
def test_predict(run, made, files, tmp_path, name):
    "PNG and DICOM; what is known of the patient changes the answer of the network that is told, and of no other"
    (tmp_path/'ages.csv').write_text('image,age,sex,view\nfilm.png,80,M,AP\n')
    tables = {}
    for known, more in dict(nothing=[], table=['--table', tmp_path/'ages.csv']).items():
        said = run('cxr-predict', '--run', made(name), '--out', tmp_path/f'{known}.csv', *more, files/'film.png',
                   files/'film.dcm')
        assert said.returncode in (0, 3), said.stderr
        tables[known] = pd.read_csv(tmp_path/f'{known}.csv').filter(like='prob_')
    assert tables['nothing'].shape == (2, FINDINGS.get(name, 14)) and tables['nothing'].notna().all(axis=None)
    told = not np.allclose(tables['nothing'].iloc[0], tables['table'].iloc[0], atol=1e-7)
    assert told == (name == 'fusion')
    np.testing.assert_allclose(tables['nothing'].iloc[1], tables['table'].iloc[1], atol=1e-6)
    noted = f'has no row for 1 of 2 files, for example {files/"film.dcm"}' in said.stdout
    assert noted == (name == 'fusion')

@pytest.mark.parametrize('name', RECIPES)
def test_gradcam(run, made, tmp_path, name):
    said = run('cxr-gradcam', '--run', made(name), '--samples', 2, '--out', tmp_path)
    assert said.returncode == 0 and len(list(tmp_path.glob('*.png'))) == 2, said.stderr

@pytest.mark.parametrize('name', RECIPES)
def test_export(run, made, files, tmp_path, name):
    from cxr_nb.deploy.export import load_onnx
    from cxr_nb.deploy.predict import load_classifier, probabilities_of
    from cxr_nb.models.tabular import known_rows
    said = run('cxr-export', '--run', made(name), '--out', tmp_path/'model.onnx')
    assert said.returncode == 0, said.stderr
    assert float(re.search(r'from PyTorch: (\S+)', said.stdout)[1]) <= 1e-4
    clf, other = load_classifier(made(name)), load_onnx(tmp_path/'model.onnx')
    images = np.random.default_rng(0).integers(0, 256, (3, clf.model.size, clf.model.size), dtype=np.uint8)
    assert other.told == list(clf.model.net.tabular)
    for known in ([{}]*3, [dict(age=70, sex='F', view='AP'), dict(view='PA'), {}]):
        rows = known_rows(clf.model, known)
        assert np.abs(probabilities_of(clf, images, rows) - other.probabilities_of(images, known)).max() < 1e-4

@needs_browser
@pytest.mark.parametrize('name', RECIPES)
def test_app(forks, made, env, browser, files, tmp_path, name):
    from conftest import as_command
    said = tmp_path/'said'
    argv = ['--run', str(made(name)), '--port', '0']
    p = forks.Process(target=as_command, args=('cxr-app', argv, {**env, 'TMPDIR': str(tmp_path)}, said))
    p.start()
    try:
        while not (address := re.search(r'^page: (\S+).*\n', written(f'{said}.out'), re.M)):
            assert p.is_alive(), written(f'{said}.err')
            time.sleep(.02)
        page = visit(browser, address[1])
        drop(page, files/'film.png', 'ok')
        assert page.locator('#bars tr').count() == FINDINGS.get(name, 14)
        assert (page.locator('#age').count() > 0) == (name == 'fusion')
    finally:
        p.terminate()
        p.join(60)

def written(file):
    "What a process has written by now"
    return Path(file).read_text() if Path(file).is_file() else ''

@pytest.mark.parametrize('name', RECIPES)
def test_check(run, made, reports, name):
    if name == 'indiana': said = run('cxr-check', '--run', made(name))
    else: said = run('cxr-check', '--run', made(name), '--quick')
    assert said.returncode == 0 and ' 0 violation' in said.stdout, said.stdout + said.stderr

@pytest.mark.parametrize('name', RECIPES)
def test_card_and_report_tell_the_truth(made, name):
    run = made(name)
    config, metrics = read(run/'config.json'), read(run/'metrics.json')
    for page in ('MODEL_CARD.md', 'report.html'):
        text = (run/page).read_text()
        assert config['arch'] in text and f'{metrics["test"]["macro"]["auroc"]["value"]:.3f}' in text, page
        assert 'clinical use' in text
    card = (run/'MODEL_CARD.md').read_text()
    for o in config['recipe']['stages']: assert o['name'] in card
    assert ('takes a row of age, sex, view' in card) == (name == 'fusion')
    assert ('folds' in card) == (name == 'indiana')

"What is wrong is told in one line that names the file and the mend; never a traceback, never a black image."
import shutil

import numpy as np, pandas as pd, pytest
from PIL import Image

@pytest.fixture
def broken(phantom, tmp_path):
    "A copy of the small phantom, to be broken"
    return shutil.copytree(phantom, tmp_path/'nih')

def one_line(said, *words):
    "Exit code 2, and one line on stderr with all of the words in it"
    assert said.returncode == 2, said.stdout + said.stderr
    lines = [o for o in said.stderr.splitlines() if 'it/s' not in o and 'img/s' not in o and o.strip()]
    assert len(lines) == 1 and 'Traceback' not in said.stderr and all(w in lines[0] for w in words), said.stderr

def test_missing_folder(run):
    one_line(run('cxr-train', '--data', 'no/such/folder'), 'no/such/folder', 'give the folder')

def test_folder_without_labels(run, tmp_path):
    one_line(run('cxr-train', '--data', tmp_path), str(tmp_path), 'Data_Entry_2017.csv')

def test_env_folder_missing(run): one_line(run('cxr-prepare', CXR_DATA='no/such/folder'), 'no/such/folder', 'CXR_DATA')

def test_csv_without_columns(run, broken):
    p = broken/'Data_Entry_2017.csv'
    pd.read_csv(p).drop(columns='Finding Labels').to_csv(p, index=False)
    one_line(run('cxr-train', '--data', broken), 'Data_Entry_2017.csv', "'Finding Labels' is missing")

def test_unknown_label(run, broken):
    p = broken/'Data_Entry_2017.csv'
    df = pd.read_csv(p)
    df.loc[0, 'Finding Labels'] = 'Effusions'
    df.to_csv(p, index=False)
    one_line(run('cxr-train', '--data', broken), 'Data_Entry_2017.csv', "'Effusions'", 'mend')

def test_nothing_usable_stops_before_training(run, broken, tmp_path):
    for o in broken.rglob('images_*/images/*.png'): o.write_text('not a film')
    one_line(run('cxr-train', '--data', broken, '--out', tmp_path/'run', '--weights', 'none'),
             'none of the 160 images can be used', 'index.csv')
    assert not (tmp_path/'run'/'history.csv').exists()

def test_no_images_at_all(run, broken):
    for o in broken.glob('images_*'): shutil.rmtree(o)
    one_line(run('cxr-prepare', '--data', broken), 'none of the 160 images', 'unpack')

def test_weights_that_are_code(run, phantom, tmp_path):
    import pickle
    (tmp_path/'evil.pth').write_bytes(pickle.dumps(print))
    one_line(run('cxr-train', '--data', phantom, '--size', 64, '--weights', tmp_path/'evil.pth', '--out',
                 tmp_path/'run'), 'evil.pth', 'refused')

def test_weights_that_cannot_be_had(run, phantom, tmp_path):
    said = run('cxr-train', '--data', phantom, '--size', 64, '--out', tmp_path/'run', HF_HUB_OFFLINE='1')
    one_line(said, 'ImageNet weights', '--weights')

def test_misspelt_network_stops_at_once(run, tmp_path):
    one_line(run('cxr-train', '--arch', 'resnet81', '--out', tmp_path/'run'), 'resnet81', 'resnet18')
    assert not list((tmp_path).iterdir())

def test_not_a_run(run, tmp_path): one_line(run('cxr-eval', '--run', tmp_path), 'config.json')

def test_run_forgotten(run): one_line(run('cxr-eval'), '--run')

def test_predict_nothing(run, trained): one_line(run('cxr-predict', '--run', trained), 'no files given')

def test_unknown_option_is_short(run):
    said = run('cxr-train', '--no-such-option')
    assert said.returncode == 2 and 'Traceback' not in said.stderr

def test_odd_files_are_named_and_left_out(run, broken, tmp_path):
    "Absent, truncated, text, 1x1: left out with a reason. 16-bit, RGBA, palette: read."
    files = sorted(broken.rglob('images_*/images/*.png'))
    films = [np.asarray(Image.open(o)) for o in files[:7]]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:1500])
    files[2].write_text('not a film')
    Image.fromarray(films[3].astype(np.uint16)*257).save(files[3])
    Image.fromarray(films[4]).convert('RGBA').save(files[4])
    Image.fromarray(films[5]).convert('P').save(files[5])
    Image.new('L', (1, 1)).save(files[6])
    said = run('cxr-prepare', '--data', broken, '--size', 64, '--out', tmp_path/'cache')
    told = said.stdout + said.stderr
    assert said.returncode == 0, told
    assert '1 missing' in said.stdout and '3 bad' in said.stdout and 'index.csv' in said.stdout, told
    index = pd.read_csv(tmp_path/'cache'/'index.csv', index_col='image', keep_default_na=False)
    reasons = [index.reason[o.name] for o in files[:7]]
    assert reasons[0] == 'missing' and 'broken' in reasons[1] and reasons[2] == 'not an image'
    assert reasons[3:6] == ['']*3 and '1x1' in reasons[6]
    from cxr_nb.data.cache import open_cache
    cache = open_cache(tmp_path/'cache')
    for i in (3, 4, 5): assert np.abs(cache[files[i].name].astype(int) - films[i]).max() <= 2

def test_training_goes_on_without_the_bad_ones(run, broken, tmp_path):
    import json
    bad = sorted(broken.rglob('images_*/images/*.png'))[::9]
    for o in bad: o.write_bytes(o.read_bytes()[:1200])
    said = run('cxr-train', '--data', broken, '--out', tmp_path/'run', '--arch', 'mobilenetv2_050', '--weights', 'none',
               '--size', 64, '--epochs', 1, '--device', 'cpu')
    assert said.returncode == 0, said.stderr
    assert {o['image']
            for o in json.loads((tmp_path/'run'/'config.json').read_text())['skipped']} == {o.name for o in bad}
    assert f'left out: {len(bad)} bad' in said.stdout

def test_weights_of_another_network(run, trained, tmp_path):
    from cxr_nb.models.nets import make_model
    from cxr_nb.models.bundle import save_weights
    save_weights(make_model('resnet10t', size=64), tmp_path/'other.safetensors')
    for cmd in ('cxr-eval', 'cxr-gradcam'):
        one_line(run(cmd, '--run', trained, '--weights', tmp_path/'other.safetensors'), 'other.safetensors',
                 'resnet10t', 'mobilenetv2_050')

ODD = [('cxr_train', o, why)
       for o, why in (('--epochs 0', 'epochs is 0'), ('--batch-size 0', 'bs is 0'), ('--lr -1', 'lr is -1'),
                      ('--size 7', 'size is 7'), ('--val 1.5', 'val is 1.5'), ('--device foo', 'no device'),
       ('--device cuda:99', 'no such device'), ('--split random --val .5 --test .5', 'leave nothing to train on'),
                      ('--weights OTHER', 'another architecture'), ('--out FILE', 'a folder is needed'),
                      ('--sise 64', 'is --size meant?'), ('images', 'As in: --data images'))]
ODD += [('cxr_predict', o, why)
        for o, why in (('FILM --batch-size 0', '1 or more'), ('FILM --device foo', 'no device'),
                       ('FILM --out x.txt', '.csv or .json'), ('FILM --run CONFIG', 'thresholds'),
                       ('FILM --run SCALED', 'takes images with'), ('FILM --forse', 'is --force meant?'))]
ODD += [('cxr_check', '--workers -1', '--workers -1'), ('cxr_prepare', '--workers 0', '--workers 0'),
        ('cxr_prepare', '--size 5', '16 or more'), ('cxr_train', '--set widht=64', "is 'width' meant?"),
        ('cxr_app', '--port 99999', 'port 99999')]

@pytest.fixture(scope='module')
def named(phantom, trained, tmp_path_factory):
    "What the words in capitals stand for"
    import json, torch
    tmp = tmp_path_factory.mktemp('odd')
    torch.save({'a': torch.zeros(2)}, tmp/'other.pth')
    (tmp/'file').write_text('')
    cfg = json.loads((trained/'config.json').read_text())
    for name, more in (('config', dict(thresholds='x')), ('scaled', dict(mean='abc'))):
        shutil.copytree(trained, tmp/name)
        (tmp/name/'config.json').write_text(json.dumps(cfg | more))
    return dict(OTHER=tmp/'other.pth', FILE=tmp/'file', FILM=next(phantom.rglob('*.png')), CONFIG=tmp/'config',
                SCALED=tmp/'scaled')

@pytest.mark.parametrize('cmd,options,why', ODD)
def test_options_that_make_no_sense(cmd, options, why, named, phantom, trained, tmp_path, capsys, monkeypatch):
    from cxr_nb import cli
    monkeypatch.chdir(tmp_path)
    first = {'cxr_train': ['--data', phantom, '--size', 64, '--weights', 'none', '--out', 'run', '--cache', 'cache',
                           '--device', 'cpu'], 'cxr_predict': ['--run', trained], 'cxr_app': ['--run', trained]}
    code = getattr(cli, cmd)([str(o) for o in [*first.get(cmd, ['--data', phantom]),
                                               *(named.get(w, w) for w in options.split())]])
    said = [o for o in capsys.readouterr().err.splitlines() if o.strip() and 'img/s' not in o]
    assert code == 2 and len(said) == 1 and said[0].startswith('error: ') and why in said[0], said

def test_a_finished_run_is_not_replaced_without_a_word(run, trained, phantom):
    before = (trained/'model.safetensors').read_bytes()
    one_line(run('cxr-train', '--data', phantom, '--out', trained, '--weights', 'none'), 'holds a finished run',
             '--resume', '--overwrite')
    assert (trained/'model.safetensors').read_bytes() == before

def damaged(data, rng):
    "The bytes of a file with some of them cut off, changed or emptied"
    at = int(rng.integers(33, len(data)))
    ways = [data[:at], data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1:],
            data[:at] + bytes(40) + data[at + 40:], data[:-int(rng.integers(1, 20))]]
    return ways[rng.integers(len(ways))]

def test_a_damaged_png_is_what_pillow_says_it_is(phantom, tmp_path):
    "OpenCV reads plain gray PNGs; it must give neither other pixels nor any of a file that Pillow refuses"
    from cxr_nb.data.images import ImageError, read_gray
    rng, path, refused = np.random.default_rng(0), tmp_path/'a.png', 0
    whole = next(phantom.rglob('images_*/images/*.png')).read_bytes()
    for data in [whole] + [damaged(whole, rng) for _ in range(150)]:
        path.write_bytes(data)
        try: pillow = np.asarray(Image.open(path, formats=['PNG']))
        except Exception: pillow = None
        try: ours = read_gray(path)
        except ImageError: ours = None
        assert (ours is None) == (pillow is None) and np.array_equal(ours, pillow)
        refused += ours is None
    assert 75 < refused < 150

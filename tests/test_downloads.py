"""Real radiographs by one name: each download in its own layout, mounted or fetched, and every way in which that
fails. Only the call of kagglehub is faked."""
import errno, json, os, shutil, sys
from pathlib import Path
from types import SimpleNamespace

import nbformat, numpy as np, pytest
from conftest import ROOT, as_command
from layouts import Hub, lay_out

from cxr_nb.data.downloads import DOWNLOADS, DownloadError, fetch
from cxr_nb.data.sources import PHANTOM_CAVEAT, DataError, load_data, load_nih
from cxr_nb.labels import findings_of

NAMES = ['224', 'sample', 'release', 'indiana']

@pytest.fixture(scope='module')
def indiana(tmp_path_factory):
    "A small folder in the layout of Kaggle's Indiana set"
    from cxr_nb.data.indiana import indiana_phantom
    return indiana_phantom(tmp_path_factory.mktemp('reports')/'phantom', n_reports=12, size=64)

@pytest.fixture
def places(tmp_path, monkeypatch):
    "Folders of this test alone: where kagglehub keeps its files, where Kaggle mounts, and the cache"
    for variable in ('CXR_DATA', 'CXR_INDIANA', 'CXR_FAST', 'IN_TEST', 'KAGGLE_KERNEL_RUN_TYPE'):
        monkeypatch.delenv(variable, raising=False)
    for variable, name in (('KAGGLEHUB_CACHE', 'hub'), ('KAGGLE_CACHE_MOUNT_FOLDER', 'input'), ('CXR_CACHE', 'cache')):
        monkeypatch.setenv(variable, str(tmp_path/name))
    disk(monkeypatch, 200e9)
    return tmp_path

@pytest.fixture
def hub(places, phantom, indiana, monkeypatch):
    "kagglehub without a network"
    fake = Hub(phantom, indiana)
    monkeypatch.setattr('kagglehub.dataset_download', fake)
    return fake

def disk(monkeypatch, free): monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=free))

def fails_with(monkeypatch, error):
    def dataset_download(handle): raise error
    monkeypatch.setattr('kagglehub.dataset_download', dataset_download)

def is_right(name, data, n):
    "Is it all there, as the set says?"
    assert len(data.table) == n and not data.missing and data.name == DOWNLOADS[name].name
    assert data.caveat == PHANTOM_CAVEAT
    assert len(findings_of(data.table)) == (35 if name == 'indiana' else 14)
    assert set(data.lists) == ({'train_val', 'test'} if name in ('224', 'release') else set()) # under either name
    assert bool(len(data.boxes)) == (name == 'release')
    if name != 'indiana': assert data.table.age.between(0, 120).all() # 058Y is 58

@pytest.mark.parametrize('name', NAMES)
def test_each_by_its_name_and_a_second_time_without_fetching(name, hub, capsys):
    data = load_data(download=name)
    n = len(data.table) if name == 'indiana' else 160
    is_right(name, data, n)
    assert n >= 12 and data.source['version'] == 3 and len(data.source['fingerprint']) == 16
    about, provided, *_ = said = capsys.readouterr().out.splitlines()
    assert f'{DOWNLOADS[name].gigabytes:g} GB' in about and '200.0 GB are free' in about
    assert os.environ['KAGGLEHUB_CACHE'] in about
    assert provided == f'provided by {DOWNLOADS[name].credit}' and 'done, version 3, in' in said[-1]
    again = load_data(download=name)
    assert hub.asked == [DOWNLOADS[name].handle] and 'nothing is fetched' in capsys.readouterr().out
    assert again.table.equals(data.table) and again.source == data.source
    if name != 'indiana': assert load_data().source == data.source # and from then on without its name

@pytest.mark.parametrize('form', ['name', 'owner and name'])
@pytest.mark.parametrize('name', NAMES)
def test_mounted_in_a_kaggle_notebook(name, form, hub, places):
    owner, short = DOWNLOADS[name].handle.split('/')
    folder = places/'input'/(short if form == 'name' else f'datasets/{owner}/{short}')
    lay_out(name, folder, hub.nih, hub.indiana)
    data = load_data()
    is_right(name, data, len(data.table))
    assert data.source['download'] == name and data.source['version'] is None
    assert load_data(download=name).table.equals(data.table) and not hub.asked

def test_of_several_mounts_the_release_is_taken(hub, places):
    for name in ('224', 'release'):
        lay_out(name, places/'input'/'datasets'/DOWNLOADS[name].handle, hub.nih, hub.indiana)
    assert load_data().name == 'ChestX-ray14'
    assert load_data(download='224').name == 'ChestX-ray14-224' and not hub.asked

def test_what_was_typed_goes_before_what_was_set(hub, phantom, monkeypatch):
    monkeypatch.setenv('CXR_DATA', str(phantom))
    assert (load_data().name, load_data(download='224').name) == ('nih', 'ChestX-ray14-224')
    with pytest.raises(DataError, match='give one of them, not both'): load_data(phantom, download='224')

def test_a_disk_that_is_too_small_is_refused_before_the_download(hub, monkeypatch):
    disk(monkeypatch, 9e9)
    with pytest.raises(DownloadError,
                       match=r'224: needs 10.2 GB at .* 9.0 GB are free; free some, or let KAGGLEHUB_CACHE'):
        load_data(download='224')
    disk(monkeypatch, 50e9)
    with pytest.raises(DownloadError, match='or take the download 224'): load_data(download='release')
    monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', 'Interactive') # mounts, so that the cache alone takes room
    assert load_data(download='release').name == 'ChestX-ray14'

def connection():
    from requests.exceptions import ConnectionError
    return ConnectionError(
        "HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded with url: "
        "/v1/datasets.DatasetApiService/GetDataset")
def corruption():
    from kagglehub.exceptions import DataCorruptionError
    return DataCorruptionError(
        'The X-Goog-Hash header indicated a MD5 checksum of:\n\n  a\n\nbut the actual MD5 checksum of the downloaded '
        'contents was:\n\n  b\n')
def forbidden():
    from kagglehub.exceptions import KaggleApiHTTPError
    return KaggleApiHTTPError('403 Client Error.\n\nYou do not have permission',
                              response=SimpleNamespace(status_code=403, headers={}, request=None))

@pytest.mark.parametrize('error, line', [
    (connection,
     r'no connection to Kaggle \(ConnectionError\); check the network and ask again, it goes on where it stopped'),
    (corruption, r'what came is broken \(DataCorruptionError\); delete .* and fetch it again'),
    (forbidden, 'set KAGGLE_API_TOKEN'),
    (lambda: OSError(errno.ENOSPC, 'No space left on device'), 'the disk is full; free some and ask again'),
], ids=['no network', 'broken', 'forbidden', 'full'])
def test_a_download_that_fails_says_in_a_line_what_to_do(error, line, places, monkeypatch):
    fails_with(monkeypatch, error())
    with pytest.raises(DownloadError, match=line) as e: load_data(download='224')
    assert '\n' not in str(e.value)

def test_without_kagglehub(places, monkeypatch):
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    with pytest.raises(DownloadError, match='run `pip install kagglehub`'): load_data(download='224')

def test_an_unknown_name_names_the_choices(places):
    with pytest.raises(DownloadError, match="'chexpert' is no download; there are 224, sample, release, indiana"):
        load_data(download='chexpert')

@pytest.mark.parametrize('name', NAMES)
def test_another_layout_names_what_was_expected(name, hub, places):
    folder = fetch(name, say=lambda line: None)
    table, *_ = DOWNLOADS[name].files
    (folder/table).rename(folder/'renamed.csv')
    shutil.rmtree(folder/'sample', ignore_errors=True)
    with pytest.raises(DownloadError) as e: load_data(download=name)
    expected = ', '.join(DOWNLOADS[name].files)
    assert f'there is no {table}, and expected are {expected}; delete the folder' in str(e.value)

def test_a_download_that_lost_images_is_refused(hub):
    folder = fetch('224', say=lambda line: None)
    for file in sorted(folder.rglob('*.png'))[:8]: file.unlink()
    with pytest.raises(DataError, match='8 of the 160 images of its table are missing; the download is broken'):
        load_data(download='224')
    for file in folder.rglob('*.png'): file.unlink()
    with pytest.raises(DownloadError, match='there is no images-224'): load_data(download='224')

def test_smaller_images_are_named_and_their_boxes_fit(phantom, tmp_path, forks):
    "The same drawings at half the side: the same boxes, in the frame of the release"
    import cv2
    half = lay_out('release', tmp_path/'half', phantom, None, note=False)
    for file in half.rglob('*.png'):
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file), 0), (32, 32), interpolation=cv2.INTER_AREA))
    whole, small = load_nih(phantom), load_nih(half)
    assert (whole.side, small.side) == (64, 32)
    assert 'The images have 32 x 32 pixels, resized from the 1024 x 1024 of the release' in small.caveat
    assert small.boxes.equals(whole.boxes)
    box = small.boxes.nlargest(1, 'w')
    p = forks.Process(target=drawn_where_it_lies,
                      args=(box, [data.files[box.image.iloc[0]] for data in (whole, small)], tmp_path/'places.json'))
    p.start()
    p.join(60)
    first, second = json.loads((tmp_path/'places.json').read_text())
    assert first == second # whatever the size of the file
    x, w = box.x.iloc[0]/4, box.w.iloc[0]/4 # 1024 to 256
    assert np.abs(np.subtract(first[1], (x, x + w))).max() <= 3 # a line is 3 pixels wide

def drawn_where_it_lies(box, files, out):
    "Rows and columns where a box is drawn on the cached images of two files, at 256 pixels"
    from cxr_nb.data.images import read_gray, to_square
    from cxr_nb.explain.sheet import draw_boxes
    places = []
    for file in files:
        plain = np.repeat(to_square(read_gray(file), 256)[..., None], 3, 2)
        changed = (draw_boxes(plain.copy(), box) != plain).any(2)
        places.append([(int(o.min()), int(o.max())) for o in np.nonzero(changed)])
    Path(out).write_text(json.dumps(places))

def test_the_published_boxes_of_images_whose_copy_has_no_box_file(phantom, tmp_path):
    from cxr_nb.data.box_files import nih_boxes
    folder = lay_out('224', tmp_path/'224', phantom, None, note=False)
    boxed, drawn = nih_boxes().image.iloc[0], load_nih(folder).table.index[0]
    next(folder.rglob(drawn)).rename(folder/'images-224'/'images-224'/boxed)
    table = folder/'Data_Entry_2017.csv'
    table.write_text(table.read_text().replace(drawn, boxed))
    boxes = load_nih(folder).boxes
    assert set(boxes.image) == {boxed} and len(boxes) == (nih_boxes().image == boxed).sum()

def with_hub(fake, *command):
    "In a new process: a command, with kagglehub's call replaced"
    import kagglehub
    kagglehub.dataset_download = fake
    as_command(*command)

@pytest.fixture
def run_with_hub(forks, env, phantom, indiana, tmp_path):
    "Run a command of the package with a hub that hands out phantoms without their note"
    def run(cmd, *args):
        said = tmp_path/f'said-{cmd}'
        more = dict(KAGGLEHUB_CACHE=str(tmp_path/'hub'), KAGGLE_CACHE_MOUNT_FOLDER=str(tmp_path/'input'),
                    CXR_CACHE=str(tmp_path/'cache'))
        fake = Hub(phantom, indiana, note=False)
        p = forks.Process(target=with_hub, args=(fake, cmd, list(map(str, args)), {**env, **more}, said))
        p.start()
        p.join(300)
        return SimpleNamespace(code=p.exitcode, **{k: Path(f'{said}.{k}').read_text() for k in ('out', 'err')})
    return run

def test_train_on_a_download_to_its_report(run_with_hub, tmp_path):
    out = tmp_path/'run'
    said = run_with_hub('cxr-train', '--download', '224', '--recipe', 'staged', '--fast', '--size', 96, '--out', out,
                        '--device', 'cpu')
    assert said.code == 0, said.err
    assert 'download: ChestX-ray14, all 112,120 radiographs at 224 x 224' in said.out and 'report: ' in said.out
    assert 'enlarged: the files have 64 x 64 pixels' in said.out
    config, places = (json.loads((out/f'{o}.json').read_text()) for o in ('config', 'data'))
    assert config['data'] == 'ChestX-ray14-224' and config['split_kind'] == 'official'
    assert config['source'] == places['source'] and config['source']['version'] == 3
    assert json.loads((Path(places['cache'])/'meta.json').read_text())['origin'] == config['source']
    for file in ('report.html', 'MODEL_CARD.md'):
        text = (out/file).read_text()
        assert 'resized from the 1024 x 1024 of the release' in text and 'Wang et al.' in text, file
        assert config['source']['fingerprint'] in text, file
    from cxr_nb.data.opening import run_data
    again = run_data(out)
    assert (again.name, again.source) == (config['data'], config['source'])
    said = run_with_hub('cxr-prepare', '--download', '224', '--size', '96')
    assert said.code == 0 and 'nothing is fetched' in said.out and 'take --size 64' in said.out
    assert f'in {places["cache"]}\n' in said.out # the same cache

def test_cells_of_the_guide(forks, env, phantom, indiana, tmp_path):
    "They need a network, so `nbdev-test` passes over them; here they run on a phantom in the layout of the download"
    nb = nbformat.read(ROOT/'nbs'/'guides'/'colab.ipynb', 4)
    cells = [c.source for c in nb.cells if c.cell_type == 'code']
    assert len(cells) == 3 and cells[0].splitlines()[-1].startswith('%pip install')
    assert all(c.startswith('#| eval: false') for c in cells)
    source = "\n".join(cells[1:])
    home = dict(KAGGLEHUB_CACHE=str(tmp_path/'hub'), KAGGLE_CACHE_MOUNT_FOLDER=str(tmp_path/'input'),
                CXR_CACHE=str(tmp_path/'cache'), CXR_FAST='1', CXR_RUNS=str(tmp_path/'runs'))
    p = forks.Process(target=as_notebook, args=(Hub(phantom, indiana), source, {**env, **home}, tmp_path))
    p.start()
    p.join(300)
    assert p.exitcode == 0, (tmp_path/'said').read_text()
    assert 'report: ' in (tmp_path/'said').read_text()

def as_notebook(fake, source, env, folder):
    "In a new process: the cells of a notebook"
    import kagglehub
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for fd in (1, 2): os.dup2(os.open('said', os.O_CREAT | os.O_WRONLY | os.O_APPEND), fd)
    kagglehub.dataset_download = fake
    exec(compile(source, 'colab.ipynb', 'exec'), {})
    sys.stdout.flush()

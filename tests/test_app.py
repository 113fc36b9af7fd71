"The web page in a real browser: uploads, heatmaps, refusals, many visitors, and what it must not serve."
import json, os, shutil, signal, subprocess, urllib.error, urllib.request
from pathlib import Path

import cv2, numpy as np, pytest
from conftest import BIN

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None,
                                   reason='no Chromium on this machine; Debian has it as the package chromium')

@pytest.fixture(scope='module')
def served(trained, env, tmp_path_factory):
    "The address of the page, and the folder for all its temporary files"
    tmp = tmp_path_factory.mktemp('served')
    p = subprocess.Popen([str(BIN/'cxr-app'), '--run', str(trained), '--port', '0'],
                         env={**env, 'TMPDIR': str(tmp), 'PYTHONUNBUFFERED': '1'}, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    line = next((o for o in p.stdout if o.startswith('page: ')), '')
    assert line, p.stderr.read()
    yield line.split()[1], tmp
    p.terminate() # Ctrl-C does not reach a process that was started in the background
    assert p.wait(60) in (0, -signal.SIGTERM)

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A film as PNG and as DICOM, a broken one, and a photograph"
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    from cxr_nb.data.phantom.anatomy import phantom_body
    from cxr_nb.data.phantom.findings import phantom_image
    out = tmp_path_factory.mktemp('files')
    a, _ = phantom_image(phantom_body(4), ['Cardiomegaly'], size=512, severity=.9)
    cv2.imwrite(str(out/'film.png'), a)
    (out/'broken.png').write_bytes((out/'film.png').read_bytes()[:20_000])
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = 'DX', 'CHEST', 'PA'
    ds.PhotometricInterpretation, ds.PatientName = 'MONOCHROME2', 'Secret^Name'
    ds.Rows, ds.Columns = a.shape
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 8, 8, 7, 0
    ds.SOPClassUID, ds.SOPInstanceUID, ds.PixelData = ds.file_meta.MediaStorageSOPClassUID, '1.2.3', a.tobytes()
    ds.save_as(out/'film.dcm', enforce_file_format=True)
    return out

@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api')
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield b
        b.close()

def drop(page, file, state):
    "Upload a file and wait for a verdict"
    page.set_input_files('#upload input[type=file]', str(file))
    page.wait_for_selector(f'#verdict .cxr-{state}', timeout=240_000)

def visit(browser, url, **kwargs):
    page = browser.new_page(**kwargs)
    page.goto(url)
    page.wait_for_selector('#upload input[type=file]', state='attached', timeout=240_000)
    return page

@needs_browser
def test_png_dicom_and_broken_file(browser, served, files):
    url, tmp = served
    page = visit(browser, url)
    assert 'Not for clinical use' in page.inner_text('.cxr-warn')
    drop(page, files/'film.png', 'ok')
    assert page.locator('#bars tr').count() == 14
    assert page.get_attribute('#image img', 'src').startswith('data:image/png;base64,')
    before = page.get_attribute('#image img', 'src')
    page.click('#finding input')
    page.get_by_role('option', name='Hernia').click()
    page.wait_for_function('s => document.querySelector("#image img").src != s', arg=before, timeout=120_000)
    assert 'Hernia' in page.inner_text('#image')
    for file, state in (('broken.png', 'refused'), ('film.dcm', 'ok')):
        page = visit(browser, url)
        drop(page, files/file, state)
        assert (page.locator('#bars tr').count() == 14) == (state == 'ok')
    assert 'Secret' not in page.content()
    assert not [o for o in tmp.rglob('*') if o.is_file() and o.suffix in ('.png', '.dcm')], 'an upload was kept'

@needs_browser
def test_refusal_is_a_sentence(browser, served, files):
    page = visit(browser, served[0])
    drop(page, files/'broken.png', 'refused')
    assert 'Refused' in page.inner_text('#verdict') and len(page.inner_text('#verdict li')) > 15
    assert page.locator('#image img').count() == 0
    cv2.imwrite(str(files/'negative.png'), 255 - cv2.imread(str(files/'film.png')))
    page = visit(browser, served[0])
    drop(page, files/'negative.png', 'refused')
    assert 'looks inverted' in page.inner_text('#verdict') and 'confidence' in page.inner_text('#verdict')

@needs_browser
def test_ten_visitors_at_once(browser, served, files):
    # five with one film, which is one upload for Gradio, and five with another
    pages = [visit(browser, served[0]) for _ in range(10)]
    for i, o in enumerate(pages):
        o.set_input_files('#upload input[type=file]', str(files/('film.png' if i % 2 else 'film.dcm')))
    for o in pages: o.wait_for_selector('#verdict .cxr-ok', timeout=120_000)
    assert [len({o.inner_text('#bars') for o in pages[i::2]}) for i in (0, 1)] == [1, 1]
    for o in pages: o.close()

@needs_browser
def test_too_large_a_file_is_a_sentence(browser, served, tmp_path):
    (tmp_path/'large.png').write_bytes(bytes(31*2**20))
    page = visit(browser, served[0])
    page.set_input_files('#upload input[type=file]', str(tmp_path/'large.png'))
    page.get_by_text('maximum allowed size').first.wait_for(timeout=60_000)
    assert page.locator('#verdict strong').count() == 0

@needs_browser
def test_fits_a_phone(browser, served):
    page = visit(browser, served[0], viewport=dict(width=390, height=844))
    page.click('#example-Cardiomegaly')
    page.wait_for_selector('#image img', timeout=240_000)
    assert page.evaluate('document.documentElement.scrollWidth') <= 392

def test_serves_no_file_of_the_machine(served, trained):
    "Neither by its address nor as a made-up upload; and such a file is not deleted either"
    url, _ = served
    for o in ('/etc/passwd', trained/'config.json', '../../etc/passwd', Path.cwd()/'README.md'):
        with pytest.raises(urllib.error.HTTPError) as e: urllib.request.urlopen(f'{url}gradio_api/file={o}')
        assert e.value.code in (403, 404)
    said = push(url, {'path': str(trained/'thresholds.json'), 'meta': {'_type': 'gradio.FileData'}})
    assert 'threshold' not in said.replace('thresholds.json', '') and (trained/'thresholds.json').is_file()

def test_a_large_upload_is_refused_by_the_server_too(served):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(31*2**20) + b'\r\n--x--\r\n'
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(
            urllib.request.Request(f'{served[0]}gradio_api/upload', body,
                                   {'Content-Type': 'multipart/form-data; boundary=x'}))
    assert e.value.code == 413 and not [o for o in served[1].rglob('*') if o.is_file() and o.stat().st_size > 2**24]

def push(url, file):
    "What the page's queue answers to a made-up upload"
    cfg = json.loads(urllib.request.urlopen(f'{url}config').read())
    fn = next(o['id'] for o in cfg['dependencies'] if len(o['inputs']) == 2)
    def post(where, d):
        asked = urllib.request.Request(url + where, json.dumps(d).encode(), {'Content-Type': 'application/json'})
        return urllib.request.urlopen(asked).read().decode()
    try:
        post('gradio_api/queue/join', dict(data=[file, 'Mass'], fn_index=fn, session_hash='s'))
        return urllib.request.urlopen(f'{url}gradio_api/queue/data?session_hash=s', timeout=60).read().decode()
    except urllib.error.HTTPError as e: return e.read().decode()

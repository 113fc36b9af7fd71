"""The page of cxr-export --web in headless Chromium: the numbers of Python, its refusals, one host only, a phone, and
steady memory. CXR_WEB_FILES=50 compares that many files."""
import os, shutil, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2, numpy as np, pytest
from test_app import CHROMIUM
from cxr_nb.core import CxrError
from cxr_nb.data.gate import judge_file
from cxr_nb.data.phantom.anatomy import phantom_body
from cxr_nb.data.phantom.findings import phantom_image
from cxr_nb.deploy.predict import load_classifier, predict_files
from cxr_nb.deploy.web import EXAMPLES, RUNTIME, write_runtime

pytestmark = pytest.mark.skipif(CHROMIUM is None,
                                reason='no Chromium on this machine; Debian has it as the package chromium')
N_FILES = int(os.environ.get('CXR_WEB_FILES', 12))

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def site(trained, run, tmp_path_factory):
    "The folder of the page"
    out = tmp_path_factory.mktemp('web')
    runtime = os.environ.get('CXR_WEB_RUNTIME')
    if not runtime:
        if not shutil.which('npm'):
            pytest.skip(
                f'no npm on this machine, which fetches {RUNTIME}; CXR_WEB_RUNTIME may name a folder that has it')
        try: write_runtime(runtime := out/'runtime')
        except CxrError as e: pytest.skip(f'no runtime for the browser: {e}')
    said = run('cxr-export', '--run', trained, '--web', out/'page', '--runtime', runtime)
    assert said.returncode == 0 and 'http.server' in said.stdout, said.stderr
    return out/'page'

@pytest.fixture(scope='module')
def url(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api')
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--js-flags=--expose-gc'])
        yield b
        b.close()

def visit(browser, url, **kwargs):
    page = browser.new_page(**kwargs)
    page.asked, page.wrong = [], []
    page.on('request', lambda o: page.asked.append(o.url))
    page.on('pageerror', lambda o: page.wrong.append(str(o)))
    page.on('console', lambda o: o.type == 'error' and page.wrong.append(o.text))
    page.goto(url)
    page.wait_for_selector('#verdict[data-status=ready]', timeout=60_000)
    return page

def give(page, file):
    "Status, codes and, unless refused, probabilities by finding"
    page.set_input_files('#file', [])
    page.set_input_files('#file', str(file))
    page.wait_for_selector(
        '#verdict:is([data-status=ok], [data-status=warning], [data-status=refused], [data-status=failed])',
        timeout=60_000)
    said = page.eval_on_selector('#verdict', 'o => ({ ...o.dataset, text: o.innerText })')
    rows = page.eval_on_selector_all('#bars tr',
                                     'rows => rows.map(o => [o.dataset.finding, +o.dataset.probability, '
                                     'o.dataset.positive])') if said['status'] != 'refused' else []
    return said, {name: p for name, p, _ in rows}, {name for name, _, positive in rows if positive == 'true'}

def dicom(path, a, bits=8, inverted=False, implicit=False, **tags):
    "Gray pixels of that many bits as a DICOM file"
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = '1.2.3'
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition, ds.PatientName = 'DX', 'CHEST', 'PA', 'Secret^Name'
    ds.PhotometricInterpretation = 'MONOCHROME1' if inverted else 'MONOCHROME2'
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PixelRepresentation = *a.shape, 1, 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 if bits == 8 else 16, bits, bits - 1
    ds.PixelData = a.astype(np.uint8 if bits == 8 else '<u2').tobytes()
    for name, value in tags.items(): setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)

def deep(a, bits): return np.round(cv2.GaussianBlur(a, (3, 3), 0).astype(float)/255*(2**bits - 1)).astype(np.uint16)

KINDS = [ # Name, and how a radiograph is written into it
    ('gray.png', lambda f, a: cv2.imwrite(f, a)), ('wide.png', lambda f, a: cv2.imwrite(f, a[30:220])),
         ('colour.png', lambda f, a: cv2.imwrite(f, cv2.cvtColor(a, cv2.COLOR_GRAY2BGR))),
    ('deep.png', lambda f, a: cv2.imwrite(f, deep(a, 12))), ('gray.jpg', lambda f, a: cv2.imwrite(f, a)),
         ('colour.jpg', lambda f, a: cv2.imwrite(f, cv2.cvtColor(a, cv2.COLOR_GRAY2BGR))),
    ('low.jpg', lambda f, a: cv2.imwrite(f, a, [cv2.IMWRITE_JPEG_QUALITY, 60])), ('8.dcm', lambda f, a: dicom(f, a)),
         ('12.dcm', lambda f, a: dicom(f, deep(a, 12), 12, WindowCenter=2000, WindowWidth=3600)),
    ('16.dcm', lambda f, a: dicom(f, deep(a, 16), 16, implicit=True)),
         ('inverted.dcm',
          lambda f, a: dicom(f, 4095 - deep(a, 12), 12, inverted=True, RescaleSlope=2, RescaleIntercept=-100,
                             WindowCenter=4000, WindowWidth=8200, VOILUTFunction='SIGMOID')),
    ('small.png', lambda f, a: cv2.imwrite(f, cv2.resize(a, (48, 48), interpolation=cv2.INTER_AREA)))]

@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "Radiographs of every kind that both can read"
    out = tmp_path_factory.mktemp('films')
    for i in range(N_FILES):
        name, write = KINDS[i % len(KINDS)]
        a, _ = phantom_image(phantom_body(i), [['Effusion'], ['Mass'], []][i % 3],
                             size=256 if i < 24 else 256 + 16*(i % 9), view='PA', seed=i)
        write(str(out/f'{i:02}_{name}'), a)
    return sorted(out.iterdir())

def test_the_same_probabilities_and_only_one_host(browser, url, films, trained, capsys):
    clf = load_classifier(trained)
    want = predict_files(clf, films, force=True).set_index('image')
    page, far = visit(browser, url), {}
    for file in films:
        said, got, positive = give(page, file)
        row = want.loc[file.name]
        assert set(said['codes'].split()) == set(row.gate_codes.split()), file.name
        if said['status'] == 'refused': continue
        assert said['status'] in ('ok', 'warning') and set(got) == set(clf.findings), (file.name, said)
        assert positive == {o for o in clf.findings if row.get(f'call_{o}') == 1}, file.name
        far[file.name] = max(abs(got[o] - row[f'prob_{o}']) for o in clf.findings)
    with capsys.disabled():
        print(f'\nlargest difference of a probability on {len(far)} files: {max(far.values()):.1g} '
              f'({max(far, key=far.get)})')
    assert max(far.values()) < 1e-3 and len(far) > .8*len(films), far
    assert 'Secret' not in page.content() and not page.wrong, page.wrong
    assert page.asked and all(o.startswith((url, 'data:')) for o in page.asked), page.asked
    assert page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'refused')") == 'refused'
    page.close()

def bad_files(out):
    "Files that Python refuses for what they are, whatever they show"
    a, _ = phantom_image(phantom_body(1), size=256)
    rng = np.random.default_rng(0)
    write = lambda name, o: cv2.imwrite(str(out/name), o)
    write('whole.png', a); write('whole.jpg',
                                 a); write('tiny.png',
                                           a[:20, :20]); write('strip.png', a[:40]); write('blank.png', 0*a + 7); write(
        'photo.png', rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    for name in ('png', 'jpg'):
        whole = (out/f'whole.{name}').read_bytes()
        (out/f'cut.{name}').write_bytes(whole[:len(whole)//2])
        (out/f'whole.{name}').unlink()
    (out/'empty.png').touch()
    (out/'text.png').write_text('no image')
    (out/'picture.gif').write_bytes(b'GIF89a' + bytes(200))
    for name, tags in dict(ct=dict(Modality='CT'), hand=dict(BodyPartExamined='HAND'), lateral=dict(ViewPosition='LL'),
                           oblique=dict(ViewPosition='LAO'), frames=dict(NumberOfFrames=3),
                           palette=dict(PhotometricInterpretation='PALETTE COLOR'), none=dict(Rows=0)).items():
        dicom(out/f'{name}.dcm', a, **tags)
    dicom(out/'short.dcm', a, PixelData=a.tobytes()[:1000])

def test_the_same_refusals(browser, url, tmp_path):
    bad_files(tmp_path)
    page = visit(browser, url)
    for file in sorted(tmp_path.iterdir()):
        verdict = judge_file(file).verdict
        said, _, _ = give(page, file)
        assert said['status'] == verdict.status == 'refused', (file.name, said, verdict)
        want, got = set(verdict.codes), set(said['codes'].split())
        either = {'broken', 'truncated'}
        assert got - either == want - either, (file.name, said, verdict.codes)
        if file.suffix == '.dcm' or 'cut' not in file.name:
            assert verdict.reasons[0].text in said['text'], (said, verdict.text)
    page.close()

def test_the_same_verdict_on_how_an_image_lies(browser, url, tmp_path):
    "Upright, turned, inverted, no chest at all: eight views of a radiograph, noise, and half an image"
    a, _ = phantom_image(phantom_body(2), [], size=320, view='PA', seed=2)
    for k in range(4):
        cv2.imwrite(str(tmp_path/f'turned_{k}.png'), np.rot90(a, k))
        cv2.imwrite(str(tmp_path/f'inverted_{k}.png'), 255 - np.rot90(a, k))
    cv2.imwrite(str(tmp_path/'noise.png'), np.random.default_rng(0).integers(0, 256, (200, 260), dtype=np.uint8))
    cv2.imwrite(str(tmp_path/'half.png'), a[:, :160])
    page, seen = visit(browser, url), set()
    for file in sorted(tmp_path.iterdir()):
        verdict = judge_file(file).verdict
        said, _, _ = give(page, file)
        assert (said['status'], said['codes'].split()) == (verdict.status, verdict.codes), (file.name, said, verdict)
        for reason in verdict.reasons: assert reason.text in said['text'], (file.name, said)
        seen |= set(verdict.codes)
    assert {'inverted', 'rotated_90', 'rotated_180', 'rotated_270', 'not_chest'} <= seen
    page.close()

def test_compressed_dicom_is_refused_with_the_mend(browser, url, tmp_path):
    from pydicom import dcmread
    from pydicom.uid import RLELossless
    dicom(tmp_path/'a.dcm', phantom_image(phantom_body(1), size=256)[0])
    ds = dcmread(tmp_path/'a.dcm')
    ds.compress(RLELossless)
    ds.save_as(tmp_path/'a.dcm')
    page = visit(browser, url)
    said, _, _ = give(page, tmp_path/'a.dcm')
    assert said['codes'] == 'syntax' and 'export it uncompressed' in said['text']
    page.close()

def test_fits_a_phone_and_shows_a_heatmap(browser, url):
    page = visit(browser, url, viewport=dict(width=390, height=844))
    assert page.locator('#examples button').count() == len(EXAMPLES)
    page.click('#examples button')
    page.wait_for_selector('#answer:not([hidden])')
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    page.evaluate('scrollTo(0, 1e6)')
    assert 'never for clinical use' in page.inner_text('.use') and page.locator('.use').bounding_box()['y'] == 0
    pictures = set()
    for finding in page.eval_on_selector_all('#finding option', 'all => all.map(o => o.value)'):
        page.select_option('#finding', finding)
        pictures |= set(page.evaluate("['image', 'map'].map(o => document.getElementById(o).toDataURL())"))
    assert len(pictures) > 3, 'all heatmaps are alike'
    page.close()

def test_ten_images_do_not_grow_the_heap(browser, url, films, capsys):
    page = visit(browser, url)
    cdp = page.context.new_cdp_session(page)
    cdp.send('Performance.enable')
    def heap():
        cdp.send('HeapProfiler.collectGarbage')
        return next(o['value'] for o in cdp.send('Performance.getMetrics')['metrics'] if o['name'] == 'JSHeapUsedSize')
    give(page, films[0])
    before = heap()
    for i in range(10): give(page, films[i % len(films)])
    after = heap()
    with capsys.disabled(): print(f'\nheap before and after ten images: {before/1e6:.2f} and {after/1e6:.2f} MB')
    assert after < 1.3*before
    page.close()

"""Hostile files at the input gate: whatever they hold, a verdict with a reason, soon, in little memory, and nothing
of the patient."""
import io, json, logging, os, shutil, struct, subprocess, sys, time, warnings, zlib

import numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (DeflatedExplicitVRLittleEndian, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian,
                         JPEG2000Lossless, JPEGBaseline8Bit,
                         JPEGLosslessSV1, JPEGLSLossless, RLELossless)

from conftest import BIN, ROOT
from cxr_nb.core import CxrError
from cxr_nb.data.gate import REFUSE, check_pixels, judge_file, load_gate
from cxr_nb.data.image_files import ImageError
from cxr_nb.data.images import read_gray
from cxr_nb.data.phantom.anatomy import phantom_body
from cxr_nb.data.phantom.findings import phantom_image

sys.path.insert(0, str(ROOT/'tools'))
import gate as fitting # tools/gate.py

SECRET = ['Secretname', '19471130', 'PID-0815', 'Dr Hidden', 'Street 7']
CODES = set('''missing unreadable empty not_image broken truncated too_large too_small aspect frames constant
               modality body_part lateral oblique bits photometric syntax
               decoder no_image inverted rotated_90 rotated_180 rotated_270 not_chest colour'''.split())

@pytest.fixture(scope='session')
def good(): return phantom_image(phantom_body(5), view='PA', seed=3, size=256)[0]

def png(a, **kw):
    b = io.BytesIO(); Image.fromarray(a).save(b, 'PNG', **kw); return b.getvalue()

def jpeg(a, **kw):
    b = io.BytesIO(); Image.fromarray(a).save(b, 'JPEG', quality=90, **kw); return b.getvalue()

def dicom(a, syntax=ExplicitVRLittleEndian, **tags):
    "Bytes of a DICOM file of pixels; full of what must not be told"
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, '1.2.3'
    ds.PatientName, ds.PatientBirthDate, ds.PatientID = SECRET[0] + '^Jane', SECRET[1], SECRET[2]
    ds.ReferringPhysicianName, ds.InstitutionAddress = SECRET[3], SECRET[4]
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = 'DX', 'CHEST', 'PA'
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *a.shape[:2], 3 if a.ndim == 3 else 1
    ds.PhotometricInterpretation = 'RGB' if a.ndim == 3 else 'MONOCHROME2'
    if a.ndim == 3: ds.PlanarConfiguration = 0
    bits = 12 if a.itemsize == 2 else 8
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8*a.itemsize, bits, bits - 1
    ds.PixelRepresentation, ds.PixelData = int(a.dtype.kind == 'i'), a.tobytes()
    if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless): ds.compress(syntax, a, generate_instance_uid=False)
    elif syntax == JPEGBaseline8Bit: ds.PixelData = encapsulate([jpeg(a)])
    elif syntax == JPEGLosslessSV1: ds.PixelData = encapsulate([jpeg_lossless(a, bits)])
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax in (JPEGBaseline8Bit, JPEGLosslessSV1):
        ds['PixelData'].is_undefined_length, ds['PixelData'].VR = True, 'OB'
    for k, v in tags.items(): setattr(ds, k, v)
    b = io.BytesIO(); ds.save_as(b, enforce_file_format=True); return b.getvalue()

def jpeg_lossless(a, bits):
    """JPEG process 14, selection value 1 (T.81, annex H): each difference from the left neighbour as its length in
    five bits, then its value"""
    x = a.astype(np.int64)
    left = np.empty_like(x)
    left[:, 1:], left[1:, 0], left[0, 0] = x[:, :-1], x[:-1, 0], 1 << (bits - 1)
    d = (x - left).ravel()
    n = np.where(d == 0, 0, np.floor(np.log2(np.maximum(np.abs(d), 1))).astype(int) + 1)
    s = ''.join(format(k, '05b') + (format(v if v > 0 else v + (1 << k) - 1, f'0{k}b') if k else '')
                for v, k in zip(d.tolist(), n.tolist()))
    s += '1'*(-len(s) % 8)
    body = int(s, 2).to_bytes(len(s)//8, 'big').replace(b'\xff', b'\xff\0')
    dht = b'\xff\xc4' + struct.pack('>HB16B', 19 + 17, 0, *[0, 0, 0, 0, 17], *[0]*11) + bytes(range(17))
    sof = b'\xff\xc3' + struct.pack('>HBHHB3B', 11, bits, *a.shape, 1, 1, 0x11, 0)
    return b'\xff\xd8' + dht + sof + b'\xff\xda' + struct.pack('>HB2B3B', 8, 1, 1, 0, 1, 0, 0) + body + b'\xff\xd9'

@pytest.fixture(scope='session')
def valid(good):
    "Bytes of a good film in every way that is read"
    deep, rgb = (good.astype(np.uint16)*16), np.repeat(good[..., None], 3, 2)
    return {
        '8.png': png(good), '16.png': png(deep), 'rgb.png': png(rgb),
        'palette.png': (lambda b: (Image.fromarray(good).convert('P').save(b, 'PNG'), b.getvalue())[1])(io.BytesIO()),
        'gray.jpg': jpeg(good), 'rgb.jpeg': jpeg(rgb), 'progressive.jpg': jpeg(good, progressive=True),
        'plain.dcm': dicom(deep), '8.dcm': dicom(good), 'rgb.dcm': dicom(rgb),
        'signed.dcm': dicom(deep.astype(np.int16) - 2048),
        'mono1.dcm': dicom(4095 - np.minimum(deep, 4095), PhotometricInterpretation='MONOCHROME1'),
        'rle.dcm': dicom(deep, RLELossless),
        'j2k.dcm': dicom(deep, JPEG2000Lossless), 'jls.dcm': dicom(deep, JPEGLSLossless),
        'jpeg.dcm': dicom(good, JPEGBaseline8Bit), 'lossless.dcm': dicom(deep, JPEGLosslessSV1),
        'window.dcm': dicom(deep, WindowCenter='2048', WindowWidth='4096', RescaleSlope='1', RescaleIntercept='0'),
        'padded.dcm': dicom(deep, PixelPaddingValue=0)}

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png_of(w, h, data, extra=b'', depth=8, colour=0):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR',
                                        struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0,
                                                    0)) + extra + chunk(b'IDAT', data) + chunk(b'IEND', b'')

def packed(o): return dcmread(io.BytesIO(o))

def changed(data, **tags):
    "A DICOM file with other tags and the same pixels"
    ds, b = packed(data), io.BytesIO()
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(b); return b.getvalue()

def bare(data):
    "Old style: no preamble, no group 2"
    ds, b = packed(data), io.BytesIO()
    ds.file_meta, ds.preamble = FileMetaDataset(), None
    ds.save_as(b, implicit_vr=True, little_endian=True, enforce_file_format=False); return b.getvalue()

@pytest.fixture(scope='session')
def listed(valid, good):
    "Bytes by name, and the code that must be given; '' for a warning or nothing"
    turn, rgb = lambda k: np.ascontiguousarray(np.rot90(good, -k)), np.repeat(good[..., None], 3, 2)
    lines = rgb.copy(); lines[10:14, 10:120] = 255, 0, 0
    sof = valid['gray.jpg'].index(b'\xff\xc0')
    huge_jpeg = valid['gray.jpg'][:sof + 5] + b'\xff\xff\xff\xff' + valid['gray.jpg'][sof + 9:]
    rle_bomb = changed(valid['rle.dcm'],
                       PixelData=encapsulate([struct.pack('<16I', 2, 64, 2_000_064, *[0]*13) + b'\x81\0'*2_000_000]))
    view = Dataset(); view.CodeMeaning = 'Right lateral projection'
    rainbow = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    return {
        'text.png': (b'Not a film at all', 'not_image'), 'text.dcm': (b'x'*400, 'not_image'),
        'empty.png': (b'', 'empty'), 'one.png': (b'\x89', 'not_image'), 'head.png': (b'\x89PNG\r\n\x1a\n', 'broken'),
        'pdf.jpg': (b'%PDF-1.7 ' + bytes(900), 'not_image'), 'gif.png': (b'GIF89a' + bytes(900), 'not_image'),
        'zip.dcm': (b'PK\3\4' + bytes(900), 'not_image'), 'tiff.jpg': (b'II*\0' + bytes(900), 'not_image'),
        'tiny.png': (png(good[:1, :1]), 'too_small'), 'black.png': (png(good*0), 'constant'),
        'white.jpg': (jpeg(good*0 + 255), 'constant'), 'strip.png': (png(np.tile(good[:40], (1, 12))), 'aspect'),
        'huge.png': (png_of(60000, 60000, zlib.compress(bytes(1000))), 'too_large'),
        'huge2.png': (png_of(2**31 - 1, 2**31 - 1, b''), ''), 'huge.jpg': (huge_jpeg, 'too_large'),
        'flat_bomb.png': (png_of(9000, 9000, zlib.compress(bytes(9001*9000), 9)), 'too_large'),
        'text_bomb.png': (png_of(256, 256, zlib.compress(bytes(257*256)),
                                 chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2*10**8)))), 'broken'),
        'icc_bomb.png': (png_of(256, 256, zlib.compress(b''.join(b'\0' + o.tobytes() for o in good)),
                                chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(10**8)))), 'broken'),
        'animated.png': (png(good, save_all=True, append_images=[Image.fromarray(255 - good)]), 'frames'),
        'largest.png': (png_of(5900, 5900, zlib.compress((b'\0' + bytes(range(256))*92 + bytes(48))*5900), colour=6),
                        ''),
        'png.dcm': (valid['8.png'], ''), 'dicom.png': (valid['plain.dcm'], ''), 'jpeg.png': (valid['gray.jpg'], ''),
        'no_suffix': (valid['8.png'], ''), 'no_preamble.dcm': (bare(valid['plain.dcm']), ''),
        'ct.dcm': (changed(valid['plain.dcm'], Modality='CT'), 'modality'),
        'mg.dcm': (changed(valid['plain.dcm'], Modality='MG'), 'modality'),
        'none.dcm': (changed(valid['plain.dcm'], Modality=''), 'modality'),
        'named.dcm': (changed(valid['plain.dcm'], Modality=SECRET[0].upper()), 'modality'),
        'knee.dcm': (changed(valid['plain.dcm'], BodyPartExamined='KNEE'), 'body_part'),
        'lateral.dcm': (changed(valid['plain.dcm'], ViewPosition='LL'), 'lateral'),
        'lat.dcm': (changed(valid['plain.dcm'], ViewPosition='LATERAL'), 'lateral'),
        'coded.dcm': (changed(valid['plain.dcm'], ViewPosition='', ViewCodeSequence=[view]), 'lateral'),
        'turned.dcm': (changed(valid['plain.dcm'], PatientOrientation=['P', 'F']), 'lateral'),
        'oblique.dcm': (changed(valid['plain.dcm'], ViewPosition='RAO'), 'oblique'),
        'frames.dcm': (changed(valid['plain.dcm'], NumberOfFrames=2000), 'frames'),
        'rows.dcm': (changed(valid['plain.dcm'], Rows=65535, Columns=65535), 'too_large'),
        'short.dcm': (changed(valid['plain.dcm'], Rows=4000, Columns=4000), 'truncated'),
        'bits.dcm': (changed(valid['plain.dcm'], BitsAllocated=64), 'bits'),
        'stored.dcm': (changed(valid['plain.dcm'], BitsStored=40), 'bits'),
        'palette.dcm': (changed(valid['plain.dcm'], PhotometricInterpretation='PALETTE COLOR'), 'photometric'),
        'three.dcm': (changed(valid['plain.dcm'], SamplesPerPixel=3), 'photometric'),
        'lying.dcm': (changed(valid['j2k.dcm'], Rows=5000, Columns=5000), 'broken'),
        'lying_ls.dcm': (changed(valid['jls.dcm'], Rows=300), 'broken'),
        'lying_ll.dcm': (changed(valid['lossless.dcm'], Columns=300), 'broken'),
        'rle_bomb.dcm': (rle_bomb, 'broken'), 'deflated.dcm': (dicom(good, DeflatedExplicitVRLittleEndian), 'syntax'),
        'slope.dcm': (changed(valid['plain.dcm'], RescaleSlope='0', RescaleIntercept='0'), 'constant'),
        'window.dcm': (changed(valid['plain.dcm'], WindowCenter='1', WindowWidth='0'), ''),
        'far.dcm': (changed(valid['plain.dcm'], WindowCenter='1e30', WindowWidth='1e30'), ''),
        'all_padding.dcm': (dicom(good.astype(np.uint16)*16, PixelPaddingValue=0, PixelPaddingRangeLimit=65535),
                            'constant'),
        'inverted.png': (png(255 - good), 'inverted'),
        'inverted.dcm': (changed(valid['8.dcm'], PhotometricInterpretation='MONOCHROME1'), 'inverted'),
        '90.png': (png(turn(1)), 'rotated_90'), '180.jpg': (jpeg(turn(2)), 'rotated_180'),
        '270.dcm': (dicom(turn(3)), 'rotated_270'),
        'noise.png': (png(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)), 'not_chest'),
        'rainbow.jpg': (jpeg(rainbow), 'colour'),
        'annotated.png': (png(lines), '')}

@pytest.fixture(scope='session')
def corpus(valid, listed, tmp_path_factory):
    "A folder of hostile files: what is listed, and every valid file cut, with flipped bits, and with another header"
    folder, rng = tmp_path_factory.mktemp('hostile'), np.random.default_rng(0)
    for name, (data, _) in listed.items(): (folder/name).write_bytes(data)
    for name, data in valid.items():
        n = len(data)
        for i in range(6): (folder/f'cut{i}_{name}').write_bytes(data[:int(n*rng.random())])
        for i in range(6): (folder/f'flip{i}_{name}').write_bytes(flipped(data, rng.integers(0, n, 1 + 3*i), rng))
        for i in range(5):
            (folder/f'head{i}_{name}').write_bytes(
                flipped(data, rng.integers(8 if data[:1] != b'\0' else 128, min(n, 900 if 'dcm' in name else 120),
                                           1 + i), rng))
    return folder

def flipped(data, places, rng):
    b = bytearray(data)
    for i in places: b[i] ^= 1 << int(rng.integers(8))
    return bytes(b)

CHILD = '''
import json, sys, time, traceback
from pathlib import Path
from cxr_nb.data.gate import judge_file
out = []
for p in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time() # of this process: others may be busy
    try: f = judge_file(p); v, error = f.verdict.to_dict(), ''; assert (f.pixels is None) == (f.kind == '')
    except Exception: v, error = None, traceback.format_exc()
    out.append(dict(name=p.name, verdict=v, error=error, seconds=time.process_time() - start))
mb = next(int(o.split()[1])/1024 for o in open('/proc/self/status') if o.startswith('VmHWM'))
Path(sys.argv[2]).write_text(json.dumps(dict(files=out, mb=mb)))
'''

@pytest.fixture(scope='session')
def judged(corpus, env, tmp_path_factory):
    "What a process of its own says of the corpus"
    to = tmp_path_factory.mktemp('judged')/'out.json'
    said = subprocess.run([sys.executable, '-X', 'faulthandler', '-c', CHILD, str(corpus), str(to)],
                          capture_output=True, text=True, env={**env, 'OMP_NUM_THREADS': '1'}, timeout=300)
    assert said.returncode == 0, said.stderr
    return {**json.loads(to.read_text()), 'said': said.stdout + said.stderr}

def test_valid_files_pass_and_are_the_same_film(valid, good, tmp_path):
    for name, data in valid.items():
        (tmp_path/name).write_bytes(data)
        f = judge_file(tmp_path/name)
        assert f.verdict.status == 'ok', (name, f.verdict)
        assert np.corrcoef(f.pixels.ravel(), good.ravel())[0, 1] > .99 and f.pixels.shape == good.shape, name

def test_there_are_300_hostile_files(corpus): assert len(list(corpus.iterdir())) >= 300

def test_no_traceback_and_a_reason_for_each_refusal(judged):
    for o in judged['files']:
        assert not o['error'], o
        v = o['verdict']
        assert v['status'] in ('ok', 'warning', 'refused') and (v['status'] == 'ok') == (not v['reasons'])
        for r in v['reasons']:
            assert 0 <= r['confidence'] <= 1 and len(r['text']) > 10 and (r['code'] in CODES or not r['refuse']), o
    assert 'Traceback' not in judged['said'] and 'Warning' not in judged['said'], judged['said']

def test_no_file_takes_long_or_all_a_gigabyte(judged):
    slow = max(judged['files'], key=lambda o: o['seconds'])
    assert slow['seconds'] < 20, slow
    assert judged['mb'] < 1000

def test_listed_kinds_get_their_code(judged, listed):
    got = {o['name']: o['verdict'] for o in judged['files']}
    for name, (_, code) in listed.items():
        refused = [r['code'] for r in got[name]['reasons'] if r['refuse']]
        if code: assert code in refused, (name, got[name])
    for name in ('png.dcm', 'dicom.png', 'jpeg.png'): assert [r['code'] for r in got[name]['reasons']] == ['extension']
    assert got['annotated.png']['status'] == 'warning' and got['window.dcm']['status'] == 'warning'
    for name in ('no_suffix', 'no_preamble.dcm'): assert got[name]['status'] == 'ok', (name, got[name])

def test_most_cut_files_are_refused(judged):
    cut = [o['verdict']['status'] == 'refused' for o in judged['files'] if o['name'].startswith('cut')]
    assert np.mean(cut) > .95

def test_what_is_no_plain_file(tmp_path, good):
    os.mkfifo(tmp_path/'pipe.png')
    (tmp_path/'loop.png').symlink_to(tmp_path/'loop.png')
    (tmp_path/'folder.png').mkdir()
    (tmp_path/'n\u00e4me with \u80ba.png').write_bytes(png(good))
    got = {o: judge_file(tmp_path/o).verdict
           for o in ('pipe.png', 'loop.png', 'folder.png', 'none.png', 'zero\0.png', 'n\u00e4me with \u80ba.png')}
    assert [v.codes for v in got.values()] == [['unreadable'], ['unreadable'], ['unreadable'], ['missing'], ['missing'],
                                               []]

def test_nothing_of_the_patient_is_told(judged, valid, tmp_path, capfd, caplog):
    "Neither in verdicts, errors, warnings nor logs, for good, odd and broken files"
    warnings.simplefilter('ignore')
    ds = packed(valid['plain.dcm'])
    ds.add_new(0x00101010, 'AS', 'Secretname years')
    ds.add_new(0x00080060, 'CS', 'secretname, too long for a code string')
    ds.add_new(0x00280030, 'DS', '1.23456789012345678901')
    ds.save_as(tmp_path/'odd.dcm')
    said = json.dumps(judged['files']) + judged['said']
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        said += str(judge_file(tmp_path/'odd.dcm').verdict)
        for i in range(0, 400, 7):
            (tmp_path/'cut.dcm').write_bytes(valid['plain.dcm'][:132 + 3*i])
            said += str(judge_file(tmp_path/'cut.dcm').verdict)
            try: read_gray(tmp_path/'cut.dcm')
            except ImageError as e: said += str(e)
    said += str([str(o.message) for o in seen]) + caplog.text + ''.join(capfd.readouterr())
    for o in SECRET: assert o.lower() not in said.lower(), o

def test_a_missing_decoder_names_the_extra(valid, tmp_path, monkeypatch):
    import pydicom.pixels
    class Bare: is_available = False
    monkeypatch.setattr(pydicom.pixels, 'get_decoder', lambda ts: Bare)
    (tmp_path/'a.dcm').write_bytes(valid['j2k.dcm'])
    v = judge_file(tmp_path/'a.dcm').verdict
    assert v.codes == ['decoder'] and "pip install 'cxr_nb[dicom]'" in v.text and 'JPEG 2000' in v.text

def test_the_judge_is_a_function_of_the_pixels(good):
    "Twice the same, alone or in company, and whatever the size"
    j = load_gate()
    both = j.scores([good, 255 - good])
    assert np.allclose(both[0], j.scores([good])[0]) and check_pixels(good).to_dict() == check_pixels(good).to_dict()
    assert check_pixels(good[::2, ::2]).status == 'ok'
    assert check_pixels(np.kron(good, np.ones((4, 4), np.uint8))).status == 'ok'

def turned(a, turn): return np.ascontiguousarray(np.rot90(255 - a if turn >= 4 else a, -turn % 4))

def test_a_judge_that_is_fitted_on_phantoms_knows_how_others_lie(tmp_path):
    images = [phantom_image(phantom_body(i, 'FM'[i % 2]), view='PA', seed=i, size=128)[0] for i in range(84)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        judge = fitting.fit_gate(images[:60], fitting.drawn_pictures(400, seed=1), copies=2)
    scores = [judge.scores([turned(a, i) for a in images[60:]]) for i in range(8)]
    assert np.mean([s.argmax(1) == i for i, s in enumerate(scores)]) > .9
    fitting.save_gate(judge, tmp_path/'small.json')
    assert np.allclose(load_gate(tmp_path/'small.json').scores(images[60:]), scores[0], atol=.02)
    with pytest.raises(CxrError, match='too few'): fitting.fit_gate(images[:5])

def test_drawn_pictures_are_refused():
    pictures = fitting.drawn_pictures(400, seed=9)
    assert np.array_equal(pictures[3], fitting.drawn_pictures(4, seed=9)[3])
    odds = np.exp(load_gate().scores(pictures))
    assert (odds[:, 0]/(1 + odds.sum(1)) >= REFUSE).mean() < .02

@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, 18), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
       front=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=4),
       cut=st.one_of(st.none(), st.floats(0, 1)), more=st.binary(max_size=64))
def test_fuzzed_files_get_a_verdict(valid, tmp_path, which, edits, front, cut, more):
    name, data = list(valid.items())[which % len(valid)]
    b = bytearray(data)
    for at, v in edits: b[int(at*(len(b) - 1))] = v
    for at, v in front: b[at % len(b)] = v
    (tmp_path/name).write_bytes(bytes(b[:int(len(b)*cut)] if cut is not None else b) + more)
    v = judge_file(tmp_path/name).verdict
    json.dumps(v.to_dict(), allow_nan=False)
    assert v.status != 'refused' or {r.code for r in v.reasons if r.refuse} <= CODES

PEAK = """
import os, subprocess, sys
p = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(p.pid, 0)
print('peak', usage.ru_maxrss/1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""

def peak(env, *args):
    """Exit code of a command, what it said, and its largest memory in MB; by way of a small process, since a new one
    begins with the largest memory of its parent"""
    said = subprocess.run([sys.executable, '-c', PEAK, *map(str, args)], capture_output=True, text=True,
                          env={**env, 'OMP_NUM_THREADS': '1'})
    return said.returncode, said.stdout + said.stderr, float(said.stdout.split()[-1])

def test_predict_meets_the_corpus(env, trained, corpus, listed, valid, tmp_path):
    """One pass of the command over all of it: a row a file, a reason a refusal, no traceback, less than a gigabyte
    more than for one film"""
    (tmp_path/'good').mkdir()
    for name, data in valid.items(): (tmp_path/'good'/name).write_bytes(data)
    files = sorted(corpus.iterdir())
    code, said, mb = peak(env, BIN/'cxr-predict', '--run', trained, '--out', tmp_path/'p.csv', *files, tmp_path/'good')
    assert code == 1 and 'Traceback' not in said, said[-2000:]
    df = pd.read_csv(tmp_path/'p.csv', keep_default_na=False)
    assert len(df) == len(files) + len(valid) > 300
    refused = df[df.status == 'refused']
    assert len(refused) > 150 and (refused.gate_reason != '').all() and (refused.gate_codes != '').all()
    assert (df[df.path.str.contains('/good/')].status == 'ok').all()
    alone = peak(env, BIN/'cxr-predict', '--run', trained, '--out', tmp_path/'q.csv', tmp_path/'good'/'8.png')
    assert alone[0] == 0 and mb < alone[2] + 1000

def test_prepare_names_films_that_lie_wrong_and_keeps_them(run, phantom, tmp_path):
    data = shutil.copytree(phantom, tmp_path/'nih')
    films = sorted(data.rglob('*.png'))
    for f, change in ((films[3], lambda a: 255 - a), (films[8], lambda a: a[::-1, ::-1])):
        Image.fromarray(change(np.asarray(Image.open(f)))).save(f)
    said = run('cxr-prepare', '--data', data, '--size', 64, '--out', tmp_path/'cache')
    assert said.returncode == 0 and 'they stay in, but look at them' in said.stdout, said.stderr
    odd = pd.read_csv(tmp_path/'cache'/'gate.csv', index_col='image')
    assert odd.codes[[films[3].name, films[8].name]].tolist() == ['inverted', 'rotated_180'] and len(odd) < 10
    assert f'{len(films)} images at 64x64' in said.stdout

def test_files_of_a_machine_that_writes_no_suffix_are_in_the_data(good, tmp_path):
    "Files such as IM0001 are read and checked under the names that the table gives, and DICOMDIR is none of them"
    from cxr_nb.data.file_checks import scan_files
    from cxr_nb.data.opening import open_data
    folder = tmp_path/'scans'
    folder.mkdir()
    for name in ('IM0001', '1.2.840.7', 'DICOMDIR'): (folder/name).write_bytes(dicom(good))
    (folder/'notes').write_text('Dear colleague')
    (tmp_path/'same.dcm').write_bytes(dicom(good))
    (tmp_path/'labels.csv').write_text('image,patient,labels\nIM0001,1,Mass\n1.2.840.7,2,\n')
    data = open_data(csv_path=tmp_path/'labels.csv', img_root=folder)
    assert not data.missing and set(data.files) == {'IM0001', '1.2.840.7'}
    for quick in (True, False):
        scan = scan_files(data.files, quick, progress=False)
        assert set(scan.status) == {'ok'} and set(scan.width) == {256}
    assert np.array_equal(read_gray(data.files['IM0001']), read_gray(tmp_path/'same.dcm'))

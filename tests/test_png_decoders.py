"PNG files by each decoder: the same pixels as Pillow's, and the same refusals."
import io, struct, zlib

import numpy as np, pytest
from PIL import Image

from cxr_nb.data import images
from cxr_nb.data.image_files import ImageError
from cxr_nb.data.images import read_gray

SIDE = 40

def _chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def _png(bits=8, extra=b'', squeeze=zlib.compress, filter=b'\0'):
    "A gray PNG file of noise, put together by hand so that any part of it can be wrong"
    rng = np.random.default_rng(0)
    width = SIDE*bits//8
    raw = b''.join(filter + rng.integers(0, 256, width, dtype=np.uint8).tobytes() for _ in range(SIDE))
    head = struct.pack('>IIBBBBB', SIDE, SIDE, bits, 0, 0, 0, 0)
    parts = [_chunk(b'IHDR', head), extra, _chunk(b'IDAT', squeeze(raw)), _chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)

def _interlaced():
    "Black, white below the middle, in the seven passes of Adam7"
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[SIDE//2:] = 255
    parts = [image[y::dy, x::dx] for y, x, dy, dx in passes]
    raw = b''.join(b'\0' + row.tobytes() for part in parts for row in part)
    head = struct.pack('>IIBBBBB', SIDE, SIDE, 8, 0, 0, 0, 1)
    return b'\x89PNG\r\n\x1a\n' + _chunk(b'IHDR', head) + _chunk(b'IDAT', zlib.compress(raw)) + _chunk(b'IEND', b'')

def _another(data, at):
    "With one byte changed"
    data = bytearray(data)
    data[at] ^= 255
    return bytes(data)

def _wrong_sum(raw): return _another(zlib.compress(raw), -1)

WHOLE = {
    '8 bits': _png(),
    '4 bits': _png(4),
    '2 bits': _png(2),
    'one gray transparent': _png(extra=_chunk(b'tRNS', b'\0\1')),
    'gamma': _png(extra=_chunk(b'gAMA', struct.pack('>I', 45455))),
    'significant bits': _png(extra=_chunk(b'sBIT', b'\4')),
    'no end': _png()[:-12],
    'interlaced': _interlaced(),
    'more behind the end': _png() + b'more',
}
BROKEN = {
    'cut off': (_png()[:-100], 'truncated'),
    'a byte changed': (_another(_png(), 200), 'broken'),
    'a sum of zlib wrong': (_png(squeeze=_wrong_sum), 'broken'),
    'no such filter': (_png(filter=b'\x09'), 'broken'),
}

@pytest.fixture(params=['imagecodecs', 'OpenCV'])
def decoder(request, monkeypatch):
    "Read by this one"
    if request.param == 'imagecodecs': pytest.importorskip('imagecodecs')
    else: monkeypatch.setattr(images, 'png_decode', None)

@pytest.mark.parametrize('name', WHOLE)
def test_same_pixels(decoder, name, tmp_path, capfd):
    path = tmp_path/'a.png'
    path.write_bytes(WHOLE[name])
    assert np.array_equal(read_gray(path), np.asarray(Image.open(io.BytesIO(WHOLE[name]))))
    assert not capfd.readouterr().err

@pytest.mark.parametrize('name', BROKEN)
def test_same_refusals(decoder, name, tmp_path):
    path = tmp_path/'a.png'
    data, code = BROKEN[name]
    path.write_bytes(data)
    with pytest.raises(ImageError) as e: read_gray(path)
    assert e.value.code == code

def test_imagecodecs_is_the_decoder():
    imagecodecs = pytest.importorskip('imagecodecs')
    assert images.png_decode is imagecodecs.png_decode

"""Fit the judge of `cxr_nb.data.gate` and write its JSON file. Not part of the library, which only judges.

`python tools/gate.py DATA OUT.json`, where DATA is ChestX-ray14, makes `cxr_nb/gate.json`. Fitted are the images of
the patients whose number leaves 0, 1 or 2 when divided by 5, six hundred phantoms, and 9,600 drawn pictures."""
import json, sys, tempfile
from dataclasses import fields
from pathlib import Path

import cv2, numpy as np
from sklearn.neural_network import MLPClassifier
from cxr_nb.core import CxrError
from cxr_nb.data.gate import Judge, features
from cxr_nb.data.images import read_gray
from cxr_nb.data.phantom.release import make_phantom
from cxr_nb.data.sources import load_nih

WAVES = 84 # The first so many features are cosine waves

# Pictures of things that are no chest. Each drawer gets a generator and the side of a square.

def clouds(r, s):
    "A field with the spectrum of natural scenes"
    f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(s)]*2))
    f[0, 0] = 1
    x = np.fft.ifft2(np.fft.fft2(r.standard_normal((s, s)))/f**r.uniform(.5, 3)).real
    return x/x.std()

def soften(x, r, low, high): return cv2.GaussianBlur(x, (0, 0), r.uniform(low, high))

def leaves(r, s):
    "Shapes that cover each other"
    x = clouds(r, s)*r.uniform(0, 1)
    for _ in range(r.integers(2, 60)):
        kind = r.integers(3)
        cx, cy = r.integers(0, s, 2).tolist()
        value = float(r.normal(0, 1.5))
        w, h = r.integers(2, max(3, int(s*r.choice([.1, .3, .6]))), 2).tolist()
        if kind == 0: cv2.ellipse(x, (cx, cy), (w, h), float(r.uniform(0, 180)), 0, 360, value, -1)
        elif kind == 1: x[cy:cy + h, cx:cx + w] = value
        else: cv2.fillPoly(x, [r.integers(0, s, (r.integers(3, 6), 2)).astype(np.int32)], value)
    return soften(x, r, .3, 2.5) + clouds(r, s)*r.uniform(0, .3)

def print_lines(r, s):
    "A printed page"
    x = np.ones((s, s))
    height = int(r.integers(3, 9))
    margin = int(r.integers(0, s//5))
    for y in range(margin, s - margin, height + int(r.integers(1, 5))):
        ends = margin + np.cumsum(r.integers(1, 14, s//2))
        for i, j in zip(ends[::2], ends[1::2]): x[y:y + height - 1, i:min(j, s - margin)] = r.random()*.5
    return x*r.choice([-1, 1]) + clouds(r, s)*r.uniform(0, .2)

def disc(r, s):
    "A bright or dark disc, like a retina or a planet"
    y, x = np.mgrid[:s, :s]/s - .5 - r.uniform(-.1, .1, (2, 1, 1))
    d = np.hypot(y, x*r.uniform(.7, 1.4))
    return np.where(d < r.uniform(.2, .55), 1 - r.uniform(0, 1.5)*d + clouds(r, s)*r.uniform(0, .15),
                    0)*r.choice([-1, 1])

def stripes(r, s):
    "Waves in one direction"
    y, x = np.mgrid[:s, :s]/s
    turn = r.uniform(0, 7)
    waves = np.sin(r.uniform(.5, 12)*(x*np.cos(turn) + y*np.sin(turn)) + r.uniform(0, 7))
    return waves + clouds(r, s)*r.uniform(0, .8)

def horizon(r, s):
    "Sky over ground, with a few boxes"
    y = np.mgrid[:s, :s][0]/s
    sky, ground = (r.normal() + 2*y*r.normal() for _ in range(2))
    x = np.where(y < r.uniform(.2, .8) + .1*clouds(r, s)*r.random(), sky, ground) + clouds(r, s)*r.uniform(0, .7)
    for _ in range(r.integers(0, 6)):
        cx, cy = r.integers(0, s, 2)
        w, h = r.integers(2, s//2, 2)
        x[cy:cy + h, cx:cx + w] = r.normal(0, 1.5) + .2*clouds(r, s)[cy:cy + h, cx:cx + w]
    return soften(x, r, .3, 1.5)

def head(r, s):
    "A head on shoulders, with the ovals of a face"
    x = clouds(r, s)*r.uniform(.1, 1)
    centre = r.uniform(.35, .65, 2)*s
    half = r.uniform(.12, .45, 2)*s
    def oval(at, size, turn=0.):
        at, size = [int(o) for o in at], [max(1, int(o)) for o in size]
        cv2.ellipse(x, at, size, turn, 0, 360, float(r.normal()*1.5), -1)
    oval((centre[0], s), (half[0]*r.uniform(1, 2.5), s*r.uniform(.2, .6)))
    oval(centre, half, float(r.normal()*10))
    for _ in range(r.integers(0, 6)): oval(centre + r.normal(0, .4, 2)*half, r.uniform(.03, .3, 2)*half)
    return soften(x, r, .5, 4) + clouds(r, s)*r.uniform(0, .3)

def towers(r, s):
    "Houses before a sky"
    x = np.linspace(r.normal(), r.normal(), s)[:, None] + clouds(r, s)*r.uniform(0, .3)
    for _ in range(r.integers(1, 8)):
        width = int(s*r.uniform(.01, .25))
        left = int(r.uniform(0, s))
        top = int(s*r.uniform(.05, .8))
        x[top:, left:left + width] = r.normal(0, 1.5) + clouds(r, s)[top:, left:left + width]*r.uniform(0, .3)
    if r.random() < .6: x[int(s*r.uniform(.6, .95)):] += r.normal()
    return soften(x, r, .3, 2)

DRAWERS = [clouds, leaves, print_lines, disc, stripes, horizon, head, towers]

def drawn_pictures(
    n:int, # How many
    seed:int=0, # Same seed, same pictures
    size:int=128, # Pixels a side
)->list: # Arrays uint8 (size, size)
    "Pictures that are no radiographs, all kinds in turn"
    out = []
    for i in range(n):
        x = DRAWERS[i % len(DRAWERS)](np.random.default_rng([seed, i, 5]), size)
        out.append(((x - x.min())/max(np.ptp(x), 1e-9)*255).astype(np.uint8))
    return out

def varied(a, r):
    "The same radiograph from another machine and another hand"
    h, w = a.shape
    m = cv2.getRotationMatrix2D((w/2, h/2), r.uniform(-8, 8), r.uniform(.9, 1.15))
    m[:, 2] += r.uniform(-.06, .06, 2)*[w, h]
    a = cv2.warpAffine(a, m, (w, h), borderMode=cv2.BORDER_CONSTANT if r.random() < .6 else cv2.BORDER_REPLICATE)
    if r.random() < .3: a = soften(a, r, .3, 1.2)
    if r.random() < .3: a = np.clip(a + r.normal(0, r.uniform(0, 8), a.shape), 0, 255).astype(np.uint8)
    if r.random() < .4: a = (255*(a/255)**r.uniform(.6, 1.6)).astype(np.uint8)
    if r.random() < .2:
        edge = int(w*r.uniform(.02, .1)) + 1
        a[:, :edge] = a[:, -edge:] = r.choice([0, 255])
    return a

def cloud_of(f):
    "Centre and whitening directions of the waves of radiographs"
    f = f[:, :WAVES].astype(np.float64)
    w, v = np.linalg.eigh(np.cov(f.T))
    return f.mean(0), v/np.sqrt(np.maximum(w, w[-1]*1e-6))

def fit_gate(
    images, # Upright chest radiographs, arrays uint8 (H, W); 128 pixels a side are enough
    pictures=None, # What is no chest radiograph, as arrays; 9,600 of `drawn_pictures` if not given
    copies:int=4, # Varied copies of each image
    hidden:int=48, # Width of the network
    seed:int=0, # For the copies and the network
)->Judge: # Ready to judge
    "A judge of radiographs. Raises `CxrError` on fewer than 20 of them"
    if len(images) < 20:
        raise CxrError(f'{len(images)} images are too few to fit a gate on; give hundreds, of many patients')
    small = [cv2.resize(o, (128, 128), interpolation=cv2.INTER_AREA) for o in images]
    copied = [varied(o, np.random.default_rng([seed, k, i])) for k in range(copies) for i, o in enumerate(small)]
    good = features(small + copied)
    other = features(drawn_pictures(9600, seed) if pictures is None else pictures)
    # one class is the upright radiographs; the other these in the seven wrong ways, and the pictures in all eight
    wrong = [good[i, i::5] for i in range(1, 8)] + [other[i, i % 4::4] for i in range(8)]
    judge = Judge(*cloud_of(good[0]), mean=0, scale=1, w1=None, b1=None, w2=None, b2=0)
    x = judge.widen(np.concatenate([good[0], *wrong]))
    judge.mean, judge.scale = x.mean(0), x.std(0) + 1e-6
    net = MLPClassifier((hidden,), alpha=.3, max_iter=40, n_iter_no_change=50, batch_size=256, learning_rate_init=2e-3,
                        random_state=seed)
    net.fit((x - judge.mean)/judge.scale, np.arange(len(x)) < good.shape[1])
    judge.w1, judge.w2 = net.coefs_[0], net.coefs_[1][:, 0]
    judge.b1, judge.b2 = net.intercepts_[0], float(net.intercepts_[1][0])
    judge.facts = dict(images=len(images), pictures=int(other.shape[1]), copies=copies)
    return judge

def five_digits(o): return [five_digits(v) for v in o] if isinstance(o, list) else float(f'{o:.5g}')

def save_gate(
    judge:Judge, # Fitted
    path, # A JSON file
):
    "Write a judge as JSON, each number with five digits"
    numbers = {o.name: five_digits(np.asarray(getattr(judge, o.name)).tolist())
               for o in fields(judge) if o.name != 'facts'}
    Path(path).write_text(json.dumps({**numbers, 'facts': judge.facts}, separators=(',', ':')))

def main(data, out):
    "Fit on a release and phantoms"
    data = load_nih(data)
    images = [read_gray(data.files[o]) for o in data.table.index[data.table.patient % 5 < 3] if o in data.files]
    with tempfile.TemporaryDirectory() as folder:
        for size in (64, 256):
            made = make_phantom(Path(folder)/str(size), 300, size=size, seed=11)
            images += [read_gray(o) for o in made.rglob('*.png')]
        save_gate(fit_gate(images), out)

if __name__ == '__main__':
    if len(sys.argv) != 3: sys.exit('usage: python tools/gate.py DATA OUT.json')
    main(*sys.argv[1:])

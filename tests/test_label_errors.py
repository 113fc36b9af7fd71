"Label errors: a ranking that knows nothing finds what a random list finds, and the guide shows real predictions."
import re

import nbformat, numpy as np, pytest
from conftest import ROOT

from cxr_nb.metrics.label_errors import confident_errors, found_errors, label_quality
from cxr_nb.metrics.predictions import Aligned, simulate

@pytest.fixture(scope='module')
def spoilt():
    "Labels of 600 images of 300 patients, one in ten turned over, and scores for the truth"
    rng = np.random.default_rng(0)
    truth = (rng.random((600, 1)) < .4).astype(int)
    wrong = rng.random(truth.shape) < .1
    patients = np.repeat(np.arange(300), 2)
    p = simulate(truth, patients, auroc=.95, seed=1)
    return Aligned(np.where(wrong, 1 - truth, truth), p, patients, ['Mass'], [f'{o}.png' for o in range(600)], [],
                   []), wrong

def test_a_good_model_finds_planted_errors_and_a_shuffled_one_does_not(spoilt):
    a, wrong = spoilt
    quality = label_quality(a.y, a.p)
    good = found_errors(a, quality, wrong, top=30, n_boot=100).loc['Mass']
    assert (good.gain_low > .1).all() and (good.auroc > .85).all()
    rng = np.random.default_rng(2)
    shares = [found_errors(a, rng.permutation(quality), wrong, top=30, n_boot=2).loc[('Mass', 'either')].share
              for _ in range(60)]
    assert abs(np.mean(shares) - wrong.mean()) < .02

def test_the_order_of_the_images_does_not_matter(spoilt):
    a, _ = spoilt
    back = slice(None, None, -1)
    np.testing.assert_allclose(label_quality(a.y[back], a.p[back])[back], label_quality(a.y, a.p))
    flagged = confident_errors(a.y, a.p)
    assert flagged.any() and (confident_errors(a.y[back], a.p[back])[back] == flagged).all()

def test_longer_lists_find_more_errors(spoilt):
    a, wrong = spoilt
    quality = label_quality(a.y, a.p)
    recalls = [found_errors(a, quality, wrong, top=n, n_boot=2).loc[('Mass', 'either')].recall
               for n in (10, 50, 200, 10_000)]
    assert recalls == sorted(recalls) and recalls[-1] == 1

def test_cleanlab_is_not_imported_before_it_is_needed():
    source = (ROOT/'cxr_nb'/'metrics'/'label_errors.py').read_text()
    assert re.search(r'^ +.*import cleanlab', source, re.M) and not re.search(r'^(import|from) cleanlab', source, re.M)

def test_the_saved_guide_is_of_real_predictions():
    cells = nbformat.read(ROOT/'nbs'/'guides'/'label_errors.ipynb', 4).cells
    text = ' '.join(str(o.get('data', '')) for c in cells for o in c.get('outputs', []))
    assert re.search(r'22,433 images of 6,187 patients', text) and 'drawn at random' not in text

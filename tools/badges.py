"""The Colab and Kaggle badges of the notebooks that people run.

`python tools/badges.py` writes the badge cell of every chapter and guide that has one, from its place in the
repository; `python tools/badges.py NOTEBOOK` gives a notebook its first badges, below the title. A test compares."""
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
REPO, BRANCH = 'cxr-nb/cxr_nb', 'main'
COLAB = 'https://colab.research.google.com'
KAGGLE = 'https://kaggle.com'

def badges(path):
    "The two badges of a notebook, in Markdown"
    place = f'{REPO}/blob/{BRANCH}/{path.resolve().relative_to(ROOT).as_posix()}'
    colab = f'[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{place})'
    kernel = f'{KAGGLE}/kernels/welcome?src=https://github.com/{place}'
    kaggle = f'[![Open in Kaggle]({KAGGLE}/static/images/open-in-kaggle.svg)]({kernel})'
    return f'{colab} {kaggle}'

def badge_cell(nb): return next((c for c in nb.cells if 'colab-badge' in c.source), None)

def renewed(path, first=False):
    "The notebook with its badges as they must be, or None if nothing is to be done"
    nb = nbformat.read(path, 4)
    cell = badge_cell(nb)
    if cell is None and not first: return None
    if cell is None:
        cell = nbformat.v4.new_markdown_cell()
        nb.cells.insert(1, cell)
    if cell.source == badges(path): return None
    cell.source = badges(path)
    return nb

def notebooks(): return sorted([*(ROOT/'nbs').glob('*.ipynb'), *(ROOT/'nbs'/'guides').glob('*.ipynb')])

if __name__ == '__main__':
    named = [Path(o) for o in sys.argv[1:]]
    for path in named or notebooks():
        if nb := renewed(path, bool(named)): nbformat.write(nb, path)

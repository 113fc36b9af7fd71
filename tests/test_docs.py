"README and site: what is linked is there."
import re, sys
from pathlib import Path
from urllib.parse import unquote

import nbformat, pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT/'tools'))
from readme import render

NOTEBOOKS = [o for o in sorted(ROOT.glob('nbs/**/*.ipynb')) if not set(o.parts) & {'.ipynb_checkpoints', 'runs'}]

def test_each_package_has_its_page_and_its_place_in_the_sidebar():
    "As `python tools/packages.py` writes them"
    import sys
    sys.path.insert(0, str(ROOT/'tools'))
    import packages
    folders = {str(o.parent.relative_to(packages.API)) for o in packages.API.rglob('[0-9]*.ipynb')} - {'.'}
    assert folders == set(packages.PACKAGES)
    for file, text in packages.files().items(): assert file.read_text() == text, file.relative_to(ROOT)

def test_readme_is_the_index(): assert (ROOT/'README.md').read_text() == render()

def test_readme_has_both_commands():
    text = (ROOT/'README.md').read_text()
    assert 'pip install . && cxr-demo' in text and "pip install -e '.[dev]' && nbdev-test && pytest -q" in text

def anchors(nb):
    "Anchors of a page: its headings as Pandoc writes them, and the functions and classes that it documents"
    text = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
    heads = [re.sub(r'[^\w\s.-]', '', h).strip().lower().replace(' ', '-')
             for h in re.findall(r'^#+ (.+)$', text, re.M)]
    names = re.findall(r'^(?:def|class) (\w+)', '\n'.join(c.source for c in nb.cells if c.cell_type == 'code'), re.M)
    return set(heads) | {n.lower() for n in names}

PAGES = {re.sub(r'^\d+_', '', o.stem): o for o in NOTEBOOKS}
def by_page(folder, target):
    "The notebook of a link: by its own name, or by the name of its page"
    p = folder/target
    if p.suffix == '.html':
        p = next((o for o in p.parent.resolve().glob('*.ipynb') if re.sub(r'^\d+_', '', o.stem) == p.stem), p)
    return p

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
def test_links_anchors_and_images(path):
    nb = nbformat.read(path, 4)
    text = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
    for target in re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r'https?:|mailto:', target): continue
        name, _, anchor = unquote(target).partition('#')
        file = by_page(path.parent, name) if name else path
        assert file.exists(), f'{path.name}: {target} is not there'
        if anchor: assert anchor.lower() in anchors(nbformat.read(file, 4)), f'{path.name}: {target} has no such anchor'

def test_badges_are_those_of_the_tool():
    "Every chapter has badges, and each pair points at its own notebook"
    import badges
    for path in badges.notebooks(): assert badges.renewed(path) is None, f'{path.name}: python tools/badges.py mends it'
    for path in (ROOT/'nbs').glob('[0-9]*.ipynb'): assert badges.badge_cell(nbformat.read(path, 4)), path.name

def test_page_names_are_unique_within_a_folder():
    for folder in {o.parent for o in NOTEBOOKS}:
        names = [re.sub(r'^\d+_', '', o.stem) for o in NOTEBOOKS if o.parent == folder]
        assert len(names) == len(set(names)), folder

def test_sidebar_names_what_is_there():
    for o in re.findall(r'([\w/]+\.ipynb|[\w/]+/\*)', (ROOT/'_quarto.yml').read_text()):
        assert list((ROOT/'nbs').glob(o)), o

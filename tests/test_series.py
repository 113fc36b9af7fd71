"The chapters of the series: figures that can be read, sources beside ours, sentences that hold at every reader's place"
import base64, io, re
from pathlib import Path

import nbformat, pytest
from PIL import Image

from cxr_nb.report.sources import published

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
WITH_CLAIMS = sorted(set(published().chapter))

def read(path): return nbformat.read(path, as_version=4)

def number(path): return path.name[:2]

def pictures(cell):
    "The pictures that a cell has shown"
    for output in cell.get('outputs', []):
        for kind in ('image/png', 'image/jpeg'):
            if kind in output.get('data', {}): yield Image.open(io.BytesIO(base64.b64decode(output['data'][kind])))

def too_narrow(nb): return [im.width for c in nb.cells for im in pictures(c) if im.width < 700]

def without_alt(nb):
    "Cells with a picture and no text for those who cannot see it"
    shown = [c for c in nb.cells if c.cell_type == 'code' and any(pictures(c))]
    return [c.source[:60] for c in shown if not re.search(r'^#\| fig-alt: \S.{15,}', c.source, re.M)]

def prose(nb): return '\n\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')

# Words that say what came out. In prose they are true at one reader's place alone, so a cell has to compute them.
OUTCOME = [r'[Oo]n the (real )?images (shown|used) here', r'the guess wins', r'nothing moved',
           r'\bon this machine it\b',
           r'[Aa]s (one|you) (can see|sees) (above|below)',
           r'\bhere (it|the (mean|score|AUROC|gain)) (rises|falls|drops|gains)\b',
           r'the (real )?sample (reaches|reached|gains|gained|loses|lost)\b',
           r'the phantom (release|run)s? (reaches|reached|gains|gained|loses|lost)\b']

def outcomes(nb): return [m[0] for pattern in OUTCOME for m in re.finditer(pattern, prose(nb))]

def crowded_headings(nb):
    "Headings that share their cell with text; the title and its description may"
    cells = [c.source.strip() for c in nb.cells if c.cell_type == 'markdown']
    return [s.splitlines()[0] for s in cells if re.match(r'#{2,} ', s) and '\n' in s]

@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
class TestChapter:
    def test_pictures_can_be_read(self, path): assert not too_narrow(read(path))
    def test_pictures_have_a_text(self, path): assert not without_alt(read(path))
    def test_outcomes_are_computed(self, path): assert not outcomes(read(path))
    def test_headings_stand_alone(self, path): assert not crowded_headings(read(path))

    def test_figures_are_checked(self, path):
        code = [c.source for c in read(path).cells if c.cell_type == 'code']
        assert any('series_style(' in s for s in code), 'no series_style()'
        assert 'check_figures()' in code[-1], 'the last cell does not check the figures'

    def test_sources_stand_beside_ours(self, path):
        code = '\n'.join(c.source for c in read(path).cells if c.cell_type == 'code')
        if number(path) in WITH_CLAIMS: assert re.search(rf"source_table\('{number(path)}'", code)

    def test_it_has_what_a_course_has(self, path):
        text = prose(read(path))
        for part in ('What you will learn', 'Time and hardware', '## Exercises', '## What next',
                     'esearch and education only'):
            assert part in text, f'{part} is missing'

def notebook(*sources):
    cells = [nbformat.v4.new_markdown_cell(s) for s in sources]
    return nbformat.v4.new_notebook(cells=cells)

def test_the_checks_find_what_they_look_for():
    small = io.BytesIO()
    Image.new('L', (300, 200)).save(small, 'png')
    shown = nbformat.v4.new_output('display_data', {'image/png': base64.b64encode(small.getvalue()).decode()})
    bare = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('plot()', outputs=[shown])])
    assert too_narrow(bare) == [300] and without_alt(bare) == ['plot()']
    claim = notebook('On the images shown here nothing moved.')
    assert outcomes(claim) == ['On the images shown here', 'nothing moved']
    assert crowded_headings(notebook('# Title\n\n> about', '## Alone', '## With text\n\nmore')) == ['## With text']

def title(path): return read(path).cells[0].source.splitlines()[0].removeprefix('# ')

def test_chapters_are_numbered_and_named_alike_everywhere():
    "Page, first page and sidebar; the sidebar takes its names from the pages, in the same order as the first page"
    rows = re.findall(r'^\| \[(.+?)\]\((\d\d_\w+\.ipynb)\) \|',
                      (ROOT/'nbs'/'index.ipynb').read_text().replace('\\n', '\n').replace('    "', ''), re.M)
    assert {name: text for text, name in rows} == {o.name: title(o) for o in CHAPTERS}
    for path in CHAPTERS: assert title(path).startswith(f'{int(number(path))}. ')
    sidebar = re.findall(r'- (\d\d_\w+\.ipynb)', (ROOT/'_quarto.yml').read_text())
    assert sidebar == [name for _, name in rows]

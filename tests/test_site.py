"""The site as nbdev processes it for Quarto, which only warns: links, anchors and images of every page, docments of
every public function."""
import ast, re, shutil, subprocess
from urllib.parse import unquote, urlsplit

import nbformat, pytest
from conftest import BIN, ROOT

SITE = 'https://cxr-nb.github.io/cxr_nb/'
PAGES = sorted(str(o.relative_to(ROOT/'nbs').with_suffix('')) for o in ROOT.glob('nbs/**/*.ipynb')
               if not set(o.parts) & {'.ipynb_checkpoints', 'runs'})
LIBRARY = sorted(ROOT.glob('nbs/api/**/*.ipynb'))

@pytest.fixture(scope='session')
def site(tmp_path_factory, env):
    "The processed notebooks by address of their page, made in a copy of what is under version control"
    copy = tmp_path_factory.mktemp('site')
    files = subprocess.run(['git', 'ls-files',
                            '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    for o in filter(None, files):
        (copy/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/o, copy/o, follow_symlinks=False)
    subprocess.run([str(BIN/'nbdev-proc-nbs')], cwd=copy, env={**env, 'OMP_NUM_THREADS': '1'}, check=True,
                   capture_output=True, timeout=600)
    # Quarto takes them from there
    assert {o.name for o in copy.glob('_proc/images/*')} == {o.name for o in copy.glob('nbs/images/*')} != set()
    return {address(o.relative_to(copy/'_proc').with_suffix('')): nbformat.read(o, 4)
            for o in copy.glob('_proc/**/*.ipynb')}

def address(path): return re.sub(r'(^|/)\d+_', r'\1', str(path)) + '.html'

def text_of(nb):
    "All Markdown of a page, that of outputs included"
    shown = [o.get('data', {}).get('text/markdown', '') for c in nb.cells for o in c.get('outputs', [])]
    return '\n'.join([c.source for c in nb.cells if c.cell_type != 'code'] + [''.join(o) for o in shown])

def anchors(nb):
    "Headings of a page, as Pandoc names them"
    return {re.sub(r'[^\w\s.-]', '', h).strip().lower().replace(' ', '-')
            for h in re.findall(r'^#+ (.+?)(?: *\{.*\})?$', text_of(nb), re.M)}

def bad_links(page, nb, site):
    "Links of a page to what is not there"
    here = SITE + page
    # pictures are looked for below
    for target in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'!\[[^\]]*\]\([^)]*\)', '', text_of(nb))):
        if re.match(r'https?:|mailto:', target) and not target.startswith(SITE): continue
        if target == SITE + 'demo/': continue # no notebook: the workflow of the site makes it, as test_release says
        base = target if target.startswith(SITE) else SITE + str(_join(page, target))
        url = urlsplit(base)
        path = unquote(url.path).removeprefix(urlsplit(SITE).path)
        to = address(path.removesuffix('.ipynb').removesuffix('.html')) if url.path else page
        if to not in site: yield f'{target} is no page'
        elif url.fragment and url.fragment.lower() not in anchors(site[to]): yield f'{target} has no such anchor'

def _join(page, target):
    from posixpath import dirname, join, normpath
    name, _, anchor = target.partition('#')
    return (normpath(join(dirname(page), name)) if name else page) + (f'#{anchor}' if anchor else '')

@pytest.mark.parametrize('page', PAGES)
def test_links_of_the_processed_page(page, site):
    page = address(page)
    assert not list(bad_links(page, site[page], site))

def test_a_broken_link_is_found(site):
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell('[a](nowhere.ipynb) [b](01_sampling_eda.ipynb#nothing) '
                                             f'[c]({SITE}api/labels.html#_gone) [d](01_sampling_eda.ipynb)')])
    assert len(list(bad_links('index.html', nb, site))) == 3

@pytest.mark.parametrize('page', PAGES)
def test_every_page_has_a_title_and_images_that_are_there(page, site):
    nb = site[address(page)]
    assert re.search(r'^title: ', nb.cells[0].source,
                     re.M) or nb.cells[0].source.startswith('# ') or 'title' in str(nb.metadata), 'no title'
    for c in nb.cells:
        for name in re.findall(r'!\[[^\]]*\]\(attachment:([^)]+)\)', c.source if c.cell_type == 'markdown' else ''):
            assert name in c.get('attachments', {}), name
        for name in re.findall(r'!\[[^\]]*\]\((?!attachment:|https?:)([^)]+)\)',
                               c.source if c.cell_type == 'markdown' else ''):
            assert (ROOT/'nbs'/page).parent.joinpath(name).exists(), name

def exported(nb):
    "Public functions and methods of a library notebook, and the source of its examples"
    code = [c.source for c in nb.cells if c.cell_type == 'code']
    out = [o for o in code if re.match(r'#\|\s*export', o)]
    return [(n, src) for src in out for n in ast.parse(src).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
            and not n.name.startswith('_')], '\n'.join(o for o in code if o not in out)

def undocumented(fn, src):
    "What a public function says too little about"
    lines = src.splitlines()
    if not ast.get_docstring(fn): yield 'has no docstring'
    args = [a for a in fn.args.posonlyargs + fn.args.args + fn.args.kwonlyargs +
            [o for o in (fn.args.vararg, fn.args.kwarg) if o] if a.arg not in ('self', 'cls')]
    for a in args:
        if '#' not in lines[a.lineno - 1]: yield f'{a.arg} has no docment'
        elif sum(o.lineno == a.lineno for o in args) > 1: yield f'{a.arg} shares a line with another argument'
    if fn.name != '__init__' and fn.returns is None and any(
        isinstance(o, ast.Return) and o.value for o in ast.walk(fn)):
        yield 'does not say what it returns'

@pytest.mark.parametrize('path', LIBRARY, ids=lambda o: o.stem)
def test_public_names_are_documented_and_shown(path):
    public, examples = exported(nbformat.read(path, 4))
    short = {n.name: list(undocumented(n, src)) for n, src in public if isinstance(n, ast.FunctionDef)}
    short |= {n.name: ['has no docstring'] for n, _ in public if isinstance(n, ast.ClassDef)
              and not ast.get_docstring(n)}
    for n, _ in public:
        if not re.search(rf'\b{n.name}\b', examples): short.setdefault(n.name, []).append('is shown in no example')
    assert not {k: v for k, v in short.items() if v}


def shown(nb):
    "Markdown that the cells of a page have shown"
    for c in nb.cells:
        for o in c.get('outputs', []): yield ''.join(o.get('data', {}).get('text/markdown', ''))

@pytest.mark.parametrize('page', PAGES)
def test_what_readers_have_stumbled_over(page, site):
    nb = site[address(page)]
    assert not any('execution' in c.metadata
                   for c in nb.cells), 'times of the build: Quarto hides the headings of such outputs'
    assert 'widgets' not in nb.metadata, 'Quarto fetches jQuery and require.js for them'
    for c in nb.cells:
        text = re.sub(r'```.*?```', '', c.source, flags=re.S) if c.cell_type == 'markdown' else ''
        assert not re.search(r'\[\[`', text), f'a link in a link: {text[:80]}'
    for text in shown(nb):
        assert '__main__' not in text and 'NoneType' not in text, text[:200]
        assert not re.search(r'^# ', re.sub(r'```.*?```', '', text, flags=re.S), re.M), f'a second title: {text[:80]}'
        for line in re.findall(r'^\w[\w.]*\(.*$', text, re.M): assert len(line) <= 88, line
    assert '<iframe' not in str([o for c in nb.cells for o in c.get('outputs', [])]), 'a frame of a server that is gone'

def outside_code(text):
    "Prose of a cell, without code in blocks and in lines"
    return re.sub(r'`[^`]*`', '', re.sub(r'```.*?```', '', text, flags=re.S))

@pytest.mark.parametrize('page', PAGES)
def test_no_markup_stands_in_the_text(page, site):
    "A link whose text is code is linked once more by nbdev; and a table in HTML shows backticks and stars as they are"
    nb = site[address(page)]
    for c in nb.cells:
        if c.cell_type == 'markdown': assert not re.search(r'\]\([^)]*\]\(', outside_code(c.source)), c.source[:100]
        for html in (''.join(o.get('data', {}).get('text/html', '')) for o in c.get('outputs', [])):
            cells = re.findall(r'<t[dh][^>]*>([^<]*)</t[dh]>', html)
            assert not [o for o in cells if re.search(r'`\w[^`]*`|\*\*\w', o)], f'markup in a table: {c.source[:100]}'

CHAPTERS = sorted(ROOT.glob('nbs/[01]*.ipynb'))

@pytest.mark.parametrize('path', CHAPTERS, ids=lambda o: o.stem)
def test_findings_are_written_as_readers_write_them(path):
    "In what a chapter shows; the code has the names of the columns"
    for c in nbformat.read(path, 4).cells:
        for o in c.get('outputs', []):
            text = ''.join(o.get('data', {}).get('text/markdown', ''))
            rows = [row for row in outside_code(text).splitlines() if 'underscore' not in row
                    and 'left out as inconsistent' not in row]
            assert 'Pleural_Thickening' not in '\n'.join(rows), c.source[:100]

def test_the_first_page_shows_and_leads():
    "A picture before any code, the clone before the install, the demo, the whole course; the repository in the bar"
    text = '\n'.join(c.source for c in nbformat.read(ROOT/'nbs'/'index.ipynb', 4).cells if c.cell_type == 'markdown')
    assert text.index('![') < text.index('```') and text.index('git clone') < text.index('pip install')
    assert 'cxr_nb/demo/' in text and all(f']({o.name})' in text for o in CHAPTERS)
    assert '0.6' not in text[:text.index('## On real')], 'results before a word on what this is'

def test_chapters_are_cards_on_the_site(site):
    text = text_of(site['index.html'])
    assert text.count('.chapter}') == len(CHAPTERS) and '| you learn |' not in text

def test_programs_find_every_page_with_its_twin(site):
    "`llms.txt`, which Quarto copies, and the Markdown twins that its links name"
    import yaml
    quarto = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert 'llms.txt' in quarto['project']['resources']
    assert 'commonmark' in quarto['format'] and quarto['format']['html']['keep-md']
    named = {o.removesuffix('.md')
             for o in re.findall(r'\]\(' + re.escape(SITE) + r'([^)]+)\)', (ROOT/'nbs'/'llms.txt').read_text())}
    assert named == set(site) - {'index.html'}

def test_the_bar_and_the_pages_lead_on():
    import yaml
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert site['website']['page-navigation'] and site['website']['repo-url'] and site['website']['navbar']['search']
    assert {'light', 'dark'} == set(site['format']['html']['theme'])
    for name in (site['website']['favicon'], site['website']['image']): assert (ROOT/'nbs'/name).is_file()

@pytest.mark.parametrize('path', CHAPTERS + [ROOT/'nbs'/'index.ipynb'], ids=lambda o: o.stem)
def test_pictures_have_a_text_for_those_who_do_not_see_them(path):
    for c in nbformat.read(path, 4).cells:
        if c.cell_type == 'markdown': assert all(o.strip()
                                                 for o in re.findall(r'!\[([^\]]*)\]\(', outside_code(c.source)))
        elif any({'image/png', 'image/jpeg'} & set(o.get('data', {})) for o in c.get('outputs', [])):
            assert '#| fig-alt:' in c.source, c.source[:100]

def test_fields_of_a_dataclass_are_shown_with_their_comments(site):
    text = '\n'.join(shown(site['api/training/recipe.html']))
    assert re.search(r'\| `seed` \| `int` \| `0` \| \S+', text) and re.search(r'^class TrainError\(', text, re.M)

def wide_lines(nb, most=88):
    "Lines of the code that readers see, in cells and in texts, that are wider than a column of the site"
    for c in nb.cells:
        flags = re.findall(r'^#\| *(.*)', c.source, re.M)
        if c.cell_type == 'code' and any(o.startswith(('export', 'hide', 'echo: false', 'default_exp')) for o in flags):
            continue
        blocks = [c.source] if c.cell_type == 'code' else re.findall(r'^```.*?^```', c.source, re.M | re.S)
        yield from (o for block in blocks for o in block.split('\n') if len(o) > most and not o.startswith('#|'))

@pytest.mark.parametrize('page', PAGES)
def test_code_is_no_wider_than_a_column(page): assert not list(wide_lines(nbformat.read(ROOT/'nbs'/f'{page}.ipynb', 4)))

def test_tables_and_code_stay_within_a_phone():
    css = (ROOT/'nbs'/'styles.css').read_text()
    for rule in ('white-space: pre-wrap', 'overflow-x: auto', 'scroll-margin-top'): assert rule in css

def test_pages_fetch_nothing_from_other_hosts():
    "Fonts and formulas are the reader's own"
    import yaml
    html = yaml.safe_load((ROOT/'_quarto.yml').read_text())['format']['html']
    assert html['html-math-method'] == 'mathml'
    for names in html['theme'].values(): assert '$web-font-path: false' in (ROOT/'nbs'/names[1]).read_text()

"""`llms.txt`: every page of the site in one list, for programs that read it. `tools/packages.py` writes it.

nbdev writes the list only for modules with long docstrings, and ours have a line."""
import re

import nbformat, yaml
from readme import ROOT, page

FIRST = 'Research and education only, never clinical use. Every page has a twin in Markdown: `.md` behind its address.'

def summary(nb):
    "Title and one-line description of a notebook; empty if it has none"
    text = next(c.source for c in nb.cells if c.cell_type == 'markdown' and c.source.startswith('# '))
    title, _, rest = text.partition('\n')
    said = re.search(r'^> (.+)', rest, re.M)
    return title.removeprefix('# '), said[1] if said else ''

def below(entry):
    "The notebooks of an entry of the sidebar, in order"
    if isinstance(entry, str): return [entry]
    first = [entry['href']] if 'href' in entry else []
    return first + [name for o in entry.get('contents', []) for name in below(o)]

def line(name):
    "A page in the list"
    title, said = summary(nbformat.read(ROOT/'nbs'/name, 4))
    return f'- [{title}]({page(name.removesuffix(".ipynb"))}.html.md): {said}'

def render(sidebar):
    "The list, by section of the sidebar"
    title, said = summary(nbformat.read(ROOT/'nbs'/'index.ipynb', 4))
    parts = [f'# {title}', f'> {said}', FIRST]
    for entry in sidebar:
        if isinstance(entry, dict): parts.append('\n'.join([f'## {entry["section"]}', '', *map(line, below(entry))]))
    return '\n\n'.join(parts) + '\n'

def llms_text(quarto):
    "`llms.txt` for the text of `_quarto.yml`"
    return render(yaml.safe_load(quarto)['website']['sidebar']['contents'])

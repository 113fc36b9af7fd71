"README.md from nbs/index.ipynb. `python tools/readme.py` writes it; a test compares."
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SITE = 'https://cxr-nb.github.io/cxr_nb/'

def page(target):
    "Where the site has a notebook: numbers are dropped from file names"
    folder, _, name = target.rpartition('/')
    return SITE + (folder + '/' if folder else '') + re.sub(r'^\d+_', '', name)

def links(text):
    "Links to notebooks go to their pages, pictures to their place in the repository"
    text = re.sub(r'\]\((?!https?:)([\w/.-]+)\.ipynb(#[\w-]+)?\)', lambda m: f']({page(m[1])}.html{m[2] or ""})', text)
    return re.sub(r'!\[([^\]]*)\]\((?!https?:)', r'![\1](nbs/', text)

def cell(c):
    "A cell as markdown; hidden cells leave nothing"
    if c.cell_type == 'markdown': return links(c.source)
    if c.source.startswith(('#| hide', '#|hide')): return ''
    code = '\n'.join(line for line in c.source.splitlines() if not line.startswith('#|'))
    out = [f'```python\n{code}\n```']
    for o in c.outputs:
        data = o.get('data', {})
        text = data.get('text/markdown') or o.get('text') or data.get('text/plain')
        if not text or text.startswith('<Figure'): continue
        out.append(text if 'text/markdown' in data else '\n'.join('    ' + l for l in text.rstrip().splitlines()))
    return '\n\n'.join(out)

def render(nb=ROOT/'nbs'/'index.ipynb'):
    "The README"
    cells = filter(None, (cell(c) for c in nbformat.read(nb, 4).cells))
    return '<!-- Made from nbs/index.ipynb by tools/readme.py; do not edit. -->\n\n' + '\n\n'.join(cells) + '\n'

if __name__ == '__main__': (ROOT/'README.md').write_text(render())

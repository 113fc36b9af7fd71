"""A page for each package of the library, and the sidebar, from the notebooks.

`python tools/packages.py` writes `nbs/api/<package>/index.ipynb`, the last section of `_quarto.yml` and `nbs/llms.txt`;
a test compares.
"""
import ast, json, re
from pathlib import Path

import nbformat
from llms import llms_text, summary

ROOT = Path(__file__).resolve().parent.parent
API = ROOT/'nbs'/'api'
PACKAGES = { # In import order: name, title and sentence
    'data': ('Data', 'From a label table and a folder of radiographs to the batches that a network sees.'),
    'data/phantom': ('Phantom',
                     'Drawn radiographs whose findings are known, to run everything anywhere and to prove that it '
                     'works.'),
    'models': ('Models', 'One description and one class for every network, and the two files in which it is kept.'),
    'metrics': ('Metrics', 'What a set of predictions is worth, with an interval by patient for every figure.'),
    'training': ('Training', 'One recipe, one engine, one run folder, for every network of this project.'),
    'explain': ('Explain', 'Where a network looks, and how often that is where the finding is.'),
    'report': ('Report', 'A run folder as tables, figures, a page and a model card.'),
    'deploy': ('Deploy', 'A trained network on new files, in other programs, and on a page.'),
    'bench': ('Bench', 'How fast this library is, beside what others use.'),
    'commands': ('Commands', 'The functions behind the shell commands.')}
CALLS = { # What is called first, where it is not the first function of the module
    'data.downloads': "fetch('224')", 'data.sources': "load_data('nih')", 'data.splits': 'split_kind',
    'data.image_files': "open_file('a.png')",
    'data.images': "read_gray('a.dcm')", 'data.cache': 'prepare(table, files)', 'data.augment': 'augment(images)',
    'data.batches': 'Batches(cache, rows, y, bs=32)',
    'data.gate': "judge_file('a.dcm')", 'data.indiana': 'load_indiana()', 'data.opening': 'open_data(folder)',
    'data.phantom.release': "make_phantom('phantom')", 'data.phantom.anatomy': 'phantom_body(seed=0)',
    'data.phantom.findings': 'phantom_image(body)',
    'models.weights': "load_backbone(model, 'weights.pth')", 'models.tabular': 'tabular(table)',
    'models.necks': 'Fpn(channels)',
    'models.nets': "ChestModel(Net('densenet121', findings))", 'models.bundle': "load_bundle('runs/first')",
    'models.ensemble': 'ensemble_of(models)', 'models.peers': "load_published('xrv-densenet121-chex')",
    'models.registry': "entry_of('eva-x-tiny')", 'models.published': "load_start(model, 'eva-x-tiny')",
    'metrics.predictions': "align('nih', 'theirs.csv')", 'metrics.ranking': 'auroc(y, p)',
    'metrics.operating': 'confusion(y, p, t)',
    'metrics.bootstrap': 'bootstrap(y, p, patients)', 'metrics.evaluation': 'evaluate(y, p, findings, patients)',
    'metrics.compare': 'compare(y, p, q, findings, patients)', 'metrics.thresholds': 'fit_thresholds(y, p, findings)',
    'metrics.audit': "audit_file('theirs.csv')", 'metrics.label_errors': 'likely_errors(a)',
    'training.losses': "Loss('focal')", 'training.recipe': 'change(recipe, size=320)', 'training.recipes': 'fusion()',
    'training.parts': 'make_split(table, recipe)', 'training.folder': "history_of('runs/first')",
    'training.capture': 'CapturedSteps()', 'training.batch_size': "Stage('whole', 5, 1e-5, bs='auto')",
    'training.run': "open_run('runs/first')", 'training.engine': "train(data, staged(), 'runs/first')",
    'training.judging': 'judge(run)',
    'training.ensembling': "make_ensemble(runs, 'runs/ensemble')",
    'training.crossval': "cross_validate(data, indiana(), 'runs/indiana')", 'training.state': "read_state(file)",
    'training.backbones': 'compare_backbones(data, recipe, archs)', 'training.costs': "cost('resnet18')",
    'training.callbacks': 'fused_adamw(params, lr=1e-3)', 'training.gains': 'gains(fused, image)',
    'explain.cam': 'gradcam(model, x)', 'explain.boxes': 'localise(run)', 'explain.sheet': 'explain_run(run)',
    'report.tables': "read_run('runs/first')", 'report.plots': 'plot_history(history)',
    'report.style': 'series_style()', 'report.sources': "source_table('02')",
    'report.html': "write_report('runs/first')",
    'report.card': "write_model_card('runs/first')", 'report.statements': 'answers(facts)',
    'report.checklists': "checklist('claim')",
    'deploy.predict': "load_classifier('runs/first')('a.dcm')",
    'deploy.export': "export_onnx('runs/first', 'model.onnx')",
    'data.checks': 'check_data', 'models.necks': 'make_neck', 'metrics.delong': 'delong',
    'metrics.baselines': 'metadata_baseline',
    'metrics.multilabel': 'multilabel_scores', 'metrics.guarantees': 'guaranteed_thresholds',
    'metrics.calibration': 'fit_calibration',
    'metrics.subgroups': 'evaluate_subgroups', 'metrics.readers': 'evaluate_readers',
    'training.distributed': 'best_device',
    'training.frozen': 'kept_features', 'training.loggers': "logging_to('tensorboard', path, recipe)",
    'training.series': 'series_run', 'report.eda': 'plot_label_counts',
    'report.classes': 'plot_classes', 'report.looking': 'learn.show_results()', 'commands.parsing': 'command',
    'commands.train': 'cxr_train', 'bench.setup': 'bench_run',
    'deploy.app': "make_app('runs/first')", 'deploy.picture': "plot_prediction(clf, 'a.png')",
    'deploy.web': "export_web('runs/first', 'demo')", 'bench.race': "race(ours, theirs)",
    'bench.rows': 'startup(setup)',
    'bench.cards': 'gpu_release(setup)', 'bench.run': 'bench()'}

def module_of(nb):
    "The module that a notebook exports, without the name of the library"
    found = [re.search(r'#\|\s*default_exp (\S+)', c.source) for c in nb.cells if c.cell_type == 'code']
    return next((m[1] for m in found if m), None)

def ended(sentence): return sentence if sentence.endswith(('.', '?')) else sentence + '.'

def public(nb):
    "Public functions and classes of a notebook, in order, with the arguments that must be given"
    names = {}
    for c in nb.cells:
        if c.cell_type != 'code' or not re.match(r'#\|\s*export', c.source): continue
        for o in ast.parse(c.source).body:
            patched = any(getattr(d, 'id', '') == 'patch' for d in getattr(o, 'decorator_list', []))
            named = isinstance(o, (ast.FunctionDef, ast.ClassDef)) and not o.name.startswith('_')
            if named and not patched: names[o.name] = required(o)
    return names

def required(node):
    "Names of the arguments of a function that have no default"
    if not isinstance(node, ast.FunctionDef): return []
    args = node.args.posonlyargs + node.args.args
    return [o.arg for o in args[:len(args) - len(node.args.defaults)]]

def call_of(module, names):
    "What to call first: the line of `CALLS`, or the function named there with its arguments, else the first function"
    call = CALLS.get(module, '')
    name = re.match(r'\w*', call)[0]
    if name in names and '(' in call: return call
    if name not in names: name = next((o for o in names if o[0].islower()), list(names)[0])
    return f'{name}({", ".join(names[name])})'

def notebooks(package):
    "The notebooks of a package, in their order"
    return sorted(o for o in (API/package).glob('[0-9]*.ipynb'))

def row(file):
    "A row of the table: module, sentence, call"
    nb = nbformat.read(file, 4)
    module, (_, sentence) = module_of(nb), summary(nb)
    return f'| [{module}]({file.name}) | {ended(sentence)} | `{call_of(module, public(nb))}` |'

def page(package):
    "The page of a package, as JSON"
    title, sentence = PACKAGES[package]
    rows = ['| Module | What it is for | Begin with |', '|---|---|---|', *map(row, notebooks(package))]
    texts = [f'# {title}\n\n> {sentence}', '\n'.join(rows)]
    cells = [dict(cell_type='markdown', id=f'{package.replace("/", "-")}-{i}', metadata={},
                  source=o.splitlines(keepends=True))
             for i, o in enumerate(texts)]
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    return json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5), indent=1,
                      ensure_ascii=False) + '\n'

def sidebar():
    "The section of the library in `_quarto.yml`"
    lines = ['      - section: "The library"', '        contents:',
             *(f'          - api/{o}.ipynb' for o in ('00_core', '01_runs', '02_labels', '03_environment'))]
    for package, (title, _) in PACKAGES.items():
        lines += [f'          - section: "{title}"', f'            href: api/{package}/index.ipynb',
                  '            contents:']
        lines += [f'              - api/{package}/{o.name}' for o in notebooks(package)]
    return '\n'.join([*lines, '          - api/09_cli.ipynb', '          - api/10_site.ipynb']) + '\n'

def site_file():
    "`_quarto.yml` with today's sidebar"
    text = (ROOT/'_quarto.yml').read_text()
    start = text.index('      - section: "The library"')
    end = text.index('\n\n', start) + 1
    return text[:start] + sidebar() + text[end:]

def files():
    "What is written: file to text"
    quarto = site_file()
    pages = {API/o/'index.ipynb': page(o) for o in PACKAGES}
    return pages | {ROOT/'_quarto.yml': quarto, ROOT/'nbs'/'llms.txt': llms_text(quarto)}

if __name__ == '__main__':
    for file, text in files().items(): file.write_text(text)

"""The house in order: who may import whom, and how large and dense the code may be.

`python tools/house.py` prints imports against the order, and a summary; its exit code is 1 if there are any.
`python tools/house.py -v` prints places that are too large or too private as well, of which there still are many."""
import ast, statistics, sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT/'cxr_nb'

# A module imports only what stands before it.
ORDER = """
core labels
data.phantom.tables data.phantom.canvas data.phantom.anatomy data.phantom.findings data.phantom.release
data.box_files data.image_files data.downloads data.sources runs data.splits data.dicom data.images data.cache
data.augment data.batches data.gate data.indiana_reports data.indiana data.opening
data.verdicts data.release_checks data.file_checks data.duplicates data.run_checks data.checks
models.registry models.weights models.published models.folding models.inference models.tabular
models.views models.necks models.nets models.ensemble models.bundle models.peers
metrics.predictions metrics.ranking metrics.operating metrics.bootstrap metrics.evaluation
metrics.delong metrics.compare
metrics.baselines metrics.multilabel metrics.thresholds metrics.guarantees metrics.calibration
metrics.subgroups metrics.readers
metrics.audit metrics.label_errors
training.losses training.recipe training.recipes training.state training.distributed
training.parts training.folder training.capture
training.callbacks training.finetuning training.run training.batch_size
training.frozen training.judging training.engine training.series training.ensembling
training.crossval training.gains training.costs
training.loggers environment
explain.cam explain.boxes explain.sheet
report.tables report.plots report.style report.sources report.eda report.statements
report.checklists report.page report.members report.html report.card report.classes
report.looking
training.backbones
deploy.predict deploy.export deploy.app deploy.picture deploy.web
bench.race bench.setup bench.rows bench.cards bench.run
commands.parsing commands.prepare commands.train commands.use commands.weights commands.ensemble cli site
""".split()

def modules():
    "Name to file of every module that a notebook exports"
    files = [o for o in sorted(LIBRARY.rglob('*.py')) if not o.name.startswith('_')]
    return {'.'.join(o.relative_to(LIBRARY).with_suffix('').parts): o for o in files}

def imports(name, tree):
    "Pairs (module of this library, name taken from it), at the top or inside of functions"
    package = name.split('.')[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom): continue
        module = node.module or ''
        if node.level: module = '.'.join([*package[:len(package) - node.level + 1], *([module] if module else [])])
        elif module.startswith('cxr_nb.'): module = module.removeprefix('cxr_nb.')
        else: continue
        for o in node.names: yield module, o.name

def wrong_imports(trees):
    "What is imported against the order, and modules that have no place in it"
    for name, tree in trees.items():
        if name not in ORDER: yield f'{name}: has no place in ORDER of tools/house.py'
        for module, what in imports(name, tree):
            if module not in ORDER: module = f'{module}.{what}'.strip('.') # a module taken from its package
            if module not in ORDER or name not in ORDER: continue
            if ORDER.index(module) >= ORDER.index(name): yield f'{name}: imports {module}, which comes later'

def private_imports(trees):
    "Private names that one module takes from another"
    for name, tree in trees.items():
        for module, what in imports(name, tree):
            if what.startswith('_') and not what.startswith('__'): yield f'{name}: imports the private {module}.{what}'

def body_lines(function):
    "Lines of a function below its head and its docstring"
    body = function.body
    if ast.get_docstring(function): body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0

def too_large(name, source, tree):
    "Modules over 400 lines, lines over 120 characters, function bodies over 25 lines"
    lines = source.splitlines()
    if len(lines) > 400: yield f'{name}: {len(lines)} lines'
    for number, line in enumerate(lines, 1):
        if len(line) > 120 and not line.startswith("__all__"): yield f'{name}:{number}: {len(line)} characters'
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 25:
            yield f'{name}:{node.lineno}: {node.name} has {body_lines(node)} lines'

def nodes_a_line(tree):
    "Syntax nodes of each line that stands in a function, docstrings apart"
    count = Counter()
    def visit(node, line, inside):
        line = getattr(node, 'lineno', line)
        if inside: count[line] += 1
        for child in ast.iter_child_nodes(node): visit(child, line, inside or is_statement_of(node, child))
    visit(tree, 0, False)
    return list(count.values())

def is_statement_of(node, child):
    "Is this a line of that function's body, and not its docstring?"
    text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
    return isinstance(node, ast.FunctionDef) and child in node.body and not text

def main():
    "Print what is wrong, and how dense the code is"
    sources = {k: f.read_text() for k, f in modules().items()}
    trees = {k: ast.parse(s) for k, s in sources.items()}
    wrong = [*wrong_imports(trees)]
    loose = [*private_imports(trees), *(o for k in trees for o in too_large(k, sources[k], trees[k]))]
    total = sum(1 for tree in trees.values() for _ in ast.walk(tree))
    for line in wrong + loose * ('-v' in sys.argv): print(line)
    print(f'{len(trees)} modules, {total:,} syntax nodes, median '
          f'{statistics.median(o for t in trees.values() for o in nodes_a_line(t)):.0f} a line, {len(wrong)} imports '
          f'against the order, {len(loose)} places too large or too private')
    return bool(wrong)

if __name__ == '__main__': sys.exit(main())

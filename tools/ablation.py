"""What each piece of the strong recipe brings, on a phantom release: every run leaves one piece out.

`python tools/ablation.py DIR --weights FILE` takes hours on two cores, writes a run folder each, and goes on where it
was left. All seeds share the test images. The table has the mean difference to the whole recipe over seeds, with an
interval by patient, and the spread over seeds beside it. Its last row adds a piece that the recipe does not have:
each test image is judged in five views, and their probabilities are averaged."""
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd
from fastcore.script import call_parse
from cxr_nb.data.augment import Augment
from cxr_nb.data.sources import phantom_data
from cxr_nb.metrics.bootstrap import Estimate, bootstrap
from cxr_nb.models.nets import probabilities
from cxr_nb.training.engine import train
from cxr_nb.training.recipes import change, strong

def every(recipe, **values):
    "The recipe with other values in each stage that trains more than the head"
    stages = [o if o.frozen else replace(o, **values) for o in recipe.stages]
    return change(recipe, stages=stages)

LEFT_OUT = { # Name to a recipe with one piece less
    'nothing': lambda r: r,
    'the head first': lambda r: change(r, stages=r.stages[1:]),
    'warm-up and cosine': lambda r: every(r, schedule='flat', warmup=0.),
    'averaged weights': lambda r: every(r, ema=0.),
    'small images first': lambda r: every(r, size=0),
    'gentle augmentation': lambda r: change(r, augment=Augment()),
    'any augmentation': lambda r: change(r, augment=None)}

def whole_recipe(arch, size, weights, seed):
    "The strong recipe at sizes that a processor can train"
    recipe = strong(arch=arch, size=size, weights=weights, seed=seed, split='official')
    return every(recipe, size=2*size//3) if len(recipe.stages) < 3 else _growing(recipe, 2*size//3)

def _growing(recipe, size):
    "Small images in the second stage alone"
    head, whole, *rest = recipe.stages
    return change(recipe, stages=[head, replace(whole, size=size), *rest])

def predictions(run, name='predictions_test.csv'):
    "Probabilities of the test images, in the order of their table"
    table = pd.read_csv(run.path/name, index_col='image')
    rows = run.part('test')
    return table.loc[rows.index, [f'prob_{o}' for o in run.recipe.findings]].to_numpy()

VIEWS = 5 # The image as it is, and four that are turned, moved and zoomed a little

def in_views(run):
    "Probabilities of the test images, each the mean over `VIEWS` views"
    total = predictions(run)
    for seed in range(1, VIEWS):
        view = run.batches('test', aug=run.recipe.augment, seed=seed)
        total = total + probabilities(run.model.eval(), view)
    return total/VIEWS

def mean_estimate(estimates):
    "The mean of scores of several seeds on the same patients"
    k = len(estimates)
    return Estimate(sum(o.value for o in estimates)/k, sum(o.draws for o in estimates)/k,
                    sum(o.influence for o in estimates)/k)

def scores(run, p):
    "Macro AUROC of probabilities of the test part, with its draws"
    rows = run.part('test')
    y = rows[run.recipe.findings].to_numpy()
    return bootstrap(y, p, rows.patient.to_numpy(), n_boot=1000)['auroc'].macro()

def ablation_table(found):
    "A row for each piece: AUROC without it, and its difference to the whole recipe; `found` is seeds by name"
    whole = found['nothing']
    rows = []
    for name, by_seed in found.items():
        seeds = sorted(set(by_seed) & set(whole))
        value = mean_estimate([by_seed[s] for s in seeds])
        gap = mean_estimate([by_seed[s] - whole[s] for s in seeds])
        low, high = gap.interval()[:, 0]
        each = [float(by_seed[s].value[0] - whole[s].value[0]) for s in seeds]
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else np.nan
        rows.append({'left out': name, 'seeds': len(seeds), 'AUROC': value.value[0], 'difference': gap.value[0],
                     'low': low, 'high': high, 'spread over seeds': spread})
    table = pd.DataFrame(rows).set_index('left out')
    table.loc['nothing', ['difference', 'low', 'high', 'spread over seeds']] = np.nan
    return table

@call_parse
def main(
    out:str, # Folder for the runs and `ablation.csv`
    weights:str='imagenet', # Of the backbone: imagenet, none or a file
    images:int=20_000, # Of the phantom release
    pixels:int=160, # Side of its files
    arch:str='mobilenetv2_100', # A network that the machine can train in the time
    size:int=96, # Side of the network's input in pixels
    seeds:int=3, # Runs of each recipe
    only:str='', # Names of what to leave out, with commas between them; all if not given
):
    "Train the strong recipe without one piece after the other, and print what each brings"
    data = phantom_data(images, pixels, seed=11)
    names = [o.strip() for o in only.split(',') if o] or list(LEFT_OUT)
    found = {name: {} for name in ['nothing', *(o for o in names if o != 'nothing')]}
    more = {}
    for seed in range(seeds): # one seed of all, then the next: a table comes early
        for name in found:
            recipe = LEFT_OUT[name](whole_recipe(arch, size, weights, seed))
            path = Path(out)/f'{name.replace(" ", "_")}-{seed}'
            run = train(data, recipe, path, resume=True, say=lambda line: None)
            found[name][seed] = scores(run, predictions(run))
            if name == 'nothing': more[seed] = scores(run, in_views(run))
        table = ablation_table(found | {'nothing, five views added': more})
        table.to_csv(Path(out)/'ablation.csv')
        print(table.round(4).to_string(), flush=True)

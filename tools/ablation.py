"""What each piece of the strong recipe brings, on a phantom release: every run leaves one piece out.

`python tools/ablation.py DIR --weights FILE` takes hours on two cores, writes a run folder each, and goes on where it
was left. All seeds share their patients. The table has the mean difference to the whole recipe over seeds: on test,
with an interval by patient and the spread over seeds, and on validation, which is what decides. Time is that of
training against that of the whole recipe. The last row takes nothing away: each image is judged in five views, and
their probabilities are averaged."""
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd
from fastcore.script import call_parse
from cxr_nb.data.augment import Augment
from cxr_nb.data.sources import phantom_data
from cxr_nb.metrics.bootstrap import Estimate, bootstrap
from cxr_nb.models.nets import over_batches
from cxr_nb.models.views import in_views
from cxr_nb.training.engine import train
from cxr_nb.training.judging import predictions_of
from cxr_nb.training.recipe import Stage
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
    "The strong recipe with all that was thought of for it, at sizes that a processor can train"
    recipe = strong(arch=arch, size=size, weights=weights, seed=seed, split='official', views=1)
    whole, *rest = (replace(o, ema=.999) for o in recipe.stages if not o.frozen)
    head = Stage('frozen_head', 3, 1e-3, trainable=0, bs=256)
    return change(recipe, stages=[head, replace(whole, size=2*size//3), *rest])

def several_views(run, part):
    "Probabilities of the images of a part, each the mean over all views"
    model = run.model.eval()
    return over_batches(model, run.batches(part), lambda *xb: in_views(model, *xb).sigmoid())

def scores(run, part, judge=None):
    "Macro AUROC of a part, with its draws: of what the run has left, or of what `judge` gives"
    a = predictions_of(run, part)
    p = judge(run, part) if judge else a.p
    return bootstrap(a.y, p, a.patients, n_boot=1000)['auroc'].macro()

def facts_of(run, judge=None):
    "What the table needs of a run; to judge one otherwise takes no training"
    seconds = np.nan if judge else sum(o['seconds'] for o in run.history)
    return {'val': scores(run, 'val', judge), 'test': scores(run, 'test', judge), 'seconds': seconds}

def mean_estimate(estimates):
    "The mean of scores of several seeds on the same patients"
    k = len(estimates)
    return Estimate(sum(o.value for o in estimates)/k, sum(o.draws for o in estimates)/k,
                    sum(o.influence for o in estimates)/k)

def table_row(by_seed, whole):
    "AUROC without a piece, and differences to the whole recipe; both are facts by seed"
    seeds = sorted(set(by_seed) & set(whole))
    gaps = {part: [by_seed[s][part] - whole[s][part] for s in seeds] for part in ('val', 'test')}
    gap = mean_estimate(gaps['test'])
    low, high = gap.interval()[:, 0]
    each = [float(o.value[0]) for o in gaps['test']]
    return {'seeds': len(seeds), 'AUROC': mean_estimate([by_seed[s]['test'] for s in seeds]).value[0],
            'difference': gap.value[0], 'low': low, 'high': high,
            'spread over seeds': float(np.std(each, ddof=1)) if len(each) > 1 else np.nan,
            'difference, validation': mean_estimate(gaps['val']).value[0],
            'time': float(np.mean([by_seed[s]['seconds']/whole[s]['seconds'] for s in seeds]))}

def ablation_table(found):
    "A row for each piece that was left out; `found` is facts by name, then by seed"
    table = pd.DataFrame({name: table_row(o, found['nothing']) for name, o in found.items()}).T.rename_axis('left out')
    table.loc['nothing', ['difference', 'low', 'high', 'spread over seeds', 'difference, validation']] = np.nan
    return table.astype({'seeds': int})

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
            path = Path(out)/f'{name.replace(" ", "_").replace(",", "")}-{seed}'
            run = train(data, recipe, path, resume=True, say=lambda line: None)
            found[name][seed] = facts_of(run)
            if name == 'nothing': more[seed] = facts_of(run, several_views)
        table = ablation_table(found | {'nothing, five views added': more})
        table.to_csv(Path(out)/'ablation.csv')
        print(table.round(4).to_string(), flush=True)

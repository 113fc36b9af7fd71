"""Train the weights that come with the package, `--weights phantom`, and write them as half-precision numbers.

`python tools/phantom_weights.py RUNS` draws 20,000 images of patients that no demo and no chapter has, trains the
network of `cxr-demo` on them and writes `cxr_nb/phantom_weights.safetensors`. It takes one thread, since bfloat16 on
several waits long beside other work; `--precision float32` serves on a processor without it."""
from dataclasses import replace
from pathlib import Path

import torch
from fastcore.script import call_parse
from safetensors.torch import load_file, save_file
from cxr_nb.commands.train import demo_recipe, pretraining
from cxr_nb.data.sources import phantom_data
from cxr_nb.models.registry import entries
from cxr_nb.training.engine import train

ENTRY = entries()['phantom']
OUT = Path(__file__).resolve().parent.parent/'cxr_nb'/ENTRY.file

def backbone_of(
    file # Weights of a run
)->dict: # Tensors under timm's names, in half precision; counters as they are
    "The backbone without head, as small as it may be"
    trunk = {k.removeprefix('backbone.'): v for k, v in load_file(file).items() if k.startswith('backbone.')}
    return {k: v.half() if v.is_floating_point() else v for k, v in trunk.items()}

@call_parse
def main(
    runs:str, # Folder for the run
    n_images:int=20_000, # Phantoms to learn from
    epochs:int=12, # Passes over them
    precision:str='bfloat16', # Of training
):
    "Write the weights"
    torch.set_num_threads(1)
    recipe = demo_recipe(ENTRY.arch, ENTRY.pixels, seed=1)
    other = phantom_data(n_images, ENTRY.pixels, 1, enrich=1., first_patient=150_001)
    run = train(other, replace(pretraining(recipe, epochs, bs=32), precision=precision), Path(runs)/'phantom_weights')
    save_file(backbone_of(run.path/'model.safetensors'), OUT)
    print(f'{OUT}: {OUT.stat().st_size/1e6:.2f} MB, validation AUROC {run.history[-1]["auroc"]:.3f}')

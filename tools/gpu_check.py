"""Everything that needs a graphics card, in one script of at most eight minutes, without network.

`python tools/gpu_check.py --out gpu.json` prints a row as soon as it is measured. Where no card is at hand the same
rows run on the processor in tiny sizes, to show that they work, and have no verdict. A row that no longer fits into
the time is left out, and says so."""
import copy, sys, tempfile, time, traceback
from dataclasses import replace
from pathlib import Path

import numpy as np, torch
from fastcore.script import call_parse
from cxr_nb.bench.race import Row, hardware, write_bench
from cxr_nb.bench.setup import bare_copy, pace, renamed, settle
from cxr_nb.data.sources import phantom_data
from cxr_nb.models.folding import folded_together, unfold_batchnorm
from cxr_nb.models.nets import device_named
from cxr_nb.training.callbacks import Clock, best_precision
from cxr_nb.training.capture import CapturedSteps
from cxr_nb.training.engine import net_learner, run_stage, trained_copy
from cxr_nb.training.recipe import STAGED, Stage, change
from cxr_nb.training.recipes import staged
from cxr_nb.training.run import start_run

class Check:
    "Sizes, a scratch folder and the time that is left"
    def __init__(self, folder, device, minutes, images=28_030):
        self.folder, self.device, self.images = Path(folder), torch.device(device), images
        self.card = self.device.type == 'cuda'
        self.size = 224 if self.card else 64
        self.arch = 'mobilenetv2_100' if self.card else 'mobilenetv2_050'
        self.until = time.monotonic() + 60*minutes
    @property
    def left(self): return self.until - time.monotonic()
    def pick(self, real, tiny): return real if self.card else tiny
    def run(self, n):
        "A run on n images, which are few drawn ones under many names"
        data = renamed(phantom_data(96, 64, progress=False, max_images=2), n)
        recipe = staged(arch=self.arch, size=self.size, weights='none')
        run = start_run(data, recipe, self.folder/f'run{n}', cache=self.folder/f'cache{n}', device=self.device,
                        progress=False, overwrite=True, say=lambda line: None)
        settle(run.model, next(iter(run.batches('train')))[0])
        return run
    def wait(self):
        if self.card: torch.cuda.synchronize()

def exact():
    "Within it a card computes the same bits each time, in full float32"
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)

def folding(check):
    """Logits and gradients of the folded network against the plain one, in float32. The gradients of this random
    network are some 1 % off those of float64 either way"""
    run = check.run(200)
    x, y = next(iter(run.batches('train', bs=16)))
    answers = []
    for change in (lambda model: model, unfold_batchnorm):
        model = change(copy.deepcopy(run.model)).eval()
        with exact(), folded_together(model):
            logits = model(x)
            torch.nn.functional.binary_cross_entropy_with_logits(logits, y).backward()
        slopes = torch.cat([p.grad.flatten() for p in model.parameters()])
        answers.append((logits.detach(), slopes))
    (a, slope_a), (b, slope_b) = answers
    apart = float((a - b).abs().max()/b.abs().max())
    steep = float((slope_a - slope_b).norm()/slope_b.norm())
    yield Row('folded_vs_plain_logits', apart, None, apart, 1e-4, 'lower', 'relative', check.device.type, 1)
    yield Row('folded_vs_plain_gradients', steep, None, steep, 5e-2, 'lower', 'relative', check.device.type, 1)

def training(check):
    "The library's training against a bare eager loop, at the published batch size and at a large one"
    for bs, n, bar in ((32, 60, 3.), (256, 30, 1.15)):
        bs, n = check.pick(bs, 8), check.pick(n, 2)
        stage = Stage('pace', 1, 1e-4, bs=bs)
        run = check.run(2*(n + 1)*bs)
        turns = [[pace(f(run, stage, n)[1], bs, check.device.type) for f in (trained_copy, bare_copy)]
                 for _ in range(2)]
        ours, peer = np.max(turns, axis=0).tolist()
        ratios = [a/b for a, b in turns]
        yield Row(f'training_{bs}_vs_bare_loop', ours, peer, ours/peer, bar, 'higher', 'images/s', check.device.type, 2,
                  [min(ratios), max(ratios)], note=f'{check.size} px, {best_precision(check.device)}')

def twenty_steps(check, run, capture):
    "All weights after 20 steps, and whether they were recorded"
    stage = Stage('steps', 1, 1e-4, bs=check.pick(16, 8))
    recipe = change(run.recipe, capture=capture, precision='float32')
    one = replace(run, model=copy.deepcopy(run.model), recipe=recipe)
    steps, clock = CapturedSteps(None if check.card else warm_up), Clock(20)
    more = [clock] if check.card or not capture else [steps, clock] # without a card nothing is recorded by itself
    learn = net_learner(one, stage, more)
    with exact(), learn.no_logging(), learn.no_bar(): learn.fit(21, stage.lr)
    found = getattr(learn, 'captured_steps', None)
    return torch.cat([p.detach().flatten() for p in one.model.parameters()]), bool(found and found.engaged)

def captured(check):
    """Weights after 20 steps with recorded steps against plain ones, in float32, with the images on the device and on
    the disk; and whether the record was used"""
    run = check.run(400)
    ours, engaged = twenty_steps(check, run, True)
    disk, from_disk = twenty_steps(check, replace(run, on_device=run.cache.images), True)
    plain, not_engaged = twenty_steps(check, run, False)
    again, _ = twenty_steps(check, run, False)
    apart, between, noise = (float((o - plain).norm()/plain.norm()) for o in (ours, disk, again))
    kind = check.device.type
    right = float(engaged and from_disk and not not_engaged)
    yield Row('captured_engaged', right, None, right, 1, 'higher', 'yes', kind, 1)
    for name, value in dict(captured_vs_eager_weights=apart, captured_from_disk_weights=between).items():
        yield Row(name, value, noise, value, 1e-4, 'lower', 'relative', kind, 1, note='beside it plain against plain')

def warm_up(network, inputs, allow_unused_input):
    "What recording does on a processor: its passes, and no graph"
    for _ in range(3): torch.autograd.grad(network(*inputs).sum(), network.parameters())
    return network

@torch.inference_mode()
def forward(check):
    "A forward pass, folded against plain"
    run, bs = check.run(600), check.pick(512, 16)
    x = torch.randn(bs, 1, check.size, check.size, device=check.device).contiguous(memory_format=torch.channels_last)
    speed = []
    for model in (run.model, unfold_batchnorm(copy.deepcopy(run.model))):
        model.eval()
        turns = []
        for _ in range(check.pick(8, 2)):
            began = time.perf_counter()
            with folded_together(model): model(x)
            check.wait()
            turns.append(bs/(time.perf_counter() - began))
        speed.append(max(turns))
    ours, peer = speed
    yield Row('forward_folded_vs_plain', ours, peer, ours/peer, None, 'higher', 'images/s', check.device.type, 8,
              note=f'batch {bs}, {check.size} px, float32')

def release(check):
    "All three stages from a ready cache, published batch sizes"
    yield from stages(check, STAGED, '')

def release_auto(check):
    "The same with batches that fit the card"
    yield from stages(check, [STAGED[0], *(replace(o, bs='auto') for o in STAGED[1:])], '_auto')

def stages(check, todo, suffix):
    "Minutes of each stage"
    n = check.pick(check.images, 120)
    run = check.run(n)
    check.wait()
    for stage in todo:
        stage = stage if check.card else replace(stage, epochs=1, repeats=1)
        began = time.perf_counter()
        run_stage(run, stage)
        check.wait()
        took = (time.perf_counter() - began)/60
        bs = run.history[-1].get('bs', stage.bs)
        yield Row(f'stage_{stage.name}{suffix}', took, None, took, None, 'lower', 'min', check.device.type, 1,
                  note=f'{n:,} images, {stage.epochs} epochs, batch {bs}')

# Seconds that each takes, about; those of a release on a quarter of its images
CHECKS = dict(folding=(folding, 20), captured=(captured, 30), training=(training, 90), forward=(forward, 20),
              release=(release, 70), release_auto=(release_auto, 40))

def verdict(row, card):
    "What a reader wants to know of a row"
    if not card: return 'no card'
    return {None: '', True: 'holds', False: 'MISSED'}[row.holds]

def show(rows, kept, card, about):
    "Print rows as they come, and keep them"
    for row in rows:
        peer = '' if row.peer is None else f'{row.peer:.4g}'
        bar = '' if row.bar is None else f'bar {row.bar:g}'
        print(f'{row.name:28} {row.ours:10.4g} {peer:>10} {row.ratio:8.3g} {row.unit:10} {bar:10} '
              f'{verdict(row, card):8} {row.note}', flush=True)
        kept.append(replace(row, hardware=about))

def run_one(name, work):
    "Names of what failed; a check that fails does not keep the others from running"
    try: work()
    except Exception:
        traceback.print_exc()
        return [name]
    return []

@call_parse
def main(
    out:str=None, # A JSON file for the rows, as `cxr-bench` writes them
    minutes:float=8, # All of it takes at most about so long
    only:str='', # Names of checks, with commas between them
    images:int=28_030, # Of the stages; a quarter of the release if not given, 112120 for all of it
    device:str=None, # 'cuda' where there is a card, else 'cpu'
):
    "Check and time everything that needs a graphics card"
    device = device_named(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    about, rows, failed = hardware(), [], []
    print(', '.join(f'{k}: {v}' for k, v in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(folder, device, minutes, images)
        for name in [o for o in only.split(',') if o] or CHECKS:
            f, needs = CHECKS[name]
            if name.startswith('release'): needs *= images/28_030
            if check.card and check.left < needs: print(f'{name}: left out, no time', flush=True)
            else: failed += run_one(name, lambda: show(f(check), rows, check.card, about))
            if out: write_bench(rows, Path(out))
    if failed: sys.exit(f'failed: {", ".join(failed)}')

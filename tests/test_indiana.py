"A cross-validation of 35 classes that is killed between folds and inside of one goes on and ends with the same files, bit by bit."
import hashlib, json, time
from functools import partial

import numpy as np, pandas as pd, pytest

TINY = dict(arch='vit_tiny_patch16_224', weights='none', size=32, width=16, blocks=1, model_kwargs=dict(embed_dim=16, depth=3, num_heads=2, patch_size=8),
            budgets=[1, 2, 4], lr=2e-3, bs=16)

def work(phantom, cache, out, hold=None):
    "The whole pipeline, as a user's script would call it; waits for its end as soon as the file `hold` is written"
    from cxr_nb.training import crossval as folds
    from cxr_nb.data.indiana import indiana_split, load_indiana
    def slow(write, path, content):
        write(path, content)
        if hold and path == out/hold:
            (out.parent/'waits').touch()
            time.sleep(600)
    folds.write_whole, folds.write_json = partial(slow, folds.write_whole), partial(slow, folds.write_json)
    data = load_indiana(phantom)
    folds.cross_validate(data, indiana_split(data.table, folds=4), folds.Sweep(**TINY), out, n_boot=50, cache=cache, device='cpu', progress=False)

@pytest.fixture(scope='module')
def start(forks):
    "Start `work` in a process of its own, of a server that has imported the library before"
    def _start(*args):
        p = forks.Process(target=work, args=args)
        p.start()
        return p
    return _start

@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "Drawn films of 80 reports, and a folder for their cache"
    from cxr_nb.data.indiana import indiana_phantom
    home = tmp_path_factory.mktemp('indiana')
    return indiana_phantom(home/'films', n_reports=80, size=64), home/'cache'

def kill_at(p, out):
    "SIGKILL when the process waits"
    while p.exitcode is None and not (out.parent/'waits').is_file(): time.sleep(.01)
    p.kill()
    p.join()
    assert p.exitcode == -9, f'the process ended by itself with {p.exitcode}'
    (out.parent/'waits').unlink()

def prints(folder):
    "Hash of each file below a folder"
    return {str(o.relative_to(folder)): hashlib.sha256(o.read_bytes()).hexdigest() for o in sorted(folder.rglob('*')) if o.is_file()}

@pytest.fixture(scope='module')
def whole(start, films, tmp_path_factory):
    "A run that nothing interrupted"
    out = tmp_path_factory.mktemp('runs')/'whole'
    p = start(*films, out)
    p.join()
    assert p.exitcode == 0
    return out

def test_killed_runs_end_with_the_same_files(start, films, whole, tmp_path):
    "Killed before its tokens are made, in a finished fold that has not got its name yet, and in the first epoch of a later one"
    out = tmp_path/'killed'
    for hold in ('sweep.json', 'fold0.part/fold.json', 'fold2.part/history.csv'): kill_at(start(*films, out, hold), out)
    assert sorted(o.name for o in out.glob('fold*')) == ['fold0', 'fold1', 'fold2.part'] and not (out/'metrics.json').exists()
    done = (out/'fold0'/'fold.json').stat().st_mtime_ns
    p = start(*films, out)
    p.join()
    assert p.exitcode == 0 and (out/'fold0'/'fold.json').stat().st_mtime_ns == done
    assert prints(out) == prints(whole)

def test_what_a_run_leaves(whole):
    from cxr_nb.training.crossval import best_epochs, load_vit
    from cxr_nb.data.indiana import INDIANA
    m, split = json.loads((whole/'metrics.json').read_text()), pd.read_csv(whole/'split.csv', index_col='image').part
    assert set(m['test']['findings']) == set(INDIANA) and m['test']['n'] == (split == 'test').sum()
    absent = [f for f, o in m['test']['findings'].items() if not o['positives']]
    assert absent and all(m['test']['findings'][f]['auroc']['value'] is None for f in absent)
    assert m['test']['macro']['auroc']['n_findings'] == 35 - len(absent)
    oof, seen = (pd.read_csv(whole/f'predictions_{o}.csv') for o in ('val', 'train'))
    assert sorted(oof.image) == sorted(split.index[split != 'test']) and (oof.fold.to_numpy() == split[oof.image].to_numpy()).all()
    assert not set(seen.image) & set(split.index[split.isin(['test', m['sweep']['fold']])])
    for k in range(4):
        said = json.loads((whole/f'fold{k}'/'fold.json').read_text())
        assert best_epochs(pd.read_csv(whole/f'fold{k}'/'history.csv'), TINY['budgets']) == {int(b): e for b, e in said['best'].items()}
    model, cfg = load_vit(whole)
    assert model.findings == INDIANA and cfg['fold'] == m['sweep']['fold'] and not str(whole) in (whole/'config.json').read_text()

def test_thresholds_do_not_depend_on_the_test_part(whole):
    from cxr_nb.metrics.predictions import align
    from cxr_nb.metrics.thresholds import fit_thresholds, load_thresholds
    seen, t = pd.read_csv(whole/'predictions_val.csv'), load_thresholds(whole/'thresholds.json')
    chosen = json.loads((whole/'metrics.json').read_text())['sweep']['fold']
    for name, rows in (('pooled', seen), ('threshold', seen[seen.fold == chosen])): # those of the one network that is kept are its own
        a = align(None, rows)
        assert np.allclose(t[name], fit_thresholds(a.y, a.p, a.findings).threshold, equal_nan=True) and (t[name].isna() == (a.y.sum(0) == 0)).all()

def test_other_choices_are_refused_in_the_same_folder(films, whole):
    from cxr_nb.training.crossval import FoldError, Sweep, start_folds
    from cxr_nb.data.indiana import indiana_split, load_indiana
    data = load_indiana(films[0])
    with pytest.raises(FoldError, match='another budgets'):
        start_folds(data, indiana_split(data.table, folds=4), Sweep(**TINY | dict(budgets=[5])), whole, cache=films[1], device='cpu', progress=False)

def test_the_tower_of_open_clip(tmp_path, monkeypatch):
    "What open_clip itself says of a film in three channels, from a checkpoint that it has written and fetches as from the hub"
    open_clip = pytest.importorskip('open_clip')
    import torch
    from cxr_nb.training.crossval import CLIP_MEAN, CLIP_STD, ChestViT, load_tower
    from cxr_nb.data.augment import normalise
    vision = dict(image_size=224, timm_model_name='vit_tiny_patch16_224', timm_model_pretrained=False, timm_pool='', timm_proj='linear')
    cfg = dict(embed_dim=512, vision_cfg=vision, text_cfg=dict(context_length=8, vocab_size=64, width=32, heads=2, layers=1))
    (tmp_path/'tiny_chest.json').write_text(json.dumps(cfg))
    open_clip.add_model_config(tmp_path/'tiny_chest.json')
    torch.manual_seed(0)
    theirs = open_clip.create_model('tiny_chest').eval()
    (tmp_path/'hub').mkdir()
    torch.save(theirs.state_dict(), tmp_path/'hub'/'open_clip_pytorch_model.bin')
    (tmp_path/'hub'/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=dict(mean=CLIP_MEAN, std=CLIP_STD))))
    asked = []
    def hub(repo_id, filename, **kwargs):
        "What huggingface_hub does, for a page with these two files"
        asked.append((repo_id, filename))
        if not (tmp_path/'hub'/filename).is_file(): raise FileNotFoundError(filename)
        return str(tmp_path/'hub'/filename)
    monkeypatch.setattr('open_clip.pretrained.hf_hub_download', hub)
    ours = load_tower(ChestViT('vit_tiny_patch16_224', ['a']), 'hf-hub:some/page').eval()
    assert {o for o, _ in asked} == {'some/page'} and asked[-1][1] == 'open_clip_pytorch_model.bin'
    film = torch.randint(0, 256, (2, 1, 224, 224), dtype=torch.uint8)
    m, s = (torch.tensor(o).view(1, 3, 1, 1) for o in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad(): a, b = ours.features(normalise(film)), theirs.encode_image((film/255 - m)/s)
    assert a.shape == (2, 512) and torch.allclose(a, b, atol=1e-3*float(b.abs().max()))

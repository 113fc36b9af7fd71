"The first cell of each notebook says where one is; runs on a mounted Drive go on after a disconnect."
import os, re
from pathlib import Path

import nbformat, pytest
from conftest import ROOT

NOTEBOOKS = [*sorted(ROOT.glob('nbs/[0-9]*.ipynb')), ROOT/'nbs'/'index.ipynb']
TRAINING = [o for o in NOTEBOOKS if re.match('0[2-9]|10', o.name)]

def visible(nb): return [c for c in nb.cells if c.cell_type == 'code' and not c.source.startswith('#| hide')]

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)
def test_each_notebook_begins_with_where_one_is(path):
    nb = nbformat.read(path, 4)
    load, ask = visible(nb)[:2]
    assert load.source == 'from cxr_nb.environment import environment'
    assert ask.source.startswith('environment(')
    said = nb.cells[nb.cells.index(load) - 1]
    assert said.cell_type == 'markdown' and 'machine' in said.source
    assert not ask.outputs, "it is true of one machine only; clear this cell's output"

@pytest.mark.parametrize('path', TRAINING, ids=lambda o: o.stem)
def test_training_notebooks_ask_for_a_card(path):
    about = nbformat.read(path, 4).metadata
    assert (about.accelerator, about.colab.gpuType) == ('GPU', 'T4')
    assert (about.kaggle.accelerator, about.kaggle.isInternetEnabled) == ('nvidiaTeslaT4', True)

def test_nbdev_clean_keeps_what_a_notebook_asks_for(tmp_path):
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    nb = nbformat.read(TRAINING[0], 4)
    asked = dict(nb.metadata)
    with pytest.MonkeyPatch.context() as m:
        m.chdir(ROOT)
        clean_nb(nb, allowed_metadata_keys=get_config()['allowed_metadata_keys'])
    assert dict(nb.metadata) == asked

def no_links(*args, **kwargs): raise OSError(95, 'Operation not supported') # as a mounted Drive says

def test_a_run_on_a_drive_goes_on(phantom, tmp_path, monkeypatch, capsys):
    "A Drive that has no locks and no links; the session ends in the midst of a stage, and the next one goes on"
    from cxr_nb import core
    from cxr_nb.data.sources import load_data
    from cxr_nb.training.recipe import Recipe, Stage, change
    from cxr_nb.training.series import series_run
    from cxr_nb.training.state import SaveState
    drive = tmp_path/'MyDrive'
    drive.mkdir()
    monkeypatch.setattr(core, 'DRIVE', drive)
    monkeypatch.setattr(os, 'link', no_links)
    monkeypatch.setattr(os, 'symlink', no_links)
    for name, value in dict(CXR_FAST='0', CXR_CACHE=str(tmp_path/'cache')).items(): monkeypatch.setenv(name, value)
    for name in ('CXR_RUNS', 'IN_TEST'): monkeypatch.delenv(name, raising=False)
    stages = [Stage('frozen_head', 1, 1e-3, trainable=0), Stage('unfreeze', 2, 1e-3)]
    recipe = change(Recipe(), arch='test_efficientnet', size=32, weights='none', precision='float32', stages=stages)
    data = load_data(phantom)
    save = SaveState._save
    def disconnect(self, *args):
        save(self, *args)
        raise ConnectionError('the session has ended')
    with monkeypatch.context() as m:
        m.setattr(SaveState, '_save', disconnect)
        with pytest.raises(ConnectionError): series_run(data, recipe=recipe, progress=False)
    home = drive/'cxr_nb'/'runs'
    assert (home/'unfreeze'/'config.json').is_file()
    run = series_run(data, recipe=recipe, progress=False)
    assert run.path == home/'unfreeze'
    assert [row['stage'] for row in run.history] == ['frozen_head', 'unfreeze', 'unfreeze']
    written = {o.name for o in drive.rglob('*')}
    assert not [o for o in written if o.endswith(('.lock', '.part'))]
    assert 'images.npy' not in written # the cache of pixels stays on the local disk
    assert len(list((tmp_path/'cache').rglob('images.npy'))) == 1
    assert capsys.readouterr().out.count('Runs are kept on your Drive') <= 1

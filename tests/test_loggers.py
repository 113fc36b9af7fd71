"`cxr-train --log`: what each logger has afterwards, read back from its own files."
import json, sqlite3

import pytest

def test_cxr_train_logs_the_history(trained):
    import pandas as pd
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    history, events = pd.read_csv(trained/'history.csv'), EventAccumulator(str(trained/'logs')).Reload()
    assert events.Tags()['images'] == []
    for name in ('train_loss', 'valid_loss', 'auroc'):
        curve = events.Scalars(name)
        assert [o.step for o in curve] == list(range(1, len(history) + 1))
        assert [o.value for o in curve] == pytest.approx(list(history[name]), abs=1e-4)

def test_trackio_writes_into_its_database(tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path/'trackio'))
    from cxr_nb.training.loggers import logging_to
    from cxr_nb.training.recipes import staged
    with logging_to('trackio', tmp_path/'first', staged()) as cbs:
        for epoch in (1, 2): cbs[0].write(dict(stage='unfreeze', epoch=epoch, auroc=.7, ap=float('nan'), seconds=3.))
    with sqlite3.connect(tmp_path/'trackio'/'cxr_nb.db') as db:
        logged = db.execute('select step, metrics from metrics order by step').fetchall()
        config = json.loads(db.execute('select config from configs').fetchone()[0])
    assert [(step, json.loads(scores))
            for step, scores in logged] == [(6, dict(auroc=.7, seconds=3.)), (7, dict(auroc=.7, seconds=3.))]
    assert config['net']['arch'] == 'mobilenetv2_100'

def test_an_unknown_logger_is_refused_before_anything_else(run, phantom, tmp_path):
    said = run('cxr-train', '--data', phantom, '--out', tmp_path/'none', '--log', 'mlflow')
    assert said.returncode == 2 and 'there are tensorboard, trackio, wandb' in said.stderr
    assert not (tmp_path/'none').exists()

def test_wandb_stays_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    from cxr_nb.training.loggers import logging_to
    from cxr_nb.training.recipes import staged
    for name in ('WANDB_MODE', 'WANDB_API_KEY'): monkeypatch.delenv(name, raising=False)
    with logging_to('wandb', tmp_path, staged()) as cbs:
        cbs[0].write(dict(stage='unfreeze', epoch=1, auroc=.7, valid_loss=.2, seconds=3.))
        assert (cbs[0].logger.offline, cbs[0].logger.step) == (True, 6)
        assert cbs[0].logger.config['net']['arch'] == 'mobilenetv2_100'
    assert list((tmp_path/'logs'/'wandb').glob('offline-run-*/*.wandb'))

def test_only_the_first_process_logs(tmp_path, monkeypatch):
    from cxr_nb.training import loggers
    from cxr_nb.training.recipes import staged
    monkeypatch.setattr(loggers, 'is_main', lambda: False)
    with loggers.logging_to('tensorboard', tmp_path, staged()) as cbs:
        cbs[0].write(dict(stage='unfreeze', epoch=1, auroc=.7))
    assert not list(tmp_path.iterdir())

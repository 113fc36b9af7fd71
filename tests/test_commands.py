"The shell commands, as a user meets them."
import json, re, shutil, subprocess, sys

import pandas as pd, pytest

COMMANDS = ['cxr-demo', 'cxr-prepare', 'cxr-check', 'cxr-train', 'cxr-ensemble', 'cxr-eval', 'cxr-gradcam',
            'cxr-predict', 'cxr-export', 'cxr-bench', 'cxr-app', 'cxr-weights']

@pytest.mark.parametrize('cmd', COMMANDS)
def test_help_has_examples(run, run_alone, cmd):
    said = (run_alone if cmd == 'cxr-train' else run)(cmd, '--help') # that all are installed is in test_packaging
    assert said.returncode == 0 and 'examples:' in said.stdout and 'never clinical use' in said.stdout

def test_help_and_labels_do_not_import_torch(env):
    code = ("import sys, contextlib, io\nimport cxr_nb.labels, cxr_nb.data.phantom.release, cxr_nb.data.sources, "
            "cxr_nb.data.splits, cxr_nb.data.images, cxr_nb.data.cache, cxr_nb.data.gate, cxr_nb.metrics.evaluation, "
            "cxr_nb.metrics.compare, cxr_nb.metrics.baselines, cxr_nb.metrics.multilabel, cxr_nb.metrics.guarantees, "
            "cxr_nb.metrics.calibration, cxr_nb.metrics.thresholds, cxr_nb.metrics.subgroups, cxr_nb.metrics.readers, "
            "cxr_nb.report.checklists, cxr_nb.metrics.audit, cxr_nb.report.card, cxr_nb.data.checks\nfrom cxr_nb.cli "
            "import COMMANDS\nfor f in COMMANDS.values():\n  with contextlib.redirect_stdout(io.StringIO()), "
            "contextlib.suppress(SystemExit): f(['--help'])\nsys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, '-c', code], env=env).returncode == 0

def test_help_is_quick(env):
    "No command imports a heavy library to say its help"
    code = ("import sys, contextlib, io\nfrom cxr_nb.cli import COMMANDS\nfor f in COMMANDS.values():\n"
            "  with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): f(['--help'])\n"
            "print(*{'torch', 'scipy', 'sklearn', 'matplotlib', 'cv2'} & set(sys.modules))")
    said = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert said.returncode == 0 and not said.stdout.strip(), said.stdout + said.stderr

def test_train_leaves_the_run_folder(trained):
    have = {o.name for o in trained.iterdir()}
    assert have >= {'config.json', 'history.csv', 'checkpoints', 'predictions_val.csv', 'predictions_test.csv',
                    'thresholds.json', 'metrics.json',
                    'figures', 'report.html', 'MODEL_CARD.md', 'model.safetensors'}
    assert {'best.safetensors', 'last.safetensors'} <= {o.name for o in (trained/'checkpoints').iterdir()}
    assert list(pd.read_csv(trained/'history.csv').stage.unique()) == ['frozen_head', 'unfreeze', 'fine_tune']

def test_nothing_is_pickled(trained):
    assert not [o for o in trained.rglob('*') if o.suffix in {'.pkl', '.pth', '.pt', '.bin', '.npz'}]

def test_metrics_are_json_without_nan(trained):
    m = json.loads((trained/'metrics.json').read_text(), parse_constant=lambda o: pytest.fail(o))
    assert {'n', 'patients', 'macro', 'findings'} <= set(m['test']) and {'val', 'floors', 'localisation'} <= set(m)
    assert {'value', 'low', 'high', 'n_findings'} <= set(m['test']['macro']['auroc'])

def test_report_is_self_contained(trained):
    page = (trained/'report.html').read_text()
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', page) and 'Not for clinical use' in page

def test_config_names_no_folder_of_the_machine(trained, phantom):
    assert str(phantom) not in (trained/'config.json').read_text()

def test_eval_again_agrees_and_takes_both_spellings(run, trained, tmp_path):
    said = run('cxr-eval', '--run', trained, '--subset', 20, '--out', tmp_path, '--device=cpu')
    assert said.returncode == 0, said.stderr
    assert (tmp_path/'metrics.txt').is_file() and json.loads((tmp_path/'metrics.json').read_text())['test']['n'] <= 40
    before = json.loads((trained/'metrics.json').read_text())['test']['macro']
    again = shutil.copytree(trained, tmp_path/'again') # others look at the first one at the same time
    assert run('cxr-eval', '--run', again, '--device', 'cpu').returncode == 0
    after = json.loads((again/'metrics.json').read_text())
    assert after['test']['macro'] == before and after['localisation'] and after['calibration']

def test_eval_on_a_csv_and_folder_of_its_own(run, trained, phantom, tmp_path):
    said = run('cxr-eval', '--run', trained, '--csv-path', phantom/'Data_Entry_2017.csv', '--img-root', phantom,
               '--out', tmp_path)
    assert said.returncode == 0, said.stderr

def test_eval_judges_anyones_predictions(run, trained, phantom, tmp_path):
    """From the file's own labels, and from a label file; the folder is whole, and what cannot be judged is told
    in a line"""
    ours = trained/'predictions_test.csv'
    said = run('cxr-eval', '--predictions', ours, '--out', tmp_path/'own')
    assert said.returncode == 0 and 'macro AUROC, all images' in said.stdout, said.stderr
    assert 'Traceback' not in said.stderr, said.stderr
    assert {'report.html', 'MODEL_CARD.md', 'metrics.json', 'thresholds.json',
            'config.json'} <= {o.name for o in (tmp_path/'own').iterdir()}
    bare = pd.read_csv(ours)
    bare[[o for o in bare if o == 'image' or o.startswith('prob_')]].to_csv(tmp_path/'bare.csv', index=False)
    assert run('cxr-eval', '--predictions', tmp_path/'bare.csv', '--labels', phantom/'Data_Entry_2017.csv', '--out',
               tmp_path/'csv').returncode == 0
    for more in ([], ['--labels', tmp_path/'none.csv']):
        said = run('cxr-eval', '--predictions', tmp_path/'bare.csv', '--out', tmp_path/'bad', *more)
        assert said.returncode == 2, said.stderr
        assert said.stderr.strip().splitlines()[-1].startswith('error: '), said.stderr
        assert 'Traceback' not in said.stderr, said.stderr

def test_run_on_a_csv_and_folder_of_its_own_opens_again(run, phantom, tmp_path):
    "Labels and films apart, no boxes: nothing to score heatmaps against, and nothing that fails for it"
    labels = shutil.copy(phantom/'Data_Entry_2017.csv', tmp_path/'labels.csv')
    said = run('cxr-train', '--csv-path', labels, '--img-root', phantom, '--split', 'random', '--out', tmp_path/'run',
               '--recipe', 'single', '--arch', 'mobilenetv2_050', '--weights', 'none', '--size', 64, '--epochs', 1)
    assert said.returncode == 0, said.stderr
    for cmd in (['cxr-eval'], ['cxr-gradcam', '--samples', 2]):
        assert (said := run(*cmd, '--run', tmp_path/'run')).returncode == 0, said.stderr
    labels.unlink()
    said = run('cxr-eval', '--run', tmp_path/'run')
    assert said.returncode == 2 and '--csv-path' in said.stderr and 'Traceback' not in said.stderr

def test_single_route_with_a_random_split_of_two_parts(run, phantom, tmp_path):
    """EfficientNet-B0 in one stage on 80 and 20 % of the patients: checkpoints, tables and heatmaps lie where the help
    says, and the page says what validation is worth"""
    own = ['--csv-path', phantom/'Data_Entry_2017.csv', '--img-root', phantom]
    said = run('cxr-train', *own, '--arch', 'efficientnet_b0', '--recipe', 'single', '--epochs', 1, '--batch-size', 32,
               '--lr', 1e-4, '--train-subset', 80, '--val-subset', 30,
               '--split', 'random', '--test', 0, '--loss', 'pos_weight', '--weights', 'none', '--size', 32, '--out',
               tmp_path/'run')
    assert said.returncode == 0 and 'there is no test part' in said.stdout, said.stderr
    assert {'best.safetensors', 'last.safetensors'} <= {o.name for o in (tmp_path/'run'/'checkpoints').iterdir()}
    said = run('cxr-eval', '--run', tmp_path/'run', *own, '--weights', tmp_path/'run'/'checkpoints'/'best.safetensors',
               '--subset', 20)
    tables = tmp_path/'run'/'results'/'tables'
    assert said.returncode == 0 and 'validation images' in (tables/'metrics.txt').read_text(), said.stderr
    assert set(json.loads((tables/'metrics.json').read_text())) == {'val'}, said.stderr
    assert run('cxr-gradcam', '--run', tmp_path/'run', '--samples',
               2).returncode == 0 and len(list((tmp_path/'run'/'results'/'gradcam').glob('*.png'))) == 2
    assert 'too kind' in (tmp_path/'run'/'report.html').read_text()
    assert 'too kind' in (tmp_path/'run'/'MODEL_CARD.md').read_text()
    said = run('cxr-train', *own, '--split', 'random', '--val', .3, '--test', .7, '--weights', 'none', '--size', 32,
               '--out', tmp_path/'none')
    assert said.returncode == 2 and 'leave nothing to train on' in said.stderr

def test_resume_without_data_takes_those_of_the_run(run, trained, tmp_path):
    again = shutil.copytree(trained, tmp_path/'again')
    said = run('cxr-train', '--out', again, '--arch', 'mobilenetv2_050', '--weights', 'none', '--size', 64, '--epochs', 1,
               '--device', 'cpu', '--precision', 'float32', '--resume')
    assert said.returncode == 0 and 'nothing is left to do' in said.stdout, said.stderr
    assert 'synthetic images stand in' not in said.stdout

@pytest.mark.parametrize('findings', [('--findings', 'Mass,Edema,Never'), ()])
def test_resume_without_data_knows_what_was_left_out(run, phantom, tmp_path, findings):
    table = pd.read_csv(phantom/'Data_Entry_2017.csv')
    table = table.rename(columns={'Image Index': 'image', 'Patient ID': 'patient'})
    for finding in ('Mass', 'Edema', 'Never'): table[finding] = table['Finding Labels'].str.contains(finding).astype(int)
    table[['image', 'patient', 'Mass', 'Edema', 'Never']].to_csv(tmp_path/'mine.csv', index=False)
    own = '--csv-path', tmp_path/'mine.csv', '--img-root', phantom
    how = *findings, '--fast', '--weights', 'none', '--size', 32, '--device', 'cpu', '--out', tmp_path/'run'
    assert run('cxr-train', *own, *how).returncode == 0
    said = run('cxr-train', *how, '--resume')
    assert said.returncode == 0 and 'left out: Never' in said.stdout, said.stderr

def test_gradcam_writes_pictures(run, trained, tmp_path):
    said = run('cxr-gradcam', '--run', trained, '--samples', 3, '--out', tmp_path)
    assert said.returncode == 0, said.stderr
    assert len(list(tmp_path.glob('*.png'))) == 3 and 'location prior' in said.stdout

def test_predict_has_a_row_a_file(run, trained, phantom, tmp_path):
    (tmp_path/'notes.png').write_text('no film')
    films = sorted(phantom.rglob('*.png'))[:5]
    said = run('cxr-predict', '--run', trained, '--out', tmp_path/'p.csv', *films, tmp_path/'notes.png')
    df = pd.read_csv(tmp_path/'p.csv')
    assert said.returncode == 1 and len(df) == 6 and df.status.tolist() == ['ok']*5 + ['refused']
    assert 'notes.png: not an image' in said.stdout

def test_module_form(run, env):
    said = subprocess.run([sys.executable, '-m', 'cxr_nb.cli', 'prepare', '--data', 'nowhere'], env=env,
                          capture_output=True, text=True)
    assert said.returncode == 2 and said.stderr.count('\n') == 1

def test_demo_in_small(run, tmp_path):
    said = run('cxr-demo', '--out', tmp_path/'demo', '--n-images', 120, '--size', 64)
    assert said.returncode == 0, said.stderr
    assert (tmp_path/'demo'/'report.html').is_file() and 'synthetic' in said.stdout
    assert 'drawn images alone' in (tmp_path/'demo'/'report.html').read_text()

def test_demo_learns_its_first_weights_where_asked(run, tmp_path):
    said = run('cxr-demo', '--out', tmp_path/'demo', '--n-images', 120, '--pretrain-images', 80, '--pretrain-epochs', 1,
               '--size', 64)
    assert said.returncode == 0, said.stderr
    assert 'first weights: learnt on 80 other synthetic images' in said.stdout
    assert 'pretrain: validation macro AUROC' in said.stdout and (tmp_path/'demo'/'pretrain'/'model.safetensors').is_file()

@pytest.mark.parametrize('args, why', [
    (('cxr-eval', '--predictions', 'theirs.csv', '--subset', 20, '--device', 'cpu'),
     '--subset, --device: only for --run, not for --predictions'),
    (('cxr-eval', '--run', 'runs/a', '--predictions', 'theirs.csv'), 'give one of them'),
    (('cxr-eval', '--run', 'runs/a', '--labels', 'nih'), '--labels: only for --predictions'),
    (('cxr-export', '--run', 'runs/a', '--out', 'a.onnx', '--public'), '--public: only for --push'),
    (('cxr-export', '--run', 'runs/a', '--out', 'a.onnx', '--runtime', 'x'), '--runtime: only for --web'),
    (('cxr-train', '--fast', '--folds', 3, '--weights', 'none'),
     '--folds: only for a cross-validation; give --split folds too'),
])
def test_an_option_that_would_be_ignored_is_refused(run, args, why, trained):
    said = run(*[trained if o == 'runs/a' else o for o in args])
    assert said.returncode == 2 and why in said.stderr

def test_a_file_that_cannot_be_written_is_called_by_its_name(capsys):
    from cxr_nb.commands.parsing import command
    def cxr_closed(): raise PermissionError(13, 'Permission denied', 'a.csv.28001.part')
    assert command('cxr-closed')(cxr_closed)([]) == 2
    assert capsys.readouterr().err == 'error: a.csv: Permission denied\n'

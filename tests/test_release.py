"What a release needs says one version, and names commands that are there."
import json, re

import pytest, yaml
from conftest import BIN, ROOT

import cxr_nb

WORKFLOWS = sorted((ROOT/'.github'/'workflows').glob('*.yml'))

def loaded(path): return yaml.safe_load((ROOT/path).read_text())

def test_one_version():
    changes = (ROOT/'CHANGELOG.md').read_text()
    assert re.findall(r'^## ([\d.]+)', changes, re.M)[0] == cxr_nb.__version__
    assert loaded('CITATION.cff')['version'] == cxr_nb.__version__

@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda o: o.stem)
def test_a_workflow_has_jobs_with_a_time_limit_or_none_of_their_own_work(path):
    for name, job in yaml.safe_load(path.read_text())['jobs'].items():
        computes = any('run' in step for step in job['steps'])
        assert 'timeout-minutes' in job or not computes, f'{path.name}: {name}'

def test_pythons_of_the_matrix_are_those_of_the_package():
    said = re.findall(r'Python :: (3\.\d+)"', (ROOT/'pyproject.toml').read_text())
    assert loaded('.github/workflows/test.yml')['jobs']['test']['strategy']['matrix']['python'] == said

def test_a_release_is_published_without_a_token():
    jobs = loaded('.github/workflows/release.yml')['jobs']
    assert jobs['publish']['permissions'] == {'id-token': 'write'}
    assert 'secrets.' not in (ROOT/'.github/workflows/release.yml').read_text()
    assert any('twine check' in step.get('run', '') for step in jobs['build']['steps'])

def test_the_site_is_deployed_from_an_artefact():
    text = (ROOT/'.github/workflows/docs.yml').read_text()
    assert '.nojekyll' in text and 'deploy-pages' in text and 'gh-pages' not in text

def test_the_site_carries_the_demo():
    "A bundle of a few megabytes, trained on drawn images, which the workflow makes the page of"
    assert 'cxr-export --run demo --web _docs/demo' in (ROOT/'.github/workflows/docs.yml').read_text()
    assert json.loads((ROOT/'demo/config.json').read_text())['data'].startswith('phantom')
    assert (ROOT/'demo/model.safetensors').stat().st_size < 5e6
    assert 'https://cxr-nb.github.io/cxr_nb/demo/' in (ROOT/'README.md').read_text()

def test_a_fault_is_reported_with_its_environment():
    form = loaded('.github/ISSUE_TEMPLATE/bug.yml')
    asked = {o['id']: o for o in form['body'] if 'id' in o}
    assert 'cxr-check --environment' in asked['environment']['attributes']['description']
    assert asked['environment']['validations']['required']

def test_hooks_are_there():
    for hook in loaded('.pre-commit-config.yaml')['repos'][0]['hooks']:
        first, *rest = hook['entry'].split()
        assert (ROOT/rest[0]).is_file() if rest else (BIN/first).is_file(), hook['entry']

def test_the_container_installs_what_the_tests_need():
    container = json.loads((ROOT/'.devcontainer/devcontainer.json').read_text())
    assert "pip install -e '.[dev]'" in container['postCreateCommand']

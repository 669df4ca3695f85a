"""scripts/: which environment they take, when they install, and the demo from beginning to end."""
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import checkpoint
from model import build_generator
from options import parse

# Stands in for python: it notes its arguments, makes an environment of links to itself, and does nothing else.
RECORDER = '''#!/usr/bin/env bash
echo "$(basename "$(dirname "$(dirname "$0")")"): $*" >> "$LOG"
case "$1 ${2:-}" in
    "-m venv")
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo "PATH=\\"$PWD/$3/bin:\\$PATH\\"" > "$3/bin/activate" ;;
    "-c import sys; print(sys.prefix)") cd "$(dirname "$0")/.." && pwd ;;
esac
'''


def test_embreex_is_not_asked_for_on_linux_arm():
    """It has no wheel there: only tests may ask for it, and nothing else may import it."""
    requirements = pytest.importorskip('packaging.requirements')
    asked = {}
    for name in ('requirements.txt', 'requirements-test.txt'):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith('#')]
        for requirement in map(requirements.Requirement, lines):
            here = {machine: requirement.marker is None or requirement.marker.evaluate(
                {'sys_platform': 'linux', 'platform_machine': machine}) for machine in ('x86_64', 'aarch64')}
            asked[requirement.name] = name, here
    assert asked['embreex'] == ('requirements-test.txt', {'x86_64': True, 'aarch64': False})
    assert asked['numpy'] == ('requirements.txt', {'x86_64': True, 'aarch64': True})
    users = [path.name for path in (*ROOT.glob('*.py'), *ROOT.glob('*/*.py'))
             if re.search(r'^\s*(import|from) embreex', path.read_text(encoding='utf-8'), re.MULTILINE)]
    assert users == ['test_shading.py']


@pytest.fixture
def checkout(tmp_path):
    """run(script, **environment) -> (exit code, the calls of python), in a checkout with the recorder as python."""
    root = tmp_path / 'checkout'
    (root / 'scripts').mkdir(parents=True)
    for name in ('environment.sh', 'demo.sh', 'test.sh'):
        (root / 'scripts' / name).write_text((ROOT / 'scripts' / name).read_text())
    for name in ('requirements.txt', 'requirements-test.txt'):
        (root / name).write_text(f'{name} 1\n')
    recorder = tmp_path / 'system' / 'bin' / 'python'
    recorder.parent.mkdir(parents=True)
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)

    def run(script, **environment):
        log = tmp_path / 'log'
        log.write_text('')
        code = subprocess.run(
            ['bash', str(root / 'scripts' / script)], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True,
            env={'PATH': f'{recorder.parent}:/usr/bin:/bin', 'PYTHON': str(recorder), 'LOG': str(log), **environment}
        ).returncode
        return code, [line for line in log.read_text().splitlines() if 'print(sys.prefix)' not in line]

    run.root = root
    return run


def test_without_an_environment_one_is_made_once(checkout):
    code, calls = checkout('test.sh')
    assert code == 0
    assert calls == ['system: -m venv .venv', '.venv: -m pip install --quiet -r requirements.txt',
                     '.venv: -m pip install --quiet -r requirements-test.txt', '.venv: -m pytest']
    assert checkout('test.sh') == (0, ['.venv: -m pytest'])
    code, calls = checkout('demo.sh')  # what the tests installed serves the demo
    assert code == 0 and [call.split()[1] for call in calls] == ['generate_shapes_and_images.py', 'render_video.py']
    (checkout.root / 'requirements.txt').write_text('requirements.txt 2\n')
    assert '.venv: -m pip install --quiet -r requirements.txt' in checkout('demo.sh')[1]


@pytest.mark.parametrize('environment, used', [
    ({'CONDA_PREFIX': '/opt/conda', 'CONDA_DEFAULT_ENV': 'base'}, '.venv'),
    ({'CONDA_PREFIX': '/opt/conda/envs/mine', 'CONDA_DEFAULT_ENV': 'mine'}, 'system'),
    ({'VIRTUAL_ENV': '/home/me/venv'}, 'system'),
    ({'VIRTUAL_ENV': '/home/me/venv', 'CONDA_PREFIX': '/opt/conda', 'CONDA_DEFAULT_ENV': 'base'}, 'system'),
])
def test_which_environment_is_active(checkout, environment, used):
    code, calls = checkout('test.sh', **environment)
    assert code == 0 and calls[-1] == f'{used}: -m pytest'
    assert (checkout.root / '.venv').exists() == (used == '.venv')


def test_a_failed_installation_ends_the_script_and_is_tried_again(checkout):
    recorder = checkout.root.parent / 'system' / 'bin' / 'python'
    recorder.write_text(RECORDER + '[ "$2" != pip ]\n')
    for _ in range(2):
        code, calls = checkout('demo.sh', VIRTUAL_ENV='/home/me/venv')
        assert code != 0 and calls == ['system: -m pip install --quiet -r requirements.txt']


def test_the_demo(tmp_path):
    """With a tiny model and few frames: pictures, meshes, video, page, and the page's path at the end."""
    root = tmp_path / 'my checkout'
    (root / 'scripts').mkdir(parents=True)
    for path in (*ROOT.glob('*.py'), *ROOT.glob('requirements*.txt'), *(ROOT / 'scripts').glob('*.sh')):
        (root / path.relative_to(ROOT)).symlink_to(path)
    prefix = tmp_path / 'environment'
    (prefix / 'bin').mkdir(parents=True)
    python = prefix / 'bin' / 'python'
    # Runs the commands, but installs nothing, and nothing into the environment that the tests run in.
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && exit 0\n[ "$1" = -c ] && exec echo "{prefix}"\n'
                      f'exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    opt = parse('render_video', '', ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2',
                                     '--channel_multiplier', '1', '--renderer_spatial_output_dim', '8'])
    torch.manual_seed(0)
    checkpoint.save(root / 'full_models' / 'cats_demo.pt', {
        'g_ema': {name: tensor.half() for name, tensor in build_generator(opt).state_dict().items()},
        'options': {'model': {'renderer_spatial_output_dim': 8}}})
    result = subprocess.run(
        ['bash', 'scripts/demo.sh', '--device', 'cpu'], cwd=root, capture_output=True, text=True, timeout=300,
        env=os.environ | {'VIRTUAL_ENV': str(prefix), 'PATH': f'{prefix / "bin"}:{os.environ["PATH"]}',
                          'SEEDS': '0-1', 'VIDEO_SEED': '0', 'FRAMES': '2'})
    assert result.returncode == 0, result.stderr
    results = root / 'evaluations' / 'cats_demo' / 'final_model'
    assert result.stdout.splitlines()[-1] == f'Open this page in a browser: {results / "index.html"}'
    assert len(list(results.glob('random_angles/images/seed*.png'))) == 4
    assert len(list(results.glob('random_angles/depth_map_meshes/*.obj'))) == 2
    text = (results / 'index.html').read_text()
    assert 'Seed 0, video: image' in text and text.count('model-viewer data-name') == 2

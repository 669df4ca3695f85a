"""scripts/: which environment they take, when they install, and the demo from beginning to end."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from forked import start_command
from tiny_model import save_tiny_model
from tiny_training import ended, finish

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

    def run(script, arguments=(), **environment):
        log = tmp_path / 'log'
        log.write_text('')
        code = subprocess.run(
            ['bash', str(root / 'scripts' / script), *arguments], cwd=tmp_path, stdin=subprocess.DEVNULL,
            capture_output=True,
            env={'PATH': f'{recorder.parent}:/usr/bin:/bin', 'PYTHON': str(recorder), 'LOG': str(log), **environment}
        ).returncode
        return code, [line for line in log.read_text().splitlines() if 'print(sys.prefix)' not in line]

    run.root = root
    return run


def test_without_an_environment_one_is_made_once(checkout):
    code, calls = checkout('test.sh')
    assert code == 0
    assert calls[:-1] == ['system: -m venv .venv', '.venv: -m pip install --quiet --no-compile -r requirements.txt',
                          '.venv: -m pip install --quiet --no-compile -r requirements-test.txt']
    assert re.fullmatch(r'\.venv: -m pytest --numprocesses [1-4] --dist loadfile .*', calls[-1])
    assert checkout('test.sh') == (0, calls[-1:])
    assert checkout('test.sh', arguments=['tests/test_model.py', '-x']) == (
        0, ['.venv: -m pytest tests/test_model.py -x'])
    code, calls = checkout('demo.sh')  # what the tests installed serves the demo
    assert code == 0 and [call.split()[1] for call in calls] == ['generate_shapes_and_images.py', 'render_video.py']
    (checkout.root / 'requirements.txt').write_text('requirements.txt 2\n')
    assert '.venv: -m pip install --quiet --no-compile -r requirements.txt' in checkout('demo.sh')[1]


@pytest.mark.parametrize('environment, used', [
    ({'CONDA_PREFIX': '/opt/conda', 'CONDA_DEFAULT_ENV': 'base'}, '.venv'),
    ({'CONDA_PREFIX': '/opt/conda/envs/mine', 'CONDA_DEFAULT_ENV': 'mine'}, 'system'),
    ({'VIRTUAL_ENV': '/home/me/venv'}, 'system'),
    ({'VIRTUAL_ENV': '/home/me/venv', 'CONDA_PREFIX': '/opt/conda', 'CONDA_DEFAULT_ENV': 'base'}, 'system'),
])
def test_which_environment_is_active(checkout, environment, used):
    code, calls = checkout('test.sh', **environment)
    assert code == 0 and calls[-1].startswith(f'{used}: -m pytest')
    assert (checkout.root / '.venv').exists() == (used == '.venv')


def test_a_failed_installation_ends_the_script_and_is_tried_again(checkout):
    recorder = checkout.root.parent / 'system' / 'bin' / 'python'
    recorder.write_text(RECORDER + '[ "$2" != pip ]\n')
    for _ in range(2):
        code, calls = checkout('demo.sh', VIRTUAL_ENV='/home/me/venv')
        assert code != 0 and calls == ['system: -m pip install --quiet --no-compile -r requirements.txt']


# Stands in for python: it installs nothing, and asks the tests' process, which has imported PyTorch, to run commands.
ASKING = '''#!/bin/sh
[ "$2" = pip ] && exit 0
[ "$1" = -c ] && exec echo "$VIRTUAL_ENV"
case "$1" in */*) exec "$PYTHON" "$@" ;; esac
request="$REQUESTS/$$"
printf '%s\\n' "$PWD" "$@" > "$request.new"
mv "$request.new" "$request.asked"
until [ -e "$request.code" ]; do sleep 0.02; done
cat "$request.log"
exit "$(cat "$request.code")"
'''


def answer(asked):
    """Run the command that a file of ASKING names, in a process of its own, and tell its exit code."""
    folder, script, *arguments = asked.read_text().splitlines()
    asked.unlink()
    process = start_command(Path(script).stem, arguments, Path(folder), asked.with_suffix('.log'))
    with ended(process):
        code, = finish(process)
    asked.with_suffix('.new').write_text(str(code))
    asked.with_suffix('.new').rename(asked.with_suffix('.code'))


@pytest.fixture
def tiny_checkout(tmp_path):
    """run(script, *arguments, **environment) -> (exit code, stdout, stderr), in a checkout whose models are tiny."""
    root = tmp_path / 'my checkout'
    (root / 'scripts').mkdir(parents=True)
    for path in (*ROOT.glob('*.py'), *ROOT.glob('requirements*.txt'), *(ROOT / 'scripts').glob('*.sh'),
                 ROOT / 'benchmarks'):
        (root / path.relative_to(ROOT)).symlink_to(path)
    prefix, requests = tmp_path / 'environment', tmp_path / 'requests'
    (prefix / 'bin').mkdir(parents=True)
    requests.mkdir()
    python = prefix / 'bin' / 'python'
    python.write_text(ASKING)
    python.chmod(0o755)
    save_tiny_model(root)
    (root / 'full_models' / 'tiny.pt').rename(root / 'full_models' / 'cats_demo.pt')

    def run(script, *arguments, **environment):
        with open(tmp_path / 'out', 'w+') as out, open(tmp_path / 'error', 'w+') as error:
            process = subprocess.Popen(
                ['bash', f'scripts/{script}', *arguments], cwd=root, stdout=out, stderr=error,
                env=os.environ | {'VIRTUAL_ENV': str(prefix), 'PATH': f'{prefix / "bin"}:{os.environ["PATH"]}',
                                  'PYTHON': sys.executable, 'REQUESTS': str(requests)} | environment)
            with ended(process):
                while process.poll() is None:
                    for asked in requests.glob('*.asked'):
                        answer(asked)
                    time.sleep(0.02)
        return process.returncode, (tmp_path / 'out').read_text(), (tmp_path / 'error').read_text()

    run.root = root
    return run


def test_the_demo(tiny_checkout, monkeypatch):
    """With a tiny model and few frames: pictures, meshes, video, page, and the page's path at the end."""
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 32)
    code, out, error = tiny_checkout('demo.sh', '--device', 'cpu', SEEDS='0-1', VIDEO_SEED='0', FRAMES='2')
    assert code == 0, out + error
    results = tiny_checkout.root / 'evaluations' / 'cats_demo' / 'final_model'
    assert out.splitlines()[-1] == f'Open this page in a browser: {results / "index.html"}'
    assert len(list(results.glob('random_angles/images/seed*.png'))) == 4
    assert len(list(results.glob('random_angles/depth_map_meshes/*.obj'))) == 2
    text = (results / 'index.html').read_text()
    assert 'Seed 0, video: image' in text and text.count('model-viewer data-name') == 2


def test_parity_is_checked_with_another_program(tiny_checkout, tmp_path):
    """Ours stands in for the original."""
    original = tmp_path / 'original'
    original.mkdir()
    command = original / 'generate_shapes_and_images.py'
    command.write_text(f'import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n'
                       f'sys.argv += ["--surface_resolution", "64"]\n'
                       f'runpy.run_path({str(ROOT / command.name)!r}, run_name="__main__")\n')
    code, out, error = tiny_checkout('check_parity.sh', str(original), '--device', 'cpu', '--surface_resolution', '64',
                                     MODEL='cats_demo', SIZE='16', IDENTITIES='1', ORIGINAL_PYTHON=sys.executable)
    assert code == 0, out + error
    assert 'All files are alike.' in out and 'images/0000000.png (levels of 255)' in out
    assert 'marching_cubes_meshes' in out and '.obj (distance)' in out
    assert tiny_checkout('check_parity.sh')[0] == 2
    code, _, error = tiny_checkout('check_parity.sh', str(tmp_path))
    assert code == 2 and 'folder of the original' in error


# ---------------------------------------------------------------------------------------------- training

@pytest.fixture
def training(tmp_path):
    """run(script, *arguments, **environment) -> (exit code, stderr, the calls of python and torchrun), from a folder
    outside the checkout, as `bash ../my checkout/scripts/…`. All calls succeed."""
    root, tools, here = (tmp_path / name for name in ('my checkout', 'tools', 'here'))
    here.mkdir()
    tools.mkdir()
    (root / 'scripts').mkdir(parents=True)
    for path in (ROOT / 'scripts').glob('*.sh'):
        (root / 'scripts' / path.name).symlink_to(path)
    for name in 'python', 'torchrun', 'git':
        (tools / name).write_text('#!/usr/bin/env bash\n[ "$1" = - ] && cat > /dev/null && echo 2000\n'
                                  'echo "$PWD: $(basename "$0") $*" >> "$LOG"\n')
        (tools / name).chmod(0o755)

    def run(script, *arguments, **environment):
        log = tmp_path / 'log'
        log.write_text('')
        done = subprocess.run(['bash', f'../my checkout/scripts/{script}', *arguments], cwd=here, capture_output=True,
                              text=True, env={'PATH': f'{tools}:/usr/bin:/bin', 'LOG': str(log), **environment})
        return done.returncode, done.stderr, log.read_text().splitlines()

    run.root, run.here = root, here
    return run


@pytest.mark.parametrize('script, flags', [
    ('train_cats_small.sh', {'DATASET': '--dataset_path'}),
    ('train_one_gpu.sh', {'DATASET': '--dataset_path', 'FEATURES': '--features', 'START': '--init_ckpt',
                          'DECODER': '--init_ckpt'}),
    ('make_demo.sh', {'FEATURES': '--features'}),
    ('train_ffhq_vol_renderer.sh', {'DATASET': '--dataset_path'}),
    ('train_afhq_full_pipeline_512x512.sh', {'DATASET': '--dataset_path'}),
])
def test_paths_are_relative_to_where_the_user_is(training, script, flags):
    takes_photos = 'hq_' not in script
    code, error, calls = training(script, *['a b.zip'] * takes_photos, **{name: f'my {name}' for name in flags})
    assert code == 0, error
    assert all(call.startswith(f'{training.root}: ') for call in calls)
    assert any(call.endswith(f' {training.here}/a b.zip') for call in calls) == takes_photos
    for name, flag in flags.items():
        assert any(f'{flag} {training.here}/my {name}' in call for call in calls), name


@pytest.mark.parametrize('script, images', [('ffhq_vol_renderer', 24), ('afhq_vol_renderer', 24),
                                            ('ffhq_full_pipeline_1024x1024', 32), ('afhq_full_pipeline_512x512', 32)])
def test_gpus_share_the_images_of_a_step_or_are_refused(training, script, images):
    for gpus in 1, 4, 8:
        code, _, (call,) = training(f'train_{script}.sh', '--wandb', GPUS=str(gpus))
        assert code == 0 and f'--nproc_per_node {gpus} ' in call and f' --batch {images // gpus} ' in call
        assert call.endswith(' --continue_training --wandb')
    for gpus in '5', str(images), '0', 'x', '-1', '08', '1e1':
        code, error, calls = training(f'train_{script}.sh', GPUS=gpus)
        assert code == 2 and calls == []
        assert error == f'GPUS={gpus}: must be a whole number that divides the {images} images of a step, so that ' \
                        'each gets two or more\n'


# ---------------------------------------------------------------------------------------------- SLURM

@pytest.fixture
def cluster(tmp_path):
    """start(left, srun, *arguments) -> process of the batch script, among fake SLURM commands that note their calls."""
    tools = tmp_path / 'tools'
    tools.mkdir()

    for name in 'options.py', 'utils.py':  # the job runs in the checkout
        (tmp_path / name).symlink_to(ROOT / name)

    def start(left, srun, *arguments):
        for name, body in (('squeue', f'echo {left}'), ('srun', srun), ('scancel', 'touch stopped'),
                           ('scontrol', '[ "$1" = show ] && echo node1 && echo node2 || true'),
                           ('python', f'exec {sys.executable} "$@"')):
            tool = tools / name
            tool.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> calls\n{body}\n')
            tool.chmod(0o755)
        return subprocess.Popen(
            ['bash', ROOT / 'scripts' / 'slurm' / 'train.sbatch', *arguments], cwd=tmp_path, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
            env=os.environ | {'PATH': f'{tools}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '4711', 'SLURM_NNODES': '2',
                              'SLURM_JOB_NODELIST': 'node[1-2]', 'SLURM_GPUS_ON_NODE': '8'})

    return start


def test_the_batch_script_trains_until_the_job_ends_and_requeues(cluster, tmp_path):
    process = cluster('1-02:03:04', 'exit 0', 'train_volume_renderer.py', '--expname', 'cats', '--r1', '5')
    assert process.wait(30) == 0
    calls = (tmp_path / 'calls').read_text()
    srun = next(line for line in calls.splitlines() if line.startswith('srun'))
    assert 'torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint node1:24711' in srun
    assert srun.endswith('train_volume_renderer.py --max_minutes 1553 --expname cats --r1 5 --continue_training')
    assert 'scontrol requeue 4711' in calls


@pytest.mark.parametrize('script, final', [('train_volume_renderer.py', 'pretrained_renderer/cats_vol_renderer.pt'),
                                           ('train_full_pipeline.py', 'full_models/cats.pt')])
def test_the_batch_script_ends_with_the_finished_model(cluster, tmp_path, script, final):
    (tmp_path / 'config').write_text('expname = cats\n')
    for named in ['--expname=cats'], ['--expname', 'cats'], ['--config', 'config']:
        process = cluster('45:10', f'mkdir -p {os.path.dirname(final)} && touch {final}', script, *named)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and f'Finished: {final}' in out
        assert 'requeue' not in (tmp_path / 'calls').read_text()
        (tmp_path / final).unlink()


def test_the_batch_script_passes_an_error_on(cluster, tmp_path):
    assert cluster('45:10', 'exit 2', 'train_full_pipeline.py', '--size', '8').wait(30) == 2
    assert 'requeue' not in (tmp_path / 'calls').read_text()
    (tmp_path / 'calls').unlink()
    process = cluster('45:10', 'exit 0', 'train_full_pipeline.py', '--sise', '3')  # noticed before any node works
    assert '--sise' in process.communicate(timeout=30)[0] and process.returncode == 2
    assert 'srun' not in (tmp_path / 'calls').read_text()
    assert cluster('45:10', 'exit 0', 'evaluate.py').wait(30) == 2  # no training
    assert cluster('45:10', 'exit 0').wait(30) == 2  # no command given


def test_the_batch_script_requeues_when_the_nodes_are_wanted_back(cluster, tmp_path):
    process = cluster('45:10', 'touch running; until [ -e stopped ]; do sleep 0.1; done; exit 143',
                      'train_full_pipeline.py', '--expname', 'cats')
    end = time.monotonic() + 60
    while not (tmp_path / 'running').exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    calls = (tmp_path / 'calls').read_text()
    assert 'scancel --signal=TERM 4711' in calls and 'scontrol requeue 4711' in calls


def test_shell_scripts_are_well_formed():
    scripts = [*(ROOT / 'scripts').rglob('*.sh'), *(ROOT / 'scripts').rglob('*.sbatch')]
    assert len(scripts) > 5
    for script in scripts:
        subprocess.run(['bash', '-n', script], check=True)

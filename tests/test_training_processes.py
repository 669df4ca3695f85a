"""Training in processes of its own: several together, stopped by signals, killed at random moments."""
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_training import differences, ended, finish, flags, newest, start

import checkpoint
from training import logs

BOTH = pytest.mark.parametrize('stage', ('volume_renderer', 'full_pipeline'))


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def start_pair(stage, folder, arguments, before=''):
    """Start two processes that train together."""
    port = free_port()
    return [start(stage, folder, arguments, rank=rank, size=2, port=port, before=before) for rank in range(2)]


@pytest.fixture(scope='session')
def renderer(data, tmp_path_factory):
    """A stage-1 result."""
    folder = tmp_path_factory.mktemp('stage1')
    assert finish(start('volume_renderer', folder, flags(data, '--iter 1'))) == [0]
    return folder / 'pretrained_renderer' / 'debug_vol_renderer.pt'


def wait_for(condition, process, seconds=60):
    """Wait until condition() while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, process.log.read_text()[-2000:]
        time.sleep(0.02)


def steps_done(folder, stage='volume_renderer'):
    lines = logs.read_stats(folder / 'checkpoint' / 'debug' / stage / 'stats.jsonl')
    return lines[-1]['iteration'] if lines else 0


# ---------------------------------------------------------------------------------------------- several processes

@BOTH
def test_two_processes_train_as_one_and_resume_exactly(stage, data, renderer, tmp_path):
    """Two processes with half the batch each. For stage 2 half a batch is a group of four of the discriminator."""
    text, half = f'--renderer_ckpt {renderer} --no_sphere_init', 2 if stage == 'volume_renderer' else 4
    single = start(stage, tmp_path / 'one', flags(data, f'{text} --iter 4 --batch {2 * half} --chunk {half}'))
    with ended(single):
        for name, more in (('whole', '--iter 4'), ('parts', '--iter 2'), ('parts', '--iter 4 --continue_training')):
            pair = start_pair(stage, tmp_path / name, flags(data, f'{text} --batch {half} --chunk {half} {more}'))
            with ended(*pair):
                assert finish(*pair) == [0, 0]
        assert finish(single) == [0]
    whole, parts, alone = (newest(tmp_path / name, stage)[1] for name in ('whole', 'parts', 'one'))
    assert differences(whole, parts) == []
    assert whole['images'] == alone['images'] == 8 * half
    for key in ('g', 'd', 'g_ema'):
        for name, tensor in whole[key].items():
            error = (tensor - alone[key][name]).abs().max().item()
            # The parts of a batch are summed in the same order either way, except for path lengths.
            assert error <= (0 if stage == 'volume_renderer' else 1e-5), f'{key} {name}: {error}'
    assert 'Finished' not in (tmp_path / 'whole' / 'log1.txt').read_text()  # one process speaks for both


def test_the_same_images_in_both_processes(data, tmp_path):
    """Two processes that see the same learn what one of them does."""
    code = ('from training import run; draw, sampler = run.draw_fakes, run.InfiniteSampler\n'
            'run.draw_fakes = lambda opt, purpose, step, images, device: draw(opt, purpose, step, '
            'range(len(images)), device)\n'
            'run.InfiniteSampler = lambda *a, rank, world_size, **k: sampler(*a, **k)\n')
    same = start_pair('volume_renderer', tmp_path / 'two', flags(data, '--iter 2 --no_sphere_init'), code)
    one = start('volume_renderer', tmp_path / 'one', flags(data, '--iter 2 --no_sphere_init'), before=code)
    with ended(one, *same):
        assert finish(one, *same) == [0, 0, 0]
    two, one = (newest(tmp_path / name, 'volume_renderer')[1] for name in ('two', 'one'))
    assert differences(two, one, ignore=('options', 'images')) == []


def test_a_killed_process_ends_the_other(data, tmp_path):
    pair = start_pair('volume_renderer', tmp_path, flags(data, '--iter 100000 --no_sphere_init'))
    with ended(*pair):
        wait_for(lambda: steps_done(tmp_path) > 2, pair[0])
        pair[1].kill()
        assert finish(pair[0], seconds=60) == [2]
    assert 'another process of this run has ended' in pair[0].log.read_text()


def test_the_message_of_the_process_that_fails(data, tmp_path):
    """The second process finds its images broken: both end, and the reason is told."""
    code = ('import os, losses, utils\n'
            'def broken(real, fake):\n'
            "    raise utils.UserError('image 7 is broken')\n"
            "if os.environ['RANK'] == '1':\n"
            '    losses.logistic_loss = broken\n')
    pair = start_pair('volume_renderer', tmp_path, flags(data, '--iter 9 --no_sphere_init'), code)
    with ended(*pair):
        assert finish(*pair, seconds=60) == [2, 2]
    assert 'error: image 7 is broken' in pair[1].log.read_text()
    assert 'see the message of the one that ended first' in pair[0].log.read_text()


def test_launcher(data, tmp_path):
    """torch.distributed.launch is torchrun that also passes --local-rank on the command line."""
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.launch', '--nproc_per_node', '2', '--master_port', str(free_port()),
         ROOT / 'train_volume_renderer.py', *flags(data, '--iter 2 --no_sphere_init')],
        cwd=tmp_path, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert newest(tmp_path, 'volume_renderer')[1]['images'] == 16


# ---------------------------------------------------------------------------------------------- being stopped

@pytest.mark.parametrize(('number', 'code'), ((signal.SIGTERM, 143), (signal.SIGINT, 130)))
def test_signals_save_first(number, code, data, tmp_path):
    process = start('volume_renderer', tmp_path, flags(data, '--iter 100000 --no_sphere_init --num_workers 1'))
    with ended(process):
        wait_for(lambda: steps_done(tmp_path) > 2, process)
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
        for pid in (process.pid, *map(int, children.read_text().split() if children.exists() else ())):
            os.kill(pid, number)  # all of them, as Ctrl-C and batch systems do
        assert finish(process) == [code]
    step, _ = newest(tmp_path, 'volume_renderer')
    assert step == steps_done(tmp_path)
    said = process.log.read_text()
    assert f'--continue_training goes on from checkpoint/debug/volume_renderer/models_{step:07d}.pt' in said
    assert 'Traceback' not in said


def test_killed_at_random_moments(data, tmp_path):
    """Every step is saved, so most kills fall into a save or near one. No whole checkpoint is lost, the newest is
    whole, and what comes out in the end is what an undisturbed run makes."""
    last, moment = 60, random.Random(time.time())
    arguments = flags(data, f'--iter {last} --save_every 1 --keep_checkpoints 2 --no_sphere_init --log_every 20')
    undisturbed = start('volume_renderer', tmp_path / 'undisturbed', arguments)
    folder, done = tmp_path / 'killed', 0
    with ended(undisturbed):
        for _ in range(5):
            process = start('volume_renderer', folder, [*arguments, '--continue_training'])
            with ended(process):
                wait_for(lambda: any(folder.glob('checkpoint/*/*/models_*')), process)
                time.sleep(moment.uniform(0, 1.5))
            if any(folder.glob('checkpoint/*/*/models_*')):
                step, _ = newest(folder, 'volume_renderer')
                assert step >= done
                done = step
        assert finish(start('volume_renderer', folder, [*arguments, '--continue_training']), undisturbed) == [0, 0]
    assert differences(*(newest(path, 'volume_renderer')[1] for path in (folder, tmp_path / 'undisturbed'))) == []
    assert not list(folder.glob('checkpoint/*/*/.models_*'))


def test_a_full_disk(data, tmp_path):
    """A checkpoint that cannot be written ends the run with one sentence; the one before is as it was."""
    arguments = flags(data, '--no_sphere_init --width 32')
    assert finish(start('volume_renderer', tmp_path, [*arguments, '--iter', '1'])) == [0]
    before = newest(tmp_path, 'volume_renderer')
    size = (tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000001.pt').stat().st_size
    process = start('volume_renderer', tmp_path, [*arguments, '--iter', '2', '--continue_training'],
                    file_limit=size * 3 // 4)
    assert finish(process) == [2]
    assert 'models_0000002.pt (File too large); free some space' in process.log.read_text()
    assert 'Traceback' not in process.log.read_text()
    assert differences(before[1], newest(tmp_path, 'volume_renderer')[1]) == []
    assert len(checkpoint.read(tmp_path / 'pretrained_renderer' / 'debug_vol_renderer.pt')['g_ema']) > 0
    assert {path.name for path in tmp_path.rglob('*models_*')} == {'models_0000001.pt'}

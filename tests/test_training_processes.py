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
from tiny_training import differences, ended, finish, flags, make_data, newest, start

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


def wait_for(condition, process, seconds=120):
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
def test_two_machines_train_as_one_and_resume_exactly_without_a_common_folder(stage, data, renderer, tmp_path):
    """Two processes with half the batch each. For stage 2 half a batch is a group of four of the discriminator.

    Where they share no folder, only the first one has the checkpoints: the sphere and what they go on from reach the
    other. (Once they trained apart.)
    """
    text, half = f'--renderer_ckpt {renderer} --sphere_iters 2', 2 if stage == 'volume_renderer' else 4
    single = start(stage, tmp_path / 'one', flags(data, f'{text} --iter 4 --batch {2 * half} --chunk {half}'))
    with ended(single):
        for more, folders in (('--iter 4', ('whole', 'whole')), ('--iter 2', ('first', 'second')),
                              ('--iter 4 --continue_training', ('first', 'second'))):
            port, arguments = free_port(), flags(data, f'{text} --batch {half} --chunk {half} {more}')
            pair = [start(stage, tmp_path / folder, arguments, rank=rank, size=2, port=port)
                    for rank, folder in enumerate(folders)]
            with ended(*pair):
                assert finish(*pair) == [0, 0], [process.log.read_text()[-2000:] for process in pair]
        assert finish(single) == [0]
    whole, parts, alone = (newest(tmp_path / name, stage)[1] for name in ('whole', 'first', 'one'))
    assert differences(whole, parts) == []
    assert not list((tmp_path / 'second').rglob('*.pt'))
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
    assert differences(two, one, ignore=('options', 'images', 'step_images')) == []


def test_a_killed_process_ends_the_other(data, tmp_path):
    pair = start_pair('volume_renderer', tmp_path, flags(data, '--iter 100000 --no_sphere_init'))
    with ended(*pair):
        wait_for(lambda: steps_done(tmp_path) > 2, pair[0])
        pair[1].kill()
        assert finish(pair[0], seconds=60) == [2]
    assert 'another process of this run has ended' in pair[0].log.read_text()


@pytest.mark.parametrize(('reason', 'codes', 'said'), (
    ('os.kill(os.getpid(), 15)', [143, 143], 'Stopped; --continue_training goes on from'),
    ('processes.Processes.orphaned = True', [2, 2], 'on the machine of process 1, has ended, and so it ends too')))
def test_what_stops_one_machine_stops_the_other_which_does_not_report_success(reason, codes, said, data, tmp_path):
    """A signal to one machine alone, or torchrun killed there: the other one ended with exit code 0."""
    code = ('import os\n'
            'from training import processes, run\n'
            'fakes = run.draw_fakes\n'
            'def draw(opt, purpose, step, *rest):\n'
            "    if step == 1 and os.environ['RANK'] == '1':\n"
            f'        {reason}\n'
            '    return fakes(opt, purpose, step, *rest)\n'
            'run.draw_fakes = draw\n')
    pair = start_pair('volume_renderer', tmp_path, flags(data, '--iter 100000 --no_sphere_init'), code)
    with ended(*pair):
        assert finish(*pair) == codes
    assert said in pair[0].log.read_text() and newest(tmp_path, 'volume_renderer')[0] == 2


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


def test_a_refusal_reaches_all_processes(data, tmp_path):
    """What the first process finds wrong ends all of them, with the same sentence."""
    port, second = free_port(), tmp_path / 'second'
    first = flags(data, '--iter 1 --no_sphere_init')
    assert finish(start('volume_renderer', tmp_path / 'first', first)) == [0]
    pair = [start('volume_renderer', folder, first, rank=rank, size=2, port=port)
            for rank, folder in enumerate((tmp_path / 'first', second))]
    with ended(*pair):
        assert finish(*pair, seconds=60) == [2, 2]
    assert all('holds checkpoints already; add --continue_training' in process.log.read_text() for process in pair)


def test_processes_with_other_images_are_refused(data, tmp_path):
    port, others = free_port(), make_data(tmp_path, 'others', seed=1)
    pair = [start('volume_renderer', tmp_path / str(rank), flags(path, '--iter 1 --no_sphere_init'), rank=rank, size=2,
                  port=port) for rank, path in enumerate((data, others))]
    with ended(*pair):
        assert finish(*pair, seconds=60) == [2, 2]
    assert 'process 1 of 2 has another data set than the first process' in pair[0].log.read_text()
    assert not list(tmp_path.rglob('*.pt'))


@pytest.mark.parametrize('stage, shapes', [('volume_renderer', ((2, 4), (1, 8), (4, 4))),
                                           ('full_pipeline', ((2, 4), (1, 4), (2, 8)))])
def test_any_number_of_processes_goes_on_with_the_same_training(stage, shapes, data, renderer, tmp_path):
    """shapes: (processes, --batch) of three parts of a run. The sums of gradients are rounded in another order."""
    common = f'--renderer_ckpt {renderer} --no_sphere_init --lr_g 1e-4'
    whole = start(stage, tmp_path / 'whole', flags(data, f'{common} --iter 6 --batch 8 --chunk 4'))
    with ended(whole):
        for part, (size, batch) in enumerate(shapes):
            arguments = flags(data, f'{common} --iter {2 * part + 2} --batch {batch} --chunk 4 --continue_training')
            port = free_port()
            together = [start(stage, tmp_path / 'parts', arguments, rank=rank, size=size, port=port)
                        for rank in range(size)]
            with ended(*together):
                assert finish(*together) == [0] * size, together[0].log.read_text()[-2000:]
        assert finish(whole) == [0]
    whole, parts = (newest(tmp_path / name, stage)[1] for name in ('whole', 'parts'))
    assert whole['iteration'] == parts['iteration'] == 6 and whole['images'] == parts['images'] == 48
    for key in ('g', 'd', 'g_ema'):
        for name, tensor in whole[key].items():
            error = (tensor - parts[key][name]).abs().max().item()
            assert error <= 1e-5 + 1e-4 * tensor.abs().max(), f'{key} {name}: {error}'


def test_a_second_run_of_an_experiment_is_refused(data, tmp_path):
    arguments = flags(data, '--iter 100000 --no_sphere_init --save_every 1 --keep_checkpoints 1')
    first = start('volume_renderer', tmp_path, arguments)
    with ended(first):
        wait_for(lambda: steps_done(tmp_path) > 1, first)
        assert finish(start('volume_renderer', tmp_path, [*arguments, '--continue_training'])) == [2]
        assert f'is in use: process {first.pid} on' in first.log.read_text()  # which is the log of both
        done = steps_done(tmp_path)
        wait_for(lambda: steps_done(tmp_path) > done + 1, first)  # the first has lost nothing


# ---------------------------------------------------------------------------------------------- torchrun

def torchrun(folder, arguments):
    """Start two processes of stage 1 with torch.distributed.launch, which is torchrun (torch.distributed.run) that also
    passes --local-rank on the command line; its output is in log.txt."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, '-m', 'torch.distributed.launch', '--standalone', '--nproc_per_node', '2',
               '--max_restarts', '2', ROOT / 'train_volume_renderer.py', *arguments]
    with open(folder / 'log.txt', 'ab') as log:
        return subprocess.Popen(command, cwd=folder, env=os.environ | {'OMP_NUM_THREADS': '1'}, stdout=log, stderr=log)


def children(pid):
    """The processes that a process has started and that train."""
    found = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return [int(child) for child in found
            if b'train_volume_renderer.py' in Path(f'/proc/{child}/cmdline').read_bytes()]


def wait_until(condition, log, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.05)


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds processes in /proc')
def test_torchrun_restarts_a_lost_process_from_the_newest_checkpoint_and_its_own_end_ends_all(data, tmp_path):
    """Its workers then save and end. What they saved is what an undisturbed run makes."""
    arguments = flags(data, '--no_sphere_init --save_every 1 --keep_checkpoints 2')
    folder, log = tmp_path / 'lost', tmp_path / 'lost' / 'log.txt'
    agent = torchrun(folder, [*arguments, '--iter', '1000000'])
    with ended(agent):
        wait_until(lambda: steps_done(folder) > 3, log)
        os.kill(children(agent.pid)[1], signal.SIGKILL)
        wait_until(lambda: 'Going on from' in log.read_text(), log)
        before = steps_done(folder)
        wait_until(lambda: steps_done(folder) > before + 1, log)
        workers = children(agent.pid)
        assert len(workers) == 2
        agent.kill()
        agent.wait()
        wait_until(lambda: not any(Path(f'/proc/{worker}').exists() for worker in workers), log, seconds=60)
    said = log.read_text()
    assert said.count('Going on from') == 1  # the first restart succeeds
    assert 'torchrun, which started this training, has ended' in said
    done, state = newest(folder, 'volume_renderer')
    assert done > before
    whole = start_pair('volume_renderer', tmp_path / 'whole', [*arguments, '--iter', str(done)])
    with ended(*whole):
        assert finish(*whole) == [0, 0]
    assert differences(state, newest(tmp_path / 'whole', 'volume_renderer')[1]) == []


# ---------------------------------------------------------------------------------------------- being stopped

def test_signals_save_first(data, tmp_path):
    """Runs that are stopped by one signal each, at the same time: most of it is waiting for their workers."""
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 138}
    arguments = flags(data, '--iter 100000 --no_sphere_init --num_workers 1')
    processes = {number: start('volume_renderer', tmp_path / number.name, arguments) for number in codes}
    with ended(*processes.values()):
        for number, process in processes.items():
            wait_for(lambda folder=process.log.parent: steps_done(folder) > 2, process)
            children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
            for pid in (process.pid, *map(int, children.read_text().split() if children.exists() else ())):
                os.kill(pid, number)  # all of them, as Ctrl-C and batch systems do
        assert finish(*processes.values()) == [*codes.values()]
    for process in processes.values():
        step, _ = newest(process.log.parent, 'volume_renderer')
        assert step == steps_done(process.log.parent)
        said = process.log.read_text()
        assert f'--continue_training goes on from checkpoint/debug/volume_renderer/models_{step:07d}.pt' in said
        assert 'Traceback' not in said


def test_killed_at_random_moments(data, tmp_path):
    """Every step is saved, so most kills fall into a save or near one. No whole checkpoint is lost, the newest is
    whole, and what comes out in the end is what an undisturbed run makes."""
    last, moment = 60, random.Random(8)  # the moments still vary, as the processes do
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

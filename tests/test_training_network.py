"""Two machines: network namespaces joined by a cable that can be cut, each with a folder of its own.

It takes root's rights and iproute2, and is skipped where they are missing.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest
from conftest import ROOT
from tiny_training import differences, flags, newest

from training import logs

ADDRESSES = '10.213.77.1', '10.213.77.2'


def ip(*arguments):
    return subprocess.run(['ip', *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def machines():
    """The names of two network namespaces that are joined by a cable, which is called `cable` in each."""
    if not shutil.which('ip'):
        pytest.skip('needs iproute2')
    names = [f'stylesdf-{uuid.uuid4().hex[:8]}' for _ in range(2)]
    try:
        for name in names:
            ip('netns', 'add', name)
        ip('link', 'add', 'cable', 'netns', names[0], 'type', 'veth', 'peer', 'name', 'cable', 'netns', names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip('-n', name, 'address', 'add', f'{address}/24', 'dev', 'cable')
            for device in ('lo', 'cable'):
                ip('-n', name, 'link', 'set', device, 'up')
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)
        pytest.skip(f'network namespaces are not permitted here ({error.stderr.strip()})')
    yield names
    for name in names:
        ip('netns', 'del', name)


def train(machines, folder, arguments, port):
    """Start one process of stage 1 on each machine, in folder/0 and folder/1; returns them."""
    processes = []
    for rank, machine in enumerate(machines):
        (folder / str(rank)).mkdir(parents=True, exist_ok=True)
        environment = {'RANK': str(rank), 'LOCAL_RANK': '0', 'WORLD_SIZE': '2', 'MASTER_ADDR': ADDRESSES[0],
                       'MASTER_PORT': str(port), 'GLOO_SOCKET_IFNAME': 'cable', 'OMP_NUM_THREADS': '1'}
        with open(folder / str(rank) / 'log.txt', 'ab') as log:
            processes.append(subprocess.Popen(
                ['ip', 'netns', 'exec', machine, sys.executable, ROOT / 'train_volume_renderer.py', *arguments],
                cwd=folder / str(rank), env=os.environ | environment, stdout=log, stderr=log))
    return processes


def log_of(folder, rank):
    return (folder / str(rank) / 'log.txt').read_text()


def steps_done(folder):
    lines = logs.read_stats(folder / '0' / 'checkpoint' / 'debug' / 'volume_renderer' / 'stats.jsonl')
    return lines[-1]['iteration'] if lines else 0


@pytest.mark.parametrize('mishap', ('cut', 'killed'))
def test_a_lost_machine_ends_the_training_with_a_sentence_and_it_resumes_exactly(machines, data, tmp_path, mishap):
    arguments = flags(data, '--no_sphere_init --save_every 1 --keep_checkpoints 2 --iter')
    folder = tmp_path / 'parts'
    pair = train(machines, folder, [*arguments, '1000000'], 29701)
    try:
        end = time.monotonic() + 120
        while steps_done(folder) < 2:
            assert time.monotonic() < end, log_of(folder, 0)[-2000:]
            time.sleep(0.1)
        if mishap == 'cut':
            ip('-n', machines[0], 'link', 'set', 'cable', 'down')
            said = 'has not been heard of for'
        else:
            pair[1].send_signal(signal.SIGKILL)
            said = 'another process of this run has ended'
        codes = [process.wait(100) for process in pair]
        assert codes[0] == 2 and said in log_of(folder, 0) and 'Traceback' not in log_of(folder, 0)
        assert mishap == 'killed' or (codes[1] == 2 and said in log_of(folder, 1))
    finally:
        for process in pair:
            process.kill()
    ip('-n', machines[0], 'link', 'set', 'cable', 'up')

    done, _ = newest(folder / '0', 'volume_renderer')
    whole = train(machines, tmp_path / 'longer', [*arguments, str(done + 2)], 29702)
    again = train(machines, folder, [*arguments, str(done + 2), '--continue_training'], 29703)
    assert [process.wait(300) for process in (*whole, *again)] == [0] * 4, log_of(folder, 0)[-2000:]
    states = [newest(path / '0', 'volume_renderer')[1] for path in (folder, tmp_path / 'longer')]
    assert differences(*states) == []

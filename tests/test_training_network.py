"""Two machines: network namespaces joined by a cable that can be cut, each with a folder of its own.

It takes root's rights and iproute2, and is skipped where they are missing.
"""
import shutil
import subprocess
import time
import uuid

import pytest
from tiny_training import differences, ended, finish, flags, newest, start

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


# Run first in each process: it moves to its machine, and misses a sign of life after some seconds and not 45.
BEFORE = """
import ctypes, os
from training import heartbeat
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(os.open('/run/netns/{machine}', os.O_RDONLY), 0x40000000) == 0, os.strerror(ctypes.get_errno())
os.environ['GLOO_SOCKET_IFNAME'] = 'cable'
heartbeat.PATIENCE = {patience}
"""
PATIENCE = 8.


def train(machines, folder, arguments, port):
    """Start one process of stage 1 on each machine, in folder/0 and folder/1; returns them."""
    return [start('volume_renderer', folder / str(rank), arguments, rank=rank, size=2, port=port, address=ADDRESSES[0],
                  before=BEFORE.format(machine=machine, patience=PATIENCE)) for rank, machine in enumerate(machines)]


def steps_done(folder):
    lines = logs.read_stats(folder / '0' / 'checkpoint' / 'debug' / 'volume_renderer' / 'stats.jsonl')
    return lines[-1]['iteration'] if lines else 0


@pytest.mark.parametrize('mishap', ('cut', 'killed'))
def test_a_lost_machine_ends_the_training_with_a_sentence_and_it_resumes_exactly(machines, data, tmp_path, mishap):
    arguments = flags(data, '--no_sphere_init --save_every 1 --keep_checkpoints 2 --iter')
    folder = tmp_path / 'parts'
    pair = train(machines, folder, [*arguments, '1000000'], 29701)
    with ended(*pair):
        end = time.monotonic() + 120
        while steps_done(folder) < 2:
            assert pair[0].is_alive() and time.monotonic() < end, pair[0].log.read_text()[-2000:]
            time.sleep(0.1)
        if mishap == 'cut':
            ip('-n', machines[0], 'link', 'set', 'cable', 'down')
            said = 'has not been heard of for'
        else:
            pair[1].kill()
            said = 'another process of this run has ended'
        codes = finish(*pair, seconds=100)
        logs_of = [process.log.read_text() for process in pair]
        assert codes[0] == 2 and said in logs_of[0] and 'Traceback' not in logs_of[0]
        assert mishap == 'killed' or (codes[1] == 2 and said in logs_of[1])
    ip('-n', machines[0], 'link', 'set', 'cable', 'up')

    done, _ = newest(folder / '0', 'volume_renderer')
    whole = train(machines, tmp_path / 'longer', [*arguments, str(done + 2)], 29702)
    again = train(machines, folder, [*arguments, str(done + 2), '--continue_training'], 29703)
    with ended(*whole, *again):
        assert finish(*whole, *again, seconds=300) == [0] * 4, again[0].log.read_text()[-2000:]
    states = [newest(path / '0', 'volume_renderer')[1] for path in (folder, tmp_path / 'longer')]
    assert differences(*states) == []

"""How the processes of a group find each other where the store holds what a former group has written."""
import datetime
import os
import socket
import sys
import threading
import time

import pytest
import torch.distributed as dist

from training import joining
from training.processes import Processes
from utils import UserError


@pytest.fixture
def store():
    """A store as torchrun keeps it from one start of a group to the next."""
    return dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False,
                         timeout=datetime.timedelta(seconds=20))


def joined(store, size, late):
    """{rank: its part of the store} of a group whose process `late` starts after the others."""
    parts = {}

    def start(rank):
        client = dist.TCPStore('127.0.0.1', store.port, is_master=False, wait_for_workers=False,
                               timeout=datetime.timedelta(seconds=20))
        time.sleep(0.3 * (rank == late))
        parts[rank] = joining.own_part(client, rank, size)

    threads = [threading.Thread(target=start, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return parts


@pytest.mark.parametrize('late', range(3))
def test_a_restarted_group_does_not_read_what_the_one_before_wrote(store, late):
    for address in 'one', 'two', 'three':
        parts = joined(store, 3, late)
        assert not any(part.check(['address']) for part in parts.values())
        parts[2].set('address', address)
        assert [parts[rank].get('address').decode() for rank in range(3)] == [address] * 3


def test_a_group_of_another_size(store):
    for size in 3, 2, 4:
        parts = joined(store, size, 0)
        parts[0].set('size', str(size))
        assert all(part.get('size') == str(size).encode() for part in parts.values())


def test_a_process_that_does_not_appear_is_named(store, monkeypatch):
    monkeypatch.setattr(joining, 'TIMEOUT', datetime.timedelta(seconds=0.2))
    with pytest.raises(UserError, match='process 1 of this training did not appear within 0:00:00.2'):
        joining.own_part(store, 0, 2)


@pytest.mark.parametrize('more', ({'RANK': ''}, {'RANK': 'abc'}, {'RANK': '2'}, {'WORLD_SIZE': '0'},
                                  {'WORLD_SIZE': '-1'}, {'WORLD_SIZE': 'abc'}, {'MASTER_ADDR': ''},
                                  {'MASTER_PORT': '\x1b[31m'}))
def test_an_environment_that_makes_no_sense(monkeypatch, more):
    """Such as another program's leftovers: there was a traceback."""
    for name, value in ({'RANK': '0', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'here', 'MASTER_PORT': '1'} | more).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='names no place in a group .*start them with torchrun') as error:
        Processes('cpu')
    assert str(error.value).isprintable()


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.setenv('RANK', '7')
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert (Processes('cpu').rank, Processes('cpu').size) == (0, 1)


def test_a_process_that_ends_while_the_others_join_is_told(store, monkeypatch):
    """Found by random faults: the others ended with a traceback from inside PyTorch."""
    def broken(*_, **__):
        raise dist.DistNetworkError('Broken pipe\nException raised from sendBytes')

    monkeypatch.setenv('MASTER_ADDR', 'first-machine')
    monkeypatch.setattr(dist, 'rendezvous', lambda *_, **__: iter([(store, 0, 1)]))
    monkeypatch.setattr(dist, 'init_process_group', broken)
    with pytest.raises(UserError, match='one has ended, or cannot be reached under first-machine') as error:
        joining.join('gloo', 0, 1, datetime.timedelta(seconds=5))
    assert str(error.value).isprintable()


@pytest.fixture
def torchrun_port(monkeypatch):
    """A port that nobody listens on, for the store of torchrun, which the environment names."""
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        port = unused.getsockname()[1]
    for name, value in {'RANK': '1', 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
                        'TORCHELASTIC_USE_AGENT_STORE': 'True'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joining, 'WATCH', 0.05)
    return port


@pytest.mark.skipif(sys.platform == 'win32', reason='forks')
def test_torchrun_that_is_lost_while_the_processes_join_is_noticed(tmp_path, torchrun_port):
    """Found by random faults: they waited for half an hour. Here a store that says nothing stands in for it."""
    with socket.create_server(('127.0.0.1', torchrun_port)):
        child = os.fork()
        if not child:
            try:
                os.dup2(os.open(tmp_path / 'said.txt', os.O_CREAT | os.O_WRONLY), 2)
                joining.join('gloo', 1, 2, datetime.timedelta(seconds=5), orphaned=lambda: True)
            finally:
                os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert 'error: torchrun, which started this training, has ended' in (tmp_path / 'said.txt').read_text()


def test_a_store_of_torchrun_that_is_gone_is_not_waited_for(torchrun_port, monkeypatch):
    """Found by random faults: torchrun was lost while its processes imported PyTorch, and they tried for minutes."""
    monkeypatch.setattr(joining.dist, 'rendezvous', lambda *_, **__: pytest.fail('PyTorch tried to reach it'))
    with pytest.raises(UserError, match='did not find each other: one has ended'):
        joining.join('gloo', 1, 2, datetime.timedelta(seconds=5))

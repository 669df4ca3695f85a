"""imaging/workers.py: errors in worker processes, and their death."""
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
from conftest import ROOT
from torch.utils.data import Dataset

from imaging.workers import DeadWorker, load_in_workers
from utils import UserError


class Items(Dataset):
    """Four items that a function makes."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.function(index)


@pytest.mark.parametrize('workers', [0, 2])
def test_other_errors_keep_their_traceback(workers):
    def divide(index):
        return 1 // 0

    with pytest.raises(ZeroDivisionError) as caught:
        next(load_in_workers(Items(divide), workers, batch_size=None))
    assert any(entry.name == 'divide' for entry in caught.traceback) or 'in divide' in str(caught.value)
    traceback.clear_frames(caught.tb)  # they hold the loader


def test_a_dead_worker_is_told():
    def die(index):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(DeadWorker, match=r'a worker process died .*SIGKILL.*fewer workers \(--n_worker 1\)\.$'):
        next(load_in_workers(Items(die), 1, '--n_worker', 1, batch_size=None))


START = 'multiprocessing.process.BaseProcess.start'
TAKE = 'torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data'


@pytest.mark.parametrize('place, error', [
    (START, EOFError('unexpected EOF')), (START, BrokenPipeError()), (START, ConnectionRefusedError()),
    (TAKE, EOFError()), (TAKE, ConnectionResetError('reset by peer'))])
def test_a_connection_that_ends_is_a_death(monkeypatch, place, error):
    """Found by random faults: a SIGTERM for all processes of a training ended the forkserver while it started workers,
    and a worker was killed between handing over an item and the memory that holds it."""
    def fail(_):
        raise error
    monkeypatch.setattr(place, fail)
    with pytest.raises(DeadWorker, match='forkserver.*ended from outside'):
        next(load_in_workers(Items(int), 1, batch_size=None))


@pytest.mark.parametrize('workers', [0, 1])
def test_an_end_of_file_in_an_item_is_no_death(workers):
    def read(index):
        raise EOFError('cut short')
    with pytest.raises(EOFError, match='cut short'):
        next(load_in_workers(Items(read), workers, batch_size=None))


def test_a_death_is_told_where_items_are_taken_and_nowhere_else():
    """PyTorch's own handler raises wherever the program is at that moment, in the middle of a training step."""
    taken, others = multiprocessing.Event(), multiprocessing.active_children()

    def die_later(index):
        if index:
            taken.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    before = signal.getsignal(signal.SIGCHLD)
    items = load_in_workers(Items(die_later), 1, batch_size=None)
    assert next(items) == 0
    worker, = set(multiprocessing.active_children()) - set(others)
    taken.set()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL and signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(DeadWorker):
        list(items)


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_that_only_sound_like_a_death_keep_their_cause(workers):
    def fail(index):
        raise RuntimeError('boom in a DataLoader worker')

    with pytest.raises(RuntimeError, match='boom') as caught:
        next(load_in_workers(Items(fail), workers, batch_size=None))
    assert not isinstance(caught.value, UserError)
    assert 'in fail' in str(caught.value) or any(entry.name == 'fail' for entry in caught.traceback)
    traceback.clear_frames(caught.tb)


@pytest.mark.parametrize('words', ['unable to allocate shared memory(shm) for file </torch_1>: No space left on device',
                                   'unable to open shared memory object </torch_2> in read-write mode'])
def test_a_lack_of_shared_memory_names_cause_and_remedy(words):
    def fail(index):
        raise RuntimeError(words)

    with pytest.raises(UserError) as caught:
        next(load_in_workers(Items(fail), 1, batch_size=None))
    sentence = str(caught.value)
    assert words.rstrip('.') in sentence and '--shm-size' in sentence and '(--num_workers 0)' in sentence
    assert sentence.index(words[:20]) < sentence.index('--shm-size') and '\n' not in sentence


def test_a_bus_error_is_a_lack_of_shared_memory():
    def fail(index):
        os.kill(os.getpid(), signal.SIGBUS)
        time.sleep(60)

    with pytest.raises(UserError, match='out of shared memory.*--shm-size'):
        next(load_in_workers(Items(fail), 1, batch_size=None))


def test_a_small_dev_shm(tmp_path):
    """The real thing, in a mount namespace of its own."""
    if subprocess.run(['unshare', '-rm', 'true'], capture_output=True).returncode:
        pytest.skip('needs unshare and the right to mount')
    code = """
import torch, sys
from imaging.workers import DeadWorker, load_in_workers
from utils import UserError
class Items(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return torch.zeros(2**20)
try:
    list(load_in_workers(Items(), 2, batch_size=2))
except UserError as error:
    print(error)
"""
    command = f'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "{sys.executable}" -c "$CODE"'
    result = subprocess.run(['unshare', '-rm', 'sh', '-c', command], capture_output=True, text=True, timeout=120,
                            env=os.environ | {'CODE': code, 'PYTHONPATH': str(ROOT)})
    if 'permission denied' in result.stderr.lower():
        pytest.skip('needs the right to mount')
    assert result.stdout.startswith('the workers ran out of shared memory, in /dev/shm ('), result.stderr
    assert '--shm-size' in result.stdout

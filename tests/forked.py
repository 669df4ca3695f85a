"""Commands in processes of their own, forked from the tests' process: it has imported PyTorch and all else already,
which takes seconds. Where multiprocessing cannot fork, tests of such processes skip."""
import multiprocessing
import os
import signal
import sys
import threading

import pytest
import torch
from tqdm import tqdm

import options

try:
    _context = multiprocessing.get_context('fork')
except ValueError:
    _context = None


def start_command(name, arguments, folder, log='log.txt', environment=()):
    """Start a command in `folder`, with its output in the file `log` there; the process has the file's path as `log`.

    environment: {name: value} that the process has beside ours.
    """
    if _context is None:
        pytest.skip('needs fork')
    process = _context.Process(target=_child, args=(name, arguments, folder, log, dict(environment)))
    process.log = folder / log
    process.start()
    return process


def _child(name, arguments, folder, log, environment):
    os.chdir(folder)
    os.environ |= environment
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')  # not pytest's capture
    torch.set_num_threads(1)  # OpenMP's threads are not forked
    tqdm.set_lock(threading.RLock())  # its own is shared with forks
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [f'{name}.py', *map(str, arguments)]
    options.run(name, '')

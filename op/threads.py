"""Tiles on all threads of a CPU, one thread to a tile.

PyTorch divides each operation among its threads, which then wait for each other. The operations of a tile are short and
leave its values in the cache of a core, so a thread does better to take a tile through all of them.
"""
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def for_each(work, items, device, in_order=False):
    """A list of work(item) for each item of a list, on a CPU as many at a time as this thread's PyTorch has threads.

    Each call has one thread and records no gradients. Raises what one of them raised. in_order: one after the other
    nevertheless.
    """
    threads, work = torch.get_num_threads() if device.type == 'cpu' and not in_order else 1, torch.no_grad()(work)
    if min(threads, len(items)) < 2:
        return [work(item) for item in items]
    pool = _pool(threads)
    calls = [pool.submit(work, item) for item in items]
    try:
        return [call.result() for call in calls]
    finally:  # after an error or Ctrl-C the others need not be begun
        for call in calls:
            call.cancel()


_of_this_thread = threading.local()


def _pool(threads):
    """The threads that work for this one. They end with it, and a forked process makes its own."""
    key = os.getpid(), threads
    if getattr(_of_this_thread, 'key', None) != key:
        started = threading.Barrier(threads + 1)

        def begin():
            torch.get_num_threads()  # PyTorch would set the number at a thread's first operation, and this is one
            torch.set_num_threads(1)
            started.wait()

        pool = ThreadPoolExecutor(threads, initializer=begin)
        for _ in range(threads):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(threads)  # of threads that begin later, for which each of those has set it to 1
        _of_this_thread.key, _of_this_thread.pool = key, pool
    return _of_this_thread.pool

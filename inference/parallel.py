"""Pieces of work that do not need each other, two at a time on a CPU.

PyTorch shares large tensors among the cores, but much of a view or a surface is small tensors and Python, during which
all cores but one are idle. Two pieces at a time with half of the threads each keep them busy. Measured:
docs/performance.md.
"""
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

WORKERS = 2  # more would take more memory: each holds a whole piece


def two_at_once(device, count):
    """Whether `two_at_a_time` works on two of so many pieces at once."""
    return device.type == 'cpu' and min(count, torch.get_num_threads()) >= WORKERS


def two_at_a_time(work, items, device, count):
    """Yield work(item) of each of `count` items, in their order. On a CPU the next piece is worked on meanwhile.

    The items are asked for in this thread, one after the other. On a GPU, and where there is only one thread, the work
    is done here too. Where the caller stops early, the pieces that were begun are finished first.
    """
    if not two_at_once(device, count):
        yield from map(work, items)
        return
    threads = torch.get_num_threads()  # of this thread: PyTorch keeps a number for each
    with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(max(1, threads // WORKERS),)) as pool:
        pending = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > WORKERS:  # one more waits, so that no worker has to
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for piece in pending:
                piece.cancel()
            torch.set_num_threads(threads)  # for threads that begin later

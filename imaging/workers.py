"""Loading in worker processes that end when they should, and whose errors and deaths are told in one sentence."""
import multiprocessing
import os
import re
import signal
import threading
import traceback
import warnings

import torch
from torch.utils.data import DataLoader

from utils import UserError

SHARED_MEMORY = 'shared memory', '(shm)', '/dev/shm', 'torch_shm_manager', 'Bus error'  # in the words of PyTorch


class DeadWorker(UserError):
    """A worker process died: not by an error of its own, but because something outside ended it."""


def _follow_parent(_worker):
    """End this worker when its parent is killed, even while it waits to hand over a result, and not before.

    A signal to the whole group (Ctrl-C, a batch system's SIGTERM) is the parent's to answer, which may want to finish
    its step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM reaches a whole group when its parent is to stop in good order, which needs its workers for a moment; or
    # it comes from a parent that ends at once, and then waits for them.
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(5, os._exit, [0]).start())
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def load_in_workers(dataset, num_workers, flag='--num_workers', fewest=0, **options):
    """Yield what PyTorch's DataLoader with these options yields, in order; 0 workers: loaded in this process.

    Leaves the global random state alone. Raises UserError, one sentence, for a worker's UserError, for a lack of shared
    memory, and (DeadWorker) for a worker's death; other errors keep their traceback. flag, fewest: the flag that sets
    the number of workers and the smallest number that it takes, for these sentences.
    """
    items = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='This DataLoader will create')  # as many as the user asked for
            loader = DataLoader(dataset, num_workers=num_workers, worker_init_fn=_follow_parent,
                                generator=torch.Generator(), **options)  # else it draws from the global one
            items = _without_signal_handler(loader)
        yield from items
        return
    except UserError as error:  # from a worker it comes wrapped in its traceback, the sentence last
        failure = UserError(str(error).rstrip().rpartition('UserError: ')[2])
        traceback.clear_frames(error.__traceback__)  # they hold the iterator, which holds the other workers
    except (RuntimeError, OSError, EOFError) as error:
        # An item's own error says "Caught"; without that word a connection to a process has ended.
        if num_workers and isinstance(error, (EOFError, ConnectionError)) and not str(error).startswith('Caught '):
            failure = DeadWorker("a worker process, or the one that starts them (Python's forkserver), was ended from "
                                 'outside')
        else:
            failure = _explained(error, _exit_codes(items), f'{flag} {fewest}')
        if failure is None:
            raise
        traceback.clear_frames(error.__traceback__)
    items = None  # so that the workers end now
    raise failure


def _without_signal_handler(loader):
    """iter(loader), without PyTorch's handler of SIGCHLD.

    It would raise for a dead worker anywhere in the program, in the middle of a training step for instance. Without it
    the next batch that is asked for tells of the death, at most five seconds later.
    """
    if not loader.num_workers or threading.current_thread() is not threading.main_thread() \
            or not hasattr(signal, 'SIGCHLD'):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before if callable(before) else signal.SIG_DFL)


def _exit_codes(items):
    """How the workers of a DataLoader's iterator ended, as far as they have; [] where that cannot be told."""
    return [worker.exitcode for worker in getattr(items, '_workers', ()) if worker.exitcode]


def _explained(error, exit_codes, remedy):
    """The UserError for an error of the loader that is no fault of the data; None for others."""
    text = str(error)
    inner = re.search(r'^(?:RuntimeError|OSError): (.*)', text, re.MULTILINE)
    cause = inner[1] if inner and text.startswith('Caught ') else (text.splitlines() or [type(error).__name__])[0]
    cause = ' '.join(cause.split()).rstrip('.')
    signals = sorted({signal.Signals(-code).name for code in exit_codes if code < 0})
    if any(word in text for word in SHARED_MEMORY) or 'SIGBUS' in signals:
        return UserError(f'the workers ran out of shared memory, in /dev/shm ({cause}); give it more room (docker run '
                         f'--shm-size 1g), or use fewer workers ({remedy}).')
    if text.startswith('DataLoader worker'):
        ended = f', ended by {", ".join(signals)}' if signals else ''
        return DeadWorker(f'a worker process died ({cause}{ended}); if memory ran out, use fewer workers ({remedy}).')
    return None

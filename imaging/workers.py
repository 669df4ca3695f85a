"""Loading in worker processes that end when they should, and whose errors are told in one sentence."""
import multiprocessing
import os
import signal
import threading
import traceback
import warnings

import torch
from torch.utils.data import DataLoader

from utils import UserError


def _follow_parent(_worker):
    """End this worker when its parent is killed, even while it waits to hand over a result, and not before: a signal to
    the whole group (Ctrl-C, a batch system's SIGTERM) is the parent's to answer, which may want to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM reaches a whole group when its parent is to stop in good order, which needs its workers for a moment; or
    # it comes from a parent that ends at once, and then waits for them.
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(5, os._exit, [0]).start())
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def load_in_workers(dataset, num_workers, **options):
    """Yield what PyTorch's DataLoader with these options yields, in order; 0 workers: loaded in this process.

    Leaves the global random state alone. Raises UserError, one sentence, for a worker's UserError and a worker's death.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='This DataLoader will create')  # as many as the user asked for
            loader = DataLoader(dataset, num_workers=num_workers, worker_init_fn=_follow_parent,
                                generator=torch.Generator(), **options)  # else it draws from the global one
            items = iter(loader)
        yield from items
        return
    except UserError as error:  # from a worker it comes wrapped in its traceback, the sentence last
        sentence = str(error).rstrip().rpartition('UserError: ')[2]
        traceback.clear_frames(error.__traceback__)  # they hold the iterator, which holds the other workers
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        first = str(error).splitlines()[0].rstrip('.')
        sentence = f'a worker process died ({first}); if memory ran out, use fewer workers.'
        traceback.clear_frames(error.__traceback__)
    items = None  # so that the workers end now
    raise UserError(sentence)

"""imaging/workers.py: errors in worker processes, and their death."""
import os
import signal
import time
import traceback

import pytest
from torch.utils.data import Dataset

from imaging.workers import load_in_workers
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

    with pytest.raises(UserError, match='a worker process died'):
        next(load_in_workers(Items(die), 1, batch_size=None))

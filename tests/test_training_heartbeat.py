"""Signs of life between processes: a lost one is noticed, an orderly end is not taken for a loss."""
import socket
import threading
import time

import pytest

from training import heartbeat
from training.heartbeat import Heartbeat

SOON = 20.  # seconds within which something must have happened on a busy machine


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(heartbeat, 'INTERVAL', 0.02)
    monkeypatch.setattr(heartbeat, 'PATIENCE', 1.)


@pytest.fixture
def pair(quick):
    """(the first process's heartbeat, the second's, what each said was lost)."""
    lost, events = ([], []), (threading.Event(), threading.Event())

    def on_lost(which):
        return lambda sentence: (lost[which].append(sentence), events[which].set())

    first, second = Heartbeat(0, on_lost(0)), Heartbeat(1, on_lost(1))
    second.connect('127.0.0.1', first.listen(1))
    yield first, second, lost, events
    first.stop()
    second.stop()


def test_processes_that_live_and_end_in_good_order_are_not_lost(pair):
    first, second, lost, _ = pair
    time.sleep(1.5)  # longer than the patience: the signs are what keeps both from being lost
    second.stop()
    time.sleep(0.3)
    first.stop()
    assert lost == ([], [])


def test_a_process_that_falls_silent_is_lost(quick):
    """A connection that stays open, over which nothing comes: as after a machine has lost its power."""
    lost, heard = [], threading.Event()
    first = Heartbeat(0, lambda sentence: (lost.append(sentence), heard.set()))
    with socket.create_connection(('127.0.0.1', first.listen(1)), timeout=SOON) as silent:
        silent.sendall((3).to_bytes(4, 'big'))
        assert heard.wait(SOON) and 'process 3' in lost[0]
    first.stop()

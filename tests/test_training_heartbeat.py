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
    second.connect('127.0.0.1', *first.listen(1))
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
    port, password = first.listen(1)
    with socket.create_connection(('127.0.0.1', port), timeout=SOON) as silent:
        silent.sendall(password + (3).to_bytes(4, 'big'))
        assert heard.wait(SOON) and 'process 3' in lost[0]
    first.stop()


def test_strangers_who_knock_change_nothing(quick, monkeypatch):
    """Neither one who says nothing, nor one who says something else, nor one who has gone again."""
    monkeypatch.setattr(heartbeat, 'GREETING', 0.2)
    lost, heard = [], threading.Event()
    first, second = Heartbeat(0, lambda sentence: (lost.append(sentence), heard.set())), Heartbeat(1, lost.append)
    port, password = first.listen(1)
    silent, *_ = strangers = [socket.create_connection(('127.0.0.1', port), timeout=SOON) for _ in range(3)]
    strangers[1].sendall(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    strangers[2].close()
    second.connect('127.0.0.1', port, password)
    time.sleep(1.5)
    assert lost == [] and silent.recv(1) == b''  # it was sent away
    second._sockets[0].shutdown(socket.SHUT_WR)  # the one who belongs here is watched
    second.stop()
    first.stop()
    assert lost == []

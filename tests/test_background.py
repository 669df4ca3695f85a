"""inference/background.py: work in another thread, in order."""
import threading

import pytest

from inference.background import BackgroundWriter


def test_work_is_done_in_order_in_another_thread():
    done = []
    with BackgroundWriter() as later:
        for i in range(20):
            later(lambda i=i: done.append((i, threading.current_thread())))
    assert [i for i, _ in done] == list(range(20))
    assert {thread for _, thread in done} != {threading.current_thread()} and len({thread for _, thread in done}) == 1


def test_what_goes_wrong_there_is_raised_here():
    with pytest.raises(OSError, match='full'), BackgroundWriter() as later:
        later(fail)
    with pytest.raises(OSError, match='full'), BackgroundWriter() as later:
        for _ in range(10):
            later(fail)
        pytest.fail('no later call raised it')


def test_what_comes_after_a_failure_is_left_out():
    """The index, for instance, would list a file that could not be written."""
    begin, done = threading.Event(), []

    def fail_later():
        begin.wait()
        fail()

    with pytest.raises(OSError, match='full'), BackgroundWriter() as later:
        later(fail_later)
        later(done.append, 1)  # handed over before it fails
        begin.set()
    with pytest.raises(OSError, match='full'), BackgroundWriter() as later:
        with pytest.raises(OSError, match='full'):
            while True:
                later(fail)
        later(done.append, 1)  # by one who does not mind, and yet hears of it
    assert done == []


def fail():
    raise OSError('full')


@pytest.mark.parametrize('error, finished', [(KeyboardInterrupt, True), (ValueError, False)])
def test_after_ctrl_c_what_was_handed_over_is_finished(error, finished):
    begin, done = threading.Event(), []
    with pytest.raises(error), BackgroundWriter() as later:
        later(begin.wait)
        later(done.append, 1)
        threading.Timer(0.1, begin.set).start()
        raise error
    assert done == [1] * finished

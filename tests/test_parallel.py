"""inference/parallel.py: two pieces of work at once give what one after the other gives."""
import threading

import pytest
import torch

from inference import parallel
from inference.parallel import two_at_a_time

CPU = torch.device('cpu')


@pytest.fixture
def threads():
    """A function that gives PyTorch so many threads on this CPU, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_come_in_order_from_two_threads_that_share_the_cores(threads):
    threads(4)
    met = threading.Barrier(2, timeout=20)

    def work(item):
        met.wait()  # nobody would come if one piece were done after the other
        return item, threading.current_thread().name, torch.get_num_threads()

    found = list(two_at_a_time(work, iter(range(8)), CPU, 8))
    assert [item for item, _, _ in found] == list(range(8))
    assert len({name for _, name, _ in found}) == 2 and {count for _, _, count in found} == {2}
    assert torch.get_num_threads() == 4
    began_later = []
    thread = threading.Thread(target=lambda: began_later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert began_later == [4]


@pytest.mark.parametrize('device, count, number', [('cuda', 8, 4), ('cpu', 1, 4), ('cpu', 8, 1)])
def test_one_after_the_other_here(threads, device, count, number):
    """On a GPU, with a single piece, and on a single core."""
    threads(number)
    found = two_at_a_time(lambda item: threading.current_thread(), range(count), torch.device(device), count)
    assert set(found) == {threading.current_thread()}


def test_items_are_asked_for_here_and_not_far_ahead(threads):
    threads(2)
    asked, here = [], threading.current_thread()

    def items():
        for i in range(20):
            asked.append(threading.current_thread() is here)
            yield i

    for done, _ in enumerate(two_at_a_time(str, items(), CPU, 20), start=1):
        assert len(asked) <= done + parallel.WORKERS
    assert asked == [True] * 20


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_what_goes_wrong_is_raised_here_and_nothing_more_is_begun(threads, error):
    threads(2)
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise error
        return item

    found = []
    with pytest.raises(error):
        for item in two_at_a_time(work, range(50), CPU, 50):
            found.append(item)
    assert found == [0, 1, 2] and len(begun) < 10 and torch.get_num_threads() == 2


def test_the_caller_may_stop_early(threads):
    threads(2)
    begun = []
    pieces = two_at_a_time(begun.append, range(50), CPU, 50)
    next(pieces)
    pieces.close()
    assert len(begun) <= 1 + 2 * parallel.WORKERS and torch.get_num_threads() == 2

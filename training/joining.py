"""How the processes of a group find each other, also after torchrun has restarted them."""
import contextlib
import datetime
import os
import signal
import socket
import threading
import time
import uuid

import torch.distributed as dist

from training.heartbeat import end_process
from utils import UserError, shortened

TIMEOUT = datetime.timedelta(minutes=30)  # for all processes to appear
TORCHRUN_TIMEOUT = datetime.timedelta(minutes=1)  # for torchrun's store, which is there before the processes are
POLL = 0.05  # seconds
WATCH = 1.  # seconds between two looks at whether torchrun is still there


def join(backend, rank, size, timeout, orphaned=lambda: False):
    """Make torch.distributed's default group of the processes that the environment names (RANK, MASTER_ADDR, …).

    timeout: of the group's operations. orphaned(): whether torchrun, which started this process, is gone; this process
    ends then. Raises UserError where a process does not appear, or ends meanwhile.
    """
    by_torchrun = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    try:
        with _ends_at_once(), _ends_with(orphaned):
            if by_torchrun:
                _reach_torchrun()
            store, *_ = next(dist.rendezvous('env://', timeout=TORCHRUN_TIMEOUT if by_torchrun else TIMEOUT))
            store.set_timeout(TIMEOUT)
            own = own_part(store, rank, size)
            dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, OSError) as error:  # of the connection to another process, or to the store in the first
        raise UserError('the processes of this training did not find each other: one has ended, or cannot be reached '
                        f'under {os.environ.get("MASTER_ADDR")}; look at its messages, and start all processes again '
                        f'({shortened(error)}).') from None


def _reach_torchrun():
    """Raise OSError where torchrun no longer keeps its store.

    PyTorch would try again for minutes, and `orphaned` cannot tell where torchrun was lost before this process had
    imported PyTorch and asked who its parent is.
    """
    address = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    socket.create_connection(address, TORCHRUN_TIMEOUT.total_seconds()).close()


def own_part(store, rank, size):
    """The part of a store (a torch.distributed.PrefixStore) that this group alone uses, the same in all its processes.

    When torchrun restarts a group, it keeps its store, and there stands what the group before has written. A process
    that reads an old address tries in vain to connect to it. So the first process thinks of a new name for the part,
    and tells it to the others. Each of these asks under a name of its own, and so takes no old answer for its own. How
    often the group was restarted would not do as a name, since each machine counts for itself.
    """
    name = uuid.uuid4().hex
    if rank:
        store.set(f'asks/{rank}', name)
        group = store.get(f'answer/{name}').decode()  # waits for it
        store.set(f'{group}/knows/{rank}', '')
    else:
        group = name
        _tell(store, group, set(range(1, size)))
    return dist.PrefixStore(group, store)


def _tell(store, group, others):
    """Answer the other processes until each of them knows the group's name."""
    answered, end = {}, time.monotonic() + TIMEOUT.total_seconds()
    while others:
        for rank in sorted(others):
            if store.check([f'asks/{rank}']) and (asker := store.get(f'asks/{rank}')) != answered.get(rank):
                store.set(f'answer/{asker.decode()}', group)
                answered[rank] = asker  # perhaps one of the group before: then another one follows
            if store.check([f'{group}/knows/{rank}']):
                others.remove(rank)
        if others and time.monotonic() > end:
            raise UserError(f'process {min(others)} of this training did not appear within {TIMEOUT}; look at its '
                            'messages, and start all processes again.')
        time.sleep(POLL if others else 0)


@contextlib.contextmanager
def _ends_at_once():
    """Inside, SIGINT and SIGTERM end the process at once: there is nothing to save yet, and Python's handlers would not
    run before the connections stand."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ends_with(orphaned):
    """Inside, the process ends with torchrun. The main thread cannot notice, because it waits for the store, which
    torchrun keeps, or for other processes."""
    joined = threading.Event()

    def watch():
        while not joined.wait(WATCH):
            if orphaned():
                end_process('torchrun, which started this training, has ended, and so it ends too')

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        joined.set()
        thread.join()

"""The processes that train together, and what they exchange."""
import datetime
import os
import sys

import torch
import torch.distributed as dist

from training.heartbeat import Heartbeat, end_process
from training.joining import join
from utils import UserError, keep_freed_memory, printable, select_device, shortened

DEATH_TIMEOUT = datetime.timedelta(minutes=30)  # of a process that hangs; one that dies is noticed at once


class PeerLost(UserError):
    """Another process of this run has ended, or cannot be reached any more."""


def place_in_group():
    """(rank, number of processes), as a launcher names them in the environment; (0, 1) without one.

    Raises UserError where they make no sense, as leftovers of another program may.
    """
    texts = {name: os.environ.get(name, usual) for name, usual in (
        ('RANK', ''), ('WORLD_SIZE', '1'), ('MASTER_ADDR', ''), ('MASTER_PORT', ''))}
    if texts['WORLD_SIZE'] == '1':
        return 0, 1
    sound = all(texts[name].isascii() and texts[name].isdecimal() for name in ('RANK', 'WORLD_SIZE', 'MASTER_PORT'))
    if not sound or not int(texts['RANK']) < int(texts['WORLD_SIZE']) or not texts['MASTER_ADDR']:
        values = ', '.join(f'{name}={printable(text)}' for name, text in texts.items() if text)
        raise UserError(f'the environment names no place in a group of processes that train together ({values}); start '
                        'them with torchrun, or unset these variables to train alone.')
    return int(texts['RANK']), int(texts['WORLD_SIZE'])


class Processes:
    """The processes that train together, as torchrun starts them; without a launcher, this one alone.

    rank, size: which one of how many. device: this one's. The first process (rank 0) decides what the others do, and
    only it needs the folder of checkpoints.
    """

    def __init__(self, device_name='auto'):
        self.rank, self.size = place_in_group()
        self.device = select_device(device_name)
        self.rescue = lambda: ''  # called before the process ends for a lost one: saves, and returns words about it
        self._heartbeat = Heartbeat(self.rank, self._on_lost)
        self._launcher = os.getppid() if 'TORCHELASTIC_RUN_ID' in os.environ else None
        if self.device.type == 'cuda':
            if self.device.index is None:  # which set_device wants to know
                self.device = select_device(f'cuda:{os.environ.get("LOCAL_RANK", 0)}')
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
        elif self.device.type == 'cpu':
            keep_freed_memory()

    def __enter__(self):
        if self.size > 1:
            join(self._backend(), self.rank, self.size, DEATH_TIMEOUT, lambda: self.orphaned)
        if self.rank:  # one process speaks for all; errors still go to stderr
            sys.stdout = open(os.devnull, 'w')
        if self.size > 1:
            place = self.share(lambda: self._heartbeat.listen(self.size - 1))
            if self.rank:
                self._connect(*place)
        return self

    def __exit__(self, kind, *_):
        self._heartbeat.stop()
        if self.size > 1 and kind in (None, SystemExit):  # after an error the others may be gone
            dist.destroy_process_group()

    def _backend(self):
        if self.device.type != 'cuda':
            return 'gloo'
        if dist.is_nccl_available():
            return 'nccl'
        if self.rank == 0:
            print('This build of PyTorch has no NCCL: the processes exchange their gradients through gloo, which is '
                  'slower.')
        return 'gloo'

    def _connect(self, port, password):
        try:
            self._heartbeat.connect(os.environ['MASTER_ADDR'], port, password)
        except OSError as error:  # a firewall, for instance: training itself does not need it
            print(f'process {self.rank} cannot reach port {port} of {os.environ["MASTER_ADDR"]} ({error}): a lost '
                  'machine will be noticed after half an hour only.', file=sys.stderr)

    def _on_lost(self, sentence):
        end_process(f'{sentence}, and so this one ends too{self.rescue()}')

    @property
    def orphaned(self):
        """Whether torchrun, which started this process, is gone. It would no longer restart or stop anything."""
        return self._launcher is not None and os.getppid() != self._launcher

    def share(self, compute):
        """Call compute() in the first process alone, and return its result in all; its UserError is raised in all."""
        if self.size == 1:
            return compute()
        outcome = [None, None]
        if self.rank == 0:
            try:
                outcome = [compute(), None]
            except UserError as error:
                outcome = [None, str(error)]
        self._together(dist.broadcast_object_list, outcome, 0)
        result, error = outcome
        if error is not None:
            raise UserError(error)
        return result

    def collect(self, value):
        """The small values of all processes, in order of rank."""
        values = [value] * self.size
        if self.size > 1:
            self._together(dist.all_gather_object, values, value)
        return values

    def check_same(self, what, value):
        """Raise UserError in all processes where they do not have the same value (a short one) of `what`."""
        values = self.collect(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(f'process {rank} of {self.size} has another {what} than the first process ({other} '
                                f'there, {values[0]} in the first); give all machines the same.')

    def average_(self, tensor):
        """Replace a tensor by its mean over the processes."""
        if self.size > 1:
            self._together(dist.all_reduce, tensor)
            tensor /= self.size
        return tensor

    def gather(self, tensor):
        """Tensors (n,…) of all processes as (size * n,…), in order of rank. Gradients reach this process's part."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._together(dist.all_gather, parts, tensor.detach().contiguous())
        parts[self.rank] = tensor
        return torch.cat(parts)

    def broadcast(self, tensors):
        """Give every process the first one's values."""
        for tensor in tensors if self.size > 1 else ():
            self._together(dist.broadcast, tensor, 0)

    @staticmethod
    def _together(operation, *arguments):
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise PeerLost('another process of this run has ended, and so this one ends too; see the message of the '
                           f'one that ended first ({shortened(error)}).') from None

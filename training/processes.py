"""The processes that train together, and what they exchange."""
import datetime
import os
import sys

import torch
import torch.distributed as dist

from utils import UserError, keep_freed_memory, select_device

DEATH_TIMEOUT = datetime.timedelta(minutes=30)  # of a process that hangs; one that dies is noticed at once


class Processes:
    """The processes that train together, as torchrun starts them; without a launcher, this one alone.

    rank, size: which one of how many. device: this one's.
    """

    def __init__(self, device_name='auto'):
        self.rank, self.size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.device = select_device(device_name)
        if self.device.type == 'cuda':
            if self.device.index is None:  # which set_device wants to know
                self.device = select_device(f'cuda:{os.environ.get("LOCAL_RANK", 0)}')
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
        elif self.device.type == 'cpu':
            keep_freed_memory()

    def __enter__(self):
        if self.size > 1:
            dist.init_process_group('nccl' if self.device.type == 'cuda' else 'gloo', timeout=DEATH_TIMEOUT)
        if self.rank:  # one process speaks for all; errors still go to stderr
            sys.stdout = open(os.devnull, 'w')
        return self

    def __exit__(self, kind, *_):
        if self.size > 1 and kind in (None, SystemExit):  # after an error the others may be gone
            dist.destroy_process_group()

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
            raise UserError('another process of this run has ended, and so this one ends too; see the message of the '
                            f'one that ended first ({str(error).splitlines()[0][:200]}).') from None

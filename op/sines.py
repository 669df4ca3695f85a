"""Sines of float32 on a CPU, by NumPy. PyTorch's are the definition.

With one thread NumPy's take 0.4 of the time of PyTorch's with AVX-512, and 0.6 with AVX2 (docs/notes/performance.md).
Both are right to a unit in the last place. NumPy's have no gradients and no threads: they are for tiles, of which each
thread has its own (threads.py).
"""
import numpy as np
import torch

from op.products import PROCESSORS


def sine(x):
    """sin x. Differentiable; where no gradient is wanted, x is overwritten."""
    if x.requires_grad:
        return x.sin()
    if not _suits(x):
        return x.sin_()
    numbers = x.numpy()
    np.sin(numbers, out=numbers)
    return x


def _suits(x):
    return (x.device.type == 'cpu' and x.dtype == torch.float32 and x.is_contiguous()
            and torch.backends.cpu.get_cpu_capability() in PROCESSORS)

"""Sines and cosines of float32 on a CPU, by NumPy where that is quicker. PyTorch's are the definition.

A thread of NumPy's is 2.6 times as fast as one of PyTorch's with AVX-512, and 1.6 times with AVX2, but it is one thread
(docs/notes/performance.md). Both are right to a unit in the last place.
"""
import numpy as np
import torch

THREADS = {'AVX512': 2.6, 'AVX2': 1.6}  # of PyTorch's that are as fast as NumPy's one


def sine(x):
    """sin x. Differentiable; where no gradient is wanted, x is overwritten."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Sine.apply(x) if _suits(x) else x.sin()
    return _by_numpy(np.sin, x, out=x) if _suits(x) else x.sin_()


def sine_and_cosine(x):
    """(sin x, cos x), differentiable once: each is what the other's derivative needs."""
    return _SineAndCosine.apply(x)


def _suits(x):
    return (x.device.type == 'cpu' and x.dtype == torch.float32 and x.is_contiguous()
            and torch.get_num_threads() < THREADS.get(torch.backends.cpu.get_cpu_capability(), 0))


def _by_numpy(function, x, out):
    function(x.detach().numpy(), out=out.detach().numpy())
    return out


def _both(x):
    if not _suits(x):
        return x.sin(), x.cos()
    return tuple(_by_numpy(function, x, torch.empty_like(x)) for function in (np.sin, np.cos))


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _by_numpy(np.sin, x, torch.empty_like(x))

    @staticmethod
    def backward(ctx, slope):
        x, = ctx.saved_tensors
        cosine = x.cos() if torch.is_grad_enabled() else _by_numpy(np.cos, x, torch.empty_like(x))
        return slope * cosine


class _SineAndCosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        sine, cosine = _both(x)
        ctx.save_for_backward(sine, cosine)
        return sine, cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_sine, d_cosine):
        sine, cosine = ctx.saved_tensors
        return (d_sine * cosine).addcmul_(d_cosine, sine, value=-1)

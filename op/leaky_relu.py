"""Bias, leaky ReLU and gain in one operation: the activation of StyleGAN2's layers (Karras et al. 2020)."""
import math

import torch
import torch.nn.functional as F

from op import kernels


def fused_leaky_relu(x, bias=None, negative_slope=0.2, scale=2 ** 0.5, inplace=False):
    """leaky_relu(x + bias) * scale, with derivatives of any order.

    x: (B, C, ...) of any rank from 2 and any floating dtype; bias: (C,) or None. The result has x's shape, dtype and,
    on 4-D input, its memory format (contiguous or channels_last). `inplace` allows the result to overwrite x, which
    saves the allocation; it is ignored while autograd records x or the bias. Raises ValueError unless scale > 0 and
    negative_slope >= 0, which the derivative relies on.
    """
    if x.dim() < 2 or bias is not None and bias.shape != (x.shape[1],):
        raise ValueError(f'fused_leaky_relu needs x (B,C,...) and bias (C,), not {tuple(x.shape)} and '
                         f'{None if bias is None else tuple(bias.shape)}')
    if scale <= 0 or negative_slope < 0:
        raise ValueError('fused_leaky_relu needs scale > 0 and negative_slope >= 0')
    if bias is not None:
        bias = bias.to(x.dtype)  # autocast hands half activations to float32 parameters
    recorded = torch.is_grad_enabled() and (x.requires_grad or bias is not None and bias.requires_grad)
    # A compiler fuses the plain definition by itself and could not see through the kernel.
    if torch.compiler.is_compiling() or not kernels.library(x):
        return _plain(x, bias, negative_slope, scale, inplace and not recorded)
    if recorded:
        return _FusedLeakyReLU.apply(x, bias, negative_slope, scale)
    return _activate(x, bias, None, negative_slope, scale, inplace)


def _plain(x, bias, negative_slope, scale, inplace=False):
    """The definition, in two passes over memory and one allocation (none in place): the gain is positive, so that it
    may come before the leaky ReLU, inside the sum with the bias."""
    out = x if inplace else None
    if bias is None:
        y = torch.mul(x, scale, out=out)
    else:
        bias = bias.reshape(-1, *[1] * (x.dim() - 2))  # (C,1,1) against (B,C,H,W)
        y = torch.add(bias * scale, x, alpha=scale, out=out)
    return F.leaky_relu_(y, negative_slope)


class _FusedLeakyReLU(torch.autograd.Function):
    """The CUDA kernel with its derivative, which needs the sign of the output alone (scale > 0)."""

    @staticmethod
    def forward(ctx, x, bias, negative_slope, scale):
        y = _activate(x, bias, None, negative_slope, scale)
        ctx.save_for_backward(y)
        ctx.settings = negative_slope, scale
        return y

    @staticmethod
    def backward(ctx, dy):
        y, = ctx.saved_tensors
        dx = _FusedLeakyReLUGradient.apply(dy, y, *ctx.settings)
        dbias = dx.sum([0, *range(2, dx.dim())], dtype=dx.dtype) if ctx.needs_input_grad[1] else None
        return dx, dbias, None, None


class _FusedLeakyReLUGradient(torch.autograd.Function):
    """dy * (scale where y > 0, else negative_slope * scale): linear in dy, and constant in y almost everywhere."""

    @staticmethod
    def forward(ctx, dy, y, negative_slope, scale):
        ctx.save_for_backward(y)
        ctx.settings = negative_slope, scale
        return _activate(dy, None, y, negative_slope, scale)

    @staticmethod
    def backward(ctx, ddx):
        y, = ctx.saved_tensors
        return _FusedLeakyReLUGradient.apply(ddx, y, *ctx.settings), None, None, None


def _activate(x, bias, sign, negative_slope, scale, inplace=False):
    """Run the kernel: v = x + bias, times scale where `sign` (None: v itself) is positive, else slope * scale."""
    layout = kernels.memory_format(x if sign is None else sign)
    x = x.contiguous(memory_format=layout)  # a copy where x is not dense: only x itself may be written over
    out = x if inplace else torch.empty_like(x, memory_format=layout)
    bias, sign = (t if t is None else t.contiguous(memory_format=f)
                  for t, f in ((bias, torch.contiguous_format), (sign, layout)))
    # Memory holds `inner` values of one channel, then as many of the next.
    inner = 1 if layout == torch.channels_last else math.prod(x.shape[2:])
    kernels.launch('leaky_relu', x, out, x, bias, sign, x.numel(), inner, x.shape[1], negative_slope, scale)
    return out

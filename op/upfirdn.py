"""Upsample, filter, downsample: resampling by a small FIR filter, as in StyleGAN2's layers (Karras et al. 2020)."""
import functools
import math

import torch
import torch.nn.functional as F

from op import kernels

BLOCK = 1 << 20  # values the CPU filters at a time: two buffers of them stay in its caches


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    """Insert up - 1 zeros after every pixel, pad, convolve with the kernel, keep every down-th pixel; on both axes.

    x: (B, C, H, W) of any floating dtype; kernel: (kh, kw), a constant (it gets no gradient), applied flipped as a true
    convolution is; pad: (before, after) on both axes, or (left, right, top, bottom), where negative numbers crop.
    Returns (B, C, (H up + top + bottom - kh) // down + 1, likewise W), of x's dtype and memory format, computed in at
    least float32. Derivatives by x of any order: each is another upfirdn2d. Raises ValueError for impossible shapes.
    """
    pad = (*pad, *pad) if len(pad) == 2 else tuple(pad)
    if x.dim() != 4 or kernel.dim() != 2 or len(pad) != 4 or up < 1 or down < 1:
        raise ValueError(f'upfirdn2d needs x (B,C,H,W), kernel (kh,kw), 2 or 4 pads, up and down from 1, not '
                         f'{tuple(x.shape)}, {tuple(kernel.shape)}, {pad}, {up} and {down}')
    if min(_output_size(x, kernel, up, down, pad)) < 1:
        raise ValueError(f'upfirdn2d: kernel {tuple(kernel.shape)} with up {up} and pad {pad} does not fit into '
                         f'{tuple(x.shape)}')
    if torch.compiler.is_compiling():  # a compiler fuses the plain definition, and could not see through the kernel
        return _plain(x, kernel, up, down, pad, False)
    return _UpFirDn2d.apply(x, kernel, up, down, pad, False)


def _output_size(x, kernel, up, down, pad):
    left, right, top, bottom = pad
    return [(size * up + padding - taps) // down + 1
            for size, padding, taps in zip(x.shape[2:], (top + bottom, left + right), kernel.shape, strict=True)]


class _UpFirDn2d(torch.autograd.Function):
    """upfirdn2d with its derivative: the adjoint swaps up and down and turns the kernel round (`flip`: correlation)."""

    @staticmethod
    def forward(ctx, x, kernel, up, down, pad, flip):
        ctx.save_for_backward(kernel)
        ctx.settings = x.shape, up, down, pad, flip
        return _evaluate(x, kernel, up, down, pad, flip)

    @staticmethod
    def backward(ctx, dy):
        kernel, = ctx.saved_tensors
        shape, up, down, (left, _, top, _), flip = ctx.settings
        adjoint = []  # pads with which pixel o of dy meets pixel i of x at the tap t = up i - down o + pad, as before
        for n_in, n_out, taps, before in ((shape[3], dy.shape[3], kernel.shape[1], left),
                                          (shape[2], dy.shape[2], kernel.shape[0], top)):
            adjoint += [taps - 1 - before, (n_in - 1) * up - n_out * down + 1 + before]
        return _UpFirDn2d.apply(dy, kernel, down, up, tuple(adjoint), not flip), None, None, None, None, None


def _evaluate(x, kernel, up, down, pad, flip):
    """The fastest way to the values on x's device."""
    if kernels.plain():
        return _plain(x, kernel, up, down, pad, flip)
    if kernels.library(x):
        return _cuda(x, kernel, up, down, pad, flip)
    if x.device.type == 'cpu':
        if up == down == 1 and x.dtype in (torch.float32, torch.bfloat16) and \
                kernels.memory_format(x) == torch.channels_last:
            return _depthwise(x, kernel, pad, flip)
        factors = _factors(tuple(kernel.reshape(-1).tolist()), *kernel.shape)
        if factors:
            return _separable(x, *((f if flip else f[::-1]) for f in factors), up, down, pad,
                              *_output_size(x, kernel, up, down, pad))
    return _plain(x, kernel, up, down, pad, flip)


def _plain(x, kernel, up, down, pad, flip):
    """The definition, step by step."""
    batch, channels, height, width = x.shape
    z = x.to(_working_dtype(x))
    if up > 1:
        z = F.pad(z[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1)).reshape(
            batch, channels, height * up, width * up)
    z = F.pad(z, pad)
    weight = (kernel if flip else kernel.flip(0, 1)).to(z).expand(channels, 1, -1, -1)  # conv2d correlates
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(z, weight, stride=down, groups=channels).to(x.dtype)


def _depthwise(x, kernel, pad, flip):
    """Filter channels_last x as a depthwise convolution, for which oneDNN is twice as fast as `_separable` there."""
    left, right, top, bottom = pad
    if left != right or top != bottom or min(pad) < 0:
        x, left, top = F.pad(x, pad), 0, 0
    weight = (kernel if flip else kernel.flip(0, 1)).to(x.dtype).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), padding=(top, left), groups=x.shape[1])


def _working_dtype(x):
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _cuda(x, kernel, up, down, pad, flip):
    layout = kernels.memory_format(x)
    x = x.contiguous(memory_format=layout)
    batch, channels, height, width = x.shape
    out_height, out_width = _output_size(x, kernel, up, down, pad)
    y = torch.empty(batch, channels, out_height, out_width, dtype=x.dtype, device=x.device, memory_format=layout)
    # Either layout is (major, H, W, minor) in memory.
    major, minor = (batch, channels) if layout == torch.channels_last else (batch * channels, 1)
    taps = kernel.to(x.device, _working_dtype(x)).contiguous()
    kernels.launch('upfirdn2d', x, y, x, taps, major, minor, height, width, out_height, out_width, *kernel.shape,
                   up, down, pad[0], pad[2], flip)
    return y


@functools.lru_cache(maxsize=64)
def _factors(taps, kh, kw):
    """(column, row) as lists with kernel = outer(column, row) up to float32's rounding, or None if it is no product."""
    kernel = torch.tensor(taps, dtype=torch.float64).view(kh, kw)
    i, j = divmod(int(kernel.abs().argmax()), kw)
    column, row = kernel[:, j], kernel[i] / kernel[i, j]
    separable = (torch.outer(column, row) - kernel).abs().max() <= 1e-7 * kernel[i, j].abs()  # False for a zero kernel
    return (column.tolist(), row.tolist()) if separable else None


def _separable(x, column, row, up, down, pad, out_height, out_width):
    """Filter with outer(column, row) as a correlation: down the columns, then along the rows, a block of rows or of
    images at a time, so that only x and the result cross the memory bus: two to three times as fast as a depthwise
    convolution on contiguous tensors, and more where there are few channels."""
    left, _, top, _ = pad
    batch, channels, height, width = x.shape
    channels_last = kernels.memory_format(x) == torch.channels_last
    x = x.permute(0, 2, 3, 1) if channels_last else x.reshape(batch * channels, height, width, 1)
    major, minor = x.shape[0], x.shape[3]
    y = x.new_empty(major, out_height, out_width, minor)
    dtype = _working_dtype(x)
    line = max(width, out_width) * minor
    rows = min(out_height, max(1, BLOCK // max(1, line)))
    images = max(1, BLOCK // max(1, rows * line)) if rows == out_height else 1
    across = _meetings(row, width, out_width, up, down, left)
    for m in range(0, major, images):
        for o in range(0, out_height, rows):
            part = y[m:m + images, o:o + rows]
            # The rows of x that these rows of y see, and the padding that is left above them.
            first = min(height, max(0, -((top - o * down) // up)))
            last = ((o + part.shape[1] - 1) * down + len(column) - 1 - top) // up
            source = x[m:m + images, first:max(first, last + 1)].to(dtype)
            vertical = source.new_empty(*part.shape[:2], width, minor)
            down_columns = _meetings(column, source.shape[1], part.shape[1], up, down, top - o * down + first * up)
            _accumulate(vertical, source, down_columns, 1)
            if dtype == y.dtype:
                _accumulate(part, vertical, across, 2)
            else:
                part.copy_(_accumulate(vertical.new_empty(part.shape), vertical, across, 2))
    return y.permute(0, 3, 1, 2) if channels_last else y.view(batch, channels, out_height, out_width)


def _meetings(taps, n_in, n_out, up, down, before):
    """[(tap, output slice, input slice)]: which outputs o and inputs i each tap t joins, o down + t - before = i up."""
    step_out, step_in = up // math.gcd(up, down), down // math.gcd(up, down)
    meetings = []
    for t, tap in enumerate(taps):
        o = next((o for o in range(step_out) if (o * down + t - before) % up == 0), n_out)
        i = (o * down + t - before) // up
        skip = max(0, -(i // step_in))  # to the first i that is not negative
        o, i = o + skip * step_out, i + skip * step_in
        if o < n_out and i < n_in:
            count = min((n_out - 1 - o) // step_out, (n_in - 1 - i) // step_in) + 1
            meetings.append((tap, slice(o, o + (count - 1) * step_out + 1, step_out),
                             slice(i, i + (count - 1) * step_in + 1, step_in)))
    # A tap that reaches every output goes first: it writes them, and nothing need be zeroed.
    return sorted(meetings, key=lambda meeting: meeting[1] != slice(0, n_out, 1))


def _accumulate(out, x, meetings, dim):
    """Write into `out` the sum of tap * x along `dim`, as `_meetings` joins them, and return it."""
    at = (slice(None),) * dim
    for n, (tap, to, source) in enumerate(meetings):
        if n == 0 and to == slice(0, out.shape[dim], 1):
            torch.mul(x[at + (source,)], tap, out=out)
            continue
        if n == 0:
            out.zero_()
        out[at + (to,)].add_(x[at + (source,)], alpha=tap)
    return out if meetings else out.zero_()

"""The Triton kernel behind op/siren.py, which imports this file only when a GPU needs it, and what compiles it.

A block of threads carries ROWS points through all layers: their activations are in registers and, as the operand of the
next product, in shared memory; the weights stream past them from the L2 cache, COLUMNS of a layer at a time.
Sizes: docs/performance.md.
"""
import re
import subprocess
import tempfile

import triton
import triton.language as tl

ROWS, COLUMNS, WARPS, STAGES = 64, 64, 8, 2


@triton.jit
def _sine(half_turns):
    """sin(pi x): the nearest whole number is taken off exactly, and its last bit is the sign. Right to 1.2e-7.

    The GPU's own fast sine is right to 2^-20.5 within [-pi, pi] only. The polynomial is the odd minimax of degree 9 on
    [-pi/2, pi/2] (error 5e-9). Adding 1.5 x 2^23 leaves a float no bits after the point.
    """
    shifted = half_turns + 12582912.
    x = (half_turns - (shifted - 12582912.)) * 3.14159265358979
    square = x * x
    tail = ((2.59999414e-6 * square - 1.98065880e-4) * square + 8.33301692e-3) * square - 1.66666571e-1
    sine = x + x * square * tail
    return tl.where((shifted.to(tl.int32, bitcast=True) & 1) == 1, -sine, sine)


@triton.jit
def _split(x):
    """x as the sum of two halves of 11 bits each."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _multiply(x_high, x_low, high, low, at, UNIT: tl.constexpr):
    """x W UNIT in three products of halves; the fourth, low x low, is below float32's rounding.

    Each is scaled and added by itself: a chain of products makes Triton lay all warps along the rows, of which there
    are too few.
    """
    w_high, w_low = tl.load(high + at), tl.load(low + at)
    sums = tl.dot(x_low, w_high) * UNIT
    sums += tl.dot(x_high, w_low) * UNIT
    return sums + tl.dot(x_high, w_high) * UNIT


@triton.jit
def _triple(at, inside):
    """Coordinates (ROWS,) x, y and z of the vectors at `at`."""
    return tl.load(at, inside, 0.), tl.load(at + 1, inside, 0.), tl.load(at + 2, inside, 0.)


@triton.jit
def _from_triple(x, y, z, weight, C: tl.constexpr):
    """(x, y, z) W for some columns; weight: addresses in the first row of W."""
    return (x[:, None] * tl.load(weight)[None, :] + y[:, None] * tl.load(weight + C)[None, :]
            + z[:, None] * tl.load(weight + 2 * C)[None, :])


@triton.jit
def _layer(values, high, low, bias, x, y, z, ahead, SEES: tl.constexpr, C: tl.constexpr, UNIT: tl.constexpr,
           ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr):
    """sin(pi (values W + b)), COLUMNS at a time; with SEES the direction (x, y, z) times `ahead` is added to b."""
    x_high, x_low = _split(values)
    place = tl.arange(0, C // COLUMNS)[None, :, None]
    following = tl.zeros([ROWS, C // COLUMNS, COLUMNS], tl.float32)
    for n in tl.range(C // COLUMNS, num_stages=STAGES):
        columns = n * COLUMNS + tl.arange(0, COLUMNS)
        part = _multiply(x_high, x_low, high, low, tl.arange(0, C)[:, None] * C + columns[None, :], UNIT)
        part += tl.load(bias + columns)[None, :]
        if SEES:
            part += _from_triple(x, y, z, ahead + columns, C)
        following = tl.where(place == n, tl.reshape(_sine(part), [ROWS, 1, COLUMNS]), following)
    return tl.reshape(following, [ROWS, C])


@triton.jit
def _head(values, weight, bias):
    return tl.sum(values * tl.load(weight)[None, :], axis=1) + tl.load(bias)


# Any number of points, anywhere: one compiled kernel for all of them.
@triton.jit(do_not_specialize=['count', 'per_ray'], do_not_specialize_on_alignment=['points', 'viewdirs'])
def field_kernel(points, viewdirs, first, ahead, high, low, bias, heads, head_bias, sdf, features, logits, count,
                 per_ray, width, DEPTH: tl.constexpr, VIEW: tl.constexpr, C: tl.constexpr, UNIT: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr):
    """ROWS points of one image; the tensors are those of `siren.pack`, C their padded width, `width` the true one."""
    LAYERS: tl.constexpr = DEPTH + VIEW
    image = tl.program_id(1).to(tl.int64)
    start = image * count + tl.program_id(0) * ROWS  # 64 bits, once; within the tile 32 are enough
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    inside = tl.program_id(0) * ROWS + row < count
    bias += image * LAYERS * C
    high += image * (LAYERS - 1) * C * C
    low += image * (LAYERS - 1) * C * C

    x, y, z = _triple(points + start * 3 + row * 3, inside)
    values = _sine(_from_triple(x, y, z, first + image * 3 * C + channel, C) + tl.load(bias + channel)[None, :])
    for _ in tl.range(1, DEPTH, num_stages=1):
        bias += C
        values = _layer(values, high, low, bias, x, y, z, ahead, False, C, UNIT, ROWS, COLUMNS, STAGES)
        high += C * C
        low += C * C
    tl.store(sdf + start + row, _head(values, heads + channel, head_bias), inside)

    if VIEW:
        ray = image * (count // per_ray) + (tl.program_id(0) * ROWS + row) // per_ray
        x, y, z = _triple(viewdirs + ray * 3, inside)
        values = _layer(values, high, low, bias + C, x, y, z, ahead + image * 3 * C, True, C, UNIT, ROWS, COLUMNS,
                        STAGES)
        tl.store(features + start * width + row[:, None] * width + channel[None, :], values,
                 inside[:, None] & (channel < width)[None, :])
        for i in tl.static_range(3):
            color = _head(values, heads + (i + 1) * C + channel, head_bias + i + 1)
            tl.store(logits + start * 3 + row * 3 + i, color, inside)


def settings(depth, view, width, unit):
    """The kernel's compile-time constants."""
    return {'DEPTH': depth, 'VIEW': int(view), 'C': width, 'UNIT': unit, 'ROWS': ROWS, 'COLUMNS': min(COLUMNS, width),
            'STAGES': STAGES}


OPTIONS = {'num_warps': WARPS, 'num_stages': STAGES, 'enable_fp_fusion': True}


def launch(batch, count, per_ray, width, tensors, constants):
    """Run the kernel over `count` points of each of `batch` images; tensors: its first twelve arguments."""
    field_kernel[triton.cdiv(count, ROWS), batch](*tensors, count, per_ray, width, **constants, **OPTIONS)


def compiled(constants, capability=90):
    """Compile the kernel without a GPU: {'registers', 'spilled' (bytes a thread), 'shared' (bytes a block), 'ptx'}."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    kinds = {name: 'i32' for name in ('count', 'per_ray', 'width')} | dict.fromkeys(('high', 'low'), '*fp16')
    signature = {name: 'constexpr' if name in constants else kinds.get(name, '*fp32')
                 for name in field_kernel.arg_names}
    aligned = {(i,): [['tt.divisibility', 16]] for i, (name, kind) in enumerate(signature.items())
               if kind.startswith('*') and name not in ('points', 'viewdirs') or name == 'width'}
    kernel = triton.compile(ASTSource(field_kernel, signature, constants, aligned),
                            target=GPUTarget('cuda', capability, 32), options=OPTIONS)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(kernel.asm['cubin'])
        file.flush()
        usage = subprocess.run([triton.knobs.nvidia.cuobjdump.path, '-res-usage', file.name], capture_output=True,
                               text=True, check=True).stdout
    registers, stack = map(int, re.search(r'REG:(\d+) STACK:(\d+)', usage).groups())
    return {'registers': registers, 'spilled': stack, 'shared': kernel.metadata.shared, 'ptx': kernel.asm['ptx']}

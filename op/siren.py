"""The field at points: distance, features and color of a FiLM-SIREN with its latents folded in, in one GPU kernel.

`FoldedField.steps` (folded_field.py) is the definition. On a Hopper GPU (compute capability 9), for which its tiles are
cut, and where autograd records nothing, a Triton kernel (siren_kernel.py, imported then and not before) takes a tile of
points through all layers without leaving the chip. STYLESDF_OPS chooses as for the other operations (op/__init__.py).

Numbers: a product of float32 matrices is three products of halves (x = high + low, 11 bits each) summed in float32,
which is as near to float64 as float32 itself is; one product of halves, or of tf32, is a thousand times as far
(docs/performance.md). Each variant of the kernel is checked against its definition at its first use in a process.
"""
import math

import torch
import torch.nn.functional as F

from op import kernels

WIDEST = 256       # channels: a tile's activations and two slices of a layer's weights fill the shared memory
CAPABILITY = 9     # Hopper; compiled for others the tiles spill their registers
# Weights go to the kernel as halves of W / pi, so that a sine's argument comes in half turns, and times 64, so that
# the low half of a weight of a usual size is no subnormal number.
SCALE = 64 / math.pi
CHECKED = 512      # points of a kernel's first call that the definition evaluates too, in float64
AGREEMENT = 1e-4   # of the largest value; float32 and the kernel were within 1e-5


def fused_field(field, points, viewdirs=None):
    """Signed distances (B,P,1), features (B,P,C) and colors before the sigmoid (B,P,3) of a FoldedField of B latents.

    points: (B,P,3) in the field's own units. viewdirs: (B,R,3) unit vectors, one for each P / R points in a row;
    without them features and colors are None and are not computed. Differentiable (by the plain way).
    """
    if not _fits(field, points, viewdirs):
        return field.steps(points, viewdirs)
    variant = points.device, len(field.points), field.sigma[0].shape[1], viewdirs is not None
    if variant not in _failures:
        values, _failures[variant] = _first_call(field, points, viewdirs)
    elif not _failures[variant]:
        values = fused(field, points, viewdirs)
    if _failures[variant]:
        kernels.unusable('the fused kernel of the field does not work here', _failures[variant])
        return field.steps(points, viewdirs)
    return values


_failures = {}  # variant of the kernel -> why it cannot be used, or None where it passed its check


def _fits(field, points, viewdirs):
    """Whether the kernel is for this call."""
    if not kernels.wanted(points) or points.numel() == 0 or torch.compiler.is_compiling():
        return False
    tensors = [points, *field.views, *field.sigma, *field.rgb, *sum(field.points, ())]
    tensors += [] if viewdirs is None else [viewdirs]
    return (field.sigma[0].shape[1] <= WIDEST and torch.cuda.get_device_capability(points.device)[0] == CAPABILITY
            and all(tensor.dtype == torch.float32 for tensor in tensors)
            and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)))


def _first_call(field, points, viewdirs):
    """(what the kernel gives, None) if it agrees with the definition, else (None, why not)."""
    try:
        values = fused(field, points, viewdirs)
        difference = disagreement(values, field, points, viewdirs)
    except torch.OutOfMemoryError:  # says nothing about the kernel
        raise
    except Exception as error:  # whatever Triton, its compiler or the driver may do: the plain way goes on
        return None, f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]
    if not difference <= AGREEMENT:  # also where it is no number
        return None, f'its values differ from the plain ones by {difference:.1e} of the largest'
    return values, None


@torch.no_grad()
def disagreement(values, field, points, viewdirs=None, most=CHECKED):
    """The largest difference of `values` from the definition in float64, as a share of the largest value of its kind.

    It is measured on about `most` of the points, evenly spread.
    """
    batch, count, _ = points.shape
    rays = count if viewdirs is None else viewdirs.shape[1]
    step = -(-count // most)
    some = [tensor.unflatten(1, (rays, -1))[:, ::step].flatten(1, 2).double()
            for tensor in (points, *values) if tensor is not None]
    expected = field.to(torch.float64).steps(some[0], None if viewdirs is None else viewdirs[:, ::step].double())
    return torch.stack([(value - reference).abs().max() / reference.abs().max()  # a NaN stays one
                        for value, reference in zip(some[1:], expected, strict=False)]).max().item()


def fused(field, points, viewdirs=None):
    """`fused_field` by the kernel, whatever the device: on a CPU it needs Triton's interpreter (TRITON_INTERPRET=1)."""
    from op import siren_kernel
    batch, count, _ = points.shape
    width, view = field.sigma[0].shape[1], viewdirs is not None
    packed = pack(field, view)
    points = points.contiguous()
    viewdirs = viewdirs.contiguous() if view else points  # an address that is not used
    sdf = points.new_empty(batch, count, 1)
    features, logits = (points.new_empty(batch, count, c) for c in (width, 3)) if view else (sdf, sdf)
    constants = siren_kernel.settings(len(field.points), view, packed[0].shape[-1], 1 / 64)
    with torch.cuda.device(points.device if points.is_cuda else -1):  # -1: leave it
        siren_kernel.launch(batch, count, count // viewdirs.shape[1], width,
                            (points, viewdirs, *packed, sdf, features, logits), constants)
    return (sdf, features, logits) if view else (sdf, None, None)


def pack(field, view):
    """The weights of a FoldedField as the kernel reads them, C padded with zeros to a power of two from 16.

    Returns first (B,3,C), the weights of the points; ahead (B,3,C), of the view directions; high, low (B,L,C,C), the
    halves of the L square layers' weights; bias (B,L+1,C); heads (4,C), of sigma and of color; head_bias (4,).
    """
    (first, bias), *layers = field.points
    width = first.shape[2]
    ahead = field.views[0][:, -3:]
    if view:
        layers = [*layers, (field.views[0][:, :-3], field.views[1])]
    padding = max(16, 1 << (width - 1).bit_length()) - width
    bias = torch.cat([bias, *(bias for _, bias in layers)], dim=1)
    square = torch.stack([weight for weight, _ in layers] or [first.new_empty(len(first), width, width)[:, :0]], dim=1)
    square = F.pad(square, (0, padding, 0, padding)) * SCALE
    high = square.half()
    low = (square - high).half()
    head = torch.cat([field.sigma[0], field.rgb[0]])
    turns = [F.pad(tensor / math.pi, (0, padding)).contiguous() for tensor in (first, ahead, bias)]
    return (*turns[:2], high, low, turns[2], F.pad(head, (0, padding)), torch.cat([field.sigma[1], field.rgb[1]]))

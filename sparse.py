"""The signed distances of all samples of a view, from about a twentieth of the field's evaluations.

A trained field is smooth between samples and matters only where a ray can see it. So the volume is evaluated on every
4th sample of every 4th ray, interpolated to twice the density, and evaluated exactly where the interpolation is not
good enough: near the zero level, whose side decides the mesh, and where a visible sample's density depends on it. The
same again gives every sample. How good the interpolation is shows in the difference of two orders of it; whether that
can be believed, in the samples that are evaluated after all and in whole rays chosen at random. Where it cannot, the
answer is None, and every sample is evaluated. Measured: docs/performance.md.
"""
import functools

import torch
import torch.nn.functional as F

from volume_renderer import sdf_to_density

COARSEST = 4
# All tolerances are parts of beta, the scale on which density changes with distance.
SEEN_ERROR = 0.003       # of a visible sample: a depth is then right to about a thousandth of the depth range
ZERO_MARGIN = 0.05       # nearer to the zero level every sample is evaluated
SAFETY = 4               # the interpolation may be this much worse than its estimate
SEEN_DISTANCE = 8        # outside the surface by more than this many betas there is no density (sigmoid(-8) = 3e-4)
SEEN_TRANSMITTANCE = 1e-3
# At samples evaluated after all, 99 of 100 must have been predicted as well as this, by the stride they were predicted
# at. On fields where surface points were off by more than 1e-4 it was 0.4 and more, and 0.09 and more.
SURPRISE = {2: 0.25, 1: 0.05}
PROBES = 128             # rays evaluated only to check the result
PROBE_ERROR = 0.05       # a visible sample of theirs that is off by more means: evaluate everything


def sdf_volume(evaluate, size, beta, spacing, hidden=True):
    """Signed distances (size,size,size) at all samples: row, column, depth.

    evaluate: index (P,3) (row, column, sample; also one beyond the end) to distances (P,). size: a multiple of 4, from
    24. beta: of the density. spacing: between the samples of a ray, in the world. hidden: whether the zero level
    matters where no ray sees it (for a closed mesh). Returns None where the field is not smooth enough for this to be
    right; then evaluate every sample.
    """
    nodes = size // COARSEST + 1
    if size % COARSEST or nodes <= 6:
        return None
    index = torch.cartesian_prod(*[torch.arange(nodes) * COARSEST] * 3)
    values = evaluate(index).view(nodes, nodes, nodes)
    exact = torch.ones_like(values, dtype=torch.bool)
    stride, evaluations = COARSEST, values.numel()
    while stride > 1:
        stride //= 2
        count = size // stride + (stride > 1)  # one node beyond the end to interpolate with, but not in the result
        values, error = interpolate(values, count)
        near_zero = values.abs() < torch.clamp(SAFETY * error, min=ZERO_MARGIN * beta)
        seen = visible(values, beta, stride * spacing)
        wanted = near_zero & (seen | hidden) | seen & (error > SEEN_ERROR * beta)
        known = torch.zeros_like(wanted)
        known[::2, ::2, ::2] = exact[:(count + 1) // 2, :(count + 1) // 2, :(count + 1) // 2]
        wanted &= ~known
        exact = known | wanted
        index = wanted.nonzero()
        evaluations += len(index)
        if evaluations > size ** 3 / 4:
            return None
        found = evaluate(index * stride)
        if len(index) and torch.quantile(some((values[wanted] - found).abs()), 0.99) > SURPRISE[stride] * beta:
            return None
        values[wanted] = found
    return values if probes_agree(evaluate, values, beta, spacing) else None


def some(values, most=100_000):
    """About `most` of a long list of values, evenly spread: enough for a quantile."""
    return values[::len(values) // most + 1]


def visible(sdf, beta, spacing):
    """Where a sample has density and its ray has not been stopped before it. sdf (…,N) along the rays."""
    density = sdf_to_density(sdf, beta) * spacing
    depth = density.cumsum(-1) - density
    return (sdf < SEEN_DISTANCE * beta) & (torch.exp(-depth) > SEEN_TRANSMITTANCE)


def probes_agree(evaluate, values, beta, spacing):
    """Check the volume against exact values on whole rays chosen at random (always the same ones).

    All their samples are evaluated, so that a surface which the interpolation missed is seen too.
    """
    size = len(values)
    rays = torch.randint(size, (PROBES, 2), generator=torch.Generator().manual_seed(0))
    depth = torch.arange(size)
    index = torch.cat([rays.repeat_interleave(size, dim=0), depth.repeat(PROBES)[:, None]], dim=1)
    exact = evaluate(index).view(PROBES, size)
    given = values[rays[:, 0].to(values.device), rays[:, 1].to(values.device)]
    wrong = visible(exact, beta, spacing) & ((given - exact).abs() > PROBE_ERROR * beta)
    return not bool(wrong.any())


def interpolate(coarse, count):
    """A cubic volume at twice the density: `count` nodes an axis, and an estimate of the error of each.

    The values are of sixth order (exact for polynomials of degree 5); their largest difference from fourth order among
    the neighbours is the estimate. Where a coarse node lies the value is the coarse one.
    """
    fine, rough = (coarse, coarse)
    for axis in range(3):
        fine = _along(fine, _stencils(coarse.shape[0], count, 6, coarse.device), axis)
        rough = _along(rough, _stencils(coarse.shape[0], count, 4, coarse.device), axis)
    error = F.max_pool3d((fine - rough).abs()[None, None], 3, stride=1, padding=1)[0, 0]
    return fine, error


def _along(volume, matrix, axis):
    return torch.tensordot(matrix, volume, dims=([1], [axis])).movedim(0, axis)


@functools.lru_cache(maxsize=16)
def _stencils(nodes, count, order, device):
    """(count, nodes) weights of Lagrange interpolation at half steps: positions 0, 0.5, 1, … from the nearest nodes."""
    positions = torch.arange(count, dtype=torch.float64) / 2
    first = (positions.floor().long() - order // 2 + 1).clamp(0, nodes - order)
    index = first[:, None] + torch.arange(order)                             # (count,order)
    weights = torch.ones(count, order, dtype=torch.float64)
    for p in range(order):
        for q in range(order):
            if p != q:
                weights[:, p] *= (positions - index[:, q]) / (index[:, p] - index[:, q])
    matrix = torch.zeros(count, nodes, dtype=torch.float64).scatter_(1, index, weights)
    return matrix.float().to(device)

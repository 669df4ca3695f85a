"""The signed distances of all samples of a view, from about a twentieth of the field's evaluations.

A trained field is smooth between samples and matters only where a ray can see it. So the volume is evaluated on every
4th sample of every 4th ray, interpolated to twice the density, and evaluated exactly where the interpolation is not
good enough: near the zero level, whose side decides the mesh, and where a visible sample's density depends on it. The
same again gives every sample. How good the interpolation is shows in the difference of two orders of it; whether that
can be believed, in the samples that are evaluated after all and in whole rays chosen at random: where one of them was
predicted badly, as at a crease, its neighbours are evaluated too. Where that does not end soon, the answer is None, and
every sample is evaluated. Measured: docs/performance.md.
"""
import functools

import torch

from volume_renderer import sdf_to_density

COARSEST = 4
# What a sample's error may do to its ray's depth, in the world; those of a ray then add up to less than 1e-4.
DEPTH_ERROR = 1e-6
PROBE_ERROR = 1e-5       # of a sample that was interpolated, where it is evaluated after all
# The other tolerances are parts of beta, the scale on which density changes with distance.
ZERO_MARGIN = 0.05       # nearer to the zero level every sample is evaluated
SAFETY = 4               # the interpolation may be this much worse than its estimate
SEEN_DISTANCE = 8        # outside the surface by more than this many betas there is no density (sigmoid(-8) = 3e-4)
SEEN_TRANSMITTANCE = 1e-3
# At samples evaluated after all, 99 of 100 must have been predicted as well as this, by the stride they were predicted
# at. On fields where surface points were off by more than 1e-4 it was 0.4 and more, and 0.09 and more.
SURPRISE = {2: 0.25, 1: 0.05}
PROBES = 128             # rays evaluated only to check the result
BAD_ERROR = 0.05         # a visible sample that was off by more has neighbours that are not to be believed either
ATTEMPTS = 3             # to find rays without such a sample
MOST = 0.25              # of all samples: more are not worth it


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
    stride, most = COARSEST, MOST * size ** 3
    while stride > 1:
        stride //= 2
        count = size // stride + (stride > 1)  # one node beyond the end to interpolate with, but not in the result
        values, error = interpolate(values, count)
        near_zero = values.abs() < torch.clamp(SAFETY * error, min=ZERO_MARGIN * beta)
        seen = visible(values, beta, stride * spacing)
        wanted = near_zero & (seen | hidden) | (error * influence(values, beta, stride * spacing) > DEPTH_ERROR)
        known = torch.zeros_like(wanted)
        known[::2, ::2, ::2] = exact[:(count + 1) // 2, :(count + 1) // 2, :(count + 1) // 2]
        exact = known
        errors = settle(lambda index, stride=stride: evaluate(index * stride), values, exact,
                        wanted & ~known, seen, beta, most)
        if errors is None or len(errors) and torch.quantile(some(errors), 0.99) > SURPRISE[stride] * beta:
            return None
    for seed in range(ATTEMPTS):
        wrong = probe(evaluate, values, exact, beta, spacing, seed)
        if not wrong.any():
            return values
        around = grown(wrong) & ~exact
        if settle(evaluate, values, exact, around, visible(values, beta, spacing), beta, most) is None:
            return None
    return None


def settle(evaluate, values, exact, wanted, seen, beta, most):
    """Evaluate the wanted samples exactly, and the visible neighbours of each that was predicted badly, and so on.

    Changes values and exact (masks like them: wanted, seen). Returns how far off the predictions of the wanted ones
    were (n,), or None where more than `most` samples would be exact.
    """
    errors = None
    while wanted.any():
        if exact.sum() + wanted.sum() > most:
            return None
        found = evaluate(wanted.nonzero())
        error = (values[wanted] - found).abs()
        errors = error if errors is None else errors
        values[wanted] = found
        exact |= wanted
        bad = torch.zeros_like(wanted)
        bad[wanted] = error > BAD_ERROR * beta
        wanted = grown(bad) & seen & ~exact
    return errors if errors is not None else values.new_empty(0)


def grown(mask):
    """The samples of a mask and all within two of them, along the axes and across."""
    return _neighbourhood(torch.logical_or, mask, 2)


def _neighbourhood(combine, volume, reach):
    """combine (an associative function of two tensors) over the cube of samples within `reach` of each sample. Axis
    after axis, which takes a tenth of max_pool3d's time."""
    for axis in range(3):
        source, volume = volume, volume.clone()
        for shift in range(1, reach + 1):
            count = source.shape[axis] - shift
            for to, start in ((shift, 0), (0, shift)):
                part = volume.narrow(axis, to, count)
                part.copy_(combine(part, source.narrow(axis, start, count)))
    return volume


def some(values, most=100_000):
    """About `most` of a long list of values, evenly spread: enough for a quantile."""
    return values[::len(values) // most + 1]


def influence(sdf, beta, spacing):
    """What the sdf (…,N) of each sample of a ray means: |d depth / d sdf| of the ray, or a tenth of |d mask / d sdf|.

    The larger of the two. (The derivative of the quadrature; StyleSDF equations 4 and 5.)
    """
    density = sdf_to_density(sdf, beta)
    transmittance = torch.exp(-spacing * density.cumsum(-1))  # behind each sample
    depth = spacing * torch.arange(sdf.shape[-1], device=sdf.device)
    weights = -transmittance.diff(dim=-1, prepend=torch.ones_like(sdf[..., :1]))
    weights[..., -1] += transmittance[..., -1]
    moments = (weights * depth).cumsum(-1)
    lever = (transmittance * depth - (moments[..., -1:] - moments)).abs()  # the ray's way to what lies behind
    steepness = spacing * density * (1 - beta * density) / beta
    return steepness * torch.maximum(lever, 0.1 * transmittance[..., -2:-1])


def visible(sdf, beta, spacing):
    """Where a sample has density and its ray has not been stopped before it. sdf (…,N) along the rays."""
    density = sdf_to_density(sdf, beta) * spacing
    depth = density.cumsum(-1) - density
    return (sdf < SEEN_DISTANCE * beta) & (torch.exp(-depth) > SEEN_TRANSMITTANCE)


def probe(evaluate, values, exact, beta, spacing, seed):
    """Where the volume was wrong (a mask) on whole rays chosen at random by the seed; it is right there afterwards.

    All their samples are evaluated, so that a surface which the interpolation missed is seen too.
    """
    size = len(values)
    row, column = torch.randint(size, (2, PROBES), generator=torch.Generator().manual_seed(seed)).to(values.device)
    index = torch.stack([row, column]).T.repeat_interleave(size, dim=0)
    depth = torch.arange(size, device=values.device).repeat(PROBES)
    found = evaluate(torch.cat([index, depth[:, None]], dim=1)).view(PROBES, size)
    wrong = torch.zeros_like(exact)
    wrong[row, column] = influence(found, beta, spacing) * (values[row, column] - found).abs() > PROBE_ERROR
    values[row, column] = found
    exact[row, column] = True
    return wrong


def interpolate(coarse, count):
    """A cubic volume at twice the density: `count` nodes an axis, and an estimate of the error of each.

    The values are of sixth order (exact for polynomials of degree 5); their largest difference from fourth order among
    the neighbours is the estimate. Where a coarse node lies the value is the coarse one.
    """
    fine, rough = (coarse, coarse)
    for axis in range(3):
        fine = _along(fine, _stencils(coarse.shape[0], count, 6, coarse.device), axis)
        rough = _along(rough, _stencils(coarse.shape[0], count, 4, coarse.device), axis)
    return fine, _neighbourhood(torch.maximum, (fine - rough).abs(), 1)


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

"""Views of a field from a tenth of its evaluations: signed distances of all samples, and pictures.

A trained field is smooth between samples and matters only where a ray can see it. So the volume is evaluated on every
4th sample of every 4th ray, interpolated to twice the density, and evaluated exactly where the interpolation is not
good enough: near the zero level, whose side decides the mesh, and where a visible sample's density depends on it. The
same again gives every sample. How good the interpolation is shows in the difference of two orders of it; whether that
can be believed, in the samples that are evaluated after all and in whole rays chosen at random: where one of them was
predicted badly, as at a crease, its neighbors are evaluated too. Where that does not end soon, the answer is None, and
every sample is evaluated. A picture then takes colors and features only from the samples that have weight.
Measured: docs/performance.md.
"""
import functools
import math
from typing import NamedTuple

import torch

from volume_renderer import Rendering, pixel_directions, sample_depths, sdf_to_density, view_directions

COARSEST = 4


class Tolerances(NamedTuple):
    """How exact distances are to be. Those in betas: beta is the scale on which density changes with distance."""
    depth: float   # what a sample's error may do to its ray's depth, in the world
    safety: float  # the interpolation may be this much worse than its estimate before a sample's side of zero changes
    zero: float    # betas: nearer to the zero level every sample is evaluated
    bad: float     # betas: a visible sample that was off by more has neighbors that are not to be believed either
    most: dict     # betas, by stride: 99 of 100 samples evaluated after all must have been off by less, if given


# The errors of a ray's samples then add up to less than 1e-4. On fields where surface points were off by more, the 99th
# of 100 samples was off by 0.4 and more at stride 2, and by 0.09 and more at stride 1.
SURFACE = Tolerances(1e-6, 4, 0.05, 0.05, {2: 0.25, 1: 0.05})
PICTURE = Tolerances(1e-4, 2, 0, 0.5, {})  # enough to know which samples have weight; they are then evaluated exactly
NO_WEIGHT = 3e-5         # samples of a picture that have less are left out
SEEN_DISTANCE = 8        # outside the surface by more than this many betas there is no density (sigmoid(-8) = 3e-4)
SEEN_TRANSMITTANCE = 1e-3
PROBES = 128             # one of so many rays is evaluated only to check the result
PROBE_ERROR = 10         # times Tolerances.depth, of a sample that was interpolated, where it is evaluated after all
ATTEMPTS = 3             # to find rays without such a sample
MOST = 0.25              # of all samples: more are not worth it


@torch.no_grad()
def render(renderer, w, cameras, *, resolution=None, samples=None, color=True, features=True, sdf=False,
           rng=None, decisive=None):
    """VolumeRenderer.forward without gradients, from few evaluations where the field allows it.

    Its arguments, and decisive: a function from a volume of distances (1,H,W,N,1) to the index (P,3) of samples whose
    distance is wanted exactly.
    """
    wanted = {'resolution': resolution or renderer.resolution, 'samples': samples or renderer.samples, 'color': color,
              'features': color and features, 'sdf': sdf}
    # Where a ray's samples are all offset together they can be had from a grid, as a picture needs them.
    possible = renderer.has_sdf and (renderer.perturb == 0 or renderer.offset_sampling and color and not sdf)
    views = []
    for b in range(len(cameras)):
        latent, camera = w[b:b + 1], cameras[b:b + 1]
        own = rng[b:b + 1] if isinstance(rng, list) else rng
        view = _render_view(renderer, latent, camera, rng=own, decisive=decisive, **wanted) if possible else None
        views.append(view or renderer(latent, camera, rng=own, **wanted))
    return views[0] if len(views) == 1 else Rendering(*(None if parts[0] is None else torch.cat(parts)
                                                        for parts in zip(*views, strict=True)))


def _render_view(renderer, w, camera, resolution, samples, color, features, sdf, rng, decisive):
    """render for one view; None where the field is not smooth enough for it."""
    field = renderer.network.fold(w)
    origin = camera.extrinsics[0, :, 3]
    depths = functools.partial(sample_depths, camera.near, camera.far, samples,
                               offset_sampling=renderer.offset_sampling)
    t = depths()  # (1,1,N)
    # One pixel and one sample more than there are: the coarse grid reaches beyond the end.
    pixels = torch.arange(resolution + 1, device=t.device, dtype=t.dtype)
    local = pixel_directions(pixels[:, None], pixels, resolution, camera.focal)
    directions, viewdirs = (d[0] for d in view_directions(renderer, local, camera))  # (H+1,W+1,3)
    step = t[0, 0, 1] - t[0, 0, 0]
    grid = torch.cat([t[0, 0], t[0, 0, -1:] + step])
    beta, spacing = torch.cat([renderer.sigmoid_beta, step[None]]).tolist()

    def evaluate(index):
        row, column, sample = index.to(t.device, non_blocking=True).T
        return renderer.sdf_at(field, origin + directions[row, column] * grid[sample, None], camera)

    volume = sdf_volume(evaluate, (resolution, resolution, samples), beta, spacing, hidden=sdf,
                        tolerances=PICTURE if color else SURFACE)
    if volume is None:
        return None
    if decisive:
        index = decisive(volume[None, ..., None])
        volume[tuple(index.T)] = evaluate(index)
    rays = directions[:resolution, :resolution].flatten(0, 1)  # (R,3)
    volume = volume.flatten(0, 1)  # (R,N)
    if renderer.perturb > 0:
        t = depths(perturb=renderer.perturb, rays=len(rays), rng=rng)  # (1,R,N)
        volume = offset_by(volume, (t[0, :, :1] - grid[0]) / step)

    def weigh():
        return renderer.weights(volume[None], rays[None], t)[0]  # (R,N)

    def as_image(x):  # (R,C) -> (1,C,H,W)
        return x.T.unflatten(1, (resolution, resolution))[None]

    thumbnail = blended = None
    weights = weigh()
    if color:
        weighty = weights > NO_WEIGHT
        ray, sample = weighty.nonzero().T
        points = origin + rays[ray] * t[0].expand(len(rays), -1)[weighty][:, None]
        tiles = renderer.evaluate_at(field, points, viewdirs[ray // resolution, ray % resolution], camera)
        distances, found, logits = (torch.cat(values) for values in zip(*(
            (sdf[0, :, 0], tile_features[0].clone(), tile_logits[0]) for sdf, tile_features, tile_logits in tiles),
            strict=True))
        volume[weighty] = distances
        weights = weigh()
        weight = weights[weighty][:, None]
        kept = weight.new_zeros(len(weights), 1).index_add_(0, ray, weight)
        # What was left out gives them its weight.
        weight = weight * (weights.sum(-1, keepdim=True) / kept.clamp(min=NO_WEIGHT))[ray]

        def blend(values):
            return values.new_zeros(len(weights), values.shape[1]).index_add_(0, ray, weight * values)

        thumbnail = as_image(2 * blend(torch.sigmoid(logits)) - 1)
        blended = as_image(blend(found)) if features else None
    xyz = origin * weights.sum(-1, keepdim=True) + rays * (weights * t[0]).sum(-1, keepdim=True)
    return Rendering(thumbnail, blended, as_image(xyz), as_image(weights[:, -1:]),
                     volume.view(1, resolution, resolution, samples, 1) if sdf else None, None)


def sdf_volume(evaluate, shape, beta, spacing, hidden=True, tolerances=SURFACE):
    """Signed distances at all samples: row, column, depth.

    evaluate: index (P,3) (row, column, sample; also one beyond the end) to distances (P,). shape: of the volume,
    multiples of 4, from 24. beta: of the density. spacing: between the samples of a ray, in the world. hidden: whether
    the zero level matters where no ray sees it (for a closed mesh). Returns None where the field is not smooth enough
    for this to be right; then evaluate every sample.
    """
    nodes = [size // COARSEST + 1 for size in shape]
    if any(size % COARSEST for size in shape) or min(nodes) <= 6:
        return None
    index = torch.cartesian_prod(*[torch.arange(count) * COARSEST for count in nodes])
    values = evaluate(index).view(*nodes)
    exact = torch.ones_like(values, dtype=torch.bool)
    bad = tolerances.bad * beta
    stride, most = COARSEST, MOST * math.prod(shape)
    while stride > 1:
        stride //= 2
        # One node beyond the end to interpolate with, but not in the result.
        counts = [size // stride + (stride > 1) for size in shape]
        values, error = interpolate(values, counts)
        near_zero = values.abs() < torch.clamp(tolerances.safety * error, min=tolerances.zero * beta)
        reached, seen = visible(values, beta, stride * spacing)
        wanted = near_zero & (reached | hidden) | (error * influence(values, beta, stride * spacing) > tolerances.depth)
        coarse, exact = exact, torch.zeros_like(wanted)
        exact[::2, ::2, ::2] = coarse[tuple(slice((count + 1) // 2) for count in counts)]
        errors = settle(lambda index, stride=stride: evaluate(index * stride), values, exact,
                        wanted & ~exact, seen, bad, most)
        if errors is None:
            return None
        allowed = tolerances.most.get(stride)
        if allowed and len(errors) and torch.quantile(some(errors), 0.99) > allowed * beta:
            return None
    for seed in range(ATTEMPTS):
        wrong = probe(evaluate, values, exact, beta, spacing, seed, PROBE_ERROR * tolerances.depth)
        if not wrong.any():
            return values
        _, seen = visible(values, beta, spacing)
        if settle(evaluate, values, exact, grown(wrong) & ~exact, seen, bad, most) is None:
            return None
    return None


def offset_by(volume, offset):
    """Distances (R,N) at samples `offset` (R,1) steps, from 0 to 1, behind those of the volume (R,N): by the cubic
    through two samples before and two behind, the ends continued straight."""
    first, last = volume[:, 1:2] - volume[:, :1], volume[:, -1:] - volume[:, -2:-1]
    nodes = torch.cat([volume[:, :1] - first, volume, volume[:, -1:] + last, volume[:, -1:] + 2 * last], dim=1)
    nodes = nodes.unfold(1, 4, 1)  # (R,N,4)
    u = offset
    lagrange = [-u * (u - 1) * (u - 2) / 6, (u + 1) * (u - 1) * (u - 2) / 2, -(u + 1) * u * (u - 2) / 2,
                (u + 1) * u * (u - 1) / 6]
    return (nodes @ torch.stack(lagrange, dim=1))[..., 0]


def settle(evaluate, values, exact, wanted, seen, bad, most):
    """Evaluate the wanted samples exactly, then visible neighbors of those off by more than `bad`, and so on.

    Changes values and exact (masks like them: wanted, seen). Returns how far off the predictions of the wanted ones
    were (n,), or None where more than `most` samples would be exact.
    """
    errors, count = None, int(exact.sum())
    while len(index := wanted.nonzero()):  # only here does the host wait for a GPU
        count += len(index)
        if count > most:
            return None
        found, place = evaluate(index), tuple(index.T)
        error = (values[place] - found).abs()
        errors = error if errors is None else errors
        values[place] = found
        exact |= wanted
        misjudged = torch.zeros_like(wanted)
        misjudged[place] = error > bad
        wanted = grown(misjudged) & seen & ~exact
    return errors if errors is not None else values.new_empty(0)


def grown(mask):
    """The samples of a mask and all within two of them, along the axes and across."""
    return _neighborhood(torch.logical_or, mask, 2)


def _neighborhood(combine, volume, reach):
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
    """Where a ray has not been stopped before the sample, and where it has density too. sdf (…,N) along the rays."""
    density = sdf_to_density(sdf, beta) * spacing
    depth = density.cumsum(-1) - density
    reached = torch.exp(-depth) > SEEN_TRANSMITTANCE
    return reached, reached & (sdf < SEEN_DISTANCE * beta)


def probe(evaluate, values, exact, beta, spacing, seed, tolerance):
    """Where the volume was wrong (a mask) on whole rays chosen at random by the seed; it is right there afterwards.

    All their samples are evaluated, so that a surface which the interpolation missed is seen too.
    """
    rows, columns, size = values.shape
    random, count = torch.Generator().manual_seed(seed), max(1, rows * columns // PROBES)
    row, column = (torch.randint(most, (count,), generator=random).to(values.device, non_blocking=True)
                   for most in (rows, columns))
    index = torch.stack([row, column]).T.repeat_interleave(size, dim=0)
    depth = torch.arange(size, device=values.device).repeat(count)
    found = evaluate(torch.cat([index, depth[:, None]], dim=1)).view(count, size)
    wrong = torch.zeros_like(exact)
    wrong[row, column] = influence(found, beta, spacing) * (values[row, column] - found).abs() > tolerance
    values[row, column] = found
    exact[row, column] = True
    return wrong


def interpolate(coarse, counts):
    """A volume at twice the density, `counts` nodes along the axes, and an estimate of the error of each.

    The values are of sixth order (exact for polynomials of degree 5); their largest difference from fourth order among
    the neighbors is the estimate. Where a coarse node lies the value is the coarse one.
    """
    fine, rough = (coarse, coarse)
    for axis, (nodes, count) in enumerate(zip(coarse.shape, counts, strict=True)):
        fine = _along(fine, _stencils(nodes, count, 6, coarse.device), axis)
        rough = _along(rough, _stencils(nodes, count, 4, coarse.device), axis)
    return fine, _neighborhood(torch.maximum, (fine - rough).abs(), 1)


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

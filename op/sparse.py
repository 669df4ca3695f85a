"""SparseRenderer: views of a field from a tenth of its evaluations.

The definition is VolumeRenderer (volume_renderer.py), which evaluates every sample. A trained field is smooth between
samples, and it matters only where a ray can see it. So the signed distances of a view are found in these steps:

1. The field is evaluated on a coarse grid: every 4th sample of every 4th ray.
2. The grid is interpolated to twice its density. The difference between interpolations of sixth and of fourth order
   estimates the error of each new sample.
3. Samples for which the estimate is not good enough are evaluated exactly. They lie near the zero level, where the sign
   decides the mesh, and where a ray sees them and their error would move the surface.
4. Where one of these exact values shows that the interpolation was off by much, as at a crease, the visible samples
   around it are evaluated too. Steps 2 to 4 are done once more, for every sample.
5. All samples of some rays chosen at random are evaluated, to see whether the interpolation missed anything.
6. Where too many samples would have to be evaluated, or the random rays still show errors, the field is not smooth
   enough: the view is rendered by the definition.

A picture then takes colors and features only from the samples that have weight. Measured: docs/performance.md.
"""
import functools
import math
from typing import NamedTuple

import torch

from volume_renderer import Rendering, VolumeRenderer, pixel_directions, sample_depths

COARSEST = 4  # the coarse grid has every so many-th sample along each axis


class Tolerances(NamedTuple):
    """How exact distances have to be. Some are in betas: beta is the scale on which density changes with distance."""
    depth: float    # what a sample's error may do to its ray's depth, in the world
    safety: float   # the interpolation may be so many times worse than its estimate before a sample's sign may be wrong
    zero: float     # in betas: samples nearer to the zero level than this are all evaluated
    misjudged: float  # in betas: a sample that was off by more shows that its visible neighbors may be wrong too
    expected: dict  # in betas, by stride: 99 of 100 evaluated samples must have been predicted better than this


# The errors of a ray's samples then add up to less than 1e-4. On fields where surface points were off by more, the 99th
# of 100 samples was off by 0.4 and more at stride 2, and by 0.09 and more at stride 1.
SURFACE = Tolerances(depth=1e-6, safety=4, zero=0.05, misjudged=0.05, expected={2: 0.25, 1: 0.05})
# For a picture it is enough to know which samples have weight: those are then evaluated exactly.
PICTURE = Tolerances(depth=1e-4, safety=2, zero=0, misjudged=0.5, expected={})
NO_WEIGHT = 3e-5            # samples of a picture that have less weight are left out
SEEN_TRANSMITTANCE = 1e-3   # where less light arrives than this, a sample is not seen
PROBED = 128                # one of so many rays is evaluated only to check the result
PROBE_ERROR = 10            # a probe fails where an interpolated sample was off by so many times Tolerances.depth
ATTEMPTS = 3                # so many rounds of probes are made at most
LARGEST_SHARE = 0.25        # of all samples may be evaluated: beyond it the interpolation is not worth its time
QUANTILE_VALUES = 100_000   # enough values for a quantile


class SparseRenderer(VolumeRenderer):
    """VolumeRenderer that evaluates few samples, where no gradients are wanted and the field allows it.

    On a GPU it evaluates all samples of a picture, because that is quicker there than choosing; surfaces have many more
    samples. Which class it is combined with (tiles.py) decides how samples are evaluated.
    """

    def forward(self, w, cameras, *, resolution=None, samples=None, color=True, features=True, sdf=False,
                eikonal=False, rng=None, decisive=None):
        view = {'resolution': resolution or self.resolution, 'samples': samples or self.samples, 'color': color,
                'features': color and features, 'sdf': sdf}
        if torch.is_grad_enabled() or eikonal or color and w.is_cuda or not self._has_a_grid(color, sdf):
            return super().forward(w, cameras, eikonal=eikonal, rng=rng, **view)
        views = []
        for b in range(len(cameras)):
            latent, camera = w[b:b + 1], cameras[b:b + 1]
            image_rng = rng[b:b + 1] if isinstance(rng, list) else rng
            views.append(self._render_view(latent, camera, rng=image_rng, decisive=decisive, **view)
                         or super().forward(latent, camera, rng=image_rng, **view))
        return views[0] if len(views) == 1 else Rendering(*(None if values[0] is None else torch.cat(values)
                                                            for values in zip(*views, strict=True)))

    def _has_a_grid(self, color, sdf):
        """Whether the samples of all rays lie on a grid, or at one offset a ray from it, as a picture needs them."""
        return self.density.support is not None and (
            self.perturb == 0 or self.offset_sampling and color and not sdf)

    def _render_view(self, w, camera, resolution, samples, color, features, sdf, rng, decisive):
        """The Rendering of one view, or None where the field is not smooth enough for it."""
        field = self.field(w)
        grid = ViewGrid(self, camera, resolution, samples)

        def evaluate(index):
            return self.sdf_at(field, grid.points(index), camera)

        volume = sdf_volume(evaluate, (resolution, resolution, samples), grid.density, grid.spacing, hidden=sdf,
                            tolerances=PICTURE if color else SURFACE)
        if volume is None:
            return None
        if decisive:
            index = decisive(volume[None, ..., None], SURFACE.zero * grid.density.scale)
            volume[tuple(index.T)] = evaluate(index)
        volume, t = volume.flatten(0, 1), grid.t  # (R,N)
        if self.perturb > 0:
            t = sample_depths(camera.near, camera.far, samples, offset_sampling=self.offset_sampling,
                              perturb=self.perturb, rays=len(volume), rng=rng)
            volume = offset_by(volume, (t[0, :, :1] - grid.depths[0]) / grid.step)
        if color:
            weights, thumbnail, blended = self._colors(field, grid, volume, t, camera, features)
        else:
            weights, thumbnail, blended = self.weights(volume[None], grid.rays[None], t)[0], None, None
        xyz = grid.origin * weights.sum(-1, keepdim=True) + grid.rays * (weights * t[0]).sum(-1, keepdim=True)
        return Rendering(*(None if values is None else values.T.unflatten(1, (resolution, resolution))[None]
                           for values in (thumbnail, blended, xyz, weights[:, -1:])),
                         volume.view(1, resolution, resolution, samples, 1) if sdf else None, None)

    def _colors(self, field, grid, volume, t, camera, features):
        """Weights (R,N), colors (R,3) in [-1, 1] and, if wanted, features (R,C) from the samples that have weight.

        volume: distances (R,N), which at these samples become exact. t: (1,1 or R,N) where the samples lie.
        """
        weighty = self.weights(volume[None], grid.rays[None], t)[0] > NO_WEIGHT
        ray, sample = weighty.nonzero().T
        points = grid.origin + grid.rays[ray] * t[0].expand(len(volume), -1)[weighty][:, None]
        volume[weighty], found, logits = self.evaluate_at(field, points, grid.viewdirs[ray], camera)
        weights = self.weights(volume[None], grid.rays[None], t)[0]
        weight = weights[weighty][:, None]
        kept = weight.new_zeros(len(weights), 1).index_add_(0, ray, weight)
        # The samples that were left out give their weight to those that were kept.
        weight = weight * (weights.sum(-1, keepdim=True) / kept.clamp(min=NO_WEIGHT))[ray]

        def blend(values):
            return values.new_zeros(len(weights), values.shape[1]).index_add_(0, ray, weight * values)

        return weights, 2 * blend(torch.sigmoid(logits)) - 1, blend(found) if features else None


class ViewGrid:
    """The samples of a view without jitter: a grid of rows, columns and depths.

    It reaches one row, column and depth beyond the view, so that a coarser grid can be interpolated up to the end.
    """

    def __init__(self, renderer, camera, resolution, samples):
        self.t = sample_depths(camera.near, camera.far, samples, offset_sampling=renderer.offset_sampling)  # (1,1,N)
        pixels = torch.arange(resolution + 1, device=self.t.device, dtype=self.t.dtype)
        local = pixel_directions(pixels[:, None], pixels, resolution, camera.focal)
        self.directions, viewdirs = (d[0] for d in renderer.directions(local, camera))    # (H+1,W+1,3)
        self.rays, self.viewdirs = (d[:resolution, :resolution].flatten(0, 1) for d in (self.directions, viewdirs))
        self.origin = camera.extrinsics[0, :, 3]
        self.step = self.t[0, 0, 1] - self.t[0, 0, 0]
        self.depths = torch.cat([self.t[0, 0], self.t[0, 0, -1:] + self.step])            # (N+1,)
        # As numbers, which the host has to know.
        scale, self.spacing = torch.cat([renderer.density.scale, self.step[None]]).tolist()
        self.density = renderer.density._replace(scale=scale)

    def points(self, index):
        """World points (P,3) of samples (P,3): row, column, depth."""
        row, column, depth = index.to(self.t.device, non_blocking=True).T
        return self.origin + self.directions[row, column] * self.depths[depth, None]


def sdf_volume(evaluate, shape, density, spacing, hidden=True, tolerances=SURFACE):
    """Signed distances at all samples of a grid: row, column, depth.

    evaluate: a function from an index (P,3) (row, column, depth; also one beyond the end) to distances (P,). shape: of
    the volume, multiples of 4, from 24. density: what turns distances into density, with a number as its scale.
    spacing: between the samples of a ray, in the world. hidden: whether the zero level matters where no ray sees it, as
    it does for a closed mesh. Returns None where the field is not smooth enough for this to be right; then every sample
    has to be evaluated.
    """
    nodes = [size // COARSEST + 1 for size in shape]
    if any(size % COARSEST for size in shape) or min(nodes) <= 6:
        return None
    index = torch.cartesian_prod(*[torch.arange(count) * COARSEST for count in nodes])
    values = evaluate(index).view(*nodes)
    exact = torch.ones_like(values, dtype=torch.bool)
    misjudged = tolerances.misjudged * density.scale
    stride, limit = COARSEST, LARGEST_SHARE * math.prod(shape)
    while stride > 1:
        stride //= 2
        # One node beyond the end to interpolate with, but not in the result.
        counts = [size // stride + (stride > 1) for size in shape]
        values, error = interpolate(values, counts)
        near_zero = values.abs() < torch.clamp(tolerances.safety * error, min=tolerances.zero * density.scale)
        reached, seen = visible(values, density, stride * spacing)
        uncertain = near_zero & (reached | hidden)
        uncertain |= error * influence(values, density, stride * spacing) > tolerances.depth
        coarse, exact = exact, torch.zeros_like(uncertain)
        exact[::2, ::2, ::2] = coarse[tuple(slice((count + 1) // 2) for count in counts)]
        errors = evaluate_around(lambda index, stride=stride: evaluate(index * stride), values, exact,
                                 uncertain & ~exact, seen, misjudged, limit)
        if errors is None:
            return None
        expected = tolerances.expected.get(stride)
        if expected and len(errors) and torch.quantile(evenly_spread(errors), 0.99) > expected * density.scale:
            return None
    for seed in range(ATTEMPTS):
        wrong = probe(evaluate, values, exact, density, spacing, seed, PROBE_ERROR * tolerances.depth)
        if not wrong.any():
            return values
        _, seen = visible(values, density, spacing)
        if evaluate_around(evaluate, values, exact, grown(wrong) & ~exact, seen, misjudged, limit) is None:
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


def evaluate_around(evaluate, values, exact, chosen, seen, misjudged, limit):
    """Evaluate the chosen samples exactly, then the visible neighbors of those that were off by more than `misjudged`,
    and so on until none is.

    values are changed, and so is exact, the mask of samples that were evaluated; chosen and seen are masks too. Returns
    by how much the evaluated samples had been off (n,), or None where more than `limit` samples would be exact.
    """
    errors, count = None, int(exact.sum())
    while len(index := chosen.nonzero()):  # only here does the host wait for a GPU
        count += len(index)
        if count > limit:
            return None
        found, place = evaluate(index), tuple(index.T)
        error = (values[place] - found).abs()
        errors = error if errors is None else errors
        values[place] = found
        exact |= chosen
        off = torch.zeros_like(chosen)
        off[place] = error > misjudged
        chosen = grown(off) & seen & ~exact
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


def evenly_spread(values, count=QUANTILE_VALUES):
    """About `count` of a long list of values, evenly spread."""
    return values[::len(values) // count + 1]


def influence(sdf, density, spacing):
    """How much the sdf (…,N) of each sample of a ray matters: |d depth / d sdf| of the ray, or a tenth of
    |d background / d sdf|, whichever is larger. (The derivatives of the weights that volume_renderer.py computes.)
    """
    transmittance = torch.exp(-spacing * density.value(sdf).cumsum(-1))  # behind each sample
    depth = spacing * torch.arange(sdf.shape[-1], device=sdf.device)
    weights = -transmittance.diff(dim=-1, prepend=torch.ones_like(sdf[..., :1]))
    weights[..., -1] += transmittance[..., -1]
    moments = (weights * depth).cumsum(-1)
    lever = (transmittance * depth - (moments[..., -1:] - moments)).abs()  # the ray's way to what lies behind
    return spacing * density.slope(sdf).abs() * torch.maximum(lever, 0.1 * transmittance[..., -2:-1])


def visible(sdf, density, spacing):
    """Masks of the samples that a ray reaches, and of those among them that have density. sdf (…,N) along the rays."""
    thickness = density.value(sdf) * spacing
    before = thickness.cumsum(-1) - thickness
    reached = torch.exp(-before) > SEEN_TRANSMITTANCE
    return reached, reached & (sdf < density.support)


def probe(evaluate, values, exact, density, spacing, seed, tolerance):
    """A mask of where the volume was wrong on whole rays chosen at random by the seed; there it is right afterwards.

    All samples of these rays are evaluated, so that a surface which the interpolation missed is seen too.
    """
    rows, columns, size = values.shape
    rng, count = torch.Generator().manual_seed(seed), max(1, rows * columns // PROBED)
    row, column = (torch.randint(length, (count,), generator=rng).to(values.device, non_blocking=True)
                   for length in (rows, columns))
    index = torch.stack([row, column]).T.repeat_interleave(size, dim=0)
    depth = torch.arange(size, device=values.device).repeat(count)
    found = evaluate(torch.cat([index, depth[:, None]], dim=1)).view(count, size)
    wrong = torch.zeros_like(exact)
    wrong[row, column] = influence(found, density, spacing) * (values[row, column] - found).abs() > tolerance
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

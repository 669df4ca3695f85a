"""SparseRenderer: views of a field from a tenth of its evaluations.

The definition is VolumeRenderer (volume_renderer.py), which evaluates every sample. A field matters only where a ray
can see it, and most of it can be interpolated. `refine.py` finds the signed distances of a surface. What it cannot
interpolate it evaluates, so the cost grows with the roughness of the field, sample by sample, and no view is given up
as a whole.

A picture needs colors and features of all samples that have weight, so nothing is interpolated that matters. Every 4th
ray of every 4th row is evaluated. Between four of these rays the distances lie between theirs, give or take as much as
they bend nearby. What may have weight by that is evaluated, front to back. Measured: docs/performance.md.
"""
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from op.refine import BENDS, COARSEST, Field, Tolerances, bends, corners, neighborhood, picked, sdf_volume
from volume_renderer import Rendering, VolumeRenderer, pixel_directions, sample_depths

# A depth is to be right to 1e-4 (docs/notes/performance.md says how these were chosen).
SURFACE = Tolerances(nodes=5e-7, centers=1e-6, faces=4e-6, ray=7e-5, sure=8)
NEAR_ZERO = 0.05   # in scales of the density: of a mesh, samples whose sign is in doubt are exact
NO_WEIGHT = 3e-5   # samples of a picture that have less weight are left out
OPAQUE = 20        # exponent: nothing passes, and exp is ten times as slow where its results are subnormal numbers
PROBE_RAYS = 1 / 256  # of a picture: evaluated as a whole, to see whether something was overlooked
SLAB_SAMPLES = 1 << 23  # of a surface whose distances are searched for at a time
FEWEST_ROWS = 24   # of a slab, which the search needs
ROUNDS = 6         # so often at most exact samples uncover others that matter


class SparseRenderer(VolumeRenderer):
    """VolumeRenderer that evaluates few samples, where no gradients are wanted.

    On a GPU it evaluates all samples of a picture, because that is quicker there than choosing; surfaces have many more
    samples. Which class it is combined with (tiles.py) decides how samples are evaluated.
    """

    def forward(self, w, cameras, *, resolution=None, samples=None, color=True, features=True, sdf=False,
                eikonal=False, rng=None, decisive=None):
        resolution, samples = resolution or self.resolution, samples or self.samples
        if torch.is_grad_enabled() or eikonal or not self._has_a_grid(resolution, color, sdf, w.is_cuda):
            return super().forward(w, cameras, resolution=resolution, samples=samples, color=color, features=features,
                                   sdf=sdf, eikonal=eikonal, rng=rng)
        views = []
        for b in range(len(cameras)):
            latent, camera = w[b:b + 1], cameras[b:b + 1]
            image_rng = rng[b:b + 1] if isinstance(rng, list) else rng
            grid, field = ViewGrid(self, camera, resolution, samples), self.field(latent)
            views.append(self._picture(field, grid, camera, features, image_rng) if color else
                         self._surface(field, grid, camera, sdf, decisive)
                         or super().forward(latent, camera, resolution=resolution, samples=samples, color=False,
                                            sdf=sdf))
        return Rendering.joined(views)

    def _has_a_grid(self, resolution, color, sdf, on_gpu):
        """Whether views may come from few samples: those of all rays lie on a grid, or, of a picture, at one offset a
        ray from it."""
        if self.density.support is None:
            return False
        if color:
            return not sdf and not on_gpu and resolution % COARSEST == 0 and resolution > 2 * COARSEST and (
                self.perturb == 0 or self.offset_sampling)
        return self.perturb == 0

    def _surface(self, field, grid, camera, sdf, decisive):
        """The Rendering of a surface, or None where it has too few samples to choose from.

        One of more than SLAB_SAMPLES is found in slabs of rows. What decides its mesh is then not asked for, since it
        may lie in two slabs: all samples around the zero level count as such.
        """
        slabs = -(-grid.resolution ** 2 * grid.samples // SLAB_SAMPLES)
        if slabs > 1:
            return self._surface_in_slabs(field, grid, camera, sdf, min(slabs, grid.resolution // FEWEST_ROWS))

        def of_mesh(*volumes):
            return decisive(*(volume[None, ..., None] for volume in volumes), NEAR_ZERO * grid.density.scale)

        volume = self._slab(field, grid, camera, sdf, (0, grid.resolution), of_mesh if decisive else None)
        if volume is None:
            return None
        weights = self.weights(volume.flatten(0, 1)[None], grid.rays[None], grid.t)[0]
        return self._rendering(grid, grid.t, weights, sdf=volume[None, ..., None] if sdf else None)

    def _slab(self, field, grid, camera, sdf, rows, of_mesh=None):
        """Distances (rows,W,N) of rows from the first to before the last, or None where there are too few samples."""
        first, last = rows

        def evaluate(index):
            return self.sdf_at(field, grid.points(index, first), camera)

        return sdf_volume(Field(evaluate, (last - first, grid.resolution, grid.samples), grid.density, grid.spacing,
                                SURFACE, sdf, of_mesh))

    def _surface_in_slabs(self, field, grid, camera, sdf, slabs):
        """The Rendering of a surface, some rows at a time."""
        ends = [round(i * grid.resolution / slabs) for i in range(slabs + 1)]
        volume = grid.t.new_empty(grid.resolution, grid.resolution, grid.samples) if sdf else None
        xyz, background = [], []
        for rows in itertools.pairwise(ends):
            slab = self._slab(field, grid, camera, sdf, rows, around_zero if sdf else None)
            rays = slice(*(row * grid.resolution for row in rows))
            weights = self.weights(slab.flatten(0, 1)[None], grid.rays[None, rays], grid.t)[0]
            xyz.append(grid.surface_points(grid.rays[rays], grid.t, weights))
            background.append(weights[:, -1:])
            if sdf:
                volume[slice(*rows)] = slab
        xyz, background = (torch.cat(values).T.unflatten(1, (grid.resolution, grid.resolution))[None]
                           for values in (xyz, background))
        return Rendering(None, None, xyz, background, volume[None, ..., None] if sdf else None, None)

    def _picture(self, field, grid, camera, features, rng):
        """The Rendering of a picture."""
        t = grid.t
        if self.perturb > 0:
            t = sample_depths(camera.near, camera.far, grid.samples, offset_sampling=self.offset_sampling,
                              perturb=self.perturb, rays=len(grid.rays), rng=rng)
        picture = Picture(self, field, grid, camera, t[0].expand(len(grid.rays), -1))
        picture.settle()
        weights = self.weights(picture.values[None], grid.rays[None], t)[0]
        return self._rendering(grid, t, weights, *picture.blend(weights, features))

    def _rendering(self, grid, t, weights, thumbnail=None, features=None, sdf=None):
        """The Rendering from values that lie ray by ray, but sdf (1,H,W,N,1)."""
        xyz = grid.surface_points(grid.rays, t, weights)
        return Rendering(*(None if values is None else values.T.unflatten(1, (grid.resolution, grid.resolution))[None]
                           for values in (thumbnail, features, xyz, weights[:, -1:])), sdf, None)


def around_zero(volume, _):
    """(P,3) index of the samples of a volume (H,W,N) that differ from a neighbor in sign, and of those beside them."""
    inside, mask = volume < 0, torch.zeros_like(volume, dtype=torch.bool)
    for axis in range(3):
        count = volume.shape[axis] - 1
        crosses = inside.narrow(axis, 0, count) != inside.narrow(axis, 1, count)
        for start in (0, 1):
            mask.narrow(axis, start, count).logical_or_(crosses)
    return neighborhood(torch.logical_or, mask).nonzero()


class Picture:
    """The samples of a picture: R rays of N each, of which those are evaluated that may have weight.

    low, high: between which the distances (R,N) lie; values: what they are, or a guess; known: which were evaluated.
    """

    def __init__(self, renderer, field, grid, camera, t):
        """t: (R,N) where the samples lie: on the grid, or up to one step behind it."""
        self.renderer, self.field, self.grid, self.camera, self.t = renderer, field, grid, camera, t
        self.evaluated, self.known = [], torch.zeros_like(t, dtype=torch.bool)
        self.spacing = (t[:, 1:] - t[:, :-1]) * grid.rays.norm(dim=-1, keepdim=True)  # (R,N-1)
        self.bound()

    def bound(self):
        """Evaluate every 4th ray of every 4th row, and find the bounds by that."""
        grid, jittered = self.grid, self.renderer.perturb > 0
        size, depths = grid.resolution // COARSEST + 1, grid.samples + jittered
        coarse = COARSEST * torch.arange(size)
        index = torch.cartesian_prod(coarse, coarse, torch.arange(depths)).to(self.t.device, non_blocking=True)
        points, (row, column, depth) = grid.points(index), index.T
        if jittered:
            found = self.renderer.sdf_at(self.field, points, self.camera)
        else:  # these are samples of the picture
            inside = (row < grid.resolution) & (column < grid.resolution)
            found = self.evaluate(row * grid.resolution + column, depth, points, grid.viewdirs[row, column], inside)
        nodes = found.view(size, size, depths)
        axes = 3 if jittered else 2
        room = BENDS * corners(torch.maximum, neighborhood(torch.maximum, bends(nodes, axes)), axes)

        room = room.repeat_interleave(COARSEST, 0).repeat_interleave(COARSEST, 1).flatten(0, 1)
        between = F.interpolate(nodes.permute(2, 0, 1)[None], size=(size - 1) * COARSEST + 1, mode='bilinear',
                                align_corners=True)[0, :, :-1, :-1].flatten(1).T
        if jittered:
            between = torch.lerp(between[:, :-1], between[:, 1:], (self.t[:, :1] - grid.depths[0]) / grid.step)
        self.values, self.low, self.high = between, between - room, between + room
        if not jittered:
            self.low[self.known] = self.high[self.known] = self.values[self.known]

    def settle(self):
        """Evaluate the samples that may have weight."""
        rays = picked(torch.arange(len(self.t))[:, None], max(1, int(len(self.t) * PROBE_RAYS)),
                      torch.Generator().manual_seed(0))[:, 0]
        for attempt in range(ROUNDS):
            wanted = self.most_weight(self.high if attempt else self.values) > NO_WEIGHT
            if not attempt:
                wanted[rays] = True
            ray, sample = (wanted & ~self.known).nonzero().T
            if not len(ray):
                return
            points = self.grid.origin + self.grid.rays[ray] * self.t[ray, sample, None]
            viewdirs = self.grid.viewdirs[ray // self.grid.resolution, ray % self.grid.resolution]
            found = self.evaluate(ray, sample, points, viewdirs)
            self.widen(ray, sample, torch.maximum(self.low[ray, sample] - found, found - self.high[ray, sample]))
            for volume in (self.values, self.low, self.high):
                volume[ray, sample] = found

    def most_weight(self, thick):
        """The largest weights (R,N) that the samples can have, if those before them are at the distances `thick`."""
        def opacity(distances):
            return self.grid.density.value(distances[:, :-1]).mul_(self.spacing)

        weight = torch.ones_like(thick)  # the last sample may get all that is left
        weight[:, :-1] -= opacity(self.low).clamp_(max=OPAQUE).neg_().exp_()
        weight[:, 1:] *= opacity(thick).cumsum(-1).clamp_(max=OPAQUE).neg_().exp_()
        return weight

    def widen(self, ray, sample, outside):
        """Widen the bounds around samples that were `outside` (P,) of them by so much; below zero: they were not."""
        if not (outside > 0).any():
            return
        around = torch.zeros_like(self.low)
        around[ray, sample] = outside.clamp(min=0)
        size = self.grid.resolution
        around = 2 * neighborhood(torch.maximum, around.view(size, size, -1), COARSEST).flatten(0, 1)
        around.masked_fill_(self.known, 0)
        self.low -= around
        self.high += around

    def evaluate(self, ray, sample, points, viewdirs, kept=None):
        """Distances (P,) at points (P,3); kept: which of them are samples of the picture, ray and sample (P,), if not
        all are. The samples lie ray by ray."""
        distances, features, logits = self.renderer.evaluate_at(self.field, points, viewdirs, self.camera)
        index = torch.arange(len(points), device=ray.device) if kept is None else kept.nonzero()[:, 0]
        self.evaluated.append(Evaluated(ray[index], sample[index], index, features, logits))
        self.known[ray[index], sample[index]] = True
        return distances

    def blend(self, weights, features):
        """Colors (R,3) in [-1, 1] and, if wanted, features (R,C), of the samples with these weights (R,N)."""
        kept = weights.where(self.known, 0.)
        # The samples that were left out give their weight to those that were kept.
        kept *= weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=NO_WEIGHT)
        colors = sum(part.blended(kept, torch.sigmoid(part.logits)) for part in self.evaluated)
        return 2 * colors - 1, sum(part.blended(kept, part.features) for part in self.evaluated) if features else None


class Evaluated(NamedTuple):
    """Samples of a picture that were evaluated together, ray by ray: P of them, among Q points."""
    ray: Tensor       # (P,)
    sample: Tensor    # (P,) its place along that ray
    index: Tensor     # (P,) its point
    features: Tensor  # (Q,C)
    logits: Tensor    # (Q,3)

    def blended(self, weights, values):
        """What they add to each ray (R,C), by the weights (R,N) of all samples; values: (Q,C) at the points."""
        begins = F.pad(torch.bincount(self.ray, minlength=len(weights)).cumsum(0)[:-1], (1, 0))  # of each ray in here
        return F.embedding_bag(self.index, values, begins, mode='sum',
                               per_sample_weights=weights[self.ray, self.sample])


class ViewGrid:
    """The samples of a view without jitter: a grid of rows, columns and depths.

    It reaches beyond the view, so that a coarser grid can be interpolated up to the end.
    """

    def __init__(self, renderer, camera, resolution, samples):
        self.resolution, self.samples = resolution, samples
        self.t = sample_depths(camera.near, camera.far, samples, offset_sampling=renderer.offset_sampling)  # (1,1,N)
        pixels = torch.arange(resolution + COARSEST, device=self.t.device, dtype=self.t.dtype)
        local = pixel_directions(pixels[:, None], pixels, resolution, camera.focal)
        self.directions, self.viewdirs = (d[0] for d in renderer.directions(local, camera))  # (H+4,W+4,3)
        self.rays = self.directions[:resolution, :resolution].flatten(0, 1)                # (R,3)
        self.origin = camera.extrinsics[0, :, 3]
        self.step = self.t[0, 0, 1] - self.t[0, 0, 0]
        beyond = torch.arange(1, COARSEST + 1, device=self.t.device) * self.step
        self.depths = torch.cat([self.t[0, 0], self.t[0, 0, -1:] + beyond])                # (N+4,)
        # As numbers, which the host has to know.
        scale, self.spacing = torch.cat([renderer.density.scale, self.step[None]]).tolist()
        self.density = renderer.density._replace(scale=scale)

    def surface_points(self, rays, t, weights):
        """Expected points (R,3) of rays (R,3) whose samples t (1,1 or R,N) have weights (R,N)."""
        return self.origin * weights.sum(-1, keepdim=True) + rays * (weights * t[0]).sum(-1, keepdim=True)

    def points(self, index, first=0):
        """World points (P,3) of samples (P,3): row, counted from the row `first` on, column, depth."""
        row, column, depth = index.to(self.t.device, non_blocking=True).T
        return self.origin + self.directions[row + first, column] * self.depths[depth, None]

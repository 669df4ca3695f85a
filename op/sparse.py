"""SparseRenderer: views of a field from a tenth of its evaluations.

The definition is VolumeRenderer (volume_renderer.py), which evaluates every sample. A field matters only where a ray
can see it, and most of it can be interpolated. `refine.py` finds the signed distances of a view, and how far off each
may be; what it cannot interpolate it evaluates. So the cost grows with the roughness of the field, sample by sample,
and no view is given up as a whole.

A surface is finished when both ends of every edge that its mesh cuts are exact. A picture takes colors and features
from the samples that may have weight; where their exact distances uncover other samples, those follow. Measured:
docs/performance.md.
"""
import torch

from op.refine import COARSEST, Field, Tolerances, most_weight, sdf_volume
from volume_renderer import Rendering, VolumeRenderer, pixel_directions, sample_depths

# A depth is to be right to 1e-4 (docs/notes/performance.md says how these were chosen).
SURFACE = Tolerances(nodes=5e-7, centers=1e-6, faces=4e-6, ray=7e-5, sure=7)
# For a picture it is enough to know which samples may have weight: those are then evaluated.
PICTURE = Tolerances(nodes=2e-5, centers=1e-4, faces=1e-4, ray=None, sure=None)
NEAR_ZERO = 0.05   # in scales of the density: of a mesh, samples whose sign is in doubt are exact
NO_WEIGHT = 3e-5   # samples of a picture that have less weight are left out
HEAVY = 1e-3       # samples of more weight are not alone: those beside them are evaluated too
DOUBTS = 4         # deviations that a distance of a picture may be off by
ROUNDS = 6         # so often at most exact samples uncover others that matter


class SparseRenderer(VolumeRenderer):
    """VolumeRenderer that evaluates few samples, where no gradients are wanted.

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
        """The Rendering of one view, or None where it has too few samples to choose from."""
        grid = ViewGrid(self, camera, resolution, samples)
        looks = Looks(self, self.field(w), grid, camera, color)

        def of_mesh(volume):
            return decisive(volume[None, ..., None], NEAR_ZERO * grid.density.scale)

        found = sdf_volume(Field(looks.at_grid, (resolution, resolution, samples), grid.density, grid.spacing,
                                 PICTURE if color else SURFACE, sdf, of_mesh if decisive else None))
        if found is None:
            return None
        t = grid.t
        volume, deviation = found.values.flatten(0, 1), found.deviation.flatten(0, 1)  # (R,N)
        if self.perturb > 0:
            t = sample_depths(camera.near, camera.far, samples, offset_sampling=self.offset_sampling,
                              perturb=self.perturb, rays=len(volume), rng=rng)
            offset = (t[0, :, :1] - grid.depths[0]) / grid.step
            volume, deviation = offset_by(volume, offset), offset_by(deviation, offset).clamp_(min=0)
            looks.forget()
        thumbnail = blended = None
        if color:
            self._settle_picture(volume, deviation, looks, t)
        weights = self.weights(volume[None], grid.rays[None], t)[0]  # (R,N)
        if color:
            thumbnail, blended = looks.blend(weights, features)
        xyz = grid.origin * weights.sum(-1, keepdim=True) + grid.rays * (weights * t[0]).sum(-1, keepdim=True)
        return Rendering(*(None if values is None else values.T.unflatten(1, (resolution, resolution))[None]
                           for values in (thumbnail, blended, xyz, weights[:, -1:])),
                         volume.view(1, resolution, resolution, samples, 1) if sdf else None, None)

    def _settle_picture(self, volume, deviation, looks, t):
        """Evaluate the samples t (1,1 or R,N) of a picture that may have weight. Changes volume and deviation (R,N)."""
        grid = looks.grid
        spacing = (t[0, :, 1:] - t[0, :, :-1]) * grid.rays.norm(dim=-1, keepdim=True)  # (R,N-1)
        for attempt in range(ROUNDS):
            wanted = most_weight(grid.density, volume, DOUBTS * deviation, spacing) > NO_WEIGHT
            if attempt:
                heavy = self.weights(volume[None], grid.rays[None], t)[0] > HEAVY
                wanted |= beside(heavy.view(grid.resolution, grid.resolution, -1)).view_as(heavy)
            wanted &= looks.row < 0
            index = wanted.nonzero()
            if not len(index):
                return
            volume[wanted] = looks.at_samples(index, t)
            deviation[wanted] = 0


def beside(mask):
    """The samples (row, column, depth) of a mask and their neighbors on the rays beside."""
    grown = mask.clone()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


class Looks:
    """Evaluates samples of a view. For a picture it keeps what it found, so that nothing is evaluated twice."""

    def __init__(self, renderer, field, grid, camera, color):
        self.renderer, self.field, self.grid, self.camera, self.color = renderer, field, grid, camera, color
        self.forget()

    def forget(self):
        """From now on the samples lie elsewhere."""
        grid = self.grid
        self.features, self.logits, self.count = [], [], 0
        self.row = torch.full((len(grid.rays), grid.samples), -1, device=grid.t.device) if self.color else None

    def at_grid(self, index):
        """Distances (P,) of the grid's samples index (P,3): row, column, depth."""
        points, grid = self.grid.points(index), self.grid
        if not self.color or self.renderer.perturb > 0:
            return self.renderer.sdf_at(self.field, points, self.camera)
        row, column, depth = index.T
        inside = (row < grid.resolution) & (column < grid.resolution) & (depth < grid.samples)
        return self._look(row * grid.resolution + column, depth, points, grid.viewdirs[row, column], inside)

    def at_samples(self, index, t):
        """Distances (P,) of samples index (P,2), ray and number; t: (1,1 or R,N) where they lie."""
        ray, sample = index.T
        depth = t[0].expand(len(self.grid.rays), -1)[ray, sample]
        points = self.grid.origin + self.grid.rays[ray] * depth[:, None]
        viewdirs = self.grid.viewdirs[ray // self.grid.resolution, ray % self.grid.resolution]
        return self._look(ray, sample, points, viewdirs, slice(None))

    def _look(self, ray, sample, points, viewdirs, kept):
        """Distances (P,) at points (P,3); kept: which of them are samples of the view, ray and sample (P,)."""
        distances, features, logits = self.renderer.evaluate_at(self.field, points, viewdirs, self.camera)
        self.features.append(features)
        self.logits.append(logits)
        row = torch.arange(self.count, self.count + len(points), device=ray.device)
        self.row[ray[kept], sample[kept]] = row[kept]
        self.count += len(points)
        return distances

    def blend(self, weights, features):
        """Colors (R,3) in [-1, 1] and, if wanted, features (R,C), of the samples with these weights (R,N)."""
        ray, sample = (self.row >= 0).nonzero().T
        row, weight = self.row[ray, sample], weights[ray, sample][:, None]
        kept = weight.new_zeros(len(weights), 1).index_add_(0, ray, weight)
        # The samples that were left out give their weight to those that were kept.
        weight = weight * (weights.sum(-1, keepdim=True) / kept.clamp(min=NO_WEIGHT))[ray]

        def blended(values):
            values = torch.cat(values)[row]
            return values.new_zeros(len(weights), values.shape[1]).index_add_(0, ray, values.mul_(weight))

        colors = 2 * blended([torch.sigmoid(logits) for logits in self.logits]) - 1
        return colors, blended(self.features) if features else None


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

    def points(self, index):
        """World points (P,3) of samples (P,3): row, column, depth."""
        row, column, depth = index.to(self.t.device, non_blocking=True).T
        return self.origin + self.directions[row, column] * self.depths[depth, None]


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

"""VolumeRenderer a tile of rays at a time, with the field folded: less memory, and on a CPU twice as fast.

The definition is VolumeRenderer (volume_renderer.py). Without gradients a tile after the other works in the same
scratch memory, which on a CPU stays in the cache. With gradients only what a tile returns is kept, and the backward
pass evaluates the tile again. The slope for the eikonal loss is written out by the chain rule instead of being derived
by autograd. Measured: docs/performance.md.
"""
import torch
from torch.utils.checkpoint import checkpoint

from op.folded_field import Scratch, fold
from volume_renderer import Rays, Rendering, VolumeRenderer

# Points evaluated together without gradients. On a CPU a tile's activations stay in the cache (measured:
# docs/performance.md), and those of a narrow field are small; on a GPU the tile only bounds memory.
TILE_POINTS = {'cpu': 4096, 'cuda': 1 << 19}
NARROW, MOST_TIMES = 128, 4  # channels below which a tile on a CPU has more points, and up to how many times as many
# The same with gradients. A GPU holds all points of an image of default size rather than evaluate any twice.
TRAINING_POINTS = {'cpu': 8192, 'cuda': 1 << 22}


def tile_points(device, width):
    """How many points of a field of so many channels to evaluate together on a device."""
    points = TILE_POINTS.get(device.type, TILE_POINTS['cuda'])
    return points * min(MOST_TIMES, max(1, NARROW // width)) if device.type == 'cpu' else points


def part_of(rays, images, index):
    """The Rays of a slice of the images, and of each a slice of the rays."""
    return Rays(rays.cameras[images], *(tensor[images, index] for tensor in rays[1:]))


class TiledRenderer(VolumeRenderer):
    """VolumeRenderer in tiles."""

    def field(self, w):
        return fold(self.network, w)

    def march(self, field, rays, wanted, rng=None):
        return (self._march_again if torch.is_grad_enabled() else self._march_tiles)(field, rays, wanted, rng)

    def _march_tiles(self, field, rays, wanted, rng):
        """One image and a tile of its rays at a time; on a GPU, for which one is little work, as many images as fill a
        tile."""
        batch, count, samples = rays.t.shape
        tile, scratch = max(1, tile_points(rays.t.device, self.network.width) // samples), Scratch()
        images = 1 if rays.t.device.type == 'cpu' else max(1, tile // count)
        whole = {}
        for first in range(0, batch, images):
            image = slice(first, first + images)
            image_field, image_rays = field.images(image)._replace(scratch=scratch), part_of(rays, image, slice(None))
            image_rng = rng[image] if isinstance(rng, list) else rng
            for start in range(0, count, tile):
                index = slice(start, start + tile)
                marched = super().march(image_field, part_of(image_rays, slice(None), index), wanted, image_rng)
                for name, value in marched._asdict().items():
                    if value is None:
                        whole[name] = None
                        continue
                    if name not in whole:
                        whole[name] = value.new_empty(batch, count, *value.shape[2:])
                    whole[name][image, index] = value
        return Rendering(**whole)

    def _march_again(self, field, rays, wanted, rng):
        """With gradients, a tile of the rays of all images at a time; the backward pass evaluates it again. On a CPU
        that takes no longer than keeping everything, since a tile stays in the cache."""
        batch, count, samples = rays.t.shape
        tile = max(1, TRAINING_POINTS.get(rays.t.device.type, TRAINING_POINTS['cuda']) // (batch * samples))
        # A density's noise would be drawn anew.
        if tile >= count or self.raw_noise_std > 0:
            return super().march(field, rays, wanted, rng)
        march = super().march
        parts = [checkpoint(march, field, part_of(rays, slice(None), slice(start, start + tile)), wanted, rng,
                            use_reentrant=False, preserve_rng_state=False)
                 for start in range(0, count, tile)]
        return Rendering(*(None if values[0] is None else torch.cat(values, dim=1)
                           for values in zip(*parts, strict=True)))

    def evaluate(self, field, points, viewdirs, cameras, eikonal=False):
        if not eikonal:
            return super().evaluate(field, points, viewdirs, cameras)
        *values, slope = field.with_slope(self.scale(points, cameras).flatten(1, 2), viewdirs)
        # By the unscaled points: the inner derivative.
        return (*(x if x is None else x.unflatten(1, points.shape[1:3]) for x in values),
                self.scale(slope.view_as(points), cameras))

    # -- at single points: without gradients

    def evaluate_at(self, field, points, viewdirs, cameras):
        tiles = [(sdf, features.clone(), logits)  # the next tile overwrites the features
                 for sdf, features, logits in self._tiles(field, points, viewdirs, cameras)]
        sdf, features, logits = (torch.cat(values, dim=1)[0] for values in zip(*tiles, strict=True))
        return sdf[:, 0], features, logits

    def sdf_at(self, field, points, cameras):
        return torch.cat([sdf[0, :, 0] for sdf, _, _ in self._tiles(field, points, None, cameras)])

    def color_at(self, w, points, viewdirs, cameras):
        tiles = self._tiles(self.field(w), points, viewdirs, cameras)
        return torch.cat([torch.sigmoid(logits)[0] for _, _, logits in tiles])

    def _tiles(self, field, points, viewdirs, cameras):
        """Yield (sdf, features, logits) of a tile of points after the other."""
        field, tile = field._replace(scratch=Scratch()), tile_points(points.device, self.network.width)
        for start in range(0, max(1, len(points)), tile):  # one tile of nothing, for no points
            index = slice(start, start + tile)
            yield field(self.scale(points[None, index], cameras), None if viewdirs is None else viewdirs[None, index])

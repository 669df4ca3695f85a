"""VolumeRenderer a tile of rays at a time, with the field folded: less memory, and on a CPU several times as fast.

The definition is VolumeRenderer (volume_renderer.py). Without gradients each thread of a CPU takes a tile at a time
through all layers (threads.py), whose values stay in the cache of its core. With gradients only what a tile returns is
kept, and the backward pass evaluates the tile again. The slope for the eikonal loss is written out by the chain rule
instead of being derived by autograd. Measured: docs/performance.md.
"""
import threading
from collections import defaultdict

import torch
from torch.utils.checkpoint import checkpoint

from op.folded_field import Scratch, fold
from op.threads import for_each
from volume_renderer import Rays, Rendering, VolumeRenderer

# Values of a layer, points times channels, that are evaluated together without gradients. On a CPU they stay in the
# cache of a core (measured: docs/notes/performance.md); on a GPU this only bounds the memory.
TILE_VALUES = {'cpu': 1 << 19, 'cuda': 1 << 27}
MOST_POINTS = 1 << 14  # of a tile on a CPU: of a narrow field, all threads shall have some
# Points evaluated together with gradients. A GPU holds those of a whole image rather than evaluate any twice.
TRAINING_POINTS = {'cpu': 8192, 'cuda': 1 << 22}


def tile_points(device, width):
    """How many points of a field of so many channels to evaluate together on a device."""
    points = max(1, TILE_VALUES.get(device.type, TILE_VALUES['cuda']) // width)
    return min(points, MOST_POINTS) if device.type == 'cpu' else points


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
        tile = max(1, tile_points(rays.t.device, self.network.width) // samples)
        images = 1 if rays.t.device.type == 'cpu' else max(1, tile // count)
        whole, scratches, march = {}, defaultdict(Scratch), super().march

        def march_tile(part):
            image, index = part
            marched = march(field.images(image)._replace(scratch=scratches[threading.get_ident()]),
                            part_of(rays, image, index), wanted, rng[image] if isinstance(rng, list) else rng)
            for name, value in marched._asdict().items():
                if value is None:
                    whole[name] = None
                    continue
                if name not in whole:
                    whole[name] = value.new_empty(batch, count, *value.shape[2:])
                whole[name][image, index] = value

        parts = [(slice(first, first + images), slice(start, start + tile))
                 for first in range(0, batch, images) for start in range(0, count, tile)]
        march_tile(parts[0])  # it makes room for all
        for_each(march_tile, parts[1:], rays.t.device, in_order=self.raw_noise_std > 0)  # which draws from rng
        return Rendering(**whole)

    def _march_again(self, field, rays, wanted, rng):
        """With gradients, a tile of rays at a time, which the backward pass evaluates again. On a CPU that takes no
        longer than keeping everything, since a tile stays in the cache; there a tile belongs to one image, which has
        weights of its own (products.py)."""
        batch, count, samples = rays.t.shape
        if self.raw_noise_std > 0:  # it would be drawn anew
            return super().march(field, rays, wanted, rng)
        device, march = rays.t.device.type, super().march
        images = 1 if device == 'cpu' else batch
        most = TRAINING_POINTS.get(device, TRAINING_POINTS['cuda'])
        tile = max(1, most // (images * samples))

        def marched(image, index):
            inputs = field.images(image), part_of(rays, image, index), wanted, rng
            if batch * count * samples <= most:
                return march(*inputs)
            return checkpoint(march, *inputs, use_reentrant=False, preserve_rng_state=False)

        return Rendering.joined([Rendering.joined([marched(slice(first, first + images), slice(start, start + tile))
                                                   for start in range(0, count, tile)], dim=1)
                                 for first in range(0, batch, images)])

    def evaluate(self, field, points, viewdirs, cameras, eikonal=False):
        if not eikonal:
            return super().evaluate(field, points, viewdirs, cameras)
        *values, slope = field.with_slope(self.scale(points, cameras).flatten(1, 2), viewdirs)
        # By the unscaled points: the inner derivative.
        return (*(x if x is None else x.unflatten(1, points.shape[1:3]) for x in values),
                self.scale(slope.view_as(points), cameras))

    # -- at single points: without gradients

    def evaluate_at(self, field, points, viewdirs, cameras):
        sdf, features, logits = self._at(field, points, viewdirs, cameras, (0, 1, 2))
        return sdf[:, 0], features, logits

    def sdf_at(self, field, points, cameras):
        return self._at(field, points, None, cameras, (0,))[0][:, 0]

    def color_at(self, w, points, viewdirs, cameras):
        return torch.sigmoid(self._at(self.field(w), points, viewdirs, cameras, (2,))[0])

    def _at(self, field, points, viewdirs, cameras, wanted):
        """Those outputs of the field at points (P,3) that are wanted, by their numbers: (P,…) each."""
        sizes = 1, self.network.width, 3
        outputs = [points.new_empty(len(points), sizes[i]) for i in wanted]
        tile, scratches = tile_points(points.device, self.network.width), defaultdict(Scratch)

        def evaluate(start):
            index = slice(start, start + tile)
            found = field._replace(scratch=scratches[threading.get_ident()])(
                self.scale(points[None, index], cameras), None if viewdirs is None else viewdirs[None, index])
            for output, i in zip(outputs, wanted, strict=True):
                output[index] = found[i][0]

        for_each(evaluate, range(0, len(points), tile), points.device)
        return outputs

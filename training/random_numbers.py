"""Every random number of training.

Each is a pure function of (seed, purpose, step, image number). So neither --chunk nor the number of processes changes
what is drawn, and a resumed run needs no random states: the iteration says it all.
"""
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from camera import Cameras, cameras_at, sample_viewpoints
from volume_renderer import draw


def image_rngs(seed, purpose, step, images, device):
    """A random generator for each image number in `images`, from (seed, purpose, step, number) alone."""
    key = zlib.crc32(purpose.encode())
    return [torch.Generator(device).manual_seed(
        int(np.random.SeedSequence([seed, key, step, image]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for image in images]


class Fakes(NamedTuple):
    """What a batch of generated images is made from."""
    z: Tensor         # (B,style_dim)
    second: Tensor    # (B,style_dim) the other latent of style mixing
    cameras: Cameras  # B of them
    rngs: list        # B random generators, for jitter and noise

    def select(self, indices):
        """The same for a slice of the batch."""
        return Fakes(*(values[indices] for values in self))


def draw_fakes(opt, purpose, step, images, device):
    """Fakes for the image numbers `images` of one step."""
    rngs = image_rngs(opt.experiment.seed, purpose, step, images, device)
    z, second = torch.stack([torch.randn(2, opt.model.style_dim, generator=rng, device=device) for rng in rngs], dim=1)
    viewpoints = torch.cat([sample_viewpoints(1, opt.camera.azim, opt.camera.elev, opt.camera.uniform, rng, device)
                            for rng in rngs])
    cameras = cameras_at(viewpoints, opt.model.renderer_spatial_output_dim, opt.camera.fov, opt.camera.dist_radius)
    return Fakes(z=z, second=second, cameras=cameras, rngs=rngs)


def draw_mixing(opt, purpose, step, layers):
    """Style mixing (probability --mixing): the layer, 1 .. layers - 1, where the second latent takes over, or None."""
    rng, = image_rngs(opt.experiment.seed, f'{purpose} mixing', step, [0], 'cpu')
    mixed = torch.rand((), generator=rng) < opt.training.mixing
    return int(torch.randint(1, layers, (), generator=rng)) if mixed else None


def draw_directions(fakes, size, device):
    """Directions (B,3,size,size) from N(0, I), along which the path lengths of B fakes are measured."""
    return draw(torch.randn, (len(fakes.z), 3, size, size), fakes.rngs, device=device)

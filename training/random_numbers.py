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


def image_rngs(seed, purpose, step, images, device):
    """A random generator for each image number in `images`, from (seed, purpose, step, number) alone."""
    key = zlib.crc32(purpose.encode())
    return [torch.Generator(device).manual_seed(
        int(np.random.SeedSequence([seed, key, step, image]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for image in images]


class Fakes(NamedTuple):
    """What determines a batch of generated images."""
    z: Tensor         # (B,style_dim)
    second: Tensor    # (B,style_dim) the other latent of style mixing
    cameras: Cameras  # B of them
    rngs: list        # B random generators, for jitter and noise

    def part(self, index):
        """The same of a slice of the batch."""
        return Fakes(*(field[index] for field in self))


def draw_fakes(opt, purpose, step, images, device):
    """Fakes for the image numbers `images` of one step."""
    rngs = image_rngs(opt.experiment.seed, purpose, step, images, device)
    z, second = torch.stack([torch.randn(2, opt.model.style_dim, generator=own, device=device)
                             for own in rngs], dim=1)
    viewpoints = torch.cat([sample_viewpoints(1, opt.camera.azim, opt.camera.elev, opt.camera.uniform, own, device)
                            for own in rngs])
    cameras = cameras_at(viewpoints, opt.model.renderer_spatial_output_dim, opt.camera.fov, opt.camera.dist_radius)
    return Fakes(z, second, cameras, rngs)

"""A model that photos are inverted with, and what is to be found of each photo."""
import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from munch import Munch
from torch import Tensor

from camera import cameras_of, sample_viewpoints
from inference.latents import latents_of_w, render_latents
from inversion.space import Space, spaces_of
from model import Generator, MeanLatents

COARSE_RAYS = 16  # rays a side of what is compared at first


class Guess(NamedTuple):
    """Where B identities seem to be, and where they are seen from."""
    viewpoint: Tensor  # (B,2) radians
    u: Tensor          # (B,style_dim) coordinates of w

    def select(self, index):
        return Guess(self.viewpoint[index], self.u[index])


class Photos(NamedTuple):
    """B photos as the model would make them, values in [-1, 1]."""
    images: Tensor      # (B,3,S,S), S the side of the model's pictures
    thumbnails: Tensor  # (B,3,R,R), R the rays along a side
    coarse: Tensor      # (B,3,r,r) with at most COARSE_RAYS

    def repeated(self, count):
        """Each photo `count` times in a row."""
        return Photos(*(images.repeat_interleave(count, dim=0) for images in self))


@dataclasses.dataclass(frozen=True)
class Inverter:
    """A generator without gradients of its own, its flags, and the coordinates of its latents.

    psi: truncation of the identities that are likely. features: a FeatureNetwork (inversion/features.py), or None.
    """
    generator: Generator
    opt: Munch
    means: MeanLatents
    psi: float
    w_space: Space
    w_prime_space: Space | None
    features: object = None

    @classmethod
    def of(cls, generator, opt, means, features=None):
        psi = opt.inference.truncation_ratio
        return cls(generator, opt, means, psi, *spaces_of(generator, psi, means), features)

    @property
    def device(self):
        return self.means.w.device

    @property
    def size(self):
        """The side of the model's pictures."""
        return self.generator.decoder.size if self.generator.full_pipeline else self.generator.renderer.resolution

    @property
    def coarse_rays(self):
        return min(COARSE_RAYS, self.generator.renderer.resolution)

    def photos(self, images):
        """Photos of images (B,3,S,S)."""
        def shrunk(side):
            return images if side == images.shape[-1] else F.interpolate(
                images, size=(side, side), mode='bilinear', antialias=True, align_corners=False)

        return Photos(images, shrunk(self.generator.renderer.resolution), shrunk(self.coarse_rays))

    def latents(self, u):
        """Latents at coordinates u (B,style_dim) of w; w' follows from w."""
        return latents_of_w(self.generator, self.w_space.latents(u), self.psi, self.means)

    def render(self, latents, viewpoint, noise='fixed'):
        """(pictures (B,3,S,S), Rendering) of Latents from viewpoints (B,2)."""
        return render_latents(self.generator, latents, cameras_of(self.opt, viewpoint), noise)

    def render_coarse(self, guess):
        """Thumbnails (B,3,r,r) of a Guess with few rays."""
        renderer, rays = self.generator.renderer, self.coarse_rays
        cameras = cameras_of(self.opt, guess.viewpoint).magnified(rays / renderer.resolution)
        return renderer(self.w_space.latents(guess.u), cameras, resolution=rays, features=False).thumbnail

    def draw(self, count, rng, wider=1.):
        """A Guess of `count` random identities, from viewpoints of the training's spread times `wider`."""
        camera = self.opt.camera
        z = torch.randn(count, self.generator.style_dim, generator=rng, device=self.device)
        viewpoint = sample_viewpoints(count, wider * camera.azim, wider * camera.elev, camera.uniform, rng, self.device)
        return Guess(viewpoint, self.w_space.coordinates(self.generator.map(z, self.psi, self.means)))

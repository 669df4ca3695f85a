"""A model that photos are inverted with, and what is to be found of each photo."""
import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from munch import Munch
from torch import Tensor

from camera import cameras_of, sample_viewpoints
from inference.latents import decoded, latents_of_w, render_latents
from inversion.features import load_features
from inversion.space import Space, spaces_of
from model import Generator, MeanLatents
from op.chosen import can_choose, render_with_gradients

LIKELY_PSI = 0.7  # truncation, where the user gave none


def shrunk(images, side):
    """Images (B,3,S,S) with `side` pixels a side, without aliasing; smaller ones are enlarged."""
    return images if side == images.shape[-1] else F.interpolate(
        images, size=(side, side), mode='bilinear', antialias=True, align_corners=False)


class Guess(NamedTuple):
    """Where B identities seem to be, and where they are seen from."""
    viewpoint: Tensor  # (B,2) radians
    u: Tensor          # (B,style_dim) coordinates of w

    def select(self, index):
        return Guess(self.viewpoint[index], self.u[index])


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
    def of(cls, generator, opt, means):
        psi = opt.inference.truncation_ratio if 'truncation_ratio' in opt.given else LIKELY_PSI
        return cls(generator, opt, means, psi, *spaces_of(generator, psi, means))

    @classmethod
    def with_features(cls, generator, opt, means, path):
        """The Inverter of the model in the checkpoint at `path`, with the FeatureNetwork of --features or of that
        checkpoint. Raises UserError as load_features does."""
        inverter = cls.of(generator, opt, means)
        return dataclasses.replace(inverter, features=load_features(opt, path, inverter.size, inverter.device))

    @property
    def device(self):
        return self.means.w.device

    @property
    def size(self):
        """The side of the model's pictures."""
        return self.generator.decoder.size if self.generator.full_pipeline else self.generator.renderer.resolution

    @property
    def spread(self):
        """(2,) the spread of azimuth and elevation in training, in radians."""
        camera = self.opt.camera
        return torch.tensor([camera.azim, camera.elev], device=self.device).clamp(min=1e-3)

    def latents(self, u):
        """Latents at coordinates u (B,style_dim) of w; w' follows from w."""
        return latents_of_w(self.generator, self.w_space.latents(u), self.psi, self.means)

    def render(self, latents, viewpoint, noise='fixed'):
        """(pictures (B,3,S,S), Rendering) of Latents from viewpoints (B,2).

        Gradients go through the samples that carry weight, where the renderer can choose them (op/chosen.py).
        """
        generator, cameras = self.generator, cameras_of(self.opt, viewpoint)
        if not torch.is_grad_enabled() or not can_choose(generator.renderer, generator.renderer.resolution):
            return render_latents(generator, latents, cameras, noise)
        rendering = render_with_gradients(generator.renderer, latents.w, cameras, generator.full_pipeline)
        return decoded(generator, latents, rendering, noise), rendering

    def draw(self, count, rng, wider=1.):
        """A Guess of `count` random identities, from viewpoints of the training's spread times `wider`."""
        camera = self.opt.camera
        z = torch.randn(count, self.generator.style_dim, generator=rng, device=self.device)
        viewpoint = sample_viewpoints(count, wider * camera.azim, wider * camera.elev, camera.uniform, rng, self.device)
        return Guess(viewpoint, self.w_space.coordinates(self.generator.map(z, self.psi, self.means)))

"""Give a decoder's pictures the tones of the photos: how bright and how rich in contrast they are.

    python -m training.match_tones demo/cats_demo.pt --dataset_path datasets/cats_128 --out toned.pt --steps 800

A generator tends to make pictures that are too much alike in brightness and contrast: its dark cats are not as dark as
those of the photos, and its white ones not as white. So the tones of generated pictures and of photos are compared
here. Where a picture ranks in brightness among the generated ones, there its new brightness ranks among the photos; so
do contrasts, and then the values of each color channel. All three are monotone (the optimal transport of one variable),
so the order of tones stays. The decoder then learns to give these pictures itself. The field and its thumbnails stay as
they are.
"""
from options import explained, not_empty
from training.command_line import read_flags
from utils import run_command

if __name__ == '__main__':
    run_command('training.match_tones', lambda: read_flags(
        __doc__, 800, model='a full model',
        dataset_path={'required': True, 'type': explained(not_empty), 'help': 'the photos it was trained with'}))

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from camera import cameras_of, sample_viewpoints
from dataset import open_images
from training.distillation import Lesson, distill
from utils import UserError

PICTURES = 2000        # generated ones whose tones are measured
FEWEST, MOST = 20, 2000  # photos whose tones are measured
SIDE = 32              # of the grid of pixels in a picture whose values are measured
QUANTILES = torch.linspace(0.005, 0.995, 100)
BATCH = 8
PSI = 0.6, 1.          # of the pictures, drawn evenly for each step


class Monotone(NamedTuple):
    """A monotone function that is linear between points, and rises with slope 1 before the first and after the last."""
    x: Tensor  # (Q,), rising
    y: Tensor  # (Q,), rising

    @classmethod
    def between(cls, values, others):
        """The function that gives `values` the distribution of `others`; both are one-dimensional.

        Values that many share, as those of clipped pixels, become the mean of what they should be spread over.
        """
        x, y = (torch.quantile(some.double(), QUANTILES.double()) for some in (values, others))
        x, groups, counts = x.unique_consecutive(return_inverse=True, return_counts=True)
        return cls(x.float(), (torch.zeros_like(x).index_add_(0, groups, y) / counts).float())

    def __call__(self, values):
        inner = values.clamp(self.x[0], self.x[-1]).contiguous()
        right = torch.searchsorted(self.x, inner).clamp(max=len(self.x) - 1)
        left = (right - 1).clamp(min=0)
        share = (inner - self.x[left]) / (self.x[right] - self.x[left]).clamp(min=1e-9)
        return torch.lerp(self.y[left], self.y[right], share.clamp(max=1)) + values - inner


def brightness_and_contrast(pictures):
    """The mean (B,) and the standard deviation (B,) of the values of pictures (B,3,S,S)."""
    return pictures.mean((1, 2, 3)), pictures.std((1, 2, 3))


def sampled_values(pictures):
    """The values (B,3,SIDE,SIDE) of a grid of pixels in pictures (B,3,S,S)."""
    return F.interpolate(pictures, (SIDE, SIDE), mode='nearest')


class Tones(NamedTuple):
    """What is measured of a set of N pictures."""
    brightness: Tensor  # (N,)
    contrast: Tensor    # (N,)
    values: Tensor      # (N,3,SIDE,SIDE) of some pixels

    @classmethod
    def of(cls, batches):
        """Those of pictures that come in batches (B,3,S,S) in [-1, 1]."""
        return cls(*map(torch.cat, zip(*((*brightness_and_contrast(pictures), sampled_values(pictures))
                                         for pictures in batches), strict=True)))


class ToneTransfer:
    """The function of pictures (B,3,S,S), about [-1, 1], that gives those of one set the tones of another."""

    def __init__(self, pictures, photos):
        """pictures, photos: the Tones of the two sets."""
        self.brightness = Monotone.between(pictures.brightness, photos.brightness)
        self.contrast = Monotone.between(pictures.contrast, photos.contrast)
        values = self._spread(pictures.values, pictures.brightness, pictures.contrast)
        self.channels = [Monotone.between(values[:, i].flatten(), photos.values[:, i].flatten()) for i in range(3)]

    def _spread(self, values, brightness, contrast):
        """Values (B,3,h,w) of pictures, moved to their new brightness and contrast."""
        old, new = brightness.view(-1, 1, 1, 1), self.brightness(brightness).view(-1, 1, 1, 1)
        return new + (values - old) * (self.contrast(contrast) / contrast.clamp(min=1e-6)).view(-1, 1, 1, 1)

    def __call__(self, pictures):
        spread = self._spread(pictures, *brightness_and_contrast(pictures))
        return torch.stack([curve(channel) for curve, channel in zip(self.channels, spread.unbind(1), strict=True)], 1)


class Toning(Lesson):
    """The decoder's own pictures, with the tones of photos. Its mapping to w' gets no gradient and stays."""

    part, rates = 'decoder', (2e-3, 2e-5)

    def __init__(self, model, new, flags):
        super().__init__(model, new, flags)
        photos = open_images(flags.dataset_path, model.opt.model.size)
        if len(photos) < FEWEST:
            raise UserError(f'--dataset_path {flags.dataset_path} has {len(photos)} images; tones are measured of '
                            f'{FEWEST} or more.')
        count = min(MOST, len(photos))
        spread = [i * len(photos) // count for i in range(count)]
        wanted = Tones.of(photos[index][None] for index in tqdm(spread, 'photos'))
        self.transfer = ToneTransfer(Tones.of(self.shown(self.given, *self.draw(BATCH))
                                              for _ in tqdm(range(0, PICTURES, BATCH), 'generated pictures')), wanted)

    def learning(self):
        return self.new.parameters()

    @torch.no_grad()
    def draw(self, count, psi=1.):
        """(features, w', noise) of random pictures, from viewpoints as in training."""
        generator, opt = self.model.generator, self.model.opt
        w = generator.map(torch.randn(count, opt.model.style_dim), psi, self.model.means)
        viewpoints = sample_viewpoints(count, opt.camera.azim, opt.camera.elev, opt.camera.uniform)
        features = generator.render(w, cameras_of(opt, viewpoints)).features
        w_prime = self.given.map(w, psi, self.model.means.w_prime)
        return features, w_prime, self.given.random_noise(count)

    @torch.no_grad()
    def shown(self, decoder, *drawn):
        """The pictures (B,3,size,size) that a decoder makes, with values in [-1, 1]."""
        return decoder(*drawn).clamp(-1, 1)

    def terms(self, step):
        drawn = self.draw(BATCH, torch.empty(()).uniform_(*PSI).item())
        target = self.transfer(self.shown(self.given, *drawn))
        return {'tones': (self.new(*drawn) - target).abs().mean()}


def main(flags):
    distill(flags, Toning)

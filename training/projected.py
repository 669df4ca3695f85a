"""A discriminator on the features of a network that has seen millions of photos (Sauer et al. 2021, Projected GANs
converge faster). In stage 1 it judges the thumbnails beside the discriminator that guesses their viewpoint. In stage 2
it takes the place of StyleGAN2's, or stands beside it (as in Kumari et al. 2022, Ensembling off-the-shelf models).

The network stays as it is. Its features at four scales are mixed by random convolutions that are never trained, across
channels and from coarse scales to fine ones, so that no head can rest on the few channels that are easiest to tell
apart. Each scale has a small head of its own, held in check by spectral normalization instead of R1.
"""
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from metrics.features import check_numbers, frozen_torchscript
from utils import UserError, lack_of_memory, shortened

SCALES = 4
CALIBRATION_IMAGES = 16  # the first of the data set
SIDE = 128          # smaller images are enlarged to this before the network sees them
MIXED_CHANNELS = 64  # of the finest scale after mixing; each coarser one has twice as many
MOST_CHANNELS = 512
MIXING_SEED = 0     # the mixing is the same in all runs, so that checkpoints need not hold it
TORCHVISION_STAGES = 2, 3, 5, 7  # of EfficientNet-B0's features: strides 4, 8, 16 and 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureNetwork(NamedTuple):
    """A frozen network. maps: images (B,3,S,S) in [-1, 1] to SCALES maps (B,C,h,w), from fine to coarse."""
    name: str
    maps: callable


def load_feature_network(path, size, device):
    """The FeatureNetwork of a TorchScript file, or torchvision's EfficientNet-B0 where path is None.

    A TorchScript network is called with float images (B,3,S,S) in [-1, 1], and gives a list of SCALES maps. Raises
    UserError for one that is missing or does not work on images of `size` pixels.
    """
    network = _torchvision(device) if path is None else FeatureNetwork(*frozen_torchscript(Path(path), device))
    try:
        maps = network.maps(torch.zeros(2, 3, max(size, SIDE), max(size, SIDE), device=device))
        sides = [(len(one), one.shape[2], one.shape[3]) for one in maps]
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        if lack_of_memory(error):
            raise
        reason = str(error).strip().rpartition('\n')[2]  # of TorchScript's own errors the last line says why
        raise UserError(f'--features: {network.name} cannot take images (B,3,{size},{size}) in [-1, 1] and give '
                        f'feature maps (B,C,h,w) ({reason}); use another network.') from None
    if len(sides) != SCALES:
        found = f'{len(sides)} maps'
    elif any(count != 2 for count, _, _ in sides):
        found = 'maps of more or fewer images than it was given'
    elif sides != sorted(sides, reverse=True):
        found = f'maps of {", ".join(f"{height}x{width}" for _, height, width in sides)} pixels, in this order'
    else:
        check_numbers(network.name, maps)
        return network
    raise UserError(f'--features: {network.name} gives {found}; the projected discriminator needs {SCALES} maps '
                    '(B,C,h,w), from fine to coarse.')


def _torchvision(device):
    try:
        from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0
        network = efficientnet_b0(weights=EfficientNet_B0_Weights.IMAGENET1K_V1)
    except Exception as error:  # no network, a broken transfer, a damaged file, …
        raise UserError(f"torchvision's EfficientNet-B0 cannot be loaded ({shortened(error)}); give "
                        'a TorchScript network with --features (docs/training.md).') from None
    stages = network.features.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def maps(images):
        x, found = ((images + 1) / 2 - mean) / std, []
        for i, stage in enumerate(stages[:max(TORCHVISION_STAGES) + 1]):
            x = stage(x)
            if i in TORCHVISION_STAGES:
                found.append(x)
        return found

    return FeatureNetwork('torchvision EfficientNet-B0', maps)


def enlarged(images, shape):
    """Images (B,C,h,w) bilinearly enlarged to (B,C,*shape).

    On a GPU PyTorch gives each pixel of a shape to a thread, which then works through all images and channels, so that
    small shapes keep most of it waiting; with the channels last it divides those too.
    """
    if images.is_cuda:
        images = images.contiguous(memory_format=torch.channels_last)
    return F.interpolate(images, shape, mode='bilinear', align_corners=False).contiguous()


class Mixing(nn.Module):
    """Random, untrained mixing of the maps of all scales: 1x1 convolutions across channels, then from the coarsest
    scale to the finest 3x3 convolutions, enlarged and added (Sauer et al., section 3.2).

    channels: of the four maps, from fine to coarse. The output has MIXED_CHANNELS, twice as many a scale, at most
    MOST_CHANNELS.
    """

    def __init__(self, channels):
        super().__init__()
        rng = torch.Generator().manual_seed(MIXING_SEED)
        self.channels = [min(MIXED_CHANNELS << k, MOST_CHANNELS) for k in range(len(channels))]

        def random(out, into, side):
            return torch.randn(out, into, side, side, generator=rng) / (into * side * side) ** 0.5

        for k, (into, out) in enumerate(zip(channels, self.channels, strict=True)):
            self.register_buffer(f'across_channels{k}', random(out, into, 1), persistent=False)
            if k:
                self.register_buffer(f'to_finer{k}', random(self.channels[k - 1], out, 3), persistent=False)

    def forward(self, maps):
        """Maps (B,C,h,w), from fine to coarse, to as many of the same sizes."""
        mixed = [F.conv2d(one, getattr(self, f'across_channels{k}')) for k, one in enumerate(maps)]
        for k in range(len(mixed) - 1, 0, -1):
            finer = F.conv2d(mixed[k], getattr(self, f'to_finer{k}'), padding=1)
            finer = enlarged(finer, mixed[k - 1].shape[2:])
            mixed[k - 1] = (mixed[k - 1] + finer) / 2 ** 0.5
        return mixed


def head(channels, side):
    """A scale's head: maps (B,channels,side,side) to logits (B,1,1,1)."""
    layers = []
    while side > 4:
        layers += [spectral_norm(nn.Conv2d(channels, min(2 * channels, MOST_CHANNELS), 4, stride=2, padding=1)),
                   nn.LeakyReLU(0.2)]
        channels, side = min(2 * channels, MOST_CHANNELS), side // 2
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, side)))


class ProjectedDiscriminator(nn.Module):
    """Logits of images by a frozen network's features. Only its heads are trained, and they are what is saved.

    network: a FeatureNetwork on the same device. size: side of the images.
    """

    def __init__(self, network, size, device='cpu'):
        super().__init__()
        self._maps = network.maps  # a function, so that its weights are not this module's
        with torch.no_grad():
            maps = self._maps(self._large_enough(torch.zeros(2, 3, size, size, device=device)))
        self.mixing = Mixing([one.shape[1] for one in maps])
        self.register_buffer('spread', torch.ones(len(maps)))  # of the mixed maps, by scale
        self.heads = nn.ModuleList(head(channels, one.shape[-1]) for channels, one in
                                   zip(self.mixing.channels, maps, strict=True))
        self.to(device).eval()

    @staticmethod
    def _large_enough(images):
        if images.shape[-1] >= SIDE:
            return images
        return enlarged(images, (SIDE, SIDE))

    @torch.no_grad()
    def calibrate(self, images):
        """Divide the mixed maps by their standard deviation over real images (B,3,size,size) from now on.

        The networks' maps have very different sizes, and so would the logits. (Sauer et al. have batch normalization in
        the heads for that, by which --chunk would change the gradient.)
        """
        mixed = self.mixing(self._maps(self._large_enough(images)))
        self.spread.copy_(torch.stack([one.std() for one in mixed]).clamp(min=1e-6))

    def renormalize(self):
        """One power iteration of the spectral normalization. Called once a step, and not at each evaluation, so that
        --chunk changes nothing."""
        self.train()
        with torch.no_grad():
            for layer in self.heads.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight  # noqa: B018 (reading it in training mode is what iterates)
        self.eval()

    def forward(self, images):
        """Images (B,3,size,size) in [-1, 1] to logits (B,SCALES), one a scale."""
        mixed = self.mixing(self._maps(self._large_enough(images)))
        return torch.cat([own(one / spread).flatten(1) for own, one, spread in
                          zip(self.heads, mixed, self.spread, strict=True)], dim=1)


def projected_discriminator(opt, images, size, device):
    """(ProjectedDiscriminator, SameNetwork) that the flags describe, for images of `size` pixels, calibrated on a data
    set's first images."""
    network = load_feature_network(opt.evaluation.features, size, device)
    discriminator = ProjectedDiscriminator(network, size, device)
    first = torch.stack([images[i] for i in range(min(CALIBRATION_IMAGES, len(images)))])
    discriminator.calibrate(first.to(device))
    return discriminator, SameNetwork(network.name)


def beside(discriminator):
    """The ProjectedDiscriminator beside a stage's own discriminator, or None."""
    return getattr(discriminator, 'projected', None)


class SameNetwork:
    """Makes a run go on with the feature network that it began with."""

    def __init__(self, name):
        self.name = name

    def state_dict(self):
        return {'name': self.name}

    def load_state_dict(self, state):
        # The name of a file ends with its digest, and that alone must be the same: files are renamed.
        if state['name'].rpartition(' (')[2] != self.name.rpartition(' (')[2]:
            raise UserError(f'this run began with the features of {state["name"]}, not {self.name}; give the same file '
                            'with --features, or begin a new --expname.')

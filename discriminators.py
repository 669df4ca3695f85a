"""The discriminators of both training stages (StyleSDF, section 4.1; StyleGAN2).

Sources: pi-GAN (Chan et al. 2021) and CoordConv (Liu et al. 2018) for stage 1, StyleGAN2 (Karras et al. 2020) for
stage 2. Parameter names are those of the original's checkpoints. Shapes in the comments: B images, C channels, H x W
pixels.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from model import BiasedLeakyReLU, Blur, EqualLinear, channels_at

# ---------------------------------------------------------------------------------------------- stage 1

def volume_discriminator_channels(resolution, width=1.):
    """Channels of the stage-1 discriminator at a resolution; width scales them for small machines."""
    return max(1, round(width * {128: 64, 64: 128, 32: 256}.get(resolution, 400)))


class CoordConv2d(nn.Module):
    """3x3 convolution that also sees each pixel's y and x in [-1, 1]."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels + 2, out_channels, 3, padding=1, bias=False)

    def forward(self, x):
        batch, _, height, width = x.shape
        y = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None].expand(batch, 1, height, width)
        x_coordinate = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(batch, 1, height, width)
        return self.conv(torch.cat([x, y, x_coordinate], dim=1))


class ActivatedConv(nn.Module):
    """A convolution (its bias in the activation), then leaky ReLU 0.2 without gain."""

    def __init__(self, conv, fan_in, channels):
        super().__init__()
        self.conv = conv
        self.activation = BiasedLeakyReLU(channels, gain=1., bias_bound=1 / math.sqrt(fan_in))

    def forward(self, x):
        return self.activation(self.conv(x))


class NamedConv(nn.Module):
    """A plain convolution under the name `conv`, where the checkpoints have it."""

    def __init__(self, in_channels, out_channels, kernel_size):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x):
        return self.conv(x)


class VolumeResBlock(nn.Module):
    """Two CoordConvs and average pooling, beside a pooled shortcut; their sum over sqrt 2."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = ActivatedConv(CoordConv2d(in_channels, out_channels), 9 * (in_channels + 2), out_channels)
        self.conv2 = ActivatedConv(CoordConv2d(out_channels, out_channels), 9 * (out_channels + 2), out_channels)
        if in_channels != out_channels:
            self.skip = NamedConv(in_channels, out_channels, 1)

    def forward(self, x):
        shortcut = F.avg_pool2d(x, 2)
        if hasattr(self, 'skip'):
            shortcut = self.skip(shortcut)
        return (F.avg_pool2d(self.conv2(self.conv1(x)), 2) + shortcut) / math.sqrt(2)


class VolumeDiscriminator(nn.Module):
    """Stage 1: judges thumbnails and guesses their viewpoint (paper, section 4.1).

    resolution: of the thumbnails. predict_view: False leaves the viewpoint out (--view_lambda 0).
    """

    def __init__(self, resolution=64, predict_view=True, width=1.):
        super().__init__()
        self.predict_view = predict_view
        channels = volume_discriminator_channels(resolution, width)
        blocks = [ActivatedConv(nn.Conv2d(3, channels, 1, bias=False), 3, channels)]
        while resolution > 2:
            resolution, below = resolution // 2, channels
            channels = volume_discriminator_channels(resolution, width)
            blocks.append(VolumeResBlock(below, channels))
        self.convs = nn.Sequential(*blocks)
        self.final_conv = NamedConv(channels, 3 if predict_view else 1, 2)

    def forward(self, x):
        """Thumbnails (B,3,H,H) in [-1, 1] to logits (B,1) and viewpoints (B,2) (azimuth, elevation; None without)."""
        x = self.final_conv(self.convs(x)).flatten(1)
        return x[:, :1], x[:, 1:] if self.predict_view else None


# ---------------------------------------------------------------------------------------------- stage 2

class EqualConv2d(nn.Module):
    """Convolution without bias, with equalized learning rate."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1 / math.sqrt(in_channels * kernel_size ** 2)
        self.stride, self.padding = stride, padding

    def forward(self, x):
        weight = (self.weight * self.scale).to(x.dtype)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


class ResBlock(nn.Module):
    """StyleGAN2's residual block: halves the resolution."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = nn.Sequential(EqualConv2d(in_channels, in_channels, 3, padding=1), BiasedLeakyReLU(in_channels))
        self.conv2 = nn.Sequential(Blur(pad=(2, 2)), EqualConv2d(in_channels, out_channels, 3, stride=2),
                                   BiasedLeakyReLU(out_channels))
        # StyleGAN2 gives the stride to the 1x1 convolution; the filter computes fewer pixels with it.
        self.skip = nn.Sequential(Blur(pad=(1, 1), down=2), EqualConv2d(in_channels, out_channels, 1))

    def forward(self, x):
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


def stddev_group(batch):
    """How many images minibatch_stddev compares: 4, 3 or 2, the first that divides the batch; else the whole batch."""
    return next((group for group in (4, 3, 2) if batch % group == 0), batch)


def minibatch_stddev(x):
    """Append one channel: the mean standard deviation over groups of images (ProGAN section 3).

    x (B,C,H,W). A group is every (B / group size)-th image.
    """
    batch, _, height, width = x.shape
    group = stddev_group(batch)
    grouped = x.view(group, -1, *x.shape[1:])
    deviation = torch.sqrt(grouped.var(0, unbiased=False) + 1e-8).mean(dim=(1, 2, 3))  # (B/group,)
    return torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, -1, height, width)], dim=1)


class Discriminator(nn.Module):
    """Stage 2: StyleGAN2's residual discriminator for (B,3,size,size) images.

    dtype: number format of the convolutions down to 4x4 pixels; what follows stays in float32.
    """

    def __init__(self, size=256, channel_multiplier=2, channel_max=0, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype
        channels = channels_at(size, channel_multiplier, channel_max)
        blocks = [nn.Sequential(EqualConv2d(3, channels, 1), BiasedLeakyReLU(channels))]
        while size > 4:
            size, below = size // 2, channels
            channels = channels_at(size, channel_multiplier, channel_max)
            blocks.append(ResBlock(below, channels))
        self.convs = nn.Sequential(*blocks)
        self.final_conv = nn.Sequential(EqualConv2d(channels + 1, channels, 3, padding=1), BiasedLeakyReLU(channels))
        self.final_linear = nn.Sequential(EqualLinear(16 * channels, channels, activate=True),
                                          EqualLinear(channels, 1))

    def forward(self, x):
        """Images (B,3,size,size) in [-1, 1] to logits (B,1)."""
        x = self.final_conv(minibatch_stddev(self.convs(x.to(self.dtype)).to(x.dtype)))
        return self.final_linear(x.flatten(1))

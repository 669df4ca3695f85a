"""The generator of StyleSDF (Or-El et al., CVPR 2022): mapping, decoder, and the generator around them.

    z --Mapping--> w --VolumeRenderer--> 64x64 thumbnail, 64x64 features
                   w --Decoder.style--> w' --Decoder on the features--> high-resolution image

Sources: pi-GAN (Chan et al. 2021) for the mapping, StyleGAN2 (Karras et al. 2020, sections 2 and 4) for the decoder.
Parameter names are those of the original's checkpoints (docs/conventions.md, Networks). Shapes in the comments: B
images, C channels, h x w pixels, L layers of the decoder.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from op import fused_leaky_relu, upfirdn2d
from volume_renderer import Rendering, VolumeRenderer, draw

MEAN_LATENT_DRAWS = 10_000  # as many as the original takes
DRAWN_AT_ONCE = 1 << 14     # of them
MAPPED_AT_ONCE = 1 << 11    # of them: with more, most of the time goes into fresh memory for the layers
PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def channels_at(resolution, multiplier, limit=0):
    """Feature channels of the decoder and of the stage-2 discriminator at a resolution; limit 0: no limit."""
    channels = 512 if resolution <= 32 else 256 * 64 * multiplier // resolution
    return min(channels, limit or channels)


# ---------------------------------------------------------------------------------------------- layers

class MappingLayer(nn.Linear):
    """Linear, then leaky ReLU without gain (pi-GAN's mapping)."""

    def __init__(self, features):
        super().__init__(features, features)
        nn.init.kaiming_normal_(self.weight, a=0.2, nonlinearity='leaky_relu')

    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.2)


class PixelNorm(nn.Module):
    """Scale each vector (…,C) to unit mean square."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Linear layer with equalized learning rate (ProGAN section 4.1); activate adds leaky ReLU with gain sqrt 2."""

    def __init__(self, in_features, out_features, bias=0., lr_multiplier=1., activate=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias)))
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.lr_multiplier, self.activate = lr_multiplier, activate

    def forward(self, x):
        weight, bias = self.weight * self.scale, self.bias * self.lr_multiplier
        if self.activate:
            return fused_leaky_relu(F.linear(x, weight), bias)
        return F.linear(x, weight, bias)


class Blur(nn.Module):
    """The [1,3,3,1] low-pass filter, after inserting zeros for `up` times, before keeping one of `down` pixels."""

    def __init__(self, pad, gain=1., up=1, down=1):
        super().__init__()
        taps = torch.tensor([1., 3., 3., 1.])
        self.register_buffer('kernel', torch.outer(taps, taps) * (gain / taps.sum() ** 2))  # (4,4), its sum is gain
        self.pad, self.up, self.down = pad, up, down

    def forward(self, x):
        return upfirdn2d(x, self.kernel, up=self.up, down=self.down, pad=self.pad)


class BiasedLeakyReLU(nn.Module):
    """Add a bias to each channel, then leaky ReLU 0.2 with a gain."""

    def __init__(self, channels, gain=2 ** 0.5, bias_bound=0.):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bias_bound, bias_bound))
        self.gain = gain

    def forward(self, x):
        return fused_leaky_relu(x, self.bias, scale=self.gain)


# ---------------------------------------------------------------------------------------------- decoder

class ModulatedConv2d(nn.Module):
    """StyleGAN2's weight-modulated convolution (Karras et al. 2020, equations 1 and 3), optionally up by 2."""

    def __init__(self, in_channels, out_channels, kernel_size, style_dim, demodulate=True, up=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1 / math.sqrt(in_channels * kernel_size ** 2)
        self.demodulate, self.up, self.padding = demodulate, up, kernel_size // 2
        if up:  # a transposed 3x3 convolution of stride 2, with the filter: twice the resolution exactly
            self.blur = Blur(pad=(1, 1), gain=4.)
        self.modulation = EqualLinear(style_dim, in_channels, bias=1.)

    def modulated_weight(self, w_prime):
        """The weights for w' (S,style_dim): all that w' changes about the layer."""
        style = self.modulation(w_prime)                                                # (S,in)
        weight = self.scale * self.weight * style[:, None, :, None, None]               # (S,out,in,k,k), equation 1
        if self.demodulate:                                                             # equation 3
            weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        return weight

    def forward(self, x, weight):
        """(B,out,h,w), or twice as large, from x (B,in,h,w) and the weights of each image or of all."""
        x = self.convolve(x, weight.to(x.dtype))
        return self.blur(x) if self.up else x

    def convolve(self, x, weight):
        """Only the convolution: each image with its own weights (B,out,in,k,k), or all with the same (1,out,in,k,k)."""
        groups, channels = weight.shape[:2]
        y = x if groups == 1 else x.flatten(0, 1)[None]  # with weights of its own an image becomes a group of channels
        if self.up:
            y = F.conv_transpose2d(y, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=groups)
        else:
            y = F.conv2d(y, weight.flatten(0, 1), groups=groups, padding=self.padding)
        return y if groups == 1 else y[0].unflatten(0, (groups, channels))


class NoiseInjection(nn.Module):
    """Add a learned multiple of a noise map to every channel (StyleGAN2, section 2.1)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, noise):
        return torch.addcmul(x, self.weight.to(x.dtype), noise.to(x.dtype))


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU."""

    def __init__(self, in_channels, out_channels, style_dim, up=False):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_dim, up=up)
        self.noise = NoiseInjection()
        self.bias = nn.Parameter(torch.zeros(1, out_channels, 1, 1))  # in the checkpoints, but nothing reads it
        self.activate = BiasedLeakyReLU(out_channels)

    def forward(self, x, weight, noise):
        return self.activate(self.noise(self.conv(x, weight), noise))


class ToRGB(nn.Module):
    """1x1 modulated convolution to RGB, added to the upsampled RGB of the resolution below."""

    def __init__(self, in_channels, style_dim, upsample=True):
        super().__init__()
        if upsample:
            self.upsample = Blur(pad=(2, 1), gain=4., up=2)
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x, weight, skip=None):
        rgb = self.conv(x, weight).to(self.bias.dtype) + self.bias  # summed in full precision
        return rgb if skip is None else rgb + self.upsample(skip)


class Decoder(nn.Module):
    """StyleGAN2 synthesis from the renderer's features instead of a constant (paper, section 3.4)."""

    def __init__(
        self,
        size=256,              # of the image: a power of two times `resolution`
        style_dim=256,         # of w
        channel_multiplier=2,  # of the channels at high resolutions
        resolution=64,         # of the features
        in_channels=256,       # of the features
        lr_multiplier=0.01,    # learning rate of the mapping to w'
        dtype=torch.float32,   # of the convolutions; modulation, weights and the sum of the RGB layers stay in float32
        channel_max=0,         # of the channels, 0: no limit
    ):
        super().__init__()
        self.size, self.resolution, self.dtype = size, resolution, dtype
        w_prime_dim = 2 * style_dim
        self.style = nn.Sequential(PixelNorm(), *(
            EqualLinear(in_dim, w_prime_dim, lr_multiplier=lr_multiplier, activate=True)
            for in_dim in (style_dim, *[w_prime_dim] * 4)))
        channels = channels_at(resolution, channel_multiplier, channel_max)
        self.conv1 = StyledConv(in_channels, channels, w_prime_dim)
        self.to_rgb1 = ToRGB(channels, w_prime_dim, upsample=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        while resolution < size:
            resolution, below = 2 * resolution, channels
            channels = channels_at(resolution, channel_multiplier, channel_max)
            self.convs.append(StyledConv(below, channels, w_prime_dim, up=True))
            self.convs.append(StyledConv(channels, channels, w_prime_dim))
            self.to_rgbs.append(ToRGB(channels, w_prime_dim))
        self.noises = nn.Module()
        for i, side in enumerate(self.noise_sizes):
            self.noises.register_buffer(f'noise_{i}', torch.randn(1, 1, side, side))

    @property
    def num_layers(self):
        """L, the number of layers that have a w' of their own."""
        return len(self.convs) + 2

    @property
    def noise_sizes(self):
        """The resolution of each layer's noise map, in the order in which the layers use them."""
        return [self.resolution] + [self.resolution * 2 ** (1 + i // 2) for i in range(len(self.convs))]

    def fixed_noise(self):
        """The noise maps kept in the checkpoint: a list of (1,1,h,w)."""
        return list(self.noises.buffers())

    def random_noise(self, batch, rng=None):
        """Fresh noise maps for each of `batch` images: a list of (batch,1,h,w)."""
        device = self.noises.noise_0.device
        return [draw(torch.randn, (batch, 1, size, size), rng, device=device) for size in self.noise_sizes]

    def map(self, w, psi=1., mean=None, switch=None):
        """w' for each layer (B,L,2*style_dim) from the renderer's latents w (B,style_dim).

        w may be a pair of such tensors for style mixing (StyleGAN, section 3.1): layers from index `switch` on take the
        second. psi pulls w' towards `mean` (1,2*style_dim).
        """
        w = w if isinstance(w, (tuple, list)) else (w,)
        w_prime = [truncate(self.style(one), psi, mean)[:, None] for one in w]          # each (B,1,2*style_dim)
        if len(w_prime) == 1:
            return w_prime[0].expand(-1, self.num_layers, -1)
        return torch.cat([w_prime[0].expand(-1, switch, -1),
                          w_prime[1].expand(-1, self.num_layers - switch, -1)], dim=1)

    def forward(self, features, w_prime, noise):
        """Image (B,3,size,size), about [-1, 1], from features (B,C,res,res), w' (B or 1,L,2*style_dim) and noise (a
        list of (B or 1,1,h,w))."""
        return self.synthesize(features, self.modulate(w_prime), noise)

    def modulate(self, w_prime):
        """The weights of all layers for w' (B or 1,L,2*style_dim), as `synthesize` takes them: a list with, for each
        resolution, those of its convolutions and of its RGB layer. Made once, they serve all frames of a video."""
        blocks = [[self.conv1, self.to_rgb1]] + [[*self.convs[2 * k:2 * k + 2], to_rgb]
                                                 for k, to_rgb in enumerate(self.to_rgbs)]
        # An RGB layer shares its w' with the next resolution's first convolution.
        return [[layer.conv.modulated_weight(w_prime[:, max(0, 2 * k - 1) + i]) for i, layer in enumerate(block)]
                for k, block in enumerate(blocks)]

    def synthesize(self, features, weights, noise):
        """`forward` with weights from `modulate`."""
        x = self.conv1(features.to(self.dtype), weights[0][0], noise[0])                # (B,C,res,res)
        rgb = self.to_rgb1(x, weights[0][1])                                            # (B,3,res,res)
        for k, to_rgb in enumerate(self.to_rgbs):
            up, conv, rgb_weight = weights[k + 1]
            x = self.convs[2 * k](x, up, noise[2 * k + 1])                              # (B,C,2h,2w)
            x = self.convs[2 * k + 1](x, conv, noise[2 * k + 2])                        # (B,C,2h,2w)
            rgb = to_rgb(x, rgb_weight, rgb)                                            # (B,3,2h,2w)
        return rgb


# ---------------------------------------------------------------------------------------------- generator

def truncate(latent, psi, mean):
    """The truncation trick (StyleGAN, appendix B): mean + psi (latent - mean); the latent itself at psi 1."""
    return latent if psi == 1 else torch.lerp(mean.expand_as(latent), latent, psi)


class MeanLatents(NamedTuple):
    """The means that truncation pulls w and w' towards."""
    w: Tensor               # (1,style_dim)
    w_prime: Tensor | None = None  # (1,2*style_dim), None for a generator without decoder


class Generated(NamedTuple):
    """What the generator makes from one batch of latents."""
    image: Tensor | None    # (B,3,size,size), None for a field without decoder
    rendering: Rendering    # thumbnail, features, surface points, …
    w_prime: Tensor | None  # (B,L,2*style_dim) for path lengths

    @property
    def picture(self):
        """What there is to look at: the image, or the thumbnail (B,3,H,W) of a field without decoder."""
        return self.rendering.thumbnail if self.image is None else self.image


class Generator(nn.Module):
    """Mapping, renderer (a VolumeRenderer) and, in the full pipeline, decoder (a Decoder; None in stage 1)."""

    def __init__(self, style_dim, renderer, decoder=None):
        super().__init__()
        self.style_dim = style_dim
        self.style = nn.Sequential(*(MappingLayer(style_dim) for _ in range(3)))
        self.renderer = renderer
        if decoder is not None:
            self.decoder = decoder

    @property
    def full_pipeline(self):
        return hasattr(self, 'decoder')

    @torch.no_grad()
    def mean_latents(self, draws=MEAN_LATENT_DRAWS, rng=None):
        """MeanLatents over `draws` latents z ~ N(0, I), in parts, so that memory does not grow with them."""
        means, device = [], self.style[0].weight.device
        for first in range(0, draws, DRAWN_AT_ONCE):
            z = torch.randn(min(DRAWN_AT_ONCE, draws - first), self.style_dim, generator=rng, device=device)
            for w in map(self.style, z.split(MAPPED_AT_ONCE)):
                both = [w, self.decoder.style(w)] if self.full_pipeline else [w]
                means.append([latent.mean(0, keepdim=True) * (len(w) / draws) for latent in both])
        return MeanLatents(*map(sum, zip(*means, strict=True)))

    def map(self, z, psi=1., means=None):
        """The renderer's latents w (B,style_dim), truncated, from z (B,style_dim)."""
        return truncate(self.style(z), psi, means.w if means else None)

    def forward(self, z, cameras, *, psi=1., means=None, switch=None, noise='random', rng=None, **wanted):
        """Generate B images; returns a Generated.

        z: (B,style_dim), or (1,style_dim) for B views of one identity, or a pair of them for style mixing (the renderer
        and the first layers use the first, layers from `switch` on the second). cameras: B of them. means: MeanLatents,
        needed where psi is not 1. noise: 'random', 'fixed' (the checkpoint's) or a list of (B,1,h,w). wanted: further
        arguments of VolumeRenderer.forward.
        """
        pair = z if isinstance(z, (tuple, list)) else (z,)
        w = [self.map(one, psi, means) for one in pair]                                 # each (B or 1,style_dim)
        rendering = self.render(w[0].expand(len(cameras), -1), cameras, rng=rng, **wanted)
        if not self.full_pipeline:
            return Generated(None, rendering, None)
        w_prime = self.decoder.map(w, psi, means.w_prime if means else None, switch)    # (B or 1,L,2*style_dim)
        image = self.decoder(rendering.features, w_prime, self.noise(noise, len(cameras), rng))
        return Generated(image, rendering, w_prime)                                     # (B,3,size,size)

    def render(self, w, cameras, **wanted):
        """The Rendering of latents w (B,style_dim), with features for the decoder; wanted: as for `forward`."""
        return self.renderer(w, cameras, features=self.full_pipeline, **wanted)

    def noise(self, noise, batch, rng=None):
        """The decoder's noise maps by name ('random' or 'fixed'); a list of maps is returned as it is."""
        if noise == 'random':
            return self.decoder.random_noise(batch, rng)
        return self.decoder.fixed_noise() if noise == 'fixed' else noise


# ---------------------------------------------------------------------------------------------- from and to sizes

def build_generator(opt, full_pipeline=True, renderer=VolumeRenderer, decoder=Decoder):
    """The Generator that an option tree describes (options.py), with fresh weights, on the CPU.

    renderer, decoder: their classes, these or subclasses; op/fast.py chooses the faster ones.
    """
    sizes, flags = opt.model, opt.rendering
    renderer = renderer(
        sizes.style_dim, sizes.renderer_spatial_output_dim, flags.N_samples, flags.depth, flags.width,
        sdf=not flags.no_sdf, z_normalize=not flags.no_z_normalize, static_viewdirs=flags.static_viewdirs,
        offset_sampling=not flags.no_offset_sampling, perturb=flags.perturb, raw_noise_std=flags.raw_noise_std,
        force_background=flags.force_background)
    decoder = decoder(
        sizes.size, sizes.style_dim, sizes.channel_multiplier, sizes.renderer_spatial_output_dim, flags.width,
        sizes.lr_mapping, PRECISIONS[opt.machine.precision], sizes.channel_max) if full_pipeline else None
    return Generator(sizes.style_dim, renderer, decoder)


def sizes_of(state, rays=64, multiplier=1, limit=0):
    """The inverse of build_generator's sizes: the flags that the shapes of a generator's state dict tell, by name.

    rays, multiplier, limit: renderer_spatial_output_dim, channel_multiplier and channel_max where nothing contradicts
    them. Without a decoder there is no size and none of these. Raises ValueError where the shapes are no generator's.
    """
    def shape(name, dim):
        if name not in state or state[name].dim() <= dim:
            raise ValueError(f'{name} is missing')
        return state[name].shape[dim]

    def count(prefix):
        return len({name[len(prefix):].split('.')[0] for name in state if name.startswith(prefix)})

    sizes = {'style_dim': shape('style.0.weight', 0), 'width': shape('renderer.network.sigma_linear.weight', 1),
             'depth': count('renderer.network.pts_linears.'), 'no_sdf': 'renderer.sigmoid_beta' not in state}
    if any(name.startswith('decoder.') for name in state):
        doublings = count('decoder.to_rgbs.')
        layers = ['conv1', *(f'convs.{2 * k + 1}' for k in range(doublings))]
        channels = [shape(f'decoder.{layer}.conv.weight', 1) for layer in layers]
        maps = [f'decoder.noises.noise_{i}' for i in (0, 2 * doublings)]
        side, largest = (shape(name, 3) for name in maps) if all(name in state for name in maps) else (0, 0)
        # Some files have no maps, and official ones have maps of other sizes: the last map and the channels must agree.
        if (largest == side * 2 ** doublings and side >= 4 and side & (side - 1) == 0
                and channels[-1] >= min(channels[0], channels_at(largest, 1))):
            rays = sizes['renderer_spatial_output_dim'] = side
        sizes['size'] = rays * 2 ** doublings
        counts = {rays * 2 ** k: count for k, count in enumerate(channels)}
        # The smallest with so many channels everywhere: a larger one makes too many where there is no limit.
        least = max([1, *(-(-count * side // (256 * 64)) for side, count in counts.items() if side > 32)])
        sizes |= next(({'channel_max': cap, 'channel_multiplier': factor}
                       for cap in (limit, 0, max(channels)) for factor in (multiplier, least)
                       if all(channels_at(side, factor, cap) == counts[side] for side in counts)), {})
    return sizes

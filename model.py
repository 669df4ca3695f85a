"""The networks of StyleSDF (Or-El et al., CVPR 2022): mapping, decoder, the generator around them, discriminators.

    z --Mapping--> w --VolumeRenderer--> 64x64 thumbnail, 64x64 features
                   w --Decoder.style--> w' --Decoder on the features--> high-resolution image

Sources: StyleGAN2 (Karras et al. 2020, sections 2 and 4) for the decoder and the stage-2 discriminator, pi-GAN (Chan et
al. 2021) and CoordConv (Liu et al. 2018) for the stage-1 discriminator. Parameter names are those of the original's
checkpoints. Shapes in the comments: B images, C channels, H x W pixels, L layers of the decoder.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camera import Cameras
from op import fused_leaky_relu, sparse, upfirdn2d
from op.graphs import Graphed
from volume_renderer import Rendering, VolumeRenderer, draw

BLUR_TAPS = (1., 3., 3., 1.)
DECODER_STYLE_LAYERS = 5
BAND_VALUES = 1 << 22  # about so many features the CPU computes at a time
HALO = 2               # rows that a resolution sees beyond its own, in pixels of the one below
MEAN_LATENT_DRAWS = 10_000  # as many as the original takes
MEAN_PART = 1 << 14         # of them at a time
PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def channels_at(resolution, multiplier, most=0):
    """Feature channels of the decoder and stage-2 discriminator at a resolution; `most`: no more (0: no limit)."""
    channels = 512 if resolution <= 32 else 256 * 64 * multiplier // resolution
    return min(channels, most or channels)


def blur_kernel(gain=1.):
    """(4,4) separable [1,3,3,1] low-pass filter that sums to gain."""
    taps = torch.tensor(BLUR_TAPS)
    return torch.outer(taps, taps) * (gain / taps.sum() ** 2)


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
        self.lr_multiplier = lr_multiplier
        self.activate = activate

    def forward(self, x):
        weight, bias = self.weight * self.scale, self.bias * self.lr_multiplier
        if self.activate:
            return fused_leaky_relu(F.linear(x, weight), bias)
        return F.linear(x, weight, bias)


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


class Blur(nn.Module):
    """The [1,3,3,1] low-pass filter that goes with a change of resolution; down: keep every so many-th pixel."""

    def __init__(self, pad, gain=1., down=1):
        super().__init__()
        self.register_buffer('kernel', blur_kernel(gain))
        self.pad, self.down = pad, down

    def forward(self, x):
        return upfirdn2d(x, self.kernel, down=self.down, pad=self.pad)


class Upsample(nn.Module):
    """Twice the resolution, [1,3,3,1] filtered."""

    def __init__(self):
        super().__init__()
        self.register_buffer('kernel', blur_kernel(gain=4.))

    def forward(self, x):
        return upfirdn2d(x, self.kernel, up=2, pad=(2, 1))


class BiasedLeakyReLU(nn.Module):
    """Add a bias to each channel, then leaky ReLU 0.2 with a gain; over its input unless autograd records."""

    def __init__(self, channels, gain=2 ** 0.5, bias_bound=0.):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bias_bound, bias_bound))
        self.gain = gain

    def forward(self, x):
        return fused_leaky_relu(x, self.bias, scale=self.gain, inplace=True)


# ---------------------------------------------------------------------------------------------- decoder

def convolve(convolution, x, weight, **settings):
    """convolution(x, weight) in x's number format. A CPU has no float16 convolution worth the name (it takes a hundred
    times as long), so there it is computed in float32 and rounded."""
    if x.dtype == torch.float16 and x.device.type == 'cpu':
        return convolution(x.float(), weight.float(), **settings).to(x.dtype)
    return convolution(x, weight, **settings)


class ModulatedConv2d(nn.Module):
    """StyleGAN2's weight-modulated convolution (Karras et al. 2020, equations 1 and 3), optionally up or down by 2."""

    def __init__(self, in_channels, out_channels, kernel_size, style_dim, demodulate=True, up=False, down=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1 / math.sqrt(in_channels * kernel_size ** 2)
        self.demodulate, self.up, self.down, self.kernel_size = demodulate, up, down, kernel_size
        if up or down:  # a 3x3 convolution of stride 2 with the filter: half or twice the resolution exactly
            self.blur = Blur(pad=(1, 1), gain=4.) if up else Blur(pad=(2, 2))
        self.modulation = EqualLinear(style_dim, in_channels, bias=1.)

    def modulated_weight(self, latent):
        """Weights (S,out,in,k,k) for latents (S,style_dim): all that a latent changes about the layer."""
        style = self.modulation(latent)
        weight = self.scale * self.weight * style[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        return weight

    def forward(self, x, weight):
        """x (B,in,H,W); weight (B,out,in,k,k) by `modulated_weight`, or (1,out,in,k,k) for all images: then one plain
        convolution serves."""
        weight = weight.to(x.dtype)
        groups, out_channels = weight.shape[:2]
        batch = x.shape[0]
        if groups > 1:
            x = x.reshape(1, -1, *x.shape[2:])  # each image becomes a group of channels of one image
        if self.up:
            weight = weight.transpose(1, 2).flatten(0, 1)
            x = convolve(F.conv_transpose2d, x, weight, stride=2, groups=groups)
        else:
            if self.down:
                x = self.blur(x)
            x = convolve(F.conv2d, x, weight.flatten(0, 1), groups=groups, stride=2 if self.down else 1,
                         padding=0 if self.down else self.kernel_size // 2)
        if groups > 1:
            x = x.reshape(batch, out_channels, *x.shape[2:])
        return self.blur(x) if self.up else x


class NoiseInjection(nn.Module):
    """Adds a learned multiple of a noise map to every channel; in place unless autograd may record."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, noise):
        weight, noise = self.weight.to(x.dtype), noise.to(x.dtype)
        if torch.is_grad_enabled():
            return torch.addcmul(x, weight, noise)
        return x.add_(weight * noise)  # addcmul takes eight times as long on a CPU


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
            self.upsample = Upsample()
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x, weight, skip=None):
        rgb = self.conv(x, weight).contiguous().to(self.bias.dtype) + self.bias  # summed in full precision
        return rgb if skip is None else rgb + self.upsample(skip)


class Decoder(nn.Module):
    """StyleGAN2 synthesis from the renderer's features instead of a constant (paper, section 3.4).

    size: of the image, a power of two times `resolution`, that of the features. in_channels: of the features.
    dtype: number format of the convolutions; modulation, weights and the sum of the RGB layers stay in float32.
    """

    def __init__(self, size=256, style_dim=256, channel_multiplier=2, resolution=64, in_channels=256,
                 lr_multiplier=0.01, dtype=torch.float32, channel_max=0):
        super().__init__()
        self.size, self.resolution, self.dtype = size, resolution, dtype
        latent_dim = 2 * style_dim
        self.style = nn.Sequential(PixelNorm(), *(
            EqualLinear(style_dim if i == 0 else latent_dim, latent_dim, lr_multiplier=lr_multiplier, activate=True)
            for i in range(DECODER_STYLE_LAYERS)))
        channels = channels_at(resolution, channel_multiplier, channel_max)
        self.conv1 = StyledConv(in_channels, channels, latent_dim)
        self.to_rgb1 = ToRGB(channels, latent_dim, upsample=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        while resolution < size:
            resolution, below = 2 * resolution, channels
            channels = channels_at(resolution, channel_multiplier, channel_max)
            for conv in (StyledConv(below, channels, latent_dim, up=True), StyledConv(channels, channels, latent_dim)):
                self.convs.append(conv)
            self.to_rgbs.append(ToRGB(channels, latent_dim))
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

        w may be a pair of such tensors for style mixing: layers from index `switch` on take the second. psi
        pulls w' towards `mean` (1,2*style_dim).
        """
        pair = w if isinstance(w, (tuple, list)) else (w,)
        styles = [truncate(self.style(part), psi, mean) for part in pair]
        if len(styles) == 1:
            return styles[0][:, None].expand(-1, self.num_layers, -1)
        first, second = styles
        return torch.cat([first[:, None].expand(-1, switch, -1),
                          second[:, None].expand(-1, self.num_layers - switch, -1)], dim=1)

    def forward(self, features, w_prime, noise):
        """Image (B,3,size,size), about [-1, 1], from features (B,C,res,res), w' (B or 1,L,2*style_dim) and noise
        (a list of (B or 1,1,h,w))."""
        return self.synthesize(features, self.modulate(w_prime), noise)

    def modulate(self, w_prime):
        """The weights of all layers for w' (B or 1,L,2*style_dim), as `synthesize` takes them: a list with, for
        each resolution, those of its convolutions and of its RGB layer. Made once, they serve all frames of a video."""
        blocks = [[self.conv1, self.to_rgb1]] + [[*self.convs[2 * k:2 * k + 2], to_rgb]
                                                 for k, to_rgb in enumerate(self.to_rgbs)]
        # An RGB layer shares its latent with the next resolution's first convolution.
        return [[layer.conv.modulated_weight(w_prime[:, max(0, 2 * k - 1) + i]) for i, layer in enumerate(block)]
                for k, block in enumerate(blocks)]

    def synthesize(self, features, weights, noise):
        """`forward` with weights from `modulate`."""
        in_bands = features.device.type == 'cpu' and not torch.is_grad_enabled()
        if not torch.is_grad_enabled() and works_channels_last(features.device, self.dtype, weights):
            features = features.contiguous(memory_format=torch.channels_last)
        if in_bands and len(features) > 1:  # each image by itself stays in the cache
            return torch.cat([self.synthesize(features[b:b + 1], [[_of(w, b) for w in block] for block in weights],
                                              [_of(n, b) for n in noise]) for b in range(len(features))])
        features = self.conv1(features.to(self.dtype), weights[0][0], noise[0])
        rgb = self.to_rgb1(features, weights[0][1])
        block = self._block_in_bands if in_bands else self._block
        for k in range(len(self.to_rgbs)):
            features, rgb = block(k, features, rgb, weights[k + 1], noise[2 * k + 1:2 * k + 3])
        return rgb

    def _block(self, k, features, rgb, weights, noise):
        """Features and RGB at twice the resolution."""
        features = self.convs[2 * k](features, weights[0], noise[0])
        features = self.convs[2 * k + 1](features, weights[1], noise[1])
        return features, self.to_rgbs[k](features, weights[2], rgb)

    def _block_in_bands(self, k, features, rgb, weights, noise):
        """_block of one image, a band of rows at a time, each with as many rows around it as it sees: what the layers
        hand on stays in the cache, and the memory is that of a band. The last features are not kept."""
        _, channels, height, width = features.shape
        rows = max(1, BAND_VALUES // (2 * channels * width))
        last = k == len(self.to_rgbs) - 1
        whole = None if last else torch.empty(1, weights[1].shape[1], 2 * height, 2 * width, dtype=features.dtype,
                                              memory_format=torch.channels_last)
        image = rgb.new_empty(1, 3, 2 * height, 2 * width)
        for start in range(0, height, rows):
            stop, above, below = min(height, start + rows), max(0, start - HALO), min(height, start + rows + HALO)
            part, doubled = slice(above, below), slice(2 * above, 2 * below)
            band, band_rgb = self._block(k, features[:, :, part], rgb[:, :, part], weights,
                                         [n[:, :, doubled] for n in noise])
            kept = slice(2 * (start - above), 2 * (stop - above))
            if not last:
                whole[:, :, 2 * start:2 * stop] = band[:, :, kept]
            image[:, :, 2 * start:2 * stop] = band_rgb[:, :, kept]
        return whole, image


def works_channels_last(device, dtype, weights):
    """Whether the decoder keeps its features channels last, without gradients: with them a CPU is slower that way
    (docs/performance.md).

    On a GPU half precision does, whose matrix units want it, unless images have weights of their own: as groups of
    channels they would be copied. Other features stay as they come, and the renderer's come channels last.
    """
    return device.type == 'cpu' or device.type == 'cuda' and dtype.itemsize == 2 and len(weights[0][0]) == 1


def _of(tensor, b):
    """What belongs to image b of a (B,…) tensor, or of one that all images share."""
    return tensor if len(tensor) == 1 else tensor[b:b + 1]


# ---------------------------------------------------------------------------------------------- generator

def truncate(latent, psi, mean):
    """The truncation trick: mean + psi (latent - mean); the latent itself at psi 1."""
    return latent if psi == 1 else torch.lerp(mean.expand_as(latent), latent, psi)


class MeanLatents(NamedTuple):
    """The means that truncation pulls w and w' towards."""
    w: Tensor               # (1,style_dim)
    w_prime: Tensor | None  # (1,2*style_dim), None for a generator without decoder


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
    """Mapping, renderer and, in the full pipeline, the decoder.

    renderer: a VolumeRenderer. decoder: a Decoder, or None for the field alone (stage 1).
    """

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
        device = self.style[0].weight.device
        means = []
        for first in range(0, draws, MEAN_PART):
            part = min(MEAN_PART, draws - first)
            w = self.style(torch.randn(part, self.style_dim, generator=rng, device=device))
            both = [w, self.decoder.style(w)] if self.full_pipeline else [w]
            share = [latent.mean(0, keepdim=True) * (part / draws) for latent in both]
            means = [mean + more for mean, more in zip(means, share, strict=True)] if means else share
        return MeanLatents(means[0], means[1] if self.full_pipeline else None)

    def map(self, z, psi=1., means=None):
        """The renderer's latents w (B,style_dim), truncated, from z (B,style_dim)."""
        return truncate(self.style(z), psi, means.w if means else None)

    def forward(self, z, cameras, *, psi=1., means=None, switch=None, noise='random', rng=None,
                **rendering):
        """Generate B images; returns a Generated.

        z: (B,style_dim), or (1,style_dim) for B views of one identity, or a pair of them for style mixing (the renderer
        and the first layers use the first, layers from `switch` on the second). cameras: B of them. means: MeanLatents,
        needed where psi is not 1. noise: 'random', 'fixed' (the checkpoint's) or a list of (B,1,h,w). rendering:
        passed on to `render`.
        """
        pair = z if isinstance(z, (tuple, list)) else (z,)
        w = [self.map(part, psi, means) for part in pair]
        rendering = self.render(w[0].expand(len(cameras), -1), cameras, rng=rng, **rendering)
        if not self.full_pipeline:
            return Generated(None, rendering, None)
        w_prime = self.decoder.map(w, psi, means.w_prime if means else None, switch)
        image = self.decoder(rendering.features, w_prime, self.noise(noise, len(cameras), rng))
        return Generated(image, rendering, w_prime)

    def render(self, w, cameras, *, dense=True, rng=None, **wanted):
        """The renderer's Rendering of latents w (B,style_dim), with features where there is a decoder.

        dense=False leaves out the samples that a picture does not need, where the field allows it (sparse.py): it
        changes an image by less than 1e-3. On a GPU, for which evaluating all is quicker than choosing, it has no
        effect, nor has it where gradients are wanted. wanted: further arguments of VolumeRenderer.forward.
        """
        if dense or w.is_cuda or torch.is_grad_enabled():
            return self.renderer(w, cameras, rng=rng, features=self.full_pipeline, **wanted)
        return sparse.render(self.renderer, w, cameras, rng=rng, features=self.full_pipeline, **wanted)

    def use_cuda_graphs(self):
        """From now on render and decode by CUDA graphs, where that is possible (op/graphs.py)."""
        render = self.render

        def render_with(w, camera, **wanted):
            return render(w, Cameras(**camera), **wanted)

        graphed = Graphed(render_with, self.renderer)
        self.render = lambda w, cameras, **wanted: graphed(w, vars(cameras), **wanted)
        if self.full_pipeline:
            for name in ('modulate', 'synthesize'):
                setattr(self.decoder, name, Graphed(getattr(self.decoder, name), self.decoder))

    def noise(self, noise, batch, rng=None):
        """The decoder's noise maps by name ('random' or 'fixed'); a list of maps is returned as it is."""
        if noise == 'random':
            return self.decoder.random_noise(batch, rng)
        return self.decoder.fixed_noise() if noise == 'fixed' else noise


# ---------------------------------------------------------------------------------------------- discriminators

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
    """How many images minibatch_stddev compares: 4, or 3 or 2 where 4 does not divide the batch."""
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


# ---------------------------------------------------------------------------------------------- from options

def build_generator(opt, full_pipeline=True):
    """The Generator that an option tree describes (options.py), with fresh weights, on the CPU."""
    renderer = VolumeRenderer(
        opt.model.style_dim, opt.model.renderer_spatial_output_dim, opt.rendering.N_samples, opt.rendering.depth,
        opt.rendering.width, sdf=not opt.rendering.no_sdf, z_normalize=not opt.rendering.no_z_normalize,
        static_viewdirs=opt.rendering.static_viewdirs, offset_sampling=not opt.rendering.no_offset_sampling,
        perturb=opt.rendering.perturb, raw_noise_std=opt.rendering.raw_noise_std,
        force_background=opt.rendering.force_background)
    decoder = None
    if full_pipeline:
        decoder = Decoder(opt.model.size, opt.model.style_dim, opt.model.channel_multiplier,
                          opt.model.renderer_spatial_output_dim, opt.rendering.width, opt.model.lr_mapping,
                          PRECISIONS[opt.machine.precision], opt.model.channel_max)
    return Generator(opt.model.style_dim, renderer, decoder)


def sizes_of(state, rays=64):
    """The inverse of build_generator's sizes: the flags that the shapes of a generator's state dict tell, by name.

    state: names to tensors. rays: renderer_spatial_output_dim, for files whose noise maps do not tell it. Without a
    decoder there is no size and no channel_multiplier. Raises ValueError where the shapes are no generator's.
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
        first = shape('decoder.conv1.conv.weight', 1)
        last = shape(f'decoder.convs.{2 * doublings - 1}.conv.weight', 1) if doublings else first
        side = shape('decoder.noises.noise_0', 3)
        # Official files have maps of other sizes: the last map and the channels must agree.
        if (shape(f'decoder.noises.noise_{2 * doublings}', 3) == side * 2 ** doublings
                and side >= 4 and side & (side - 1) == 0 and last >= min(first, channels_at(side * 2 ** doublings, 1))):
            rays = sizes['renderer_spatial_output_dim'] = side
        sizes['size'] = rays * 2 ** doublings
        multiplier = max(1, last // channels_at(sizes['size'], 1))
        if first < channels_at(rays, multiplier):
            sizes['channel_max'] = first
        # Channels of small images and capped ones do not depend on it.
        if channels_at(sizes['size'], 1) != channels_at(sizes['size'], 2) and last != sizes.get('channel_max'):
            sizes['channel_multiplier'] = multiplier
    return sizes

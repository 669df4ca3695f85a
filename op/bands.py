"""BandedDecoder: the decoder without gradients image by image, a band of rows at a time, over its own memory.

The definition is Decoder (model.py), whose layers also serve where gradients are wanted. On a CPU what the layers hand
on stays in the cache that way, and the memory is that of a band. Measured: docs/performance.md.
"""
import torch

from model import Decoder
from op import fused_leaky_relu

BAND_VALUES = 1 << 22  # about so many features a CPU computes at a time
HALO = 2               # a band needs so many rows around it, in pixels of the resolution below


class BandedDecoder(Decoder):
    """Decoder in bands."""

    def synthesize(self, features, weights, noise):
        recorded = torch.is_grad_enabled()
        if not recorded and works_channels_last(features.device, self.dtype, weights):
            features = features.contiguous(memory_format=torch.channels_last)
        in_bands = features.device.type == 'cpu' and not recorded
        if in_bands and len(features) > 1:  # each image by itself stays in the cache
            return torch.cat([self.synthesize(features[b:b + 1], [[_of(w, b) for w in block] for block in weights],
                                              [_of(n, b) for n in noise]) for b in range(len(features))])
        features = styled_conv(self.conv1, features.to(self.dtype), weights[0][0], noise[0])
        rgb = to_rgb(self.to_rgb1, features, weights[0][1])
        block = self._block_in_bands if in_bands else self._block
        for k in range(len(self.to_rgbs)):
            features, rgb = block(k, features, rgb, weights[k + 1], noise[2 * k + 1:2 * k + 3])
        return rgb

    def _block(self, k, features, rgb, weights, noise):
        """Features and RGB at twice the resolution."""
        features = styled_conv(self.convs[2 * k], features, weights[0], noise[0])
        features = styled_conv(self.convs[2 * k + 1], features, weights[1], noise[1])
        return features, to_rgb(self.to_rgbs[k], features, weights[2], rgb)

    def _block_in_bands(self, k, features, rgb, weights, noise):
        """_block of one image, a band of rows at a time, each with as many rows around it as it sees. The features of
        the last resolution are not kept."""
        _, channels, height, width = features.shape
        rows = max(1, BAND_VALUES // (2 * channels * width))
        last = k == len(self.to_rgbs) - 1
        whole = None if last else torch.empty(1, weights[1].shape[1], 2 * height, 2 * width, dtype=features.dtype,
                                              memory_format=torch.channels_last)
        image = rgb.new_empty(1, 3, 2 * height, 2 * width)
        for start in range(0, height, rows):
            stop, above, below = min(height, start + rows), max(0, start - HALO), min(height, start + rows + HALO)
            index, doubled = slice(above, below), slice(2 * above, 2 * below)
            band, band_rgb = self._block(k, features[:, :, index], rgb[:, :, index], weights,
                                         [n[:, :, doubled] for n in noise])
            kept = slice(2 * (start - above), 2 * (stop - above))
            if not last:
                whole[:, :, 2 * start:2 * stop] = band[:, :, kept]
            image[:, :, 2 * start:2 * stop] = band_rgb[:, :, kept]
        return whole, image


def styled_conv(layer, x, weight, noise):
    """StyledConv.forward, over its own memory unless autograd may record."""
    if torch.is_grad_enabled():
        return layer(x, weight, noise)
    x = convolve(layer.conv, x, weight)
    x.add_(layer.noise.weight.to(x.dtype) * noise.to(x.dtype))  # addcmul takes eight times as long on a CPU
    return fused_leaky_relu(x, layer.activate.bias, scale=layer.activate.gain, inplace=True)


def to_rgb(layer, x, weight, skip=None):
    """ToRGB.forward, the RGB not channels last: there are too few of them."""
    rgb = convolve(layer.conv, x, weight).contiguous().to(layer.bias.dtype) + layer.bias
    return rgb if skip is None else rgb + layer.upsample(skip)


def convolve(layer, x, weight):
    """ModulatedConv2d.forward. A CPU has no float16 convolution worth the name (it takes a hundred times as long), so
    there it is computed in float32 and rounded."""
    if x.dtype != torch.float16 or x.device.type != 'cpu':
        return layer(x, weight)
    x = layer.convolve(x.float(), weight.to(x.dtype).float()).to(x.dtype)
    return layer.blur(x) if layer.up else x


def works_channels_last(device, dtype, weights):
    """Whether the decoder keeps its features channels last, without gradients: with them a CPU is slower that way
    (docs/performance.md).

    On a GPU half precision does, whose matrix units want it, unless images have weights of their own: as groups of
    channels they would be copied. All other features keep the layout that they come in, and the renderer's come
    channels last.
    """
    return device.type == 'cpu' or device.type == 'cuda' and dtype.itemsize == 2 and len(weights[0][0]) == 1


def _of(tensor, b):
    """What belongs to image b of a (B,…) tensor, or of one that all images share."""
    return tensor if len(tensor) == 1 else tensor[b:b + 1]

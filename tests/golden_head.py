"""The golden head: the checkpoint `shape.pt`, from which the original's own commands wrote pictures and meshes.

    python tests/golden_head.py full_models/shape.pt     writes it, for commands with --expname shape

Its field was fitted to a head and is stored (golden/head.npz). Its decoder was never trained: the original drew it with
PyTorch's generator, so the same draws give it again and 4.3 MB need not be stored.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for the project's modules, where this file is a script

import checkpoint

GOLDEN = Path(__file__).resolve().parent / 'golden'
SHAPE = GOLDEN / 'shape'        # what the original's commands wrote
FLAGS = ['--expname', 'shape', '--size', '256', '--channel_multiplier', '1', '--style_dim', '64', '--width', '64',
         '--depth', '4', '--N_samples', '24', '--device', 'cpu']

# How much of the original's files golden/make.py keeps: of some pictures a band of rows, of meshes every 16th vertex.
ROWS = {'fixed_0000000.png': slice(112, 144), 'uniform_0000000.png': slice(112, 144)}
MESH_STEP = 16
VIDEO_FRAMES = (0, 1)

DECODER_SEED, DRAWN_BEFORE = 5, 112_388  # the original drew so many numbers before, for a field that was then fitted
RGB_SCALE, NOISE_WEIGHT, STYLE_SCALE = 0.12, 0.05, 0.01
# In the order in which the original makes its layers. The channels are those of a decoder 64 -> 256, multiplier 1.
DRAWN = [*((f'style.{i}.weight', (128, 64 if i == 1 else 128)) for i in range(1, 6)),
         ('conv1.conv.weight', (1, 256, 64, 3, 3)), ('conv1.conv.modulation.weight', (64, 128)),
         ('to_rgb1.conv.weight', (1, 3, 256, 1, 1)), ('to_rgb1.conv.modulation.weight', (256, 128)),
         *((f'noises.noise_{i}', (1, 1, side, side)) for i, side in enumerate((64, 128, 128, 256, 256))),
         ('convs.0.conv.weight', (1, 128, 256, 3, 3)), ('convs.0.conv.modulation.weight', (256, 128)),
         ('convs.1.conv.weight', (1, 128, 128, 3, 3)), ('convs.1.conv.modulation.weight', (128, 128)),
         ('to_rgbs.0.conv.weight', (1, 3, 128, 1, 1)), ('to_rgbs.0.conv.modulation.weight', (128, 128)),
         ('convs.2.conv.weight', (1, 64, 128, 3, 3)), ('convs.2.conv.modulation.weight', (128, 128)),
         ('convs.3.conv.weight', (1, 64, 64, 3, 3)), ('convs.3.conv.modulation.weight', (64, 128)),
         ('to_rgbs.1.conv.weight', (1, 3, 64, 1, 1)), ('to_rgbs.1.conv.modulation.weight', (64, 128))]


def drawn_decoder():
    """The decoder's random tensors {name: tensor}, drawn as the original drew them."""
    rng = torch.Generator().manual_seed(DECODER_SEED)
    torch.rand(DRAWN_BEFORE, generator=rng)
    tensors = {}
    for name, shape in DRAWN:
        tensor = torch.randn(shape, generator=rng)
        if name.startswith('style.'):
            tensor = tensor / STYLE_SCALE
        elif name.startswith('to_rgb') and name.endswith('.conv.weight'):
            tensor = tensor * RGB_SCALE
        tensors[f'decoder.{name}'] = tensor
    return tensors


def constant_decoder():
    """The decoder's tensors that start at constants {name: tensor}: biases, noise weights and blur kernels."""
    taps = torch.tensor([1., 3., 3., 1.])
    blur = torch.outer(taps, taps) / 16  # sums to 4
    tensors = {f'style.{i}.bias': torch.zeros(128) for i in range(1, 6)}
    for layer, below, channels, up in (('conv1', 64, 256, False), ('convs.0', 256, 128, True),
                                       ('convs.1', 128, 128, False), ('convs.2', 128, 64, True),
                                       ('convs.3', 64, 64, False)):
        tensors |= {f'{layer}.bias': torch.zeros(1, channels, 1, 1), f'{layer}.activate.bias': torch.zeros(channels),
                    f'{layer}.conv.modulation.bias': torch.ones(below),
                    f'{layer}.noise.weight': torch.full((1,), NOISE_WEIGHT)}
        if up:
            tensors[f'{layer}.conv.blur.kernel'] = blur.clone()
    for layer, channels in (('to_rgb1', 256), ('to_rgbs.0', 128), ('to_rgbs.1', 64)):
        tensors |= {f'{layer}.bias': torch.zeros(1, 3, 1, 1), f'{layer}.conv.modulation.bias': torch.ones(channels)}
        if layer != 'to_rgb1':
            tensors[f'{layer}.upsample.kernel'] = blur.clone()
    return {f'decoder.{name}': tensor for name, tensor in tensors.items()}


def head_state():
    """The state dict of the golden head."""
    with np.load(GOLDEN / 'head.npz') as arrays:
        field = {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files if not name.startswith('mean:')}
    return {**field, **drawn_decoder(), **constant_decoder()}


def write_head(path):
    """Write the golden head to `path` as the original writes a checkpoint."""
    checkpoint.save(Path(path), {'g_ema': head_state()})


def main():
    parser = argparse.ArgumentParser(description='Write the golden head, a checkpoint for tests and measurements.')
    parser.add_argument('path', help='the file to write, for instance full_models/shape.pt')
    write_head(parser.parse_args().path)


if __name__ == '__main__':
    main()

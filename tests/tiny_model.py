"""A tiny untrained model whose field has a surface, for tests of what uses a finished model."""
from pathlib import Path

import torch

import checkpoint
from camera import cameras_at
from model import build_generator
from options import parse

TINY = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--renderer_spatial_output_dim', '8']


def save_tiny_model(folder):
    """Write full_models/tiny.pt below `folder`: 16x16 images from 8x8 rays. Returns its generator."""
    torch.manual_seed(0)
    generator = build_generator(parse('render_video', '', TINY)).requires_grad_(False)
    # An untrained SDF has one sign: less its median it has a surface.
    sdf = generator.renderer(torch.zeros(1, 8), cameras_at(torch.zeros(1, 2), 8), sdf=True).sdf
    generator.renderer.network.sigma_linear.bias -= sdf.median()
    checkpoint.save(Path(folder) / 'full_models' / 'tiny.pt', {
        'g_ema': generator.state_dict(), 'options': {'model': {'renderer_spatial_output_dim': 8}}})
    return generator

"""A tiny untrained model whose field has a surface, for tests of what uses a finished model."""
from pathlib import Path

import av
import torch

import checkpoint
from camera import cameras_at
from model import build_generator
from op.fast import fast_parts
from options import parse

TINY = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--channel_max', '16', '--renderer_spatial_output_dim', '8']


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


def z_of(seed):
    """The z that --seeds gives a tiny model."""
    return torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))


def frames_of(path):
    """The frames of a video file as floats."""
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format='rgb24').astype(float) for frame in video.decode(video=0)]


def tiny_training_pair(stage):
    """(generator, option tree) of a stage, with a surface in sight."""
    torch.manual_seed(0)
    opt = parse(f'train_{stage}', '', [*TINY, '--N_samples', '6', '--val_n_sample', '2', '--device', 'cpu'])
    generator = build_generator(opt, stage == 'full_pipeline', **fast_parts(opt)).requires_grad_(False)
    generator.renderer.perturb = 0.
    sdf = generator.renderer(torch.zeros(1, 8), cameras_at(torch.zeros(1, 2), 8), sdf=True).sdf
    generator.renderer.network.sigma_linear.bias -= sdf.median()
    return generator, opt

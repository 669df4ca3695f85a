"""A finished model as a small file to give away: the moving average of the weights in half precision, and the options.

    python export_model.py --expname cats --out cats_small.pt

Generation and video take the file as full_models/NAME.pt. The last line says how far pictures are from those of the
full file.
"""
import interrupts  # noqa: F401

from pathlib import Path

import torch

import checkpoint
from camera import cameras_at
from options import parse
from utils import UserError, run_command

IMAGES = 4  # compared before and after


@torch.no_grad()
def pictures(generator, opt):
    """A few frontal images (n,3,S,S) in [-1, 1], always of the same latents."""
    random = torch.Generator().manual_seed(opt.experiment.seed)
    z = torch.randn(IMAGES, opt.model.style_dim, generator=random)
    cameras = cameras_at(torch.zeros(IMAGES, 2), opt.model.renderer_spatial_output_dim, opt.camera.fov,
                         opt.camera.dist_radius)
    generated = generator(z, cameras, noise='fixed')
    return generated.picture


def main():
    opt = parse('export_model', __doc__)
    if opt.export.out is None:
        raise UserError('--out is missing; give the file to write.')
    out = Path(opt.export.out)
    generator, opt, path, _ = checkpoint.load_generator(opt, torch.device('cpu'))
    before = pictures(generator, opt)
    saved = checkpoint.read(path)
    half = {name: tensor.half() for name, tensor in saved['g_ema'].items()}
    checkpoint.load_state(generator, {name: tensor.float() for name, tensor in half.items()}, path)
    difference = (pictures(generator, opt) - before).abs() * 127.5
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, {'g_ema': half, 'options': saved.get('options', {})})
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB instead of {path.stat().st_size / 1e6:.1f}; pictures differ by '
          f'{difference.mean():.3f} levels of 255 on average, by {difference.max():.1f} at most')


if __name__ == '__main__':
    run_command(main)

"""Export a finished model as a small file: the moving average of the weights in half precision, and the options.

    python export_model.py --expname cats_demo --out cats_small.pt

Generation and video take the file as full_models/NAME.pt. The last line says how far pictures are from those of the
full file.
"""
import options

if __name__ == '__main__':
    options.run('export_model', __doc__)

from pathlib import Path

import torch

import checkpoint
from camera import cameras_of
from inference.identities import draw_z, seeded
from inference.loading import load_generator
from utils import UserError

IMAGES = 4  # compared before and after


@torch.no_grad()
def frontal_pictures(generator, opt):
    """A few frontal images (n,3,S,S) in [-1, 1], always of the same latents."""
    z = draw_z(opt, seeded(opt.experiment.seed, 'cpu'), IMAGES)
    return generator(z, cameras_of(opt, torch.zeros(IMAGES, 2)), noise='fixed').picture


def main(opt):
    if opt.export.out is None:
        raise UserError('--out is missing; give the file to write.')
    out = Path(opt.export.out)
    generator, opt, path, _ = load_generator(options.replaced(opt, dense=True), torch.device('cpu'))
    before = frontal_pictures(generator, opt)
    saved = checkpoint.read(path)
    half = {name: tensor.half() for name, tensor in saved['g_ema'].items()}
    checkpoint.load_state(generator, {name: tensor.float() for name, tensor in half.items()}, path)
    difference = (frontal_pictures(generator, opt) - before).abs() * 127.5
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, {'g_ema': half, 'options': saved.get('options', {})})
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB instead of {path.stat().st_size / 1e6:.1f}; pictures differ by '
          f'{difference.mean():.3f} levels of 255 on average, by {difference.max():.1f} at most')

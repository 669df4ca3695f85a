"""Export a finished model: as a small file, for other programs (ONNX), or as a web page that runs it.

    python export_model.py --expname cats_demo --out cats_small.pt
    python export_model.py --expname cats_demo --out cats.onnx --format onnx
    python export_model.py --expname cats_demo --browser site

--out FILE holds the moving average of the weights in half precision, and the options; generation and video take it as
full_models/NAME.pt. With --keep_discriminator it also holds the discriminator, for invert_photos.py. With --format onnx
it holds the generator for onnxruntime and other programs: cats.onnx makes pictures from latents w and w', and
cats_mapping.onnx makes these from z (docs/generate.md). --browser FOLDER is a page on which a visitor's own browser
runs the model (docs/hosting.md). The last line says what was written, and of --out how far pictures are from those of
the full file.
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
from inference.onnx_graph import import_onnx
from inference.onnx_model import compare_with, save_onnx
from inversion.features import read_discriminator
from utils import UserError, writable_file, writable_folder
from web.browser_page import write_site

IMAGES = 4  # compared before and after


@torch.no_grad()
def frontal_pictures(generator, opt):
    """A few frontal images (n,3,S,S) in [-1, 1], always of the same latents."""
    z = draw_z(opt, seeded(opt.experiment.seed, 'cpu'), IMAGES)
    return generator(z, cameras_of(opt, torch.zeros(IMAGES, 2)), noise='fixed').picture


def check(opt):
    """Raise UserError where it is not said what to write, where it is contradictory, or where it cannot be written."""
    wanted = opt.export
    if wanted.out is None and wanted.browser is None:
        raise UserError('--out is missing; give the file to write, or a folder for a page with --browser.')
    if wanted.onnxruntime_web and not wanted.browser:
        raise UserError('--onnxruntime_web: only the page of --browser needs it; leave it out.')
    if wanted.out is None and 'format' in opt.given:
        raise UserError('--format: a page has no format; give --out too, or leave it out.')
    if wanted.keep_discriminator and (wanted.out is None or opt.video.format != 'pt'):
        raise UserError('--keep_discriminator: only files of --format pt can hold one; leave it out.')
    if opt.video.format == 'onnx' and wanted.out and Path(wanted.out).suffix != '.onnx':
        raise UserError(f'--out {wanted.out}: give a name that ends in .onnx.')
    if wanted.browser or opt.video.format == 'onnx':
        import_onnx()
    if wanted.out:
        out, (model, _) = writable_file(wanted.out, '--out'), checkpoint.find_model(opt)
        if out.exists() and model.exists() and out.samefile(model):  # of which the new file lacks the larger part
            raise UserError(f'--out {out}: this is the file of the model itself; give another name.')
    if wanted.browser:
        writable_folder(Path(wanted.browser).parent, '--browser')


def in_half(state, path):
    """A state dict in half precision. path: of its file, for the UserError where a number is too large for that."""
    half = {name: tensor.half() for name, tensor in state.items()}
    for name, tensor in half.items():
        if not tensor.isfinite().all():
            raise UserError(f'{path} holds numbers beyond {torch.finfo(torch.float16).max:g}, the largest of half '
                            f'precision (in {name}); use the file as it is, or --format onnx.')
    return half


def export_half(loaded, out):
    """Write the weights of a Loaded model in half precision, on demand with its discriminator."""
    generator, opt, path, _ = loaded
    discriminator = read_discriminator(path, opt) if opt.export.keep_discriminator else None
    if opt.export.keep_discriminator and discriminator is None:
        raise UserError(f'--keep_discriminator: {path} holds no StyleGAN2 discriminator of stage 2 that fits the '
                        'model; leave it out, or give the last checkpoint of the training with --model.')
    before = frontal_pictures(generator, opt)
    saved = checkpoint.read(path)
    half = in_half(saved['g_ema'], path)
    checkpoint.load_state(generator, {name: tensor.float() for name, tensor in half.items()}, path)
    difference = (frontal_pictures(generator, opt) - before).abs() * 127.5
    kept = {} if discriminator is None else {'d': in_half(discriminator.state_dict(), path)}
    checkpoint.save(out, {'g_ema': half, **kept, 'options': saved.get('options', {})})
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB instead of {path.stat().st_size / 1e6:.1f}; pictures differ by '
          f'{difference.mean():.3f} levels of 255 on average, by {difference.max():.1f} at most')


def export_onnx(loaded, means, out):
    """Write the graphs of a Loaded model, and compare a picture of theirs."""
    files = save_onnx(loaded.generator, loaded.opt, means, out)
    difference = compare_with(loaded.generator, loaded.opt, means, *files)
    sizes = ' and '.join(f'{file} ({file.stat().st_size / 1e6:.1f} MB)' for file in files)
    print(f"{sizes}: a picture of onnxruntime differs from PyTorch's by {difference:.1e} of its range at most")


def export_page(loaded, means, folder):
    """Write the page that runs a Loaded model in a browser."""
    size = write_site(folder, loaded.generator, loaded.opt, means)
    print(f'{folder}: a page of {size / 1e6:.0f} MB; to try it: python -m http.server --directory {folder}, then open '
          'http://127.0.0.1:8000/')


def main(opt):
    check(opt)
    loaded = load_generator(options.replaced(opt, dense=True), torch.device('cpu'))
    if opt.export.out and opt.video.format == 'pt':
        export_half(loaded, Path(opt.export.out))
    if opt.export.browser or opt.video.format == 'onnx':
        rng = seeded(opt.experiment.seed, 'cpu')
        means = loaded.generator.mean_latents(opt.inference.truncation_mean, rng)
        if opt.export.out and opt.video.format == 'onnx':
            export_onnx(loaded, means, Path(opt.export.out))
        if opt.export.browser:
            export_page(loaded, means, opt.export.browser)

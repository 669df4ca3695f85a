"""The page that runs a model: a folder of static files, from which any web server serves it (docs/hosting.md).

    FOLDER/
        index.html, *.css, *.js     of web/browser/, as they are
        model/model.json            what the page needs to know: sizes, cameras, directions, the files
        model/*.onnx                the graphs of inference/onnx_model.py
        model/seeds.bin             z of the first SEEDS seeds, float32, as --seeds draws them
        onnxruntime/                onnxruntime-web, an npm package (MIT), for processors and for WebGPU

Pictures are computed by the visitor's own browser: there is no Python, and nothing is sent anywhere.
"""
import contextlib
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch
from PIL import Image

from camera import cameras_of
from inference.directions import find_directions, read_directions
from inference.identities import draw_z, seeded
from inference.latents import Owner
from inference.onnx_model import decoder_graph, field_graphs, latents_graphs
from utils import UserError, shortened, to_uint8
from volume_renderer import sample_depths

HERE = Path(__file__).resolve().parent
SEEDS = 256
DIRECTIONS = 4          # of shape, and of color, where no file of find_directions.py is given
MOST_DIRECTIONS = 24    # sliders of the page
PACKAGE = 'onnxruntime-web@^1.20'
RUNTIME = ('ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm')
RUNTIME_WEBGPU = ('ort.webgpu.min.mjs', 'ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm')
NPM_SECONDS = 600
MARKS = 'model/model.json', f'onnxruntime/{RUNTIME[0]}'  # files that tell a page from other folders, also unfinished
GRID = 4                # rays between those that the page looks at first, as in op/sparse.py


# ---------------------------------------------------------------------------------------------- onnxruntime-web

def runtime_files(folder):
    """The files of onnxruntime-web that the page loads, in a folder of the package or in its dist/.

    Raises UserError where they are not there. The files for WebGPU may be missing.
    """
    for place in (Path(folder), Path(folder) / 'dist', Path(folder) / 'package' / 'dist'):
        if all((place / name).is_file() for name in RUNTIME):
            webgpu = RUNTIME_WEBGPU if all((place / name).is_file() for name in RUNTIME_WEBGPU) else ()
            return [place / name for name in (*RUNTIME, *webgpu)]
    raise UserError(f'--onnxruntime_web {folder}: {RUNTIME[0]} is not there; give a folder of the npm package '
                    'onnxruntime-web, 1.20 or newer.')


def fetched_runtime(folder):
    """runtime_files of the package, which npm fetches into `folder`. Raises UserError where it cannot."""
    remedy = 'or give a folder of the package with --onnxruntime_web (docs/hosting.md)'
    npm = shutil.which('npm')
    if npm is None:
        raise UserError(f'--browser needs onnxruntime-web, which npm fetches, but there is no npm here; install it, '
                        f'{remedy}.')
    try:
        subprocess.run([npm, 'pack', '--silent', PACKAGE], cwd=folder, check=True, capture_output=True, text=True,
                       timeout=NPM_SECONDS)
        with tarfile.open(next(Path(folder).glob('*.tgz'))) as archive:
            archive.extractall(folder, filter='data')
    except (subprocess.SubprocessError, StopIteration, tarfile.TarError) as error:
        lines = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
        reason = shortened(lines[-1]) if lines else 'no reason given'
        raise UserError(f'--browser: npm could not fetch onnxruntime-web ({reason}); try again, {remedy}.') from None
    return runtime_files(folder)


# ---------------------------------------------------------------------------------------------- the model

def check_model(generator, opt):
    """Raise UserError for a model that the page cannot show."""
    if not generator.renderer.has_sdf:
        raise UserError('--browser: the page needs signed distances, and this model (--no_sdf) has none.')
    side = generator.renderer.resolution
    if side % GRID or side <= 2 * GRID:
        raise UserError(f'--browser: the page needs thumbnails whose side is a multiple of {GRID} and more than '
                        f'{2 * GRID}, not {side}.')


def directions_of(generator, opt, means):
    """{name: Direction} for the page's sliders: of --directions, or the first principal components."""
    if opt.inference.directions:
        found = read_directions(Path(opt.inference.directions), generator, Owner.of(generator, opt))
    else:
        found = find_directions(generator, means, opt.inference.truncation_ratio, 'pca', DIRECTIONS)
    return dict(list(found.items())[:MOST_DIRECTIONS])


def description(generator, opt, directions):
    """What model.json holds."""
    renderer = generator.renderer
    camera = cameras_of(opt, torch.zeros(1, 2))
    t = sample_depths(camera.near, camera.far, renderer.samples, offset_sampling=renderer.offset_sampling)

    def numbers(tensor, layers):
        return None if tensor is None else tensor.reshape(-1, tensor.shape[-1]).expand(layers, -1).tolist()

    decoder = generator.decoder if generator.full_pipeline else None
    return {
        'name': opt.experiment.expname, 'styleDim': generator.style_dim, 'channels': renderer.network.width,
        'layers': decoder.num_layers if decoder else 0, 'size': decoder.size if decoder else renderer.resolution,
        'rays': renderer.resolution, 't': t.flatten().tolist(), 'beta': renderer.sigmoid_beta.item(),
        'tangent': math.tan(math.radians(opt.camera.fov)), 'radius': opt.camera.dist_radius,
        'truncation': opt.inference.truncation_ratio, 'seeds': SEEDS,
        'directions': [{'name': name, 'w': numbers(step.w, 1) and numbers(step.w, 1)[0],
                        'wPrime': decoder and numbers(step.w_prime, decoder.num_layers)}
                       for name, step in directions.items()]}


def write_model(folder, generator, opt, means):
    """Write the model's part of the page into a folder."""
    folder.mkdir()
    graphs = latents_graphs(generator, means)
    graphs.pop('mapping')
    graphs |= field_graphs(generator.renderer, opt.camera.dist_radius)
    if generator.full_pipeline:
        graphs['decoder'] = decoder_graph(generator.decoder)
    for name, graph in graphs.items():
        graph.save(folder / f'{name}.onnx')
    z = torch.cat([draw_z(opt, seeded(seed, 'cpu')) for seed in range(SEEDS)])
    (folder / 'seeds.bin').write_bytes(z.numpy().astype('<f4').tobytes())
    facts = description(generator, opt, directions_of(generator, opt, means))
    (folder / 'model.json').write_text(json.dumps(facts), encoding='utf-8')


@torch.no_grad()
def write_icon(path, generator, opt, means):
    """The mean face as the page's icon."""
    icon = generator(torch.zeros(1, generator.style_dim), cameras_of(opt, torch.zeros(1, 2)), psi=0., means=means,
                     noise='fixed').picture
    Image.fromarray(to_uint8(icon)[0]).resize((64, 64), Image.Resampling.LANCZOS).save(path)


# ---------------------------------------------------------------------------------------------- the folder

@contextlib.contextmanager
def hidden_folder(folder):
    """A temporary folder beside `folder`, for what is moved there in the end.

    Where something cannot be written into it (a full disk), the OSError names `folder`, which the user knows.
    """
    prefix = '.page-'
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as made:
            yield Path(made)
    except OSError as error:
        if error.errno and (error.filename is None or prefix in str(error.filename)):
            raise OSError(error.errno, os.strerror(error.errno), str(folder)) from None
        raise


def copy(file, folder):
    """Copy a file into a folder. Unlike shutil.copy's, an OSError names `file` only where it cannot be read."""
    (folder / file.name).write_bytes(file.read_bytes())


def write_site(folder, generator, opt, means):
    """Write the page of a generator into a folder, which may hold an earlier one; returns its size in bytes.

    Raises UserError for a model that cannot be shown, a folder with something else in it, or without the runtime.
    """
    folder = Path(folder)
    check_model(generator, opt)
    if folder.exists() and any(folder.iterdir()) and not any((folder / mark).exists() for mark in MARKS):
        raise UserError(f'--browser {folder}: this folder holds something else; give a new one.')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(folder) as made:
        page, package, old = (made / name for name in ('page', 'package', 'old'))
        for new in (page, package, old, page / 'onnxruntime'):
            new.mkdir()
        given = opt.export.onnxruntime_web
        for file in runtime_files(given) if given else fetched_runtime(package):
            copy(file, page / 'onnxruntime')
        write_model(page / 'model', generator, opt, means)
        for file in (HERE / 'browser').iterdir():
            copy(file, page)
        (page / 'look.css').write_text(''.join((HERE / name).read_text() for name in ('colors.css', 'look.css')))
        write_icon(page / 'icon.png', generator, opt, means)
        folder.mkdir(exist_ok=True)
        # The model comes first, so that one of MARKS is there whenever this stops, and index.html last, when all is.
        for part in sorted(page.iterdir(), key=lambda path: (path.name == 'index.html') - (path.name == 'model')):
            target = folder / part.name
            if target.is_dir():
                os.replace(target, old / part.name)
            os.replace(part, target)
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())

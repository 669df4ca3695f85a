"""Every main path with --device cuda, on a pretended device (pretend_device.py): which tensors lie where, whether the
results are a CPU's, and where the host waits for the GPU."""
import contextlib
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretend_device import PretendDevice
from test_op import twin  # noqa: F401 (a fixture)
from tiny_model import TINY, save_tiny_model
from tiny_training import flags, train

import evaluate
import generate_shapes_and_images
import options
import render_video
from inference.frames import render_frames
from inference.loaded_model import load, load_model
from inference.meshes import frontal_mesh
from metrics import features
from op import kernels, siren
from surfaces.noise import frontal_noise
from training import state

sys.path.append(str(Path(__file__).resolve().parent.parent / 'benchmarks'))

import commands
import head
import speed

SMALL = ['--expname', 'tiny', '--truncation_mean', '50', '--N_samples', '4']


@pytest.fixture
def gpu():
    with PretendDevice() as device:
        yield device


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """full_models/tiny.pt in the current folder; surfaces of 32 samples along each side, which sparse.py takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 32)
    save_tiny_model(tmp_path)


@contextlib.contextmanager
def kernels_used(library):
    """Inside, the GPU's kernels are used: the decoder's compiled for the CPU (`library`, the fixture twin), the field's
    stood in for by its definition. Yields a Counter of the calls. The pretended device must outlast it."""
    calls = Counter()

    class OnDevice:
        def __init__(self, device):
            assert device.type == 'cuda'

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def launch(name, x, *arguments, original=kernels.launch):
        assert all(a.is_cuda for a in (x, *arguments) if isinstance(a, torch.Tensor))
        calls[name] += 1
        original(name, x, *arguments)

    def fused(field, points, viewdirs=None):
        calls['field'] += 1
        return field.steps(points, viewdirs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('STYLESDF_OPS', 'cuda')
        monkeypatch.setattr(kernels, 'wanted', lambda x: x.is_cuda)
        monkeypatch.setattr(kernels, '_capability', lambda device: (9, 0))
        monkeypatch.setattr(kernels, '_load', lambda capability: (library, None))
        monkeypatch.setattr(kernels, 'launch', launch)
        monkeypatch.setattr(siren, 'fused', fused)
        monkeypatch.setattr(siren, '_failures', {})
        monkeypatch.setattr(torch.cuda, 'device', OnDevice)
        monkeypatch.setattr(torch.cuda, 'current_stream', lambda: type('Stream', (), {'cuda_stream': None}))
        yield calls


def done(result):
    code, _, errors = result
    assert code == 0, errors


# ---------------------------------------------------------------------------------------------- the pretended device

HERE, THERE = (lambda: torch.ones(3, 3)), (lambda: torch.ones(3, 3, device='cuda'))


@pytest.mark.parametrize('mistake', [
    lambda: HERE() + THERE(), lambda: THERE().add_(HERE()), lambda: HERE().add_(THERE()),
    lambda: THERE() @ HERE(), lambda: torch.cat([THERE(), HERE()]), lambda: torch.where(HERE() > 0, THERE(), 0.),
    lambda: torch.stack([THERE().sum(), torch.tensor(1.)]), lambda: HERE()[THERE() > 0],
    lambda: THERE().index_select(0, torch.tensor([1])), lambda: THERE().index_put_((torch.tensor([1]),), HERE()[:1]),
    lambda: torch.mul(THERE(), 2, out=HERE()), lambda: torch.nn.functional.linear(THERE(), HERE()),
    lambda: torch.nn.Linear(3, 3)(THERE()), lambda: THERE().numpy(), lambda: np.asarray(THERE()),
    lambda: torch.randn(3, device='cuda', generator=torch.Generator()),
    lambda: torch.randn(3, generator=torch.Generator('cuda'))])
def test_mistakes_are_errors(gpu, mistake):
    with pytest.raises((RuntimeError, TypeError), match='device|generator'):
        mistake()


def test_what_is_right_is_none_and_waits_are_counted(gpu):
    x = torch.arange(9., device='cuda').view(3, 3)
    (x * torch.tensor(2.) + 1).masked_fill(x > 3, torch.tensor(0.))
    x[x > 7] = 0.
    assert x.device == torch.device('cuda', 0) and x.is_cuda and not x.is_meta and not gpu.waits
    assert float(x.sum()) == 28 and x[torch.tensor([1])].tolist() == [[3, 4, 5]] and len(x[x > 5]) == 2
    assert x.cpu().device.type == 'cpu' and torch.tensor([1.]).to('cuda', non_blocking=True).is_cuda
    assert {what for _, what in gpu.waits} == {'_local_scalar_dense', 'index on the CPU', 'tolist', 'index by a mask',
                                               'copy to the CPU'} and sum(gpu.waits.values()) == 5
    layer = torch.nn.Linear(3, 2).to('cuda')
    layer(x).sum().backward()
    assert layer.weight.grad.is_cuda and layer.weight.grad.cpu().equal(x.sum(0).cpu().expand(2, 3))


# ---------------------------------------------------------------------------------------------- pictures and meshes

def run_on(device, command, module, folder, *arguments):
    done(command(module, *SMALL, '--device', device, '--results_dir', folder, *arguments))


def assert_same_files(a, b, levels=1):
    """Folders with the same files, and the same pictures but for rounding."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob('*') if path.is_file()) for folder in (a, b)]
    assert names[0] == names[1] and names[0]
    for name in names[0]:
        if name.suffix == '.png':
            here, there = (np.asarray(Image.open(folder / name)).astype(int) for folder in (a, b))
            assert np.abs(here - there).max() <= levels, name


@pytest.mark.parametrize('arguments', [
    '--num_views_per_id 2 --vertex_colors --identities 1',
    '--fixed_camera_angles --identities 1 --dense --no_surface_renderings',
    '--seeds 3,5 --precision bf16 --truncation_ratio 1 --no_surface_renderings',
    '--seeds 3 --precision fp16 --no_surface_renderings'])
def test_images_and_meshes(tiny, command, tmp_path, arguments):
    run_on('cpu', command, generate_shapes_and_images, 'a', *arguments.split())
    with PretendDevice():
        run_on('cuda', command, generate_shapes_and_images, 'b', *arguments.split())
    assert_same_files(tmp_path / 'a', tmp_path / 'b', levels=4 if 'precision' in arguments else 1)


def test_images_by_the_kernels(tiny, command, tmp_path, twin):  # noqa: F811
    run_on('cpu', command, generate_shapes_and_images, 'a', '--identities', 1)
    with PretendDevice(), kernels_used(twin) as calls:
        run_on('cuda', command, generate_shapes_and_images, 'b', '--identities', 1)
    assert min(calls[name] for name in ('leaky_relu', 'upfirdn2d', 'field')) > 0
    assert_same_files(tmp_path / 'a', tmp_path / 'b')


@pytest.mark.parametrize('arguments', [
    '--project_noise --identities 1', '--no_surface_videos --azim_video --identities 2',
    '--interpolate 1,2 --side_by_side --depth_style normals', '--dense --depth_style depth --identities 1'])
def test_videos(tiny, command, tmp_path, arguments):
    arguments = [*arguments.split(), '--frames', 2, '--format', 'frames']
    run_on('cpu', command, render_video, 'a', *arguments)
    with PretendDevice():
        run_on('cuda', command, render_video, 'b', *arguments)
    assert_same_files(tmp_path / 'a', tmp_path / 'b', levels=3)


def test_a_loaded_model(tiny, gpu, tmp_path):
    model = load_model('tiny', device='cuda', truncation_mean=50)
    w = model.w_of([3, 4], 0.7)
    camera = model.cameras([[20., 5.]], zoom=2.)
    assert model.picture(w[:1], camera, 0.7).shape == (16, 16, 3)
    assert model.surface(w[:1], camera).shape == (512, 512, 3)
    assert model.mesh(w[:1]).visual.kind == 'vertex'
    assert model.video(tmp_path / 'walk.mp4', w, 0.7, frames=2, with_surface=True).is_file()


# ---------------------------------------------------------------------------------------------- where the host waits

# A wait ends the host's lead: the GPU then idles until the host has told it what is next. Uploads do not wait: they are
# non_blocking or made there.
PICTURE = {('utils', 'copy to the CPU'): 1}  # what the encoder gets, once the frame's work is all queued
NOISE = {('noise', 'nonzero'): 1,            # how many triangles face the camera
         ('noise', 'index by a mask'): 1}    # how many of them nothing hides
SPARSE = {('sparse', 'tolist'): 1}  # beta and the distance between samples
# How many samples have to be evaluated decides the GPU's work: the host must know, in each round of the search.
SEARCH = 60


@pytest.mark.parametrize('arguments, expected', [
    ('--no_surface_videos', [PICTURE]), ('--dense', [PICTURE, PICTURE]), ('', [PICTURE, PICTURE, SPARSE]),
    ('--project_noise --no_surface_videos', [PICTURE, NOISE])])
def test_waits_of_a_frame(gpu, monkeypatch, arguments, expected):
    """Of a video on a GPU, once the first frame is done; no caches are emptied."""
    if arguments:  # the search is bounded at the usual size
        monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 32 if '--dense' in arguments else 64)
    dense = ['--dense'] if '--dense' in arguments else []
    flags = ['--expname', 'cats_demo', '--device', 'cuda', '--truncation_mean', '50', *dense]
    model = load(options.parse('app', '', flags))
    opt = options.parse('render_video', '', ['--expname', 'cats_demo', *arguments.split()])
    w, cameras = model.w_of([3], 0.7), model.cameras([[0., 0.], [5., 0.]])
    fixed = model.generator.decoder.fixed_noise()

    def noise(camera):
        return fixed
    if opt.model.project_noise:
        mesh, frontal = frontal_mesh(model.generator, w, opt)
        on_surface = frontal_noise(mesh, model.generator.renderer, frontal, model.generator.decoder.noise_sizes,
                                   torch.Generator('cuda'))
        noise = partial(on_surface.maps, resolution=model.generator.renderer.resolution, fixed=fixed)
    frames = render_frames(model.generator, model.latents(w, 0.5), cameras, noise, opt,
                           not opt.inference.no_surface_videos)
    next(frames)
    gpu.waits.clear()
    next(frames)
    search = {what: count for what, count in gpu.waits.items() if what[0] == 'refine'}
    assert gpu.waits - Counter(search) == sum(map(Counter, expected), Counter())
    assert bool(search) == (SPARSE in expected) and sum(search.values()) <= SEARCH


@pytest.mark.parametrize('stage, updates', [('volume_renderer', [2, 2]), ('full_pipeline', [2, 3])])
def test_waits_of_a_training_step(data, tmp_path, gpu, quick, monkeypatch, stage, updates):
    """One for each update, which must know that nothing became NaN before it changes a weight (the third: path lengths
    every other step), and one for the beta that the log and the progress bar show."""
    steps = []

    def update(self, original=state.State.update_ema):
        steps.append(gpu.waits.copy())
        gpu.waits.clear()
        original(self)

    if stage == 'full_pipeline':
        train('volume_renderer', tmp_path, flags(data, '--device cuda --iter 1 --sphere_iters 1'))
    monkeypatch.setattr(state.State, 'update_ema', update)
    train(stage, tmp_path, flags(data, '--device cuda --iter 3 --sphere_iters 1 --sphere_lambda 1'))
    assert steps[1:] == [{('run', 'tolist'): count, ('run', '_local_scalar_dense'): 1}
                         for count in updates]


# ---------------------------------------------------------------------------------------------- training, evaluation

@pytest.fixture
def quick(monkeypatch):
    """Little for --eval_every to do."""
    monkeypatch.setattr('training.quality.EVAL_IMAGES', 4)
    monkeypatch.setattr('training.quality.EVAL_IDENTITIES', 1)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)


def test_training(data, tmp_path, gpu, quick):
    """Both stages, and each goes on from its checkpoint."""
    sample, loss = '--device cuda --save_every 1 --eval_every 2', '--sphere_lambda 1 --sphere_until 5 --chunk 2'
    train('volume_renderer', tmp_path, flags(data, f'{sample} {loss} --iter 1 --sphere_iters 1'))
    (tmp_path / 'pretrained_renderer/debug_vol_renderer.pt').unlink()
    train('volume_renderer', tmp_path, flags(data, f'{sample} {loss} --iter 2 --sphere_iters 1 --continue_training'))
    loss = '--thumbnail_lambda 1 --mixing 1 --precision bf16'
    train('full_pipeline', tmp_path, flags(data, f'{sample} {loss} --iter 1 --chunk 4'))
    (tmp_path / 'full_models/debug.pt').unlink()
    train('full_pipeline', tmp_path, flags(data, f'{sample} {loss} --iter 3 --chunk 2 --continue_training'))


def test_training_by_the_kernels(data, tmp_path, gpu, quick, twin):  # noqa: F811
    """A step of each stage, all regularizers included."""
    with kernels_used(twin) as calls:
        train('volume_renderer', tmp_path, flags(data, '--device cuda --sphere_lambda 1 --sphere_until 5 --chunk 2 '
                                                 '--iter 1 --sphere_iters 1'))
        train('full_pipeline', tmp_path, flags(data, '--device cuda --thumbnail_lambda 1 --mixing 1 --iter 1 '
                                               '--chunk 2'))
    assert min(calls[name] for name in ('leaky_relu', 'upfirdn2d', 'field')) > 0


def test_evaluation(data, tiny, command, gpu, monkeypatch):
    def means(images):
        assert images.is_cuda
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)

    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    monkeypatch.setattr(evaluate, 'load_features', lambda *_: features.Features('means', 'means', means))
    done(command(evaluate, *SMALL, '--device', 'cuda', '--dataset_path', data, '--num_images', 20, '--num_surfaces', 1,
                 '--num_workers', 0, '--eval_batch', 8, '--save_images', 'own'))


@pytest.mark.parametrize('row', [row for row in speed.ROWS if row not in commands.COMMANDS])
def test_benchmark(tiny, gpu, row, monkeypatch):
    monkeypatch.setattr('plain.SURFACE_RESOLUTION', 32)
    settings = speed.Settings((*TINY, '--device', 'cuda', '--batch', '4', '--discriminator_width', '0.02'), True,
                              'full_models/tiny.pt', None, 0, 2)
    for variant in ('plain', 'ours') if row != 'surface' else ('ours', 'dense'):
        speed.ROWS[row].prepare(settings, variant)()


def test_benchmarks_head(tiny, gpu):
    model = load_model('tiny', device='cuda', truncation_mean=50)
    model.generator.requires_grad_(True)
    assert head.fit_head(model.generator, model.w_of([1], 0.7).detach(), 0.24, steps=2) > 0

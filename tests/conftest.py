"""Fixtures: the golden numbers of the original (golden/README.md), commands, formula weights."""
import json
import os
import random
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import av
import filelock
import numpy as np
import pytest
import torch
from golden_head import FLAGS, GOLDEN, head_state, write_head
from tiny_model import save_tiny_model
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import options
from camera import cameras_at, video_viewpoints
from inference.loaded_model import load_model
from inversion.solving import Part
from model import build_generator
from op.fast import fast_parts
from surfaces.rendering import render_surface
from utils import run_command

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'  # what is too large for the repository; tests that need it skip without it
os.environ.setdefault('STYLESDF_OPS', 'auto')


# These take longest. They come first, so that at the end no process is left alone with one of them. Files that wait for
# processes and browsers take turns with files that compute, because two processes take the first four in turn.
LONG_FILES = ('test_training_processes', 'test_device', 'test_app', 'test_losses', 'test_web',
              'test_generate_shapes_and_images', 'test_notebook', 'test_training_network', 'test_prepare_data',
              'test_scripts', 'test_sparse', 'test_evaluate')


def pytest_configure():
    """A suite that is started in the background ignores some signals, and so would the processes that tests start."""
    for name in ('SIGINT', 'SIGHUP', 'SIGQUIT'):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == 'SIGINT' else signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG_FILES.index(item.path.stem) if item.path.stem in LONG_FILES else len(LONG_FILES))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test draws the same random numbers whenever and after whatever it runs."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope='session', autouse=True)
def impatience():
    """PyTorch looks every five seconds whether worker processes live; here it does so more often."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, '__defaults__', (0.2,))
        yield


@pytest.fixture(scope='session')
def golden():
    """golden('cameras') is the dict of that file's arrays as tensors."""
    def load(name):
        with np.load(GOLDEN / f'{name}.npz') as arrays:
            return {key: torch.from_numpy(arrays[key].copy()) for key in arrays.files}
    return load


@pytest.fixture(scope='session')
def manifest():
    return json.loads((GOLDEN / 'manifest.json').read_text())


@pytest.fixture(scope='session')
def head_checkpoint(tmp_path_factory):
    """The path of the golden head, the checkpoint that the original's pictures and meshes were made from."""
    path = tmp_path_factory.mktemp('head') / 'shape.pt'
    write_head(path)
    return path


def made_once(tmp_path_factory, name, make):
    """The folder of this name, which make(folder) fills once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    with filelock.FileLock(base / f'{name}.lock'):
        if not (base / name).exists():
            (base / f'{name}.unfinished').mkdir()
            make(base / f'{name}.unfinished')
            (base / f'{name}.unfinished').rename(base / name)
    return base / name


@pytest.fixture(scope='session')
def fresh_process(tmp_path_factory):
    """(what fresh_process.py found, the path of the golden head that it wrote)."""
    def make(folder):
        environment = {name: value for name, value in os.environ.items()
                       if name not in ('PYTHONPATH', 'MALLOC_MMAP_MAX_')}
        with open(folder / 'found.json', 'w') as file:
            tests = Path(__file__).parent
            subprocess.run([sys.executable, tests / 'fresh_process.py', tests, 'full_models/shape.pt'], cwd=folder,
                           stdout=file, env=environment, check=True)

    folder = made_once(tmp_path_factory, 'fresh', make)
    return json.loads((folder / 'found.json').read_text()), folder / 'full_models/shape.pt'


@pytest.fixture(scope='session')
def head_model():
    """The golden head: generator and latents."""
    opt = options.parse('render_video', '', FLAGS)
    generator = build_generator(opt, **fast_parts(opt)).requires_grad_(False)
    generator.load_state_dict(head_state())
    rng = torch.Generator().manual_seed(1234)
    means = generator.mean_latents(10000, rng)
    z = torch.randn(1, 64, generator=rng)
    return dict(generator=generator, z=z, w=generator.map(z, 0.5, means), means=means)


@pytest.fixture(scope='session')
def head_views(head_model):
    """The same, and its surface in three views of a video of 60 frames."""
    renderer, w = head_model['generator'].renderer, head_model['w']
    with torch.no_grad():
        viewpoints = torch.cat([torch.zeros(1, 2), video_viewpoints(60, 0.3, 0.15)[11:13]])
        cameras = [cameras_at(viewpoint[None]) for viewpoint in viewpoints]
        surfaces = [render_surface(renderer, w, camera, sdf=i == 0) for i, camera in enumerate(cameras)]
    return head_model | dict(cameras=cameras, surfaces=surfaces)


@pytest.fixture
def loaded_tiny(tmp_path, monkeypatch):
    """A tiny model, loaded; small surfaces; temporary files below tmp_path / 'temporary'."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    save_tiny_model(tmp_path)
    return load_model('tiny', device='cpu', truncation_mean=100)


@pytest.fixture
def quick_inversion(monkeypatch):
    """Photos are inverted with few candidates, pictures and steps."""
    monkeypatch.setattr('inversion.search.IDENTITIES', 4)
    monkeypatch.setattr('inversion.preview.PICTURES', 4)
    monkeypatch.setattr('inversion.solving.PARTS', (Part(0, False, 2, 0.01), Part(-1, True, 2, 0.001)))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(module, *arguments) -> (exit code, stdout, stderr) of a command, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(module, *arguments):
        name = module.__name__.rpartition('.')[2]
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        try:
            run_command(module.__name__, getattr(module, 'read_flags', lambda: options.parse(name, module.__doc__)))
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def double():
    """Double precision: what should be equal is equal to ten digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """An LMDB of a few random images, for tiny trainings."""
    from tiny_training import make_data
    return make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def renderer(data, tmp_path_factory):
    """The path of stage 1's result, made by a tiny training."""
    from tiny_training import flags, train
    folder = tmp_path_factory.mktemp('stage1')
    train('volume_renderer', folder, flags(data, '--iter 1'))
    return folder / 'pretrained_renderer' / 'debug_vol_renderer.pt'


def formula(name, shape, std=1.):
    """The golden README's pseudo-random tensor: it depends on the name alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32) * np.float32(std))


def load_formula_weights(module, entries, **fixed):
    """Fill a module's state dict by the formula; blur kernels and beta keep their values. fixed: name end -> value."""
    state = module.state_dict()
    for name, tensor in state.items():
        if not name.endswith(('.kernel', 'sigmoid_beta')):
            tensor.copy_(formula(name, tensor.shape, entries[name]['formula_std']))
        for end, value in fixed.items():
            if name.endswith(end):
                tensor.fill_(value)
    return module


def assert_close(actual, expected, rtol=1e-5, what=''):
    """The largest error is below rtol times the largest expected magnitude."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f'{what}: {tuple(actual.shape)} is not {tuple(expected.shape)}'
    error = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert error <= rtol * scale, f'{what}: error {error:.3g} at scale {scale:.3g} (ratio {error / scale:.2g})'


def read_video(path):
    """(stream facts, uint8 frames) of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
        return (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate), frames

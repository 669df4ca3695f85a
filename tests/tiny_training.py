"""Trainings small enough for tests: their flags and data, and running them here or in a process of their own."""
import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from conftest import assert_close
from PIL import Image

import checkpoint
import options
from imaging.photos import Photos
from model import build_generator
from op.fast import fast_parts
from prepare_data import prepare
from training import logs

STAGES = {'volume_renderer': 'train_volume_renderer', 'full_pipeline': 'train_full_pipeline'}
IMAGES, SIZE = 11, 16
FLAGS = ('--size 16 --renderer_spatial_output_dim 8 --style_dim 8 --width 8 --depth 2 --N_samples 4 --device cpu '
         '--batch 4 --chunk 4 --num_workers 0 --val_n_sample 1 --log_every 1 --sample_every 100 --save_every 100 '
         '--discriminator_width 0.02 --sphere_iters 3 --lr_g 1e-3 --channel_max 4 --d_reg_every 2 --g_reg_every 2')


def flags(data, text=''):
    """The arguments of a tiny training; `text` comes last and so wins."""
    return [*FLAGS.split(), '--dataset_path', str(data), *text.split()]


def make_data(folder, name='lmdb', seed=0, count=IMAGES):
    """Write random images and an LMDB of this name of them below `folder`; returns its path."""
    rng, photos = np.random.default_rng(seed), folder / f'{name}_photos'
    photos.mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(photos / f'{i:02d}.png')
    prepare(Photos(photos), folder / name, [SIZE])
    return folder / name


def tiny(command, batch=4, more=''):
    """The option tree of a tiny training."""
    return options.parse(command, '', flags('none', f'--batch {batch} {more}'))


def tiny_generator(opt):
    """A full generator as stage 2 trains it, in the default precision."""
    torch.manual_seed(0)
    generator = build_generator(opt, **fast_parts(opt)).requires_grad_(False)
    generator.decoder.requires_grad_(True)
    generator.decoder.dtype = torch.get_default_dtype()
    return generator


def gradients(module):
    """{name: gradient} of the parameters that have one."""
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def check_same(found, other):
    """Check that two pairs (terms of the loss, gradients) are equal but for rounding in double precision."""
    terms, wanted = found
    assert terms.keys() == other[0].keys() and wanted.keys() == other[1].keys() and wanted
    for name, value in terms.items():
        assert_close(other[0][name], value, 1e-9, name)
    for name, gradient in wanted.items():
        # Against the largest gradient of all: some are zero but for rounding.
        assert (other[1][name] - gradient).abs().max() <= 1e-9 * max(g.abs().max() for g in wanted.values()), name


def train(stage, folder, arguments, plot=False):
    """Run a stage's command in `folder`, in this process.

    plot: draw progress.png, which takes longer than a tiny training; tests of it ask for it.
    """
    before, name = Path.cwd(), STAGES[stage]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.chdir(folder)
        with contextlib.nullcontext() if plot else mock.patch.object(logs, 'plot_progress'):
            importlib.import_module(name).main(options.parse(name, '', arguments))
    except SystemExit as end:  # --max_minutes is spent
        assert not end.code
    finally:
        os.chdir(before)


def newest(folder, stage, expname='debug'):
    """(iteration, contents) of the newest checkpoint in a run's folder, which must be whole."""
    paths = sorted((folder / 'checkpoint' / expname / stage).glob('models_*.pt'))
    assert paths, f'no checkpoint in {folder}'
    return checkpoint.iteration_of(paths[-1]), checkpoint.read(paths[-1])


def differences(a, b, where='', ignore=('options',)):
    """The places where two checkpoints differ in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        return [place for key in a if key not in ignore for place in differences(a[key], b[key], f'{where}.{key}')]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        return [place for i, (x, y) in enumerate(zip(a, b, strict=True)) for place in differences(x, y, f'{where}.{i}')]
    return [] if a == b else [where]


# ---------------------------------------------------------------------------------------------- other processes

_context = multiprocessing.get_context('forkserver')  # forked from a process that has imported everything: quick


def start(stage, folder, arguments, rank=0, size=1, port=0, file_limit=None, before='', address='127.0.0.1'):
    """Start a process that runs a stage's command in `folder`. Its `log` is a file.

    rank, size, address, port: one of several processes that train together. file_limit: bytes that a file may have.
    before: code to run first.
    """
    # A process begins with importing this file, and torch.optim imports torch._dynamo for the first optimizer. Both
    # take seconds. The processes of benchmarks/speed.py may come from here too.
    _context.set_forkserver_preload([*STAGES.values(), Path(__file__).stem, 'torch._dynamo', 'speed'])
    here = Path(__file__).resolve().parent
    places = here, here.parent, here.parent / 'benchmarks'
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, places))):
        forkserver.ensure_running()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': size, 'MASTER_ADDR': address,
                   'MASTER_PORT': port}
    process = _context.Process(target=_child,
                               args=(stage, folder, arguments, environment if size > 1 else {}, file_limit, before))
    process.log = folder / f'log{rank}.txt'
    process.start()
    return process


def _child(stage, folder, arguments, environment, file_limit, before):
    os.chdir(folder)
    os.environ.update({name: str(value) for name, value in environment.items()})
    log = os.open(f'log{environment.get("RANK", 0)}.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    torch.set_num_threads(1)
    logs.plot_progress = mock.Mock()  # as in train()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background ignores it
    exec(before, {})
    sys.argv = [f'{STAGES[stage]}.py', *arguments]
    options.run(STAGES[stage], '')


def finish(*processes, seconds=120):
    """Wait for processes to end; returns their exit codes."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise AssertionError(f'still running: {process.log.read_text()[-2000:]}')
    return [process.exitcode for process in processes]


@contextlib.contextmanager
def ended(*processes):
    """No process outlives the block."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            (process.wait if isinstance(process, subprocess.Popen) else process.join)()

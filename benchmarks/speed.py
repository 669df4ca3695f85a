"""Speed and memory: the paper's formulas written down plainly against what this project does. See README.md beside.

    python benchmarks/speed.py                         # default widths: about an hour on two CPU cores
    python benchmarks/speed.py --quick                 # small widths: about a minute
    python benchmarks/speed.py --rows surface,image --repeats 5 --json speed.json
    python benchmarks/speed.py --ckpt full_models/cats.pt

Also takes the commands' flags for sizes and machine (--device, --width, --size, --batch, …).
"""
import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import plain
import torch
from commands import COMMANDS, DEMO, command_row
from head import cache_path, fit_head
from torch import Tensor
from tqdm import tqdm

import checkpoint
import options
from camera import Cameras, cameras_of, video_viewpoints
from discriminators import Discriminator, VolumeDiscriminator
from inference.frames import record, render_frames
from inference.latents import latents_of_w
from inference.meshes import frontal_mesh
from model import PRECISIONS, Generator, MeanLatents, build_generator
from op.fast import fast_parts
from op.tiles import TiledRenderer
from options import at_least
from surfaces.meshes import SURFACE_RESOLUTION
from surfaces.rendering import render_surface
from training import run as training_run
from training import stage1, stage2
from training.logs import peak_memory
from training.processes import Processes
from training.random_numbers import draw_directions, draw_fakes, draw_mixing
from training.state import State
from utils import UserError, atomic_path, run_command, select_device

HERE = Path(__file__).resolve().parent
VIEWPOINT = (0.2, 0.1)   # of pictures and surfaces: azimuth, elevation
VIDEO_FRAMES = 250       # what few frames are extrapolated to
TRAINED_SIZE = 256       # of stage 2's images, or smaller where the model is
SIZES = {'size': 1024, 'batch': 2}
QUICK = {'size': 256, 'width': 32, 'depth': 4, 'style_dim': 64, 'channel_multiplier': 1, 'channel_max': 64,
         'discriminator_width': 0.25, 'batch': 2}
WARMUPS = {'cpu': 1, 'cuda': 3}
FRAMES = {'cpu': 3, 'cuda': 30}
QUICK_FRAMES = 2
MEBIBYTE = 2 ** 20
# Fields beside the one that all is measured on: the bundled model's, and one that some checkouts have beside them.
FIELDS = {'demo': DEMO, 'shared': HERE.parent.parent / 'shared' / 'golden' / 'head256_field.pt'}
FACTORS = (1., 1.05, 1.1, 1.2, 1.5)  # on the weights of the hidden layers


class Settings(NamedTuple):
    """What the command line asks for, as every process gets it."""
    flags: tuple        # the commands' own flags
    quick: bool
    ckpt: str | None    # a checkpoint, or None for the fitted head
    cache: str | None   # where that is kept
    threads: int        # 0: PyTorch's default
    frames: int         # 0: FRAMES


# ---------------------------------------------------------------------------------------------- what is measured on

def option_tree(settings, command, variant='ours'):
    """The options of a command at the sizes that the benchmark runs at, for a variant."""
    opt = options.parse(command, __doc__, list(settings.flags))
    sizes = {name: value for name, value in (QUICK if settings.quick else SIZES).items() if name not in opt.given}
    opt = options.replaced(opt, **sizes, dense=variant in ('plain', 'dense'), cuda_graphs=variant == 'graphs')
    if 'chunk' not in opt.given:
        opt = options.replaced(opt, chunk=opt.training.batch)
    if not settings.ckpt:
        opt = options.replaced(opt, truncation_ratio=1.)  # the head is fitted for one latent
    return opt


def model_path(settings, opt):
    """The checkpoint to measure with."""
    return Path(settings.ckpt) if settings.ckpt else cache_path(settings.cache, opt)


def read_model(settings, command, variant='ours'):
    """(state dict of the checkpoint, option tree of a command with its sizes, for a variant)."""
    opt = option_tree(settings, command, variant)
    path = model_path(settings, opt)
    saved = checkpoint.read(path)
    opt = checkpoint.reconcile(opt, saved, path)
    if command == 'train_full_pipeline':
        opt = options.replaced(opt, size=min(opt.model.size, TRAINED_SIZE))
    return saved['g_ema'], opt


def load(settings, command, variant):
    """(generator on its device, option tree) with the checkpoint's weights; the decoder is fresh where it has none,
    and for training."""
    state, opt = read_model(settings, command, variant)
    if command.startswith('train'):
        state = checkpoint.without_decoder(state)
    torch.manual_seed(opt.experiment.seed)
    stage_1 = command == 'train_volume_renderer'
    generator = build_generator(opt, not stage_1, **fast_parts(opt, sparse=not stage_1, graphs=True))
    checkpoint.load_state(generator, {**generator.state_dict(), **state}, model_path(settings, opt))
    return generator.to(select_device(opt.machine.device)), opt


def identity(opt, device):
    """The latent z (1,style_dim) that everything shows: the same on every device."""
    random = torch.Generator().manual_seed(opt.experiment.seed)
    return torch.randn(1, opt.model.style_dim, generator=random).to(device)


class Scene(NamedTuple):
    """A generator, and what it is to show."""
    generator: Generator
    opt: dict
    z: Tensor            # (1,style_dim)
    w: Tensor            # (1,style_dim), truncated
    means: MeanLatents
    camera: Cameras      # one


@torch.no_grad()
def scene(settings, command, variant):
    """The Scene of a command."""
    generator, opt = load(settings, command, variant)
    generator.eval().requires_grad_(False)
    device = next(generator.parameters()).device
    z, means = identity(opt, device), generator.mean_latents()
    camera = cameras_of(opt, torch.tensor([VIEWPOINT], device=device))
    return Scene(generator, opt, z, generator.map(z, opt.inference.truncation_ratio, means), means, camera)


def fit(settings, variant):
    """Prepares the fit of the head, which is then kept in the cache."""
    opt = option_tree(settings, 'generate_shapes_and_images')
    torch.manual_seed(opt.experiment.seed)
    device = select_device(opt.machine.device)
    generator = build_generator(opt, full_pipeline=False, **fast_parts(opt)).to(device)

    def run():
        with torch.no_grad():
            w = generator.map(identity(opt, device))
        error = fit_head(generator, w, 2 * opt.camera.dist_radius)
        checkpoint.save(cache_path(settings.cache, opt), {'g_ema': generator.state_dict()})
        return {'error': error}
    return run


# ---------------------------------------------------------------------------------------------- the rows
# Each prepares a function that does the work once. It may return the seconds where those are not simply its own.

def surface_row(settings, variant):
    """The field at 128x128x128 samples, for depth and marching cubes."""
    s = scene(settings, 'generate_shapes_and_images', variant)
    if variant == 'plain':
        return lambda: plain.surface(s.generator.renderer, s.w, s.camera)
    return lambda: render_surface(s.generator.renderer, s.w, s.camera, sdf=True)


def roughness_row(settings, variant):
    """A surface of the field whose hidden layers' weights are multiplied: 'x1.1' is the variant's name for 1.1.

    It also tells the largest error of a depth.
    """
    s = scene(settings, 'generate_shapes_and_images', 'ours' if variant.startswith('x') else variant)
    renderer, error = s.generator.renderer, 0.
    if variant.startswith('x'):
        for layer in renderer.network.pts_linears[1:]:
            layer.weight.mul_(float(variant[1:]))
        found, expected = (render_surface(own, s.w, s.camera).xyz for own in (renderer, evaluating_all(renderer)))
        error = (found - expected).norm(dim=1).max().item()

    def run():
        render_surface(renderer, s.w, s.camera, sdf=True)
        return {'error': error}
    return run


def evaluating_all(renderer):
    """A renderer with the same weights that evaluates every sample."""
    twin = copy.copy(renderer)
    twin.__class__ = TiledRenderer
    return twin


def image_row(settings, variant):
    """One image from one latent, everything."""
    s = scene(settings, 'generate_shapes_and_images', variant)
    return torch.no_grad()(lambda: s.generator(s.z, s.camera, psi=s.opt.inference.truncation_ratio,
                                               means=s.means))


def rays_row(settings, variant):
    """Of it: the rays through the field."""
    s = scene(settings, 'generate_shapes_and_images', variant)
    return torch.no_grad()(lambda: s.generator.render(s.w, s.camera))


def decoder_row(settings, variant):
    """Of it: the decoder, with its mapping."""
    s = scene(settings, 'generate_shapes_and_images', variant)
    decoder = s.generator.decoder
    with torch.no_grad():
        features = s.generator.renderer(s.w, s.camera).features
    return torch.no_grad()(lambda: decoder(features, decoder.map(s.w, s.opt.inference.truncation_ratio,
                                                                     s.means.w_prime), decoder.random_noise(1)))


class Marks(list):
    """Stands in for a progress bar: when each frame was done."""

    def update(self):
        self.append(time.perf_counter())


def video_row(settings, variant):
    """A video with its surface video, encoded: few frames, spread over it, extrapolated to 250."""
    s = scene(settings, 'render_video', variant)
    opt, device = s.opt, s.z.device
    count = settings.frames or FRAMES.get(device.type, FRAMES['cuda'])
    viewpoints = video_viewpoints(VIDEO_FRAMES, opt.camera.azim, opt.camera.elev, device=device)
    cameras = cameras_of(opt, viewpoints[::VIDEO_FRAMES // count][:count])
    fixed = s.generator.decoder.fixed_noise()

    def run():
        marks, started = Marks(), time.perf_counter()
        if variant == 'plain':
            frames = plain.video_frames(s.generator, s.z, cameras, opt, s.means)
        else:
            with torch.no_grad():
                frontal_mesh(s.generator, s.w, opt)  # the command asks whether there is a surface
            latents = latents_of_w(s.generator, s.w, opt.inference.truncation_ratio, s.means)
            frames = render_frames(s.generator, latents, cameras, lambda camera: fixed, opt)
        with tempfile.TemporaryDirectory() as folder:
            record(frames, Path(folder), 'benchmark', 'elipsoid', opt, marks)
        once = time.perf_counter() - started - (marks[-1] - marks[0])  # beginning, first frame, end
        return once + (VIDEO_FRAMES - 1) * (marks[-1] - marks[0]) / (len(marks) - 1)
    return run


def finish_step(optimizer):
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def stage1_row(settings, variant):
    """A step of stage 1: the discriminator's with R1, the generator's with the eikonal term, EMA."""
    generator, opt = load(settings, 'train_volume_renderer', variant)
    device, batch, chunk = Processes(opt.machine.device).device, opt.training.batch, opt.training.chunk
    discriminator = VolumeDiscriminator(opt.model.renderer_spatial_output_dim, opt.training.view_lambda > 0,
                                        opt.model.discriminator_width).to(device)
    betas = stage1.BETAS
    state = State(generator, discriminator, training_run.adam(generator.parameters(), opt.training.lr_g, betas),
                  training_run.adam(discriminator.parameters(), opt.training.lr_d, betas))
    real = torch.rand(batch, 3, *[opt.model.renderer_spatial_output_dim] * 2, device=device) * 2 - 1

    def fakes(purpose):
        return draw_fakes(opt, purpose, state.iteration, range(batch), device)

    def run():
        stage1.accumulate_discriminator(discriminator, generator, real, fakes('discriminator'), opt,
                                                       chunk)
        finish_step(state.d_optim)
        stage1.accumulate_generator(generator, discriminator, fakes('generator'), opt, chunk)
        finish_step(state.g_optim)
        state.update_ema()
        state.iteration += 1
    return run


def stage2_row(settings, variant, regularize=False):
    """A step of stage 2: the discriminator's, the generator's, EMA; no regularizers."""
    generator, opt = load(settings, 'train_full_pipeline', variant)
    processes = Processes(opt.machine.device)
    device, batch, chunk = processes.device, opt.training.batch, opt.training.chunk
    generator.requires_grad_(False)
    generator.decoder.requires_grad_(True)
    discriminator = Discriminator(opt.model.size, opt.model.channel_multiplier, opt.model.channel_max,
                                  PRECISIONS[opt.machine.precision]).to(device)
    lazy = stage2.lazy
    state = State(
        generator, discriminator,
        training_run.adam(generator.decoder.parameters(), *lazy(opt.training.g_reg_every, opt.training.lr)),
        training_run.adam(discriminator.parameters(), *lazy(opt.training.d_reg_every, opt.training.lr)))
    real = torch.rand(batch, 3, opt.model.size, opt.model.size, device=device) * 2 - 1
    z = identity(opt, device)

    def rendered(purpose, count=batch):
        fakes = draw_fakes(opt, purpose, state.iteration, range(count), device)
        if not settings.ckpt:  # as after a stage 1, each latent has a surface
            fakes = fakes._replace(z=z.expand(count, -1))
        switch = draw_mixing(opt, purpose, state.iteration, generator.decoder.num_layers)
        return stage2.render(generator, fakes, switch), fakes

    def run():
        stage2.accumulate_discriminator(discriminator, generator, real, rendered('discriminator')[0], opt,
                                                     chunk, regularize)
        finish_step(state.d_optim)
        stage2.accumulate_generator(generator, discriminator, rendered('generator')[0], chunk)
        finish_step(state.g_optim)
        if regularize:
            count = max(1, batch // opt.training.path_batch_shrink)
            views, fakes = rendered('path', count)
            directions = draw_directions(fakes, opt.model.size, device)
            _, state.path_mean = stage2.accumulate_path_length(
                generator, views, directions, state.path_mean, opt, chunk, processes)
            finish_step(state.g_optim)
        state.update_ema()
        state.iteration += 1
    return run


def stage2_regularized_row(settings, variant):
    """The same step with R1 and path lengths, which come every 16th and 4th time."""
    return stage2_row(settings, variant, regularize=True)


class Row(NamedTuple):
    """A row of the table. images: how many one run makes, by option tree."""
    prepare: callable
    title: callable      # option tree to what is said
    command: str = 'generate_shapes_and_images'
    dense: bool = False  # whether --dense is something of its own
    graphs: bool = False  # whether --cuda_graphs is, on a GPU
    images: callable = lambda opt: 1
    names: tuple = ()    # of the variants, where they are others; all are compared with the first
    field: str = ''      # of FIELDS, if another than the one that is asked for

    def variants(self, device):
        """Their names, on this kind of device."""
        if self.names:
            return self.names
        return ('plain', *['dense'] * self.dense, 'ours', *['graphs'] * (self.graphs and device.type == 'cuda'))


def _rays(opt):
    return f'{opt.model.renderer_spatial_output_dim}x{opt.model.renderer_spatial_output_dim}x{opt.rendering.N_samples}'


ROWS = {
    'surface': Row(surface_row, lambda opt: 'surface, ' + 'x'.join([str(SURFACE_RESOLUTION)] * 3), dense=True),
    'image': Row(image_row, lambda opt: f'image, {opt.model.size} px', dense=True, graphs=True),
    'rays': Row(rays_row, lambda opt: f'  its rays, {_rays(opt)}', dense=True, graphs=True),
    'decoder': Row(decoder_row, lambda opt: f'  its decoder, {opt.model.size} px', graphs=True),
    'video': Row(video_row, lambda opt: f'video, {VIDEO_FRAMES} frames (extrapolated)', 'render_video', dense=True,
                 graphs=True, images=lambda opt: VIDEO_FRAMES),
    'stage1': Row(stage1_row, lambda opt: f'stage 1, batch {opt.training.batch}, {_rays(opt)}', 'train_volume_renderer',
                  images=lambda opt: opt.training.batch),
    'stage2': Row(stage2_row, lambda opt: f'stage 2, batch {opt.training.batch}, {opt.model.size} px',
                  'train_full_pipeline', images=lambda opt: opt.training.batch),
    'roughness': Row(roughness_row, lambda opt: 'surface, weights times a factor',
                     names=('dense', *(f'x{factor:g}' for factor in FACTORS))),
    **{f'{row}_{field}': Row(prepare, lambda opt, row=row, field=field: f'{row} of the field "{field}"', dense=True,
                             field=field)
       for field, path in FIELDS.items() if path.is_file()
       for row, prepare in (('surface', surface_row), ('image', image_row))},
    **{name: Row(partial(command_row, name, load), lambda opt, what=what: f'command: {what}',
                 names=('ours',) if name == 'help' else ('plain', 'dense', 'ours'))
       for name, (what, *_) in COMMANDS.items()},
    'stage2_regularized': Row(stage2_regularized_row, lambda opt: '  with R1 and path lengths', 'train_full_pipeline',
                              images=lambda opt: opt.training.batch),
}


# ---------------------------------------------------------------------------------------------- the machine's limits

def limits(settings, variant):
    """Prepares the measurement of what the machine can do at most."""
    device = select_device(option_tree(settings, 'generate_shapes_and_images').machine.device)
    large = device.type != 'cpu'
    side, count, repeats = (8192, 1 << 26, 10) if large else (2048, 1 << 16, 5)
    if settings.quick:
        side //= 4

    def rate(amount, work):
        work()
        seconds = [_timed(work, device)[0] for _ in range(repeats)]
        return amount / statistics.median(seconds)

    def product(dtype):
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        return rate(2 * side ** 3, lambda: torch.mm(a, b))

    def run():
        found = {'matrix product, fp32, FLOP/s': product(torch.float32)}
        if large:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision('high')
            found['matrix product, tf32, FLOP/s'] = product(torch.float32)
            torch.set_float32_matmul_precision(before)
            found['matrix product, fp16, FLOP/s'] = product(torch.float16)
        x = torch.randn(count, device=device) * 30  # on a CPU it stays in the cache, as a tile does
        times = 1 if large else 256
        found['sines, 1/s'] = rate(times * count, lambda: [torch.sin(x, out=y) for y in [torch.empty_like(x)] * times])
        source = torch.ones((1 << 30 if large else 1 << 28) // 4, device=device)
        target = torch.empty_like(source)
        found['copy, bytes read and written/s'] = rate(2 * source.nbytes, lambda: target.copy_(source))
        return found
    return run


# ---------------------------------------------------------------------------------------------- processes
# Every variant of a row has a process of its own, so that its peak memory is its own. They stay while the row is
# measured and work in turn, so that what else goes on on the machine hits all of them alike.

def _timed(run, device):
    """(seconds, result) of one run, all of the device's work included."""
    if device.type != 'cpu':
        torch.accelerator.synchronize()
    started = time.perf_counter()
    result = run()
    if device.type != 'cpu':
        torch.accelerator.synchronize()
    return time.perf_counter() - started, result


def _peak_bytes(device):
    gibibytes = peak_memory(device)
    return None if gibibytes is None else round(gibibytes * 2 ** 30)


def serve(connection, prepare, settings, variant):
    """A process's life: prepare, then run as often as asked, and tell the seconds, the result and the peak memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # temporary files are removed
    if variant == 'plain':
        # What utils.py asks of the memory's allocator, PyTorch and the C library do not do by themselves.
        os.environ |= {'THP_MEM_ALLOC_ENABLE': '0', 'MALLOC_MMAP_MAX_': '65536'}
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        with contextlib.redirect_stdout(io.StringIO()), plain.plain() if variant == 'plain' else \
                contextlib.nullcontext():
            device = select_device(options.parse('render_video', '', list(settings.flags)).machine.device)
            run = prepare(settings, variant)
            connection.send({'peak': _peak_bytes(device)})
            while connection.recv() == 'run':
                seconds, result = _timed(run, device)
                if isinstance(result, float):
                    seconds = result
                connection.send({'seconds': seconds, 'peak': _peak_bytes(device),
                                 'result': result if isinstance(result, dict) else None})
                del result
    except EOFError:  # the parent is gone
        pass
    except UserError as error:
        connection.send({'error': str(error)})
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one; on a CPU it has no name
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and 'allocate memory' not in str(error):
            raise
        connection.send({'failed': 'out of memory'})


class Failed(Exception):
    """A process could not do its work; the message says why."""


class Worker:
    """A process that does one piece of work whenever asked."""

    def __init__(self, prepare, settings, variant='ours'):
        # Forked from a process that has imported everything but started nothing: quick, and clean.
        method = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
        context = multiprocessing.get_context(method)
        if method == 'forkserver':
            context.set_forkserver_preload(['speed'])  # found by PYTHONPATH, see main
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, prepare, settings, variant), daemon=True)
        self._process.start()
        theirs.close()
        self.prepared = self._reply()

    def run(self):
        """Do the work once. Returns the reply's dict; raises Failed, or UserError."""
        try:
            self._connection.send('run')
        except BrokenPipeError:
            raise Failed('ended') from None
        return self._reply()

    def _reply(self):
        try:
            reply = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            reply = {'failed': f'process ended with {self._process.exitcode}'
                               + (', out of memory?' if self._process.exitcode == -signal.SIGKILL else '')}
        if 'error' in reply:
            raise UserError(reply['error'])
        if 'failed' in reply:
            raise Failed(reply['failed'])
        return reply

    def close(self):
        self._connection.close()
        self._process.terminate()  # it may be at work, if this one was told to stop
        self._process.join(10)
        self._process.kill()


def once(prepare, settings):
    """Do a piece of work in a process of its own, once. Returns its result."""
    with contextlib.closing(Worker(prepare, settings)) as worker:
        return worker.run()['result']


def measure(row, variants, settings, warmups, repeats, bar):
    """{variant: its measurements} of a row, the variants in turn."""
    workers, found = {}, {}

    def attempt(variant, work):
        bar.set_postfix_str(f'{bar.row} {variant}')
        try:
            return work()
        except Failed as why:
            found[variant] = {'failed': str(why)}
            if variant in workers:
                workers.pop(variant).close()
        finally:
            bar.update()

    try:
        for variant in variants:
            worker = attempt(variant, lambda variant=variant: Worker(row.prepare, settings, variant))
            if worker:
                workers[variant] = worker
                found[variant] = {'seconds': [], 'memory_before': worker.prepared['peak']}
        for n in range(-warmups, repeats):
            for variant in variants[::-1 if n % 2 else 1]:
                if variant not in workers:
                    bar.update()
                    continue
                reply = attempt(variant, workers[variant].run)
                if reply and n >= 0:
                    found[variant] |= reply['result'] or {}
                    found[variant]['seconds'].append(reply['seconds'])
                    found[variant]['peak_memory'] = reply['peak']
    finally:
        for worker in workers.values():
            worker.close()
    return found


# ---------------------------------------------------------------------------------------------- the table

def processor():
    """The processor's name, where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def summarized(found, images):
    """A row's measurements with medians, images a second, and how the first, mostly plain, compares with each."""
    reference = next(iter(found.values()))
    if reference.get('seconds'):
        reference['median'] = statistics.median(reference['seconds'])
    for own in found.values():
        if not own.get('seconds'):
            continue
        own['median'] = statistics.median(own['seconds'])
        own['images_per_second'] = images / own['median']
        if 'median' in reference:
            own['faster'] = reference['median'] / own['median']
            if own['peak_memory']:
                own['less_memory'] = reference['peak_memory'] / own['peak_memory']
    return found


COLUMNS = f'{"":41}{"seconds":>10}{"from":>10}{"to":>10}{"images/s":>10}{"faster":>9}{"MiB":>8}{"before":>8}{"less":>8}'


def table_lines(title, found):
    """A row as lines of the table."""
    for variant, own in found.items():
        line = f'{title:34.34}{variant:7}'
        title = ''
        if 'median' not in own:
            yield f'{line}{own["failed"]:>10}'
            continue
        line += ''.join(f'{value:10.3g}' for value in (own['median'], min(own['seconds']), max(own['seconds']),
                                                       own['images_per_second']))
        line += f'{own["faster"]:8.2f}x' if 'faster' in own else f'{"":9}'
        if own['peak_memory']:
            line += f'{own["peak_memory"] / MEBIBYTE:8.0f}{own["memory_before"] / MEBIBYTE:8.0f}'
            line += f'{own["less_memory"]:7.2f}x' if 'less_memory' in own else ''
        line += f'  error {own["error"]:.1e}' if own.get('error') else ''
        yield line


def draw_roughness(found, path):
    """Draw a measured row `roughness` as a picture: speed and error by the factor on the weights."""
    from matplotlib.figure import Figure

    factors = [name for name in found if name.startswith('x') and 'median' in found[name]]
    figure = Figure(figsize=(7, 2.8), layout='constrained')
    speed, error = figure.subplots(1, 2)
    x = [float(name[1:]) for name in factors]
    speed.plot(x, [found[name]['faster'] for name in factors], 'o-')
    speed.axhline(1., color='gray', linewidth=1)
    speed.set(ylabel='times as fast as --dense', ylim=(0, None))
    error.plot(x, [found[name]['error'] for name in factors], 'o-')
    error.axhline(1e-4, color='gray', linewidth=1)
    error.set(ylabel='largest error of a depth', ylim=(0, None))
    for axes in (speed, error):
        axes.set_xlabel('factor on the weights')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def row_list(text):
    """'image,video' to ['image', 'video']."""
    names = list(dict.fromkeys(part.strip() for part in text.split(',')))
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise UserError(f'--rows {text}: there is no row {unknown[0]!r}; choose from {",".join(ROWS)}.')
    return names


def parse():
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', default=','.join(ROWS), help=f'what to measure (default: {",".join(ROWS)})')
    parser.add_argument('--repeats', type=options.explained(at_least(1)), default=3, help='of each (default: 3)')
    parser.add_argument('--quick', action='store_true', help='small widths and one repeat, unless --repeats says more')
    parser.add_argument('--ckpt', help='measure with this checkpoint instead of a field fitted to a head')
    parser.add_argument('--cache', metavar='DIR', help="where the fitted field is kept (default: the user's cache)")
    parser.add_argument('--threads', type=options.explained(at_least(1)), default=0, help='of the CPU')
    parser.add_argument('--frames', type=options.explained(at_least(2, most=VIDEO_FRAMES)), default=0,
                        help=f'of a video to measure (default: {FRAMES["cpu"]} on a CPU, {FRAMES["cuda"]} on a GPU)')
    parser.add_argument('--json', metavar='PATH', help='write all numbers here, after each row')
    parser.add_argument('--plot', metavar='PATH', help='draw the row roughness here, as PNG or SVG')
    return parser.parse_known_args()


def main(arguments):
    own, rest = arguments
    os.environ['PYTHONPATH'] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get('PYTHONPATH', '')])
    rows = row_list(own.rows)
    settings = Settings(tuple(rest), own.quick, own.ckpt, own.cache, own.threads,
                        own.frames or (QUICK_FRAMES if own.quick else 0))
    repeats = 1 if own.quick and own.repeats == 3 else own.repeats
    opt = option_tree(settings, 'generate_shapes_and_images')
    device = select_device(opt.machine.device)
    if not model_path(settings, opt).is_file() and not settings.ckpt:
        error = once(fit, settings)['error']
        print(f'A field fitted to a head, {error:.1e} off on average: {model_path(settings, opt)}')
    _, fitted = read_model(settings, 'generate_shapes_and_images')
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    else:
        name = f'{processor()}, {settings.threads or torch.get_num_threads()} threads'

    report = {'machine': name, 'pytorch': torch.__version__, 'device': str(device), 'quick': own.quick,
              'repeats': repeats, 'checkpoint': own.ckpt,
              'sizes': {flag: value for group in (fitted.model, fitted.rendering) for flag, value in group.items()},
              'limits': once(limits, settings), 'rows': {}}
    print(f'{name}; PyTorch {torch.__version__}; float32; median of {repeats}')
    print(f'Field: depth {fitted.rendering.depth}, width {fitted.rendering.width}; image {fitted.model.size} px, '
          f'channel multiplier {fitted.model.channel_multiplier}'
          + ('; --quick: not the default widths, its ratios say little about those.' if own.quick else '.'))
    print('; '.join(f'{what}: {rate:.3g}' for what, rate in report['limits'].items()))
    print(COLUMNS)
    warmups = WARMUPS.get(device.type, WARMUPS['cuda'])
    total = sum((1 + warmups + repeats) * len(ROWS[row].variants(device)) for row in rows)
    with tqdm(total=total, unit='run', desc='measuring') as bar:
        for row_name in rows:
            row, bar.row = ROWS[row_name], row_name
            own_settings = settings._replace(ckpt=str(FIELDS[row.field])) if row.field else settings
            with contextlib.redirect_stdout(io.StringIO()):  # it was said above
                _, row_opt = read_model(own_settings, row.command)
            found = summarized(measure(row, row.variants(device), own_settings, warmups, repeats, bar),
                               row.images(row_opt))
            title = row.title(row_opt)
            for line in table_lines(title, found):
                tqdm.write(line)
            report['rows'][row_name] = {'title': title.strip(), 'variants': found}
            if own.plot and row_name == 'roughness':
                draw_roughness(found, own.plot)
            if own.json:
                with atomic_path(own.json) as temporary:
                    temporary.write_text(json.dumps(report, indent=1) + '\n')
    print('faster, less: plain over this. MiB: peak of the whole process (on a GPU: of its tensors); before: of it, '
          'loaded before the work.')


if __name__ == '__main__':
    run_command('speed', parse)

"""What both training stages share: processes, random draws, gradients, the loop with EMA, logs, samples, checkpoints.

Every random number of a step is a pure function of (seed, purpose, step, image number), and so is the order of the real
images. So neither --chunk nor the number of processes changes what is drawn, and a resumed run needs no random states:
the iteration says it all.
"""
import contextlib
import copy
import datetime
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

import checkpoint
from camera import Cameras, azimuth_sweep, cameras_at, sample_viewpoints
from dataset import ImageDataset, InfiniteSampler, make_loader
from identity_metrics import measure_identity
from metrics import patch_descriptors, swd
from utils import (
    Terminated,
    UserError,
    atomic_path,
    keep_freed_memory,
    save_image_row,
    select_device,
    to_uint8,
    writable_folder,
)

try:
    import resource
except ImportError:  # Windows
    resource = None

EMA_DECAY = 0.5 ** (32 / 10_000)  # a batch of 32 halves the weight of 10,000 images ago
SAMPLE_TRUNCATION = 0.7
SAMPLE_VIEWS = 8
SAMPLE_SIDE = 256   # larger images are shrunk to this in the sample grids
EVAL_IMAGES, EVAL_IDENTITIES = 128, 4  # that --eval_every measures
SHARP_BETA = 3e-3   # the field has converged to a surface where beta falls below (spec section 3)
DEATH_TIMEOUT = datetime.timedelta(minutes=30)  # of a process that hangs; one that dies is noticed at once

# Flags that a resumed run may change: they do not change what is learnt.
FREE_FLAGS = {'expname', 'ckpt', 'continue_training', 'checkpoints_dir', 'iter', 'chunk', 'num_workers', 'save_every',
              'keep_checkpoints', 'sample_every', 'eval_every', 'log_every', 'max_minutes', 'init_ckpt',
              'renderer_ckpt', 'val_n_sample', 'local_rank', 'wandb', 'no_sphere_init', 'sphere_iters', 'n_mlp',
              'project_noise'}
COMPARED_GROUPS = ('experiment', 'training', 'model', 'camera', 'rendering')


# ---------------------------------------------------------------------------------------------- processes

class Processes:
    """The processes that train together, as torchrun starts them; without a launcher, this one alone.

    rank, size: which one of how many. device: this one's.
    """

    def __init__(self, device_name='auto'):
        self.rank, self.size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.device = select_device(device_name)
        if self.device.type == 'cuda':
            if self.device.index is None:  # which set_device wants to know
                self.device = select_device(f'cuda:{os.environ.get("LOCAL_RANK", 0)}')
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
        elif self.device.type == 'cpu':
            keep_freed_memory()

    def __enter__(self):
        if self.size > 1:
            dist.init_process_group('nccl' if self.device.type == 'cuda' else 'gloo', timeout=DEATH_TIMEOUT)
        if self.rank:  # one process speaks for all; errors still go to stderr
            sys.stdout = open(os.devnull, 'w')
        return self

    def __exit__(self, kind, *_):
        if self.size > 1 and kind in (None, SystemExit):  # after an error the others may be gone
            dist.destroy_process_group()

    def average_(self, tensor):
        """Replace a tensor by its mean over the processes."""
        if self.size > 1:
            self._together(dist.all_reduce, tensor)
            tensor /= self.size
        return tensor

    def gather(self, tensor):
        """Tensors (n,…) of all processes as (size * n,…), in order of rank. Gradients reach this process's part."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._together(dist.all_gather, parts, tensor.detach().contiguous())
        parts[self.rank] = tensor
        return torch.cat(parts)

    def broadcast(self, tensors):
        """Give every process the first one's values."""
        for tensor in tensors if self.size > 1 else ():
            self._together(dist.broadcast, tensor, 0)

    @staticmethod
    def _together(operation, *arguments):
        try:
            operation(*arguments)
        except RuntimeError as error:
            raise UserError('another process of this run has ended, and so this one ends too; see the message of the '
                            f'one that ended first ({str(error).splitlines()[0][:200]}).') from None


# ---------------------------------------------------------------------------------------------- random draws

def image_generators(seed, purpose, step, images, device):
    """A random generator for each image number in `images`, from (seed, purpose, step, number) alone."""
    key = zlib.crc32(purpose.encode())
    return [torch.Generator(device).manual_seed(
        int(np.random.SeedSequence([seed, key, step, image]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        for image in images]


class Fakes(NamedTuple):
    """What determines a batch of generated images."""
    z: Tensor         # (B,style_dim)
    second: Tensor    # (B,style_dim) the other latent of style mixing
    cameras: Cameras  # B of them
    random: list      # B generators, for jitter and noise

    def part(self, index):
        """The same of a slice of the batch."""
        return Fakes(*(field[index] for field in self))


def draw_fakes(opt, purpose, step, images, device):
    """Fakes for the image numbers `images` of one step."""
    random = image_generators(opt.experiment.seed, purpose, step, images, device)
    z, second = torch.stack([torch.randn(2, opt.model.style_dim, generator=own, device=device)
                             for own in random], dim=1)
    viewpoints = torch.cat([sample_viewpoints(1, opt.camera.azim, opt.camera.elev, opt.camera.uniform, own, device)
                            for own in random])
    cameras = cameras_at(viewpoints, opt.model.renderer_spatial_output_dim, opt.camera.fov, opt.camera.dist_radius)
    return Fakes(z, second, cameras, random)


# ---------------------------------------------------------------------------------------------- gradients

def chunks(start, stop, size):
    """Slices of at most `size` that cover range(start, stop)."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


class Terms(dict):
    """Sums of scalars by name, kept on the device."""

    def add(self, scale, **values):
        for name, value in values.items():
            self[name] = self.get(name, 0) + scale * value.detach().mean()


@contextlib.contextmanager
def frozen(module):
    """Inside, the module's parameters collect no gradients, which saves memory and time."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def backward_in_chunks(compute, parts, loss_of):
    """Backpropagate loss_of(the outputs of all parts together) with the memory of one part.

    compute(part) gives outputs (n,…) for a slice. The loss may depend on all of them in any way: by the chain rule its
    gradient by the outputs is all that a part's graph needs. With several parts each is computed twice. Returns the
    loss, detached.
    """
    keep = len(parts) == 1
    with torch.set_grad_enabled(keep):
        outputs = [compute(part) for part in parts]
    whole = torch.cat([output.detach() for output in outputs]).requires_grad_()
    loss = loss_of(whole)
    gradient, = torch.autograd.grad(loss, whole)
    for part, output, part_gradient in zip(parts, outputs, gradient.split([len(output) for output in outputs]),
                                           strict=True):
        (output if keep else compute(part)).backward(part_gradient)
    return loss.detach()


# ---------------------------------------------------------------------------------------------- state and resuming

class State:
    """All that training changes, and so all that a checkpoint holds beside the options."""

    def __init__(self, generator, discriminator, g_optim, d_optim):
        self.g, self.d, self.g_optim, self.d_optim = generator, discriminator, g_optim, d_optim
        self.g_ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.g_ema.renderer.perturb = 0.  # samples without jitter
        self.iteration = 0   # steps done
        self.images = 0      # position of the sampler: real images taken by all processes together
        self.path_mean = torch.zeros((), device=next(generator.parameters()).device)
        self._average = get_ema_multi_avg_fn(EMA_DECAY)

    def update_ema(self):
        """Move the EMA towards the generator. (Its buffers are constants.)"""
        trained = [(mean, new) for mean, new in zip(self.g_ema.parameters(), self.g.parameters(), strict=True)
                   if new.requires_grad]
        self._average(*zip(*trained, strict=True), None)

    def weights(self):
        """The part of a checkpoint that generation reads."""
        return {'g': self.g.state_dict(), 'd': self.d.state_dict(), 'g_ema': self.g_ema.state_dict(),
                'iteration': self.iteration}

    def checkpoint(self):
        return self.weights() | {'g_optim': self.g_optim.state_dict(), 'd_optim': self.d_optim.state_dict(),
                                 'images': self.images, 'path_mean': self.path_mean.item()}

    def load_generator(self, saved, path):
        """The generator and its EMA from a checkpoint, ours or official, which may lack all but the EMA."""
        checkpoint.load_state(self.g_ema, saved['g_ema'], path)
        checkpoint.load_state(self.g, saved.get('g', saved['g_ema']), path)

    def begin_from(self, saved, path):
        """The weights of a checkpoint for a new run, perhaps at another resolution: the field has none."""
        self.load_generator(saved, path)
        try:
            checkpoint.load_state(self.d, saved.get('d', {}), path)
        except UserError:
            print(f'{path} holds no discriminator of these sizes: that begins anew.')

    def load(self, saved, path):
        """A checkpoint to go on from. Official ones hold only weights: then the optimisers begin anew."""
        self.load_generator(saved, path)
        if 'd' in saved:
            checkpoint.load_state(self.d, saved['d'], path)
        self.iteration = saved.get('iteration', checkpoint.iteration_of(path))
        self.images = saved.get('images', 0)
        self.path_mean.fill_(saved.get('path_mean', 0.))
        for name, optimizer in (('g_optim', self.g_optim), ('d_optim', self.d_optim)):
            if name in saved:
                optimizer.load_state_dict(saved[name])
            else:
                print(f'{path} holds no {name}: that optimiser begins anew.')


def saved_options(opt):
    """The option tree as plain containers, for a checkpoint."""
    return {name: dict(group) for name, group in opt.items() if isinstance(group, dict)}


def differing_flags(opt, saved, groups=COMPARED_GROUPS):
    """['--flag value there, not value here', …] of the flags that matter and differ from a checkpoint's options."""
    return [f'--{name} {there[name]} there, {value} here' for group in groups
            for there in [saved.get(group, {})] for name, value in opt[group].items()
            if name in there and name not in FREE_FLAGS and there[name] != value]


class Start(NamedTuple):
    """What a run begins with."""
    path: Path = None      # a checkpoint, or None to begin with fresh weights
    saved: dict = None     # its contents
    resumed: bool = False  # go on from it, or take only its weights


def find_start(opt, stage, inherited=()):
    """(Start, option tree with the sizes that its checkpoint has) from --continue_training and --init_ckpt.

    inherited: flags that the checkpoint's options set where the user did not. Called first: raises UserError where the
    new run would overwrite another, or the old run had other options.
    """
    checked_chunk(opt)
    existing = checkpoint.iteration_paths(opt, stage)
    start = Start()
    if opt.experiment.continue_training:
        newest = checkpoint.newest_whole(opt, stage)
        if newest is None:
            print(f'No checkpoint to continue from in {checkpoint.stage_folder(opt, stage)}: starting anew.')
        else:
            start = Start(*newest, resumed=True)
    elif existing:
        raise UserError(f'{checkpoint.stage_folder(opt, stage)} holds checkpoints already; add --continue_training to '
                        'go on from the newest, or choose another --expname.')
    if not start.resumed and opt.training.init_ckpt:
        path = Path(opt.training.init_ckpt)
        start = Start(path, checkpoint.read(path))
    if start.path:
        opt = checkpoint.adopt_options(opt, start.saved, start.path, inherited)
        opt = checkpoint.fit_options(opt, start.saved['g_ema'], start.path)
    if start.resumed:
        check_options(opt, start.saved, start.path)
    return start, opt


def check_options(opt, saved, path):
    """Raise UserError where a checkpoint to go on from was trained with other options."""
    differing = differing_flags(opt, saved.get('options', {}))
    if differing:
        raise UserError(f'{path} was trained with other options ({"; ".join(differing)}); give the same ones, or begin '
                        'a new --expname.')


def checked_chunk(opt):
    """--chunk, no larger than the batch. Raises UserError for batches that cannot be trained on."""
    batch, chunk = opt.training.batch, min(opt.training.chunk, opt.training.batch)
    if batch < 2:
        raise UserError(f'--batch {batch} is too small; use at least 2 images a step.')
    if batch % chunk:
        raise UserError(f'--batch {batch} is not divisible by --chunk {chunk}; use a chunk that divides it.')
    return chunk


# ---------------------------------------------------------------------------------------------- the run

def adam(parameters, lr, betas):
    """Adam in its fused form, which on a CPU takes a tenth of the plain one's time."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr, betas, fused=parameters[0].device.type in ('cpu', 'cuda'))


class Run:
    """The frame of one process's training: data, loop, checks, logs, samples, checkpoints, and an orderly end.

    final: where the finished model goes. thumbnails: train on thumbnails alone (stage 1). Only the first process
    writes. Raises UserError for a data set or folder that will not do.
    """

    def __init__(self, opt, stage, processes, final, *, thumbnails=False):
        if opt.machine.precision == 'fp16':
            raise UserError('--precision fp16 is too coarse to train with; use bf16 or fp32.')
        self.opt, self.stage, self.processes, self.final = opt, stage, processes, final
        self.device, self.chunk = processes.device, checked_chunk(opt)
        self.main = processes.rank == 0
        self.dataset = ImageDataset(opt.dataset.dataset_path, opt.model.size, thumbnail_only=thumbnails,
                                    thumbnail_size=opt.model.renderer_spatial_output_dim)
        if opt.training.num_workers > len(self.dataset):
            raise UserError(f'--num_workers {opt.training.num_workers} is more than the {len(self.dataset)} images in '
                            f'{self.dataset.path}; use fewer.')
        self.folder = writable_folder(checkpoint.stage_folder(opt, stage), '--checkpoints_dir')
        writable_folder(final.parent, 'the current folder:')
        self.last_saved = None
        self.stopping = False  # agreed on by all processes
        self._signal = None    # what this process received: the exception to end with
        self._deadline = time.monotonic() + 60 * opt.training.max_minutes if opt.training.max_minutes else float('inf')
        self._cleanup = contextlib.ExitStack()
        torch.manual_seed(opt.experiment.seed)  # for the weights that the script makes next

    # -- begin and end

    def begin(self, state, start):
        """Load what the run starts from into the state, and make all processes equal."""
        self.state = state
        if start.resumed:
            state.load(start.saved, start.path)
            self.last_saved = start.path
            if start.saved.get('dataset_length', len(self.dataset)) != len(self.dataset):
                raise UserError(f'{start.path} was trained on {start.saved["dataset_length"]} images, and '
                                f'{self.dataset.path} has {len(self.dataset)}; give the same data set, or begin a new '
                                '--expname.')
            print(f'Going on from {start.path} ({state.iteration} steps done).')
        elif start.path:
            state.begin_from(start.saved, start.path)
            print(f'Beginning with the weights of {start.path}.')
        if not start.resumed and self.final.exists():
            raise UserError(f'{self.final} is there already, and this run would replace it; choose another --expname, '
                            'or move it away.')
        self.processes.broadcast([*state.g.state_dict().values(), *state.d.state_dict().values(),
                                  *state.g_ema.state_dict().values()])
        return self

    def __enter__(self):
        if self.main:
            checkpoint.remove_leftovers(self.opt, self.stage)
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            self._cleanup.callback(signal.signal, signal_number, signal.signal(signal_number, self._on_signal))
        return self

    def __exit__(self, *_):
        self._cleanup.close()

    def _on_signal(self, number, _):
        if number == signal.SIGINT and self._signal is KeyboardInterrupt:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self._signal = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self.main:
            # Not print: the signal may have come while a line was being printed.
            os.write(2, b'\nstopping after this step; Ctrl-C again stops at once, without saving.\n')

    def end_early(self):
        """End the command after a signal or a spent --max_minutes; the work is saved by now."""
        print(f'Stopped; --continue_training goes on from {self.last_saved}.')
        raise self._signal or SystemExit(0)

    # -- the loop

    def progress(self, first, last, description):
        """Yield the steps first .. last - 1 with a progress bar, until one has been told to stop."""
        with tqdm(range(first, last), initial=first, total=last, desc=description, unit='step', dynamic_ncols=True,
                  smoothing=0.05, disable=not self.main) as self.bar:
            for step in self.bar:
                self.step, self.values = step, {}
                yield step
                if self.stopping:
                    break

    def steps(self):
        """Yield the real images of each step, on the device; between steps do all that is not the method.

        Images (B,3,S,S) in [-1, 1], or thumbnails alone in stage 1.
        """
        state, training = self.state, self.opt.training
        sampler = InfiniteSampler(len(self.dataset), seed=self.opt.experiment.seed, rank=self.processes.rank,
                                  world_size=self.processes.size, start=state.images)
        images = make_loader(self.dataset, sampler, training.batch, training.num_workers)
        self._cleanup.callback(images.close)
        log = Log(self.folder, self.opt, state.iteration) if self.main else None
        if self.main and state.iteration == 0:
            self.sample()
        for _ in self.progress(state.iteration, training.iter, self.stage):
            started = time.perf_counter()
            real = next(images)
            yield (real if isinstance(real, torch.Tensor) else real[0]).to(self.device, non_blocking=True)
            state.update_ema()
            state.iteration += 1
            state.images += training.batch * self.processes.size
            last = self.stopping or state.iteration == training.iter
            if self.main:
                if not self.opt.rendering.no_sdf:
                    self.values['beta'] = state.g.renderer.sigmoid_beta.item()
                seconds = time.perf_counter() - started
                if training.eval_every and state.iteration % training.eval_every == 0:
                    self.values |= quick_evaluation(state.g_ema, self.dataset, self.opt, self.device)
                log.add(self.values, seconds)
                self.bar.set_postfix_str(log.summary(), refresh=False)
                if last or state.iteration % training.log_every == 0:
                    log.write(state.iteration, training.batch * self.processes.size, self.device)
                if last or state.iteration % training.sample_every == 0:
                    log.plot()
                if state.iteration == training.iter or state.iteration % training.sample_every == 0:
                    self.sample(log)
            if last or state.iteration % training.save_every == 0:
                self.save()
        if state.iteration < training.iter:
            self.end_early()
        elif self.main:
            self.save()
            self.write(self.final, state.weights())
            print(f'Finished {state.iteration} steps: {self.final}')

    def draw(self, purpose, batch=None):
        """Fakes for this process's part of a step's batch (of --batch images a process unless told)."""
        batch = batch or self.opt.training.batch
        first = self.processes.rank * batch
        return draw_fakes(self.opt, purpose, self.state.iteration, range(first, first + batch), self.device)

    def update(self, name, optimizer, terms):
        """Average gradients and terms over the processes, check that they are finite, and take the optimiser's step.

        terms: {name: scalar tensor}, for the log; `name` names the norm of the gradient there. Raises UserError, before
        any weight changes, where something is not finite.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']
                      if parameter.grad is not None]
        stop = self._signal is not None or time.monotonic() > self._deadline
        scalars = torch.stack([*terms.values(), torch.full((), float(stop), device=self.device)])
        if self.processes.size > 1:  # everything in one all-reduce
            flat = torch.cat([*(parameter.grad.flatten() for parameter in parameters), scalars])
            *gradients, scalars = self.processes.average_(flat).split(
                [*(parameter.numel() for parameter in parameters), len(scalars)])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.view_as(parameter)
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        *values, stop, norm = torch.cat([scalars, norm[None]]).tolist()
        self.stopping |= stop > 0
        values = dict(zip(terms, values, strict=True)) | {f'{name}_gradient': norm}
        wrong = [term for term, value in values.items() if not np.isfinite(value)]
        if wrong:
            good = f'the last good checkpoint is {self.last_saved}' if self.last_saved else 'there is no checkpoint yet'
            raise UserError(f'step {self.step}: {", ".join(wrong)} became NaN or infinite, and training stopped before '
                            f'it changed a weight; {good}. Begin a new --expname (from that one with --init_ckpt) with '
                            'smaller learning rates, for instance.')
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.values |= values

    # -- what it writes

    def save(self):
        """Write the checkpoint of this step, once."""
        path = checkpoint.iteration_path(self.opt, self.stage, self.state.iteration)
        if path != self.last_saved:
            self.write(path, self.state.checkpoint() | {'dataset_length': len(self.dataset)})
        if self.main:
            checkpoint.prune(self.opt, self.stage, self.opt.training.keep_checkpoints)

    def write(self, path, contents):
        """Write a checkpoint of these contents and the options, from the first process."""
        if self.main:
            checkpoint.save(path, contents | {'options': saved_options(self.opt)})
        self.last_saved = path

    def sample(self, log=None):
        """Write the sample grids of this step."""
        for ending, grid in sample_grids(self.state.g_ema, self.opt, self.device).items():
            path = self.folder / 'samples' / f'{self.state.iteration:07d}{ending}.png'
            save_image_row(path, [grid])
            if log:
                log.image(f'samples{ending}', path)


# ---------------------------------------------------------------------------------------------- samples

@torch.no_grad()
def sample_grids(generator, opt, device):
    """{'': images, '_shape': shaded surfaces} as uint8 (H,W,3): a row for each of --val_n_sample identities, which the
    cameras pass from one side to the other. Without a decoder the images are the thumbnails; with one, the surfaces,
    which stage 2 does not change, are left out."""
    identities = opt.training.val_n_sample
    random = image_generators(opt.experiment.seed, 'samples', 0, range(identities + 1), device)
    means = generator.mean_latents(generator=random[-1])
    viewpoints = azimuth_sweep(identities, opt.camera.azim, opt.camera.elev, SAMPLE_VIEWS, random[-1], device)
    cameras = cameras_at(viewpoints, opt.model.renderer_spatial_output_dim, opt.camera.fov, opt.camera.dist_radius)
    grids = {'': []} if generator.full_pipeline else {'': [], '_shape': []}
    for i in range(identities):
        z = torch.randn(1, opt.model.style_dim, generator=random[i], device=device)
        views = {name: [] for name in grids}
        for part in chunks(0, SAMPLE_VIEWS, checked_chunk(opt)):
            own = cameras[i * SAMPLE_VIEWS:(i + 1) * SAMPLE_VIEWS][part]
            generated = generator(z, own, truncation=SAMPLE_TRUNCATION, means=means, noise='fixed')
            if generator.full_pipeline:
                image = generated.image
                if image.shape[-1] > SAMPLE_SIDE:
                    image = torch.nn.functional.adaptive_avg_pool2d(image, SAMPLE_SIDE)
                views[''].extend(to_uint8(image))
            else:
                views[''].extend(to_uint8(generated.rendering.thumbnail))
                views['_shape'].extend(to_uint8(shaded(generated.rendering, own)))
        for name, row in views.items():
            grids[name].append(np.concatenate(row, axis=1))
    return {name: np.concatenate(rows) for name, rows in grids.items()}


def shaded(rendering, cameras):
    """The surface of a rendering lit from the camera (B,3,H,W) in [-1, 1]: a look at the shape."""
    along, down = (torch.nn.functional.pad(rendering.xyz.diff(dim=dim), pad, mode='replicate')
                   for dim, pad in ((3, (0, 1, 0, 0)), (2, (0, 0, 0, 1))))
    normal = torch.nn.functional.normalize(torch.linalg.cross(down, along, dim=1), dim=1)
    towards = cameras.extrinsics[:, :, 2, None, None]  # (B,3,1,1)
    return ((normal * towards).sum(1, keepdim=True).clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)


# ---------------------------------------------------------------------------------------------- quality

@torch.no_grad()
def numbered_images(generator, opt, numbers, device, truncation=1., means=None):
    """Images (B,3,S,S), about [-1, 1], for evaluation: which ones depends on the seed and their numbers alone."""
    fakes = draw_fakes(opt, 'evaluation', 0, numbers, device)
    generated = generator(fakes.z, fakes.cameras, truncation=truncation, means=means, generator=fakes.random)
    return generated.rendering.thumbnail if generated.image is None else generated.image


def quick_evaluation(generator, dataset, opt, device):
    """{'swd', 'depth'} of a generator, from few images and identities: a trend for the log, no numbers to publish.

    swd: the mean over levels, against the data set's first images. depth: identity_metrics.measure_identity; left out
    where no identity has a surface. Touches no random state.
    """
    count = min(EVAL_IMAGES, len(dataset))
    descriptors = {'real': [], 'fake': []}
    for part in chunks(0, count, checked_chunk(opt)):
        numbers = range(part.start, part.stop)
        items = [dataset[i] for i in numbers]
        batches = {'real': torch.stack([item if isinstance(item, Tensor) else item[0] for item in items]),
                   'fake': numbered_images(generator, opt, numbers, device)}
        for kind, images in batches.items():
            pixels = torch.from_numpy(to_uint8(images)).movedim(-1, 1)
            descriptors[kind].append(patch_descriptors(pixels, numbers))
    real, fake = ([torch.cat(level) for level in zip(*parts, strict=True)] for parts in descriptors.values())
    measures = {'swd': float(np.mean(swd(real, fake)))}
    latents = draw_fakes(opt, 'evaluation', 0, range(EVAL_IDENTITIES), device).z
    depths = [measure_identity(generator, z[None], opt, ('depth',))['depth']['depth'] for z in latents]
    found = [depth for depth in depths if not np.isnan(depth)]
    return measures | ({'depth': float(np.mean(found))} if found else {})


# ---------------------------------------------------------------------------------------------- logs

class Log:
    """stats.jsonl, a line for every --log_every steps; progress.png, its curves; and Weights & Biases with --wandb.

    A resumed run cuts off the lines of steps that it does again.
    """

    def __init__(self, folder, opt, iteration):
        self.stats, self.picture = folder / 'stats.jsonl', folder / 'progress.png'
        kept = [line for line in read_stats(self.stats) if line['iteration'] <= iteration]
        with atomic_path(self.stats) as temporary:
            temporary.write_text(''.join(json.dumps(line) + '\n' for line in kept))
        self._pending, self._seconds = [], []
        self._wandb = _start_wandb(opt, folder) if opt.training.wandb else None

    def add(self, values, seconds):
        """The values of one step."""
        self._pending.append(values)
        self._seconds.append(seconds)

    def summary(self):
        """The last step in a few words."""
        last = self._pending[-1]
        return ' '.join(f'{name} {last[name]:.4g}' for name in ('d', 'g', 'r1', 'g_eikonal', 'path', 'beta')
                        if name in last)

    def write(self, iteration, images, device):
        """Append the means since the last line. images: real images a step, of all processes."""
        seconds = float(np.mean(self._seconds))
        names = dict.fromkeys(name for values in self._pending for name in values)
        line = {'iteration': iteration}
        line |= {name: float(np.mean([values[name] for values in self._pending if name in values])) for name in names}
        line |= {'seconds_per_step': seconds, 'images_per_second': images / seconds,
                 'peak_memory_gib': _peak_memory(device)}
        with open(self.stats, 'a') as file:
            file.write(json.dumps(line) + '\n')
        self._pending, self._seconds = [], []
        self._to_wandb(lambda: self._wandb.log(line, step=iteration))

    def plot(self):
        """Draw progress.png anew."""
        plot_progress(read_stats(self.stats), self.picture)

    def image(self, name, path):
        """An image file for Weights & Biases."""
        def log():
            import wandb
            self._wandb.log({name: wandb.Image(str(path))})
        self._to_wandb(log)

    def _to_wandb(self, log):
        if self._wandb is not None:
            try:
                log()
            except Exception as error:  # whatever goes wrong over there, training is worth more
                self._wandb = None
                tqdm.write(f'--wandb failed ({error}); training goes on without it.')


def _start_wandb(opt, folder):
    try:
        import wandb
        return wandb.init(project='StyleSDF', name=f'{opt.experiment.expname} {folder.name}', dir=str(folder),
                          config=saved_options(opt))
    except Exception as error:  # not installed, no network, no account, …
        tqdm.write(f'--wandb failed ({error}); training goes on without it.')
        return None


def _peak_memory(device):
    """GiB that the GPU, or this process, has held at most; None on Windows, which does not tell."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 30 if sys.platform == 'darwin' else 2 ** 20)


def read_stats(path):
    """The lines of a stats.jsonl as dicts; a last line that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


CURVES = (  # title, logarithmic, names
    ('adversarial losses', False, ('d', 'g')),
    ("the discriminator's scores", False, ('real_score', 'fake_score')),
    ('weighted regularisers', True, ('r1', 'd_view', 'g_view', 'g_eikonal', 'g_minimal_surface', 'g_sphere', 'path')),
    ('norms of the gradients', True, ('d_gradient', 'g_gradient', 'path_gradient')),
    ('path length', False, ('path_length',)),
    ('beta', True, ('beta',)),
    ('patch distance', False, ('swd',)),
    ('depth consistency', True, ('depth',)),
)
CURVE_POINTS = 400


def plot_progress(lines, path):
    """Draw the curves of stats lines, each point the mean of its share of the lines."""
    panels = [(title, log, [name for name in names if any(name in line for line in lines)])
              for title, log, names in CURVES]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return
    figure = Figure(figsize=(12, 3 * ((len(panels) + 1) // 2)))
    FigureCanvasAgg(figure)
    for i, (title, log, names) in enumerate(panels):
        axes = figure.add_subplot((len(panels) + 1) // 2, 2, i + 1)
        for name in names:
            points = np.array([(line['iteration'], line[name]) for line in lines if name in line])
            shares = np.array_split(points, min(len(points), CURVE_POINTS))
            axes.plot(*np.array([share.mean(0) for share in shares]).T, label=name, linewidth=1)
        if 'beta' in names:
            axes.axhline(SHARP_BETA, color='grey', linestyle='--', linewidth=1, label=f'sharp: {SHARP_BETA:g}')
        axes.set(title=title, xlabel='steps', yscale='log' if log else 'linear')
        axes.legend(fontsize='small')
        axes.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80)

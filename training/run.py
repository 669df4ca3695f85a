"""The frame of both training stages: loop, checks, logs, samples, checkpoints, and an orderly end."""
import contextlib
import os
import signal
import time

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
from dataset import InfiniteSampler, make_loader
from training.gradients import checked_chunk
from training.logs import Log
from training.quality import quick_evaluation
from training.random_numbers import draw_fakes, draw_mixing
from training.samples import sample_grids
from utils import Terminated, UserError, save_image_row, writable_folder


def adam(parameters, lr, betas):
    """Adam in its fused form, which on a CPU takes a tenth of the plain one's time."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr, betas, fused=parameters[0].device.type in ('cpu', 'cuda'))


class Run:
    """The frame of one process's training: loop, checks, logs, samples, checkpoints, and an orderly end.

    images: the data set (dataset.Images). state: what is trained; it is loaded from `start` (resuming.Start), and made
    equal in all processes. final: where the finished model goes. Only the first process writes. Raises UserError for
    flags, a data set or a folder that will not do.
    """

    def __init__(self, opt, stage, processes, images, state, start, final):
        self.opt, self.stage, self.processes, self.images = opt, stage, processes, images
        self.state, self.final = state, final
        self.device, self.chunk = processes.device, checked_chunk(opt)
        self.is_first = processes.rank == 0
        self.folder = checkpoint.stage_folder(opt, stage)
        self.last_saved = None  # path of the newest checkpoint that is known to be whole
        self.step = 0           # the one that is being made
        self.stopping = False   # agreed on by all processes
        self._values = {}       # of this step, for the log
        self._bar = None        # the progress bar
        self._stop = None       # the exception to end with, after a signal to this process
        self._deadline = time.monotonic() + 60 * opt.training.max_minutes if opt.training.max_minutes else float('inf')
        self._cleanup = contextlib.ExitStack()
        self._check()
        self._begin(start)

    # -- begin and end

    def _check(self):
        if self.opt.machine.precision == 'fp16':
            raise UserError('--precision fp16 is too coarse to train with; use bf16 or fp32.')
        if self.opt.training.num_workers > len(self.images):
            raise UserError(f'--num_workers {self.opt.training.num_workers} is more than the {len(self.images)} images '
                            f'in {self.images.path}; use fewer.')
        writable_folder(self.folder, '--checkpoints_dir')
        writable_folder(self.final.parent, 'the current folder:')

    def _begin(self, start):
        """Load what the run starts from into the state, and make all processes equal."""
        if start.resumed:
            self.state.load(start.saved, start.path)
            self.last_saved = start.path
            if start.saved.get('dataset_length', len(self.images)) != len(self.images):
                raise UserError(f'{start.path} was trained on {start.saved["dataset_length"]} images, and '
                                f'{self.images.path} has {len(self.images)}; give the same data set, or begin a new '
                                '--expname.')
            print(f'Going on from {start.path} ({self.state.iteration} steps done).')
        elif start.path:
            self.state.begin_from(start.saved, start.path)
            print(f'Beginning with the weights of {start.path}.')
        if not start.resumed and self.final.exists():
            raise UserError(f'{self.final} is there already, and this run would replace it; choose another --expname, '
                            'or move it away.')
        self.processes.broadcast([*self.state.g.state_dict().values(), *self.state.d.state_dict().values(),
                                  *self.state.g_ema.state_dict().values()])

    def __enter__(self):
        if self.is_first:
            checkpoint.remove_leftovers(self.opt, self.stage)
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            self._cleanup.callback(signal.signal, signal_number, signal.signal(signal_number, self._on_signal))
        return self

    def __exit__(self, *_):
        self._cleanup.close()

    def _on_signal(self, number, _):
        if number == signal.SIGINT and self._stop is KeyboardInterrupt:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self._stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self.is_first:
            # Not print: the signal may have come while a line was being printed.
            os.write(2, b'\nstopping after this step; Ctrl-C again stops at once, without saving.\n')

    def end_early(self):
        """End the command after a signal or a spent --max_minutes; the work is saved by now."""
        print(f'Stopped; --continue_training goes on from {self.last_saved}.')
        raise self._stop or SystemExit(0)

    # -- the loop

    def progress(self, first, last, description):
        """Yield the steps first .. last - 1 with a progress bar, until one has been told to stop."""
        with tqdm(range(first, last), initial=first, total=last, desc=description, unit='step', dynamic_ncols=True,
                  smoothing=0.05, disable=not self.is_first) as self._bar:
            for step in self._bar:
                self.step, self._values = step, {}
                yield step
                if self.stopping:
                    break

    def show(self, text):
        """Show a few words beside the progress bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def steps(self):
        """Yield the real images of each step, (B,3,S,S) in [-1, 1] on the device; between steps do all that is not the
        method: count, log, sample, save, stop."""
        state, training = self.state, self.opt.training
        sampler = InfiniteSampler(len(self.images), seed=self.opt.experiment.seed, rank=self.processes.rank,
                                  world_size=self.processes.size, start=state.images, flip=not training.no_mirror)
        batches = make_loader(self.images, sampler, training.batch, training.num_workers)
        self._cleanup.callback(batches.close)
        log = Log(self.folder, self.opt, state.iteration) if self.is_first else None
        if self.is_first and state.iteration == 0:
            self.sample()
        for _ in self.progress(state.iteration, training.iter, self.stage):
            started = time.perf_counter()
            yield next(batches).to(self.device, non_blocking=True)
            state.iteration += 1
            state.images += training.batch * self.processes.size
            last = self.stopping or state.iteration == training.iter
            if self.is_first:
                self._report(log, time.perf_counter() - started, last)
            if last or state.iteration % training.save_every == 0:
                self.save()
        if state.iteration < training.iter:
            self.end_early()
        elif self.is_first:
            self.save()
            self.write(self.final, state.weights())
            print(f'Finished {state.iteration} steps: {self.final}')

    def _report(self, log, seconds, last):
        """Measure, log, draw and sample what is due after a step. last: whether it is the last one."""
        state, training = self.state, self.opt.training
        if not self.opt.rendering.no_sdf:
            self._values['beta'] = state.g.renderer.sigmoid_beta.item()
        if training.eval_every and state.iteration % training.eval_every == 0:
            self._values |= quick_evaluation(state.g_ema, self.images, self.opt, self.device)
        log.add(self._values, seconds)
        self.show(log.summary())
        if last or state.iteration % training.log_every == 0:
            log.write(state.iteration, training.batch * self.processes.size, self.device)
        if last or state.iteration % training.sample_every == 0:
            log.plot()
        if state.iteration == training.iter or state.iteration % training.sample_every == 0:
            self.sample(log)

    def draw(self, purpose, batch=None):
        """Fakes for this process's part of a step's batch (of --batch images a process, if `batch` is not given)."""
        batch = batch or self.opt.training.batch
        first = self.processes.rank * batch
        return draw_fakes(self.opt, purpose, self.state.iteration, range(first, first + batch), self.device)

    def draw_mixing(self, purpose):
        """The decoder's layer where the second latent of this step's fakes takes over, or None."""
        return draw_mixing(self.opt, purpose, self.state.iteration, self.state.g.decoder.num_layers)

    def update(self, name, optimizer, terms):
        """Average gradients and terms over the processes, check that they are finite, and take the optimizer's step.

        terms: {name: scalar tensor}, for the log; `name` names the norm of the gradient there. Returns them as numbers.
        Raises UserError, before any weight changes, where something is not finite.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']
                      if parameter.grad is not None]
        stop = self._stop is not None or time.monotonic() > self._deadline
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
        self._values |= values
        return values

    def record(self, **values):
        """Further numbers of this step for the log."""
        self._values |= values

    # -- what it writes

    def save(self):
        """Write the checkpoint of this step, once."""
        path = checkpoint.iteration_path(self.opt, self.stage, self.state.iteration)
        if path != self.last_saved:
            self.write(path, self.state.checkpoint() | {'dataset_length': len(self.images)})
        if self.is_first:
            checkpoint.prune(self.opt, self.stage, self.opt.training.keep_checkpoints)

    def write(self, path, contents):
        """Write a checkpoint of these contents and the options, from the first process."""
        if self.is_first:
            checkpoint.save(path, contents | {'options': checkpoint.saved_options(self.opt)})
        self.last_saved = path

    def sample(self, log=None):
        """Write the sample grids of this step."""
        for ending, grid in sample_grids(self.state.g_ema, self.opt, self.device).items():
            path = self.folder / 'samples' / f'{self.state.iteration:07d}{ending}.png'
            save_image_row(path, [grid])
            if log:
                log.image(f'samples{ending}', path)

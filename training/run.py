"""The frame of both training stages: loop, checks, logs, samples, checkpoints, and an orderly end."""
import contextlib
import os
import signal
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
from dataset import InfiniteSampler, make_loader
from training.gradients import checked_chunk
from training.lock import only_run
from training.logs import Log
from training.quality import quick_evaluation
from training.random_numbers import draw_fakes, draw_mixing
from training.resuming import check_images, describe_images, images_of_step
from training.samples import sample_grids
from utils import Terminated, UserError, duration, lack_of_memory, save_image_row, writable_folder

# Signals that end a training after its step, saved. Closed terminals send SIGHUP; batch systems SIGTERM or SIGUSR1.
STOPPING_SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1')
                         if hasattr(signal, name))
RETRY_STEPS = 100  # after a checkpoint could not be written
MAX_FAILURES = 5   # so many in a row end the training
PACE_STEPS, LONG_SECONDS = 10, 600  # how long a phase takes is measured on so many steps, and told where it is longer


def adam(parameters, lr, betas):
    """Adam in its fused form, which on a CPU takes a tenth of the plain one's time."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr, betas, fused=parameters[0].device.type in ('cpu', 'cuda'))


class Diverged(UserError):
    """Something became NaN or infinite."""


class Run:
    """The frame of one process's training: loop, checks, logs, samples, checkpoints, and an orderly end.

    images: the data set (dataset.Images). state: what is trained; it is loaded from `start` (resuming.Start), and made
    equal in all processes. final: where the finished model goes. Only the first process reads and writes files beside
    the images. What is not the training itself never ends it: samples, plots, logs and measurements that fail are told
    and left out. Raises UserError for flags, a data set or a folder that will not do.
    """

    def __init__(self, opt, stage, processes, images, state, start, final):
        self.opt, self.stage, self.processes, self.images = opt, stage, processes, images
        self.state, self.final, self._start = state, final, start
        self.device, self.chunk = processes.device, checked_chunk(opt)
        self.is_first = processes.rank == 0
        self.folder = checkpoint.stage_folder(opt, stage)
        self.last_saved = None  # path of the newest checkpoint that is known to be whole
        self.step = 0           # the one that is being made
        self.stopping = False   # agreed on by all processes
        self._values = {}       # of this step, for the log
        self._bar = None        # the progress bar
        self._log = None        # in the first process
        self._stop = None       # the exception to end with, after a signal to this process
        self._process = os.getpid()
        self._between_steps = False  # the state is that of a whole number of steps
        self._failures, self._retry = 0, None  # checkpoints in a row that could not be written; the step to try again
        self._batch_changed = False  # from this step on, as --new_batch allows
        self._failed = set()    # what has been told to have failed
        self._deadline = time.monotonic() + 60 * opt.training.max_minutes if opt.training.max_minutes else float('inf')
        self._cleanup = contextlib.ExitStack()
        processes.rescue = self._rescue
        self._check_flags()
        self._described = describe_images(images)
        self._step_images = images_of_step(opt, stage, processes.size)
        processes.check_same('data set', '{length} images with fingerprint {fingerprint}'.format(**self._described))
        processes.share(self._check_folders)

    # -- begin and end

    def _check_flags(self):
        if self.opt.machine.precision == 'fp16':
            raise UserError('--precision fp16 is too coarse to train with; use bf16 or fp32.')
        if self.opt.training.num_workers > len(self.images):
            raise UserError(f'--num_workers {self.opt.training.num_workers} is more than the {len(self.images)} images '
                            f'in {self.images.path}; use fewer.')

    def _check_folders(self):
        """What the first process asks before anything is written."""
        if self._start.resumed:
            check_images(self.opt, self.images, self._described, self._start)
        elif self.final.exists():
            raise UserError(f'{self.final} is there already, and this run would replace it; choose another --expname, '
                            'or move it away.')
        writable_folder(self.folder, '--checkpoints_dir')
        writable_folder(self.final.parent, 'the current folder:')

    def __enter__(self):
        try:
            self.processes.share(self._take_folder)
            self._begin()
            for number in STOPPING_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets SIGHUP
                    self._cleanup.callback(signal.signal, number, signal.signal(number, self._on_signal))
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def _take_folder(self):
        self._cleanup.enter_context(only_run(self.folder))
        checkpoint.remove_leftovers(self.opt, self.stage, self.final)

    def _begin(self):
        """Load what the run starts from into the state, and make all processes equal."""
        start, state = self._start, self.state
        self._start = start._replace(saved=None)  # it may be large
        if start.resumed:
            self._batch_changed = start.saved.get('step_images', self._step_images) != self._step_images
            state.load(start.saved, start.path)
            self.last_saved = start.path
            print(f'Going on from {start.path} ({state.iteration} steps done).')
        elif start.path:
            state.begin_from(start.saved, start.path)
            print(f'Beginning with the weights of {start.path}.')
        self.processes.broadcast([*state.g.state_dict().values(), *state.d.state_dict().values(),
                                  *state.g_ema.state_dict().values()])

    def __exit__(self, kind, error, _):
        try:
            if isinstance(error, Exception) and not isinstance(error, Diverged):
                again = self._rescue()
                if isinstance(error, MemoryError | RuntimeError) and (lack := lack_of_memory(error)):
                    raise UserError(self._smaller(lack, again)) from None
                if again:
                    print(again[2:] + '.')
        finally:
            self._cleanup.close()

    def _rescue(self):
        """After a mishap save the steps that are done, if the state is that of whole steps.

        Returns words that say where the training can go on.
        """
        if self.is_first and self._between_steps:
            with contextlib.suppress(Exception):  # the mishap itself is told in any case
                self.save(final=True)
        return f'; --continue_training goes on from {self.last_saved}' if self.is_first and self.last_saved else ''

    def _smaller(self, lack, again):
        """The sentence for a lack of memory."""
        opt = self.opt
        sizes = (f'--size {opt.model.size}' if self.stage == 'full_pipeline' else
                 f'--renderer_spatial_output_dim {opt.model.renderer_spatial_output_dim} with --N_samples '
                 f'{opt.rendering.N_samples}')
        return (f'memory ran out ({lack}) with --chunk {self.chunk}, {sizes} and --precision {opt.machine.precision}; '
                f'use a smaller --chunk, --precision bf16 or smaller sizes{again}.')

    def _on_signal(self, number, _):
        if os.getpid() != self._process:
            return  # a worker process, which its parent ends
        if number == signal.SIGINT and type(self._stop) is KeyboardInterrupt:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self._stop = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
        if self.is_first:
            with contextlib.suppress(OSError):  # the terminal may be gone
                # Not print: the signal may have come while a line was being printed.
                os.write(2, b'\nstopping after this step; Ctrl-C again stops at once, without saving.\n')

    def end_early(self):
        """End the command after a signal or a spent --max_minutes; the work is saved by now.

        Whatever ended one process is the reason for all of them: an exit code of 0 would tell torchrun and batch
        systems that the others have finished.
        """
        signals, orphans = zip(*self.processes.collect((_number_of(self._stop), self.processes.orphaned)), strict=True)
        if any(orphans):
            where = '' if self.processes.orphaned else f' on the machine of process {orphans.index(True)}'
            raise UserError(f'torchrun, which started this training{where}, has ended, and so it ends too; '
                            f'--continue_training goes on from {self.last_saved}.')
        print(f'Stopped; --continue_training goes on from {self.last_saved}.')
        number = _number_of(self._stop) or max(signals)
        raise SystemExit(0) if not number else KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    # -- the loop

    def progress(self, first, last, description, shorter):
        """Yield the steps first .. last - 1 with a progress bar, until one has been told to stop.

        If it will take long, as its second to eleventh step show, a line says so, and with the words `shorter` what
        would take less time.
        """
        with tqdm(range(first, last), initial=first, total=last, desc=description, unit='step', dynamic_ncols=True,
                  smoothing=0.05, disable=not self.is_first, file=Unbreakable(sys.stderr)) as self._bar:
            for step in self._bar:
                self.step, self._values = step, {}
                if step == first + 1:  # the first step prepares much that the others find there
                    started = time.perf_counter()
                elif step == first + 1 + PACE_STEPS:
                    seconds = (time.perf_counter() - started) / PACE_STEPS * (last - step)
                    if seconds > LONG_SECONDS and self.is_first:
                        self._bar.write(f'{description}: {last - step} more steps take about {duration(seconds)} at '
                                        f'this pace; {shorter}.', file=self._bar.fp)
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
        if self.is_first:
            self._aside('the log', self._open_log)
        if self.is_first and state.iteration == 0:
            self._aside('a sample', self.sample)
        for _ in self.progress(
                state.iteration, training.iter, self.stage, 'Ctrl-C saves, --continue_training goes on; smaller sizes '
                'or a smaller --iter take less time (docs/training.md has presets)'):
            started = time.perf_counter()
            self._between_steps = True
            real = next(batches).to(self.device, non_blocking=True)
            yield real
            state.iteration += 1
            state.images += training.batch * self.processes.size
            self._between_steps = True
            last = self.stopping or state.iteration == training.iter
            if self.is_first:
                self._report(time.perf_counter() - started, last)
            if last or state.iteration % training.save_every == 0 or state.iteration == self._retry:
                self.save(last)
        if state.iteration < training.iter:
            self.end_early()
        elif self.is_first:
            self.save(final=True)
            self.write(self.final, state.weights())
            print(f'Finished {state.iteration} steps: {self.final}')

    def _open_log(self):
        self._log = Log(self.folder, self.opt, self.state.iteration)
        if self._batch_changed:
            self._log.note({'iteration': self.state.iteration, 'images_per_step': self._step_images['images']})
        self._cleanup.callback(self._log.close)

    def _report(self, seconds, last):
        """Measure, log, draw and sample what is due after a step. last: whether it is the last one."""
        state, training, log = self.state, self.opt.training, self._log
        if not self.opt.rendering.no_sdf:
            self._values['beta'] = state.g.renderer.sigmoid_beta.item()
        if training.eval_every and state.iteration % training.eval_every == 0:
            self._aside('a measurement', self._measure)
        if log:
            log.add(self._values, seconds)
            self.show(log.summary())
            if last or state.iteration % training.log_every == 0:
                self._aside('the log', lambda: log.write(state.iteration, training.batch * self.processes.size,
                                                         self.device))
            if last or state.iteration % training.sample_every == 0:
                self._aside('the plot', log.plot)
        if state.iteration == training.iter or state.iteration % training.sample_every == 0:
            self._aside('a sample', self.sample)

    def _aside(self, what, work):
        """Do something that is not the training. Where it fails one line says so, once, and the training goes on."""
        try:
            work()
            self._failed.discard(what)
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                tqdm.write(f'step {self.state.iteration}: {what} failed ({type(error).__name__}: {error}); the '
                           'training goes on.', file=Unbreakable(sys.stderr))

    def _measure(self):
        self._values |= quick_evaluation(self.state.g_ema, self.images, self.opt, self.device)

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
        stop = self._stop is not None or time.monotonic() > self._deadline or self.processes.orphaned
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
            again = f'(with --init_ckpt {self.last_saved}) ' if self.last_saved else ''
            raise Diverged(f'step {self.step}: {", ".join(wrong)} became NaN or infinite, and training stopped before '
                           f'it changed a weight; {good}. Begin a new --expname {again}with smaller learning rates, '
                           'for instance.')
        self._between_steps = False
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._values |= values
        return values

    def record(self, **values):
        """Further numbers of this step for the log."""
        self._values |= values

    # -- what it writes

    def save(self, final=False):
        """Write the checkpoint of this step, once. final: the training ends now."""
        path = checkpoint.iteration_path(self.opt, self.stage, self.state.iteration)
        if path == self.last_saved:
            return
        self.keep(path, self.state.checkpoint() | {'dataset': self._described, 'step_images': self._step_images}, final)
        if self.is_first and path == self.last_saved:
            self._aside('removing old checkpoints', lambda: checkpoint.prune(
                self.opt, self.stage, self.opt.training.keep_checkpoints, self.state.iteration))

    def keep(self, path, contents, final=False):
        """Write a file that the training can go on from.

        Where that fails the training goes on, and tries again a little later, up to a few times in a row. final: it
        ends now, so raise UserError at once.
        """
        try:
            self.write(path, contents)
            self._failures, self._retry = 0, None
        except UserError as error:
            self._failures += 1
            newest = self.last_saved or 'none'
            if final or self._failures == MAX_FAILURES:
                raise UserError(f'{error} The newest checkpoint of this training is {newest}.') from None
            self._retry = self.state.iteration + RETRY_STEPS
            tqdm.write(f'{error} The training goes on and tries again after step {self._retry}; the newest checkpoint '
                       f'is {newest}.', file=Unbreakable(sys.stderr))

    def write(self, path, contents):
        """Write a checkpoint of these contents and the options, from the first process."""
        if self.is_first:
            checkpoint.save(path, contents | {'options': checkpoint.saved_options(self.opt)})
        self.last_saved = path

    def sample(self):
        """Write the sample grids of this step."""
        for ending, grid in sample_grids(self.state.g_ema, self.opt, self.device).items():
            path = self.folder / 'samples' / f'{self.state.iteration:07d}{ending}.png'
            save_image_row(path, [grid])
            if self._log:
                self._log.image(f'samples{ending}', path)


def _number_of(stop):
    """The signal's number that an exception to end with stands for; 0 for None."""
    return 0 if stop is None else int(stop.number if isinstance(stop, Terminated) else signal.SIGINT)


class Unbreakable:
    """A text stream that stays silent instead of raising where it has gone, such as a terminal that was closed."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self):
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name):
        return getattr(self._stream, name)

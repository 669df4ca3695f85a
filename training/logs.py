"""What training writes down: stats.jsonl, its curves, and Weights & Biases."""
import contextlib
import json
import os
import queue
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import saved_options
from utils import atomic_path

try:
    import resource
except ImportError:  # Windows
    resource = None

SHARP_BETA = 3e-3  # below this beta the field has converged to a surface (docs/training.md)


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
        self._wandb = Wandb(opt, folder) if opt.training.wandb else None

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
                 'peak_memory_gib': peak_memory(device)}
        self.note(line)
        self._pending, self._seconds = [], []
        if self._wandb:
            self._wandb.log(line, iteration)

    def note(self, line):
        """Append a line to stats.jsonl, all of it or, where the disk is full, nothing."""
        # Without a buffer (0), which would write its half line after all where the file is cut or closed.
        with open(self.stats, 'ab', 0) as file:
            end, rest = file.tell(), json.dumps(line).encode() + b'\n'
            try:
                while rest:  # a disk that gets full takes a part, and refuses the rest
                    rest = rest[file.write(rest):]
            except OSError:
                file.truncate(end)
                raise

    def plot(self):
        """Draw progress.png anew."""
        plot_progress(read_stats(self.stats), self.picture)

    def image(self, name, path):
        """Hand an image file to Weights & Biases."""
        if self._wandb:
            self._wandb.image(name, path)

    def close(self):
        """Give Weights & Biases a moment to take what is left."""
        if self._wandb:
            self._wandb.close()


class Wandb:
    """Weights & Biases, in a thread of its own: neither a slow network nor a missing one holds the training up.

    It never asks for a login: there must be a key already (wandb login, or WANDB_API_KEY). Whatever goes wrong over
    there is told in one line.
    """

    def __init__(self, opt, folder):
        self._items = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, args=(opt, folder))
        self._thread.start()

    def log(self, line, iteration):
        """Log the values of a line at a step."""
        self._items.put((dict(line), iteration))

    def image(self, name, path):
        """Log an image file."""
        self._items.put(({name: path}, None))

    def close(self, seconds=10):
        """Wait for what is left, but not for long."""
        self._items.put(None)
        self._thread.join(seconds)

    def _work(self, opt, folder):
        terminal = sys.stdin
        try:
            with open(os.devnull) as nobody:
                sys.stdin = nobody  # so that it asks nobody
                try:
                    import wandb
                    run = wandb.init(project='StyleSDF', name=f'{opt.experiment.expname} {folder.name}',
                                     dir=str(folder), config=saved_options(opt), settings={'init_timeout': 60})
                finally:
                    sys.stdin = terminal
            while (item := self._items.get()) is not None:
                values, iteration = item
                values = {name: wandb.Image(str(value)) if isinstance(value, Path) else value
                          for name, value in values.items()}
                run.log(values, step=iteration)
        except BaseException as error:  # not installed, no network, no account, …
            tqdm.write(f'--wandb failed ({error}); training goes on without it.')


def peak_memory(device):
    """GiB that the GPU, or this process, has held at most; None on Windows, which does not tell."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 30 if sys.platform == 'darwin' else 2 ** 20)


def read_stats(path):
    """The lines of a stats.jsonl as dicts. What is no line of ours is left out, such as one that a kill cut short."""
    lines = []
    for text in path.read_text(errors='replace').splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get('iteration'), int)]


CURVES = (  # title, logarithmic, names
    ('adversarial losses', False, ('d', 'g')),
    ("the discriminator's scores", False, ('real_score', 'fake_score')),
    ('weighted regularizers', True,
     ('r1', 'r2', 'd_view', 'g_view', 'g_eikonal', 'g_minimal_surface', 'g_sphere', 'path')),
    ('weighted losses that are not in the paper', False,
     ('d_projected', 'g_projected', 'g_thumbnail', 'g_far', 'g_relief')),
    ('norms of the gradients', True, ('d_gradient', 'g_gradient', 'path_gradient')),
    ('path length', False, ('path_length',)),
    ('beta', True, ('beta',)),
    ('the surface: shares of rays, and of the hold', False, ('surface', 'fog', 'sphere_weight')),
    ('augmentation', False, ('augment', 'real_sign')),
    ('patch distance', False, ('swd',)),
    ('depth consistency', True, ('depth',)),
)
CURVE_POINTS = 400


def plot_progress(lines, path):
    """Draw the curves of stats lines, each point the mean of its share of the lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a while to import, which the start need not
    from matplotlib.figure import Figure

    panels = [(title, log, [name for name in names if any(name in line for line in lines)])
              for title, log, names in CURVES]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 3 * rows))
    FigureCanvasAgg(figure)
    # Margins in inches. (tight_layout finds them by drawing all text once more, as slow as the picture itself.)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.5 / (3 * rows), top=1 - 0.3 / (3 * rows), wspace=0.13,
                           hspace=0.36)
    for i, (title, log, names) in enumerate(panels):
        axes = figure.add_subplot(rows, 2, i + 1)
        for name in names:
            points = np.array([(line['iteration'], line[name]) for line in lines if name in line])
            shares = np.array_split(points, min(len(points), CURVE_POINTS))
            marker = 'o' if len(shares) == 1 else None  # a line of one point cannot be seen
            axes.plot(*np.array([share.mean(0) for share in shares]).T, label=name, linewidth=1, marker=marker)
        if 'beta' in names:
            axes.axhline(SHARP_BETA, color='gray', linestyle='--', linewidth=1, label=f'sharp: {SHARP_BETA:g}')
        axes.set(title=title, xlabel='steps', yscale='log' if log else 'linear')
        axes.legend(fontsize='small')
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80)

"""The frame of the commands that mend a trained field: a copy of it learns from the given one, all but what is to be
mended (turn_hollow_faces.py, join_loose_pieces.py).
"""
import argparse
import copy
import math
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import options
from inference.loaded_model import load_model
from utils import UserError, writable_folder

WARM_UP = 50  # steps until the learning rate is reached


class Lesson:
    """What the copy is taught in each step. A command derives from this and defines `terms`.

    model: the LoadedModel; given, new: its renderer, and the copy that learns. memory: of the moving average of the
    weights from step to step.
    """

    memory = 0.995

    def __init__(self, model, new, steps):
        self.model, self.given, self.new, self.steps = model, model.generator.renderer, new, steps

    def rate(self, step):
        """The learning rate of a step."""
        raise NotImplementedError

    def terms(self, step):
        """{name: weighted loss} of a step."""
        raise NotImplementedError

    def draw(self, count, psi):
        """w (count,style_dim) of random identities, each truncated by its own psi, drawn evenly from psi = (low, high).
        """
        with torch.no_grad():
            w = self.model.generator.map(torch.randn(count, self.model.opt.model.style_dim))
            return self.model.means.w + torch.empty(count, 1).uniform_(*psi) * (w - self.model.means.w)


def falling_rate(step, steps, first, last):
    """From `first` along a cosine to `last`, after WARM_UP steps in which it rises."""
    return min(1, (step + 1) / WARM_UP) * (last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2)


def read_flags(description, steps):
    """The flags of such a command; steps: the usual number of them."""
    parser = options.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a checkpoint with a field and its mapping')
    parser.add_argument('--out', type=Path, required=True, help='the file to write')
    parser.add_argument('--steps', type=options.explained(options.at_least(1)), default=steps,
                        help=f'{steps}, if not given; Ctrl-C writes what has been learned so far')
    return parser.parse_args()


def distill(flags, lesson, keep_decoder):
    """Mend the field of flags.model by a Lesson class, and write it to flags.out, with the decoder if it still fits.

    Raises UserError before the work where it cannot be done.
    """
    writable_folder(flags.out.parent, '--out')
    if flags.out.is_dir():
        raise UserError(f'--out {flags.out} is a folder; give the name of a file.')
    torch.manual_seed(0)
    saved, model = checkpoint.read(flags.model), load_model(flags.model, device='cpu')
    given = model.generator.renderer
    if not given.has_sdf:
        raise UserError(f'{flags.model} has no signed distances (--no_sdf), and so no surface that could be mended.')
    given.perturb = 0.
    new = copy.deepcopy(given).requires_grad_()
    new.perturb = 1.
    new.sigmoid_beta.requires_grad_(False)
    average = copy.deepcopy(new.state_dict())

    def save():
        given.load_state_dict(average)
        weights = model.generator.state_dict()
        options = {'options': saved['options']} if 'options' in saved else {}  # what a training goes on with
        checkpoint.save(flags.out, {'g_ema': weights if keep_decoder else checkpoint.without_decoder(weights),
                                    **options})

    try:
        teach(lesson(model, new, flags.steps), average)
    except KeyboardInterrupt:
        save()
        raise
    save()


def teach(lesson, average):
    """Take all steps of a lesson. average: the moving average of the new weights, changed in place."""
    optimizer = torch.optim.Adam(lesson.new.network.parameters(), 1., betas=(0.9, 0.99))
    bar = tqdm(range(lesson.steps), unit=' steps')
    for step in bar:
        optimizer.param_groups[0]['lr'] = lesson.rate(step)
        found = lesson.terms(step)
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        bar.set_postfix({name: f'{value.item():.3g}' for name, value in found.items()})
        for name, value in lesson.new.state_dict().items():
            average[name].lerp_(value, 1 - min(lesson.memory, (step + 1) / (step + 10)))

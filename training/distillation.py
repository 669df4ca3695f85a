"""The frame of the commands that mend a part of a trained model: a copy of the part learns from the given one, all but
what is to be mended (turn_hollow_faces.py and join_loose_pieces.py for the field, match_tones.py for the decoder).
"""
import copy
import math

import torch
from tqdm import tqdm

import checkpoint
import options
from inference.loaded_model import load
from utils import UserError

WARM_UP = 50  # steps until the learning rate is reached


class Lesson:
    """What the copy is taught in each step. A command derives from this, or from FieldLesson, and defines the rest.

    part: the name of the generator's part that learns. rates: the first and the last learning rate. memory: of the
    moving average of the weights from step to step. The constructor gets the LoadedModel, whose part is the given one
    (`given`), the copy (`new`), and the flags; it raises UserError where the part cannot be mended.
    """

    part: str
    rates: tuple
    memory = 0.995

    def __init__(self, model, new, flags):
        self.model, self.given, self.new, self.steps = model, getattr(model.generator, self.part), new, flags.steps

    def learning(self):
        """The parameters that learn."""
        raise NotImplementedError

    def rate(self, step):
        """The learning rate of a step."""
        return falling_rate(step, self.steps, *self.rates)

    def terms(self, step):
        """{name: weighted loss} of a step."""
        raise NotImplementedError


class FieldLesson(Lesson):
    """A lesson for the field. Its beta does not learn, and only the copy's samples along a ray are jittered."""

    part = 'renderer'

    def __init__(self, model, new, flags):
        super().__init__(model, new, flags)
        if not self.given.has_sdf:
            raise UserError(f'{flags.model} has no signed distances (--no_sdf), and so no surface that could be '
                            'mended.')
        self.given.perturb, new.perturb = 0., 1.

    def learning(self):
        return self.new.network.parameters()

    def draw(self, count, psi):
        """w (count,style_dim) of random identities, each truncated by its own psi, drawn evenly from psi = (low, high).
        """
        with torch.no_grad():
            w = self.model.generator.map(torch.randn(count, self.model.opt.model.style_dim))
            return self.model.means.w + torch.empty(count, 1).uniform_(*psi) * (w - self.model.means.w)


def falling_rate(step, steps, first, last):
    """From `first` along a cosine to `last`, after WARM_UP steps in which it rises."""
    return min(1, (step + 1) / WARM_UP) * (last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2)


def distill(flags, lesson, keep_decoder=True):
    """Mend a part of flags.model by a Lesson class, and write the model to flags.out. The decoder and a discriminator
    stay in the file if they still fit (keep_decoder).

    Raises UserError before the work where it cannot be done.
    """
    saved = checkpoint.read(flags.model)
    model = load(options.parse('app', '', ['--model', str(flags.model), '--device', 'cpu']))
    given = getattr(model.generator, lesson.part, None)
    if given is None:
        raise UserError(f'{flags.model} has no {lesson.part}; give a full model.')
    torch.manual_seed(0)
    new = copy.deepcopy(given)
    lesson = lesson(model, new, flags)
    average = copy.deepcopy(new.state_dict())

    def save():
        given.load_state_dict(average)
        weights = model.generator.state_dict()
        kept = ('d', 'options') if keep_decoder else ('options',)  # a training goes on with them
        checkpoint.save(flags.out, {'g_ema': weights if keep_decoder else checkpoint.without_decoder(weights),
                                    **{name: saved[name] for name in kept if name in saved}})

    try:
        teach(lesson, average)
    except KeyboardInterrupt:
        save()
        raise
    save()


def teach(lesson, average):
    """Take all steps of a lesson. average: the moving average of the new weights, changed in place."""
    learning = list(lesson.learning())
    for parameter in learning:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(learning, 1., betas=(0.9, 0.99))
    bar = tqdm(range(lesson.steps), unit=' steps')
    for step in bar:
        optimizer.param_groups[0]['lr'] = lesson.rate(step)
        found = lesson.terms(step)
        loss = sum(found.values())
        if not loss.isfinite():
            raise UserError(f'the loss of step {step} is {loss.item()}; nothing was written. Give fewer --steps.')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix({name: f'{value.item():.3g}' for name, value in found.items()})
        for name, value in lesson.new.state_dict().items():
            average[name].lerp_(value, 1 - min(lesson.memory, (step + 1) / (step + 10)))

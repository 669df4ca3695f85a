"""Viewpoint and w of a photo by least squares (Levenberg-Marquardt): few steps, each by all derivatives at once.

First previews of 16x16 pixels (preview.py) are brought near the shrunk photo. Then the model's own picture is compared,
shrunk to 32x32 pixels, while the derivatives stay those of a preview; what they miss is learned from the steps that
were taken (Broyden 1965). The unknowns are few and have variance 1, so their squares are the pull towards what is
likely. It is in proportion to the error: what the model cannot make is not to be had by unlikely latents.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from inversion.fitting import STEEPEST
from inversion.inverter import shrunk
from inversion.preview import sides, to_guess, to_vector

DAMPING = 1e-2              # at the beginning, as a share of the diagonal
SMALLEST_DAMPING = 1e-4
FLOOR = 1e-3                # of the diagonal's mean, added to it
WIDENED, NARROWED = 5., 5.  # the damping after a step that failed, and after one that did not
ATTEMPTS = 4                # so many failed steps in a row end a stage
LIMIT = 3.                  # largest change of a coordinate in one step
STEPS = (8, 12)             # of the stages, at most
START_STEPS = 3             # of each of several starts
ENOUGH = 0.02               # a stage ends where a step gains less than this share


class State(NamedTuple):
    """One place, as a vector, with the picture there."""
    x: Tensor         # (2+style_dim,)
    picture: Tensor   # (1,3,side,side)
    chosen: object    # op.chosen.Chosen of it, or None
    error: Tensor     # (), the mean squared difference


class Stage:
    """The least squares of one photo at one size. exact: the model's picture is compared, not the preview."""

    def __init__(self, inverter, preview, image, side, exact, weights):
        self.inverter, self.preview, self.side, self.exact = inverter, preview, side, exact
        self.target = shrunk(image, side)
        style_dim = inverter.generator.style_dim
        self.pull = image.new_full((2 + style_dim,), weights.pull / style_dim)
        self.pull[:2] = weights.view

    def at(self, x):
        """The State at a vector."""
        guess = to_guess(clamped(x, self.inverter)[None], self.inverter)
        chosen = self.preview.choose(guess, self.side) if not self.exact else None
        picture = self.exact_picture(guess) if self.exact else self.preview.pictures(guess, self.side, chosen)
        return State(x, picture, chosen, (picture - self.target).square().mean())

    @torch.no_grad()
    def exact_picture(self, guess):
        """The model's picture (1,3,side,side), shrunk."""
        return shrunk(self.inverter.render(self.inverter.latents(guess.u), guess.viewpoint)[0], self.side)

    def derivatives(self, state):
        """(3*side^2,2+style_dim) at a State."""
        guess = to_guess(state.x[None], self.inverter)
        chosen = self.preview.choose(guess, self.side) if self.exact else state.chosen
        preview = self.preview.pictures(guess, self.side, chosen) if self.exact else state.picture
        return self.preview.jacobian(guess, self.side, chosen, preview)

    def run(self, x, steps):
        """Yield the best State so far: that at a vector, then after each step."""
        state, damping, matrix, fresh = self.at(x), DAMPING, None, False
        yield state
        for _ in range(steps):
            if matrix is None:
                matrix, fresh = self.derivatives(state), True
            moved, damping = self.step(state, matrix, damping)
            if moved is None and fresh:
                return
            if moved is None:  # perhaps with derivatives from here
                matrix = None
                continue
            gain = 1 - (moved.error / state.error.clamp(min=1e-9)).item()
            matrix = learned(matrix, moved.x - state.x, (moved.picture - state.picture).flatten()) if (
                self.exact) else None
            state, fresh = moved, False
            yield state
            if gain < ENOUGH:
                return

    def step(self, state, matrix, damping):
        """(a better State, or None where there is none, the next damping)."""
        count, pull = len(matrix), state.error * self.pull
        square = matrix.T @ matrix / count
        slope = matrix.T @ (state.picture - self.target).flatten() / count + pull * state.x
        diagonal = square.diagonal() + FLOOR * square.diagonal().mean()
        for _ in range(ATTEMPTS):
            change = -torch.linalg.solve(square + torch.diag(pull + damping * diagonal), slope)
            moved = self.at(state.x + change.clamp(-LIMIT, LIMIT))
            if moved.error + (pull * (moved.x.square() - state.x.square())).sum() < state.error:
                return moved, max(damping / NARROWED, SMALLEST_DAMPING)
            damping *= WIDENED
        return None, damping


def learned(matrix, change, effect):
    """Derivatives that also explain the `effect` that a `change` had (Broyden's update)."""
    return matrix + torch.outer(effect - matrix @ change, change / change.square().sum().clamp(min=1e-12))


def clamped(x, inverter):
    """A vector whose elevation stays clear of the poles."""
    limit = STEEPEST * torch.pi / 180 / inverter.spread[1].item()
    return torch.cat([x[:1], x[1:2].clamp(-limit, limit), x[2:]])


def solve(inverter, preview, image, starts, weights, late=lambda: False):
    """Yield (share done in [0, 1], the best Guess so far, its squared error) of one image (1,3,S,S).

    starts: a Guess of several; the one that is best after a few steps goes on. late: whether the time is over.
    """
    small, large = sides(inverter)[0], sides(inverter)[-1]
    x = best_start(Stage(inverter, preview, image, small, False, weights),
                   [to_vector(starts.select(slice(i, i + 1)), inverter) for i in range(len(starts.u))])
    done = 0
    for side, exact, steps in zip((small, large), (False, True), STEPS, strict=True):
        for count, state in enumerate(Stage(inverter, preview, image, side, exact, weights).run(x, steps)):
            x, share = state.x, (done + min(count, steps)) / sum(STEPS)
            yield share, to_guess(clamped(x, inverter)[None], inverter), state.error.item()
            if late():
                return
        done += steps


def best_start(stage, vectors):
    """The vector to go on from, of several."""
    if len(vectors) == 1:
        return vectors[0]
    ends = [list(stage.run(x, START_STEPS))[-1] for x in vectors]
    return min(ends, key=lambda state: state.error.item()).x

"""Viewpoint and w of a photo by least squares (Levenberg-Marquardt): few steps, each by all derivatives at once.

First previews of 16x16 and 32x32 pixels (preview.py) are brought near the shrunk photo. Then the model's own picture is
compared, shrunk to 32x32 pixels, while the derivatives stay those of a preview; what they miss is learned from the
steps that were taken (Broyden 1965).

Among random identities each unknown is normal with variance 1. So the likeliest result has the least squared error of
the pixels plus, for each unknown, its square times that error, divided by the number of pixels that tell something on
their own: the pull of the PARTS. At first these pixels are few, since a preview is not quite the model's picture, and
they never are all, since neighboring pixels of a photo err together. With a pull of a fiftieth the search ended, for a
quarter of the model's own images, at identities that do not occur, and found cats that look straight ahead 20 degrees
too high.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from inversion.fitting import STEEPEST
from inversion.inverter import shrunk
from inversion.preview import sides, to_guess, to_vector


class Part(NamedTuple):
    """A part of the search."""
    side: int     # 0: of the smallest previews, -1: of the largest
    exact: bool   # whether the model's picture is compared, not the preview
    steps: int    # at most
    pull: float   # of the square of each unknown, times the error of the pixels


PARTS = (Part(0, False, 12, 0.05), Part(-1, False, 8, 0.012), Part(-1, True, 15, 0.012), Part(-1, True, 12, 0.0025))
DAMPING = 1e-2              # at the beginning, as a share of the diagonal
SMALLEST_DAMPING = 1e-4
FLOOR = 1e-3                # of the diagonal's mean, added to it
WIDENED, NARROWED = 5., 5.  # the damping after a step that failed, and after one that did not
ATTEMPTS = 4                # so many failed steps in a row end a part
LIMIT = 3.                  # largest change of a coordinate in one step
ENOUGH = 0.02               # a part ends where a step gains less than this share
START_STEPS = 3             # of each of several starts, before the likeliest goes on
FOUND = 0.01                # mean squared error (26 dB) from which on no other start is tried
TRIED = 2                   # starts, at most, that the whole search is made from


class State(NamedTuple):
    """One place, as a vector, with the picture there."""
    x: Tensor         # (2+style_dim,)
    picture: Tensor   # (1,3,side,side)
    chosen: object    # op.chosen.Chosen of it, or None
    error: Tensor     # (), the mean squared difference


class LeastSquares:
    """The least squares of one image in one Part of the search."""

    def __init__(self, inverter, preview, image, part):
        self.inverter, self.preview, self.steps, self.exact, self.pull = (
            inverter, preview, part.steps, part.exact, part.pull)
        self.side = sides(inverter)[part.side]
        self.target = shrunk(image, self.side)

    def at(self, x):
        """The State at a vector."""
        guess = to_guess(clamped_vector(x, self.inverter)[None], self.inverter)
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

    def run(self, x):
        """Yield the best State so far: that at a vector, then after each step."""
        state, damping, matrix, fresh = self.at(x), DAMPING, None, False
        yield state
        for _ in range(self.steps):
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
        unit = torch.eye(len(state.x), device=state.x.device)
        square = matrix.T @ matrix / count
        slope = matrix.T @ (state.picture - self.target).flatten() / count + pull * state.x
        diagonal = square.diagonal() + FLOOR * square.diagonal().mean()
        for _ in range(ATTEMPTS):
            change = -torch.linalg.solve(square + pull * unit + torch.diag(damping * diagonal), slope)
            moved = self.at(state.x + change.clamp(-LIMIT, LIMIT))
            if moved.error + pull * (moved.x.square().sum() - state.x.square().sum()) < state.error:
                return moved, max(damping / NARROWED, SMALLEST_DAMPING)
            damping *= WIDENED
        return None, damping


def learned(matrix, change, effect):
    """Derivatives that also explain the `effect` that a `change` had (Broyden's update)."""
    return matrix + torch.outer(effect - matrix @ change, change / change.square().sum().clamp(min=1e-12))


def clamped_vector(x, inverter):
    """A vector whose elevation stays clear of the poles."""
    limit = STEEPEST * torch.pi / 180 / inverter.spread[1].item()
    return torch.cat([x[:1], x[1:2].clamp(-limit, limit), x[2:]])


def solve(inverter, preview, image, starts, late=lambda: False):
    """Yield (share done in [0, 1], the best Guess so far, its squared error) of one image (1,3,S,S).

    starts: a Guess of several. The search goes on from the one that is likeliest after its first steps; where that does
    not find the image, it goes on from the next. late: whether the time is over.
    """
    vectors = [to_vector(starts.select(slice(i, i + 1)), inverter) for i in range(len(starts.u))]
    searches = [Search(inverter, preview, image, x) for x in vectors]
    if len(searches) > 1:
        searches.sort(key=Search.begin)
    best, tried = None, searches[:TRIED]
    for count, search in enumerate(tried):
        for share, state, exact in search.run():
            if exact and (best is None or state.error < best.error):
                best = state
            shown = best or state
            guess = to_guess(clamped_vector(shown.x, inverter)[None], inverter)
            yield (count + share) / len(tried), guess, shown.error.item()
            if late():
                return
        if best.error < FOUND:
            return


class Search:
    """All PARTS of the search from one vector."""

    def __init__(self, inverter, preview, image, x):
        self.inverter, self.preview, self.image, self.x = inverter, preview, image, x

    def part(self, part):
        """Yield the best State of a Part so far; what comes next begins where this ends."""
        for state in LeastSquares(self.inverter, self.preview, self.image, part).run(self.x):
            self.x = state.x
            yield state

    def begin(self):
        """Make a few steps of the first part. Returns how unlikely the result is: -2 log likelihood, divided by the
        pixels that count, where the error of the pixels is normal with an unknown variance."""
        *_, state = self.part(PARTS[0]._replace(steps=START_STEPS))
        return state.error.log().item() + PARTS[0].pull * state.x.square().sum().item()

    def run(self):
        """Yield (share done, the best State so far, whether its error is that of the model's picture)."""
        done, total = 0, sum(part.steps for part in PARTS)
        for part in PARTS:
            for count, state in enumerate(self.part(part)):
                yield (done + min(count, part.steps)) / total, state, part.exact
            done += part.steps

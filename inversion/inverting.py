"""The steps from photos to their latents: a first guess, viewpoint and w by least squares, the optimization of all
latents, and the tuning of the decoder."""
import time
from typing import NamedTuple

import torch

from inversion import encoder as encoders
from inversion import search
from inversion.fitting import PIVOT, Fitting, Found, Weights
from inversion.inverter import Guess
from inversion.preview import Preview
from inversion.solving import solve
from inversion.tuning import Tuning

FIT_SHARE = 0.6    # of the time of a photo, where the decoder is tuned too
SOLVE_SHARE = 0.5  # of that, at most, for viewpoint and w alone
CLOSE = 1e-3       # mean squared error (36 dB) from which on viewpoint and w alone are enough
PIXELS_AT_ONCE = {'cpu': 1 << 14, 'cuda': 1 << 21}  # of the pictures of one batch; a CPU gains nothing by more


class Settings(NamedTuple):
    """How long to look."""
    steps: int = 120
    seconds: float = 0.      # most seconds for one photo, 0: no limit
    tune_steps: int = 0      # of the decoder; 0: leave it as it is
    starts: int = 4          # candidates that are looked at closely, where there is no encoder
    fit_noise: bool = False


class Progress(NamedTuple):
    """Where an Inversion is."""
    phase: str         # what is done
    done: float = 0.   # share of it, in [0, 1]
    terms: dict = {}   # of the loss, their means over the photos by name

    @property
    def text(self):
        losses = ', '.join(f'{term} {value:.4f}' for term, value in self.terms.items() if value)
        return f'{self.phase}: {losses}' if losses else self.phase


def batch_of(inverter):
    """How many photos are inverted together."""
    return max(1, min(8, PIXELS_AT_ONCE.get(inverter.device.type, PIXELS_AT_ONCE['cuda']) // inverter.size ** 2))


class Guesser:
    """Finds first guesses: with an encoder, or without one (None) by a search among random identities."""

    def __init__(self, inverter, encoder=None, starts=4):
        self.inverter, self.encoder, self.starts, self._candidates = inverter, encoder, starts, None
        self.preview = encoder and encoder.preview

    def prepare(self, progress=lambda count: None):
        """Make what all photos share: the maps of the previews, and the candidates of the search. progress: called now
        and then.
        """
        if self.preview is None:
            self.preview = Preview.fitted(self.inverter, progress)
        if self.encoder is None and self._candidates is None:
            self._candidates = search.candidates(self.inverter, self.preview, progress)

    def first_guess(self, images):
        """The Guess of each of B images (B,3,S,S)."""
        return self.guesses(images, 1)

    def guesses(self, images, count=None):
        """A Guess of several for each image, or of one where there is an encoder: those of the first image first."""
        self.prepare()
        if self.encoder is not None:
            return encoders.guess_of(self.encoder, self.inverter, images)
        return search.best_candidates(self._candidates, images, count or self.starts)


class Inversion:
    """The inversion of B images (B,3,S,S). While and after `run`, `found` (fitting.Found) and `differences` (of each
    photo the tuned decoder's, or None) are the best so far."""

    def __init__(self, inverter, images, guesser, settings=None, weights=None):
        self.inverter, self.images, self.guesser = inverter, images, guesser
        self.settings = settings or Settings()
        self.weights = weights or (PIVOT if self.tunes_decoder else Weights())
        self.guess, self.fitting, self.differences = None, None, [None] * len(images)
        self.errors = [float('inf')] * len(images)  # after the least squares

    @property
    def tunes_decoder(self):
        """Whether the decoder is tuned too."""
        return self.settings.tune_steps > 0 and self.inverter.generator.full_pipeline

    @property
    def found(self):
        """The best so far, or None before the first guess."""
        if self.fitting is not None and self.fitting.found is not None:
            return self.fitting.found
        return self.guess and Found.of(self.inverter, self.guess)

    def run(self):
        """Yield Progress after each step."""
        yield Progress('first guess')
        settings, seconds = self.settings, self.settings.seconds
        began = time.perf_counter()
        self.guess = self.guesser.first_guess(self.images)
        share = FIT_SHARE if self.tunes_decoder else 1.
        if settings.steps:
            yield from self.solve(share * SOLVE_SHARE * seconds)
        self.fitting = Fitting(self.inverter, self.images, self.guess, self.weights, settings.fit_noise)
        left = max(1e-3, share * seconds * len(self.images) - (time.perf_counter() - began)) if seconds else 0.
        close = max(self.errors) < CLOSE and not settings.fit_noise
        for done, terms in self.fitting.run(0 if close else settings.steps, left):
            yield Progress('latents', done, terms)
        if self.tunes_decoder:
            yield from self.tune((1 - share) * seconds)

    def solve(self, seconds):
        """Viewpoint and w of each image by least squares, in at most `seconds` each (0: no limit)."""
        starts = self.guesser.guesses(self.images)
        count, viewpoints, us = len(starts.u) // len(self.images), *map(list, self.guess)
        for i in range(len(self.images)):
            began = time.perf_counter()

            def late(began=began):
                return seconds and time.perf_counter() - began > seconds

            steps = solve(self.inverter, self.guesser.preview, self.images[i:i + 1],
                          starts.select(slice(i * count, (i + 1) * count)), late)
            for done, guess, error in steps:
                viewpoints[i], us[i], self.errors[i] = guess.viewpoint[0], guess.u[0], error
                self.guess = Guess(torch.stack(viewpoints), torch.stack(us))
                yield Progress('viewpoint and w', (i + done) / len(self.images), {'pixels': error})

    def tune(self, seconds):
        """The decoder for each image, in at most `seconds` each (0: no limit)."""
        for i in range(len(self.images)):
            tuning = Tuning(self.inverter, self.images[i:i + 1], self.found.select(i), self.weights)
            for done, terms in tuning.run(self.settings.tune_steps, seconds):
                self.differences[i] = tuning.difference
                yield Progress('decoder', (i + done) / len(self.images), terms)

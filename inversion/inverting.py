"""The steps from photos to their latents: a first guess, the optimization, and the tuning of the decoder."""
from typing import NamedTuple

import torch

from inversion import encoder as encoders
from inversion import search
from inversion.fitting import Fitting, Weights, fit_coarse
from inversion.inverter import Guess
from inversion.tuning import Tuning

COARSE_STEPS = 40
FIT_SHARE = 0.6         # of the time of a photo, where the decoder is tuned too
PIXELS_AT_ONCE = {'cpu': 1 << 18, 'cuda': 1 << 21}  # of the pictures of one batch


class Settings(NamedTuple):
    """How long to look."""
    steps: int = 150
    seconds: float = 0.      # most seconds for one photo, 0: no limit
    tune_steps: int = 0      # of the decoder; 0: leave it as it is
    starts: int = 4          # candidates that are looked at closely, where there is no encoder
    fit_noise: bool = False


def batch_of(inverter):
    """How many photos are inverted together."""
    return max(1, min(8, PIXELS_AT_ONCE.get(inverter.device.type, PIXELS_AT_ONCE['cuda']) // inverter.size ** 2))


class Guesser:
    """Finds first guesses: with an encoder, or without one (None) by a search among random identities."""

    def __init__(self, inverter, encoder=None, starts=4):
        self.inverter, self.encoder, self.starts, self._candidates = inverter, encoder, starts, None

    def prepare(self, progress=lambda count: None):
        """Make the candidates of the search, which all photos share."""
        if self.encoder is None and self._candidates is None:
            self._candidates = search.candidates(self.inverter, progress)

    def guess(self, photos):
        """(Guess of each photo, one for each)."""
        if self.encoder is not None:
            return encoders.guess_of(self.encoder, self.inverter, photos)
        self.prepare()
        return search.best_candidates(self._candidates, photos, 1)

    def refined(self, photos, steps=COARSE_STEPS):
        """The Guess after an optimization with few rays."""
        if self.encoder is not None:
            starts = self.guess(photos)
        else:
            self.prepare()
            starts = search.best_candidates(self._candidates, photos, self.starts)
        return fit_coarse(self.inverter, photos, starts, steps)


class Inversion:
    """The inversion of B images (B,3,S,S). While and after `run`, `found` (fitting.Found) and `differences` (of each
    photo the tuned decoder's, or None) are the best so far."""

    def __init__(self, inverter, images, guesser, settings=None, weights=None):
        self.inverter, self.guesser, self.settings = inverter, guesser, settings or Settings()
        self.weights = weights or Weights()
        self.photos = inverter.photos(images)
        self.fitting, self.differences = None, [None] * len(images)

    @property
    def found(self):
        """The best so far, or None before the first step."""
        return self.fitting and self.fitting.found

    def run(self):
        """Yield (what is done, share done in [0, 1] of it, {term of the loss: its mean}) after each step."""
        yield 'first guess', 0., {}
        settings, seconds = self.settings, self.settings.seconds * len(self.differences)
        guess = self.guesser.refined(self.photos) if settings.steps else self.guesser.guess(self.photos)
        self.fitting = Fitting(self.inverter, self.photos, guess, self.weights, settings.fit_noise)
        share = FIT_SHARE if settings.tune_steps else 1.
        for done, terms in self.fitting.run(settings.steps, share * seconds):
            yield 'latents', done, terms
        if not settings.tune_steps or not self.inverter.generator.full_pipeline:
            return
        for i in range(len(self.differences)):
            photos = type(self.photos)(*(images[i:i + 1] for images in self.photos))
            tuning = Tuning(self.inverter, photos, self.found.select(i), self.weights)
            steps = tuning.run(settings.tune_steps, (1 - share) * seconds / len(self.differences))
            for done, terms in steps:
                self.differences[i] = tuning.difference
                yield 'decoder', (i + done) / len(self.differences), terms


def guess_alone(inverter, photos, guesser):
    """(Latents, viewpoints) of Photos by the first guess alone."""
    with torch.no_grad():
        guess = guesser.guess(photos)
        return inverter.latents(guess.u), Guess(*guess).viewpoint

"""Coordinates of latents in which random identities are normally distributed around 0, each with standard deviation 1.

Optimization goes faster in them than in w itself, whose directions have very different lengths; and the squared length
of the coordinates says how unlikely latents are.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from model import truncate

SAMPLES = 10_000
SEED = 0
SHORTEST = 0.01  # no direction is shorter than this share of the longest one


class Space(NamedTuple):
    """A change of coordinates of latents (…,D)."""
    mean: Tensor     # (D,) where the coordinates are 0
    vectors: Tensor  # (D,D) orthonormal columns, the longest direction first
    lengths: Tensor  # (D,) standard deviations along them

    def latents(self, coordinates):
        """Latents (…,D) at coordinates (…,D)."""
        return self.mean + self.step(coordinates)

    def step(self, coordinates):
        """How far latents (…,D) move along coordinates (…,D)."""
        return (coordinates * self.lengths) @ self.vectors.T

    def coordinates(self, latents):
        """The coordinates (…,D) of latents (…,D)."""
        return (latents - self.mean) @ self.vectors / self.lengths

    @classmethod
    def of(cls, samples):
        """The Space of samples (N,D)."""
        mean = samples.mean(0)
        centered = (samples - mean).double()
        values, vectors = torch.linalg.eigh(centered.T @ centered / (len(samples) - 1))
        lengths = values.clamp(min=0).sqrt().flip(0)
        lengths = lengths.clamp(min=max(SHORTEST * lengths[0].item(), 1e-8))
        return cls(mean, vectors.flip(1).to(samples), lengths.to(samples))


@torch.no_grad()
def spaces_of(generator, psi, means):
    """(Space of w, Space of w' or None for a field without decoder) of random identities with truncation psi."""
    device = means.w.device
    rng = torch.Generator(device).manual_seed(SEED)
    w = generator.map(torch.randn(SAMPLES, generator.style_dim, generator=rng, device=device), psi, means)
    if not generator.full_pipeline:
        return Space.of(w), None
    return Space.of(w), Space.of(truncate(generator.decoder.style(w), psi, means.w_prime))

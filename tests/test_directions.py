"""inference/directions.py: principal components and factorization against independent computations."""
import numpy as np
import torch

from inference.directions import (
    Direction,
    decoder_modulation,
    edited,
    factorized_steps,
    field_modulation,
    find_directions,
    principal_steps,
)
from inference.latents import Latents


def test_principal_steps_are_the_axes_of_a_cloud():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    samples = (rng.standard_normal((20000, 4)) * [5, 2, 1, 0.1]) @ axes.T + 3
    steps = principal_steps(torch.tensor(samples, dtype=torch.float32), 3).numpy()
    assert np.allclose(np.linalg.norm(steps, axis=1), [5, 2, 1], rtol=0.03)
    cosines = np.abs(np.sum(steps * axes.T[:3], axis=1)) / np.linalg.norm(steps, axis=1)
    assert cosines.min() > 0.99
    assert (steps[np.arange(3), np.abs(steps).argmax(1)] > 0).all()


def test_factorized_steps_change_the_modulation_most():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((30, 6))
    samples = torch.tensor(rng.standard_normal((5000, 6)) * 3, dtype=torch.float32)
    steps = factorized_steps(torch.tensor(matrix, dtype=torch.float32), samples, 6)
    changes = np.linalg.norm(matrix @ (steps / steps.norm(dim=1, keepdim=True)).numpy().T, axis=0)
    assert np.allclose(changes, np.linalg.svd(matrix)[1], rtol=1e-4)
    assert np.allclose(steps.norm(dim=1), 3, rtol=0.05)


def test_modulations_are_those_of_the_layers(loaded_tiny):
    generator = loaded_tiny.generator
    layers = [*generator.renderer.network.pts_linears, generator.renderer.network.views_linears]
    expected = torch.cat([torch.cat([15 * layer.gamma.weight, 0.25 * layer.beta.weight]) for layer in layers])
    assert torch.allclose(field_modulation(generator), expected, atol=1e-5)
    w, other = torch.randn(2, 1, 16)
    rows = decoder_modulation(generator)
    decoder = generator.decoder
    convs = [decoder.conv1.conv, decoder.to_rgb1.conv, *(conv.conv for conv in decoder.convs),
             *(rgb.conv for rgb in decoder.to_rgbs)]
    change = torch.cat([conv.modulation(w) - conv.modulation(other) for conv in convs], dim=1)
    assert torch.allclose(((rows @ (w - other).T)).norm(), change.norm(), rtol=1e-4)


def test_factorization_gives_both_kinds(loaded_tiny):
    found = find_directions(loaded_tiny.generator, loaded_tiny.means, 0.7, 'factorization', 2)
    assert list(found) == ['shape1', 'shape2', 'color1', 'color2']


def test_edits_add_up():
    latents = Latents(torch.zeros(1, 3), torch.zeros(1, 4, 6))
    directions = {'shape1': Direction(torch.ones(1, 3), None), 'color1': Direction(None, torch.ones(1, 1, 6)),
                  'both': Direction(torch.ones(1, 3), torch.ones(1, 4, 6))}
    moved = edited(latents, (('shape1', 2.), ('color1', -1.), ('both', 0.5)), directions)
    assert torch.equal(moved.w, torch.full((1, 3), 2.5)) and torch.equal(moved.w_prime, torch.full((1, 4, 6), -0.5))
    assert edited(latents, None, {}) == latents

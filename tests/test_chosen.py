"""op/chosen.py: pictures, and gradients, of the samples that carry weight equal those of all samples."""
import copy

import pytest
import torch

import checkpoint
from camera import cameras_at
from model import build_generator
from op import chosen as chosen_samples
from op.chosen import can_choose, choose, render_chosen, render_with_gradients
from op.fast import fast_parts
from options import parse
from volume_renderer import VolumeRenderer

RAYS = 32


@pytest.fixture(scope='module')
def head(head_checkpoint):
    """(the golden head's renderer, which chooses samples; its definition; two latents), 32x32 rays."""
    saved, renderers = checkpoint.read(head_checkpoint), []
    for flags in ([], ['--dense']):
        opt = checkpoint.reconcile(parse('generate_shapes_and_images', '', flags), saved, head_checkpoint)
        generator = build_generator(opt, **fast_parts(opt))
        checkpoint.load_state(generator, saved['g_ema'], head_checkpoint).requires_grad_(False)
        renderer = copy.copy(generator.renderer)
        renderer.resolution = RAYS
        renderers.append(renderer)
    return *renderers, generator.map(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))


def gradients(render, w):
    """(Rendering, gradients by w and by the viewpoints) of two views, of a sum with random weights."""
    w, viewpoint = w.clone().requires_grad_(), torch.tensor([[0.2, 0.1], [0.7, -0.3]], requires_grad=True)
    rendering = render(w, cameras_at(viewpoint, RAYS))
    rng = torch.Generator().manual_seed(1)
    total = sum((values * torch.randn(values.shape, generator=rng)).sum() for values in rendering[:4])
    return rendering, *torch.autograd.grad(total, [w, viewpoint])


def test_gradients_are_those_of_all_samples(head):
    renderer, dense, w = head
    found, *gradient = gradients(lambda *view: render_with_gradients(renderer, *view), w)
    true, *expected = gradients(dense, w)
    for name in ('thumbnail', 'features', 'xyz', 'background'):
        a, b = getattr(found, name), getattr(true, name)
        assert a.shape == b.shape and (a - b).abs().max() < 2e-2, name
        assert (a - b).square().mean().sqrt() < 1e-3 * b.square().mean().sqrt(), name
    for a, b in zip(gradient, expected, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()


def test_few_samples_are_chosen_and_more_of_them_come_nearer(head):
    renderer, dense, w = head
    camera = cameras_at(torch.tensor([[0.2, 0.1]]), RAYS)
    true, errors, counts = dense(w[:1], camera).features, [], []
    for least in (3e-2, 1e-3):
        some = choose(renderer, w[:1], camera, RAYS, least)
        errors.append((render_chosen(renderer, w[:1], camera, some).features - true).abs().max())
        counts.append(len(some.ray))
    assert errors[1] < 0.2 * errors[0] and counts[0] < counts[1] < 0.6 * RAYS ** 2 * renderer.samples


def test_tiles_give_the_same_gradients(head, monkeypatch):
    renderer, _, w = head
    _, *expected = gradients(lambda *view: render_with_gradients(renderer, *view), w)
    monkeypatch.setattr(chosen_samples, 'KEPT_VALUES', 0)
    monkeypatch.setattr(chosen_samples, 'TILE', 1000)
    _, *found = gradients(lambda *view: render_with_gradients(renderer, *view), w)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max())


def test_where_nothing_can_be_chosen_it_is_said(head):
    renderer, dense, _ = head
    assert can_choose(renderer, RAYS) and not can_choose(dense, RAYS) and not can_choose(renderer, 8)
    assert not can_choose(VolumeRenderer(8, 32), RAYS)

"""training/turn_hollow_faces.py: the hollow faces of a field are turned inside out."""
from types import SimpleNamespace

import pytest
import torch

import options
from training import turn_hollow_faces as turning


class Surface:
    """Stands in for a renderer: everywhere the same surface, whose relief is `relief`; remembers its viewpoints."""
    resolution, has_sdf = 64, True

    def __init__(self, relief):
        self.relief, self.seen = relief, []

    def __call__(self, w, cameras, resolution, samples, **_):
        self.seen.append(cameras.viewpoint)
        y, x = torch.meshgrid(*[torch.linspace(-0.1, 0.1, resolution)] * 2, indexing='ij')
        height = self.relief * (0.09 ** 2 - x ** 2 - y ** 2).clamp(min=0).sqrt()
        points = torch.einsum('bij,jhw->bihw', cameras.extrinsics[:, :, :3], torch.stack([x, y, height]))
        flat = torch.zeros(len(w), 3, resolution, resolution)
        return SimpleNamespace(xyz=points, features=flat, thumbnail=flat,
                               sdf=torch.ones(len(w), resolution, resolution, samples, 1),
                               eikonal=torch.ones(len(w), resolution, resolution, samples, 3) / 3 ** 0.5)


@pytest.mark.parametrize('relief', [1.2, -1.2])
def test_hollow_faces_are_learned_from_mirrored_views(relief):
    opt = options.parse(options.GENERATE, '', ['--expname', 'cats_demo'])
    given, new = Surface(relief), Surface(1.2)
    found = turning.terms(given, new, torch.zeros(3, 64), opt)
    front, taught = given.seen
    shown, = new.seen
    assert not front.any() and shown.any() and torch.equal(taught, shown if relief > 0 else -shown)
    assert found['relief'] < 1e-3 and found['far'] == 0  # as far as the given one is deep
    assert turning.terms(given, Surface(-1.2), torch.zeros(3, 64), opt)['relief'] == pytest.approx(2.4, abs=1e-3)
    assert turning.terms(given, Surface(0.5), torch.zeros(3, 64), opt)['relief'] == pytest.approx(0.7, abs=1e-3)


def test_surfaces_become_sharp():
    given = Surface(1.)
    model = SimpleNamespace(generator=SimpleNamespace(renderer=given))
    lesson = turning.Turning(model, Surface(1.), SimpleNamespace(model='demo', steps=1000))
    betas = [lesson.beta(step) for step in range(1000)]
    assert betas[0] == turning.COARSEST_BETA and betas[-1] == turning.FINEST_BETA

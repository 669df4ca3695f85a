"""Pixels and triangles, against a direct computation for each pair of them."""
import pytest
import torch

from surfaces import rasterizing
from surfaces.rasterizing import barycentric, centers, rasterize


def random_triangles(count, seed=0):
    """(F,3,2) corners around a grid of 24 x 16, some outside of it, and depths (F,3)."""
    rng = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 1, 2, generator=rng) * torch.tensor([30., 22.]) - 3
    return middle + 6 * torch.randn(count, 3, 2, generator=rng), 1 + torch.rand(count, 3, generator=rng)


def covered(corners, place):
    """Whether a triangle holds a place, by the turns that it makes around it."""
    turns = []
    for a, b in ((0, 1), (1, 2), (2, 0)):
        along, to = corners[b] - corners[a], place - corners[a]
        turns.append((along[0] * to[1] - along[1] * to[0]).item())
    return all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)


@pytest.mark.parametrize('at_once', [1, 50, 1 << 21])
def test_the_nearest_triangle_is_shown(monkeypatch, at_once):
    monkeypatch.setattr(rasterizing, 'CANDIDATES', at_once)
    corners, depth = random_triangles(12)
    shown, nearest = rasterize(corners, 24, 16, depth)
    for pixel in range(24 * 16):
        place = torch.tensor([pixel % 24 + 0.5, pixel // 24 + 0.5])
        depths = {}
        for i in range(12):
            if covered(corners[i], place):
                weights = barycentric(corners[i:i + 1], place[None])[0]
                assert torch.allclose((weights[:, None] * corners[i]).sum(0), place, atol=1e-3)
                # A point of a triangle in space appears at weights divided by the depths of its corners.
                depths[i] = 1 / (weights / depth[i]).sum().item()
        if not depths:
            assert shown[pixel] == -1 and nearest[pixel] == torch.inf
        else:
            assert shown[pixel] == min(depths, key=depths.get)
            assert nearest[pixel].item() == pytest.approx(min(depths.values()), rel=1e-4)


def test_without_depths_each_covered_pixel_has_a_triangle():
    corners, _ = random_triangles(3, seed=1)
    shown = rasterize(corners, 24, 16)
    for pixel, place in enumerate(centers(torch.arange(24 * 16), 24)):
        holding = {i for i in range(3) if covered(corners[i], place)}
        assert shown[pixel].item() in (holding or {-1})


def test_neighbors_leave_no_gap():
    """A square of two triangles covers all of its pixels, also those with centers on the diagonal."""
    square = torch.tensor([[[2., 2.], [10, 2], [2, 10]], [[10, 10], [10, 2], [2, 10]]])
    assert (rasterize(square, 12, 12) >= 0).view(12, 12)[2:10, 2:10].all()
    assert (rasterize(square, 12, 12) >= 0).sum() == 64


def test_triangles_behind_the_camera_are_not_shown():
    corners = torch.tensor([[[0., 0.], [8, 0], [0, 8]]])
    shown, nearest = rasterize(corners, 8, 8, torch.tensor([[1., 1., -0.5]]))
    assert (shown == -1).all() and (nearest == torch.inf).all()

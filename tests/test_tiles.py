"""op/tiles.py and op/folded_field.py: the same values and gradients as the definition, whatever the tiles."""
import pytest
import torch
from conftest import assert_close, formula

from camera import cameras_at
from losses import eikonal_loss, minimal_surface_loss
from op import tiles
from op.folded_field import Scratch, fold
from op.tiles import TiledRenderer
from volume_renderer import SirenField, VolumeRenderer

SWITCHES = [{}, {'force_background': True, 'static_viewdirs': True}, {'sdf': False, 'z_normalize': False},
            {'offset_sampling': False, 'perturb': 1.}]


@pytest.fixture(params=SWITCHES, ids=str)
def both(request, monkeypatch):
    """The two renderers with the same weights; tiles of 7 rays, of which 81 are no multiple."""
    monkeypatch.setitem(tiles.TILE_VALUES, 'cpu', 50 * 24)
    monkeypatch.setitem(tiles.TRAINING_POINTS, 'cpu', 3 * 50)
    settings = {'style_dim': 16, 'resolution': 9, 'samples': 7, 'depth': 3, 'width': 24, 'perturb': 0.}
    torch.manual_seed(0)
    plain, tiled = (kind(**settings | request.param).double() for kind in (VolumeRenderer, TiledRenderer))
    tiled.load_state_dict(plain.state_dict())
    return plain, tiled


W, CAMERAS = formula('w', (3, 16)).double(), cameras_at(formula('poses', (3, 2), 0.2).double(), resolution=9)


def rngs():
    return [torch.Generator().manual_seed(seed) for seed in range(3)]


def assert_same(tiled, plain, rtol=1e-9):
    for name, value in plain._asdict().items():
        assert (value is None) == (getattr(tiled, name) is None), name
        if value is not None:
            assert_close(getattr(tiled, name), value, rtol, name)


@torch.no_grad()
def test_the_same_without_gradients(both):
    plain, tiled = both
    assert_same(*(renderer(W, CAMERAS, sdf=True, rng=rngs()) for renderer in (tiled, plain)))
    assert_same(*(renderer(W, CAMERAS, color=False, rng=rngs()) for renderer in (tiled, plain)))
    assert_same(*(renderer(W, CAMERAS, color=False, eikonal=True, rng=rngs()) for renderer in (tiled, plain)))
    larger = {'resolution': 11, 'samples': 4, 'features': False}
    assert_same(*(renderer(W, CAMERAS, **larger, rng=rngs()) for renderer in (tiled, plain)))


def test_the_same_gradients(both):
    found = []
    for renderer in both:
        rendering = renderer(W, CAMERAS, sdf=True, eikonal=True, rng=rngs())
        loss = rendering.thumbnail.square().mean() + rendering.features.square().mean() + eikonal_loss(
            rendering.eikonal) + minimal_surface_loss(rendering.sdf) + rendering.xyz.square().mean()
        loss.backward()
        found.append((rendering, loss, {name: parameter.grad for name, parameter in renderer.named_parameters()}))
    (plain, loss, gradients), (tiled, tiled_loss, tiled_gradients) = found
    assert_same(tiled, plain)
    assert_close(tiled_loss, loss, 1e-9)
    for name, gradient in gradients.items():
        # A sum over many samples that cancels is as exact as its terms.
        scale = max(gradient.abs().max(), 1e-3 * max(other.abs().max() for other in gradients.values()))
        assert (tiled_gradients[name] - gradient).abs().max() <= 1e-7 * scale, name


@torch.no_grad()
def test_the_same_at_single_points(both):
    """More of them than fit into a tile, and none at all."""
    for count in (123, 0):
        points, viewdirs = (0.1 * formula(name, (count, 3)).double() for name in ('points', 'viewdirs'))
        for method in ('evaluate_at', 'sdf_at', 'color_at'):
            found = []
            for renderer in both:
                of = W[:1] if method == 'color_at' else renderer.field(W[:1])
                given = (of, points, CAMERAS[:1]) if method == 'sdf_at' else (of, points, viewdirs, CAMERAS[:1])
                found.append(getattr(renderer, method)(*given))
            for plain, tiled in zip(*(values if isinstance(values, tuple) else (values,) for values in found),
                                    strict=True):
                assert plain.shape == tiled.shape and torch.allclose(plain, tiled, atol=1e-9), method


def test_the_same_points_to_fit_a_sphere_to(both):
    (plain, points), (tiled, same_points) = (renderer.stratified_sdf(W, CAMERAS, rngs(), resolution=5)
                                             for renderer in both)
    assert torch.equal(points, same_points) and points.shape == (3, 25 * 7, 3)
    assert_close(tiled, plain, 1e-9)
    assert tiled.requires_grad


def test_the_slope_of_the_folded_field():
    """Written out by the chain rule it is autograd's; so are its own derivatives."""
    torch.manual_seed(0)
    network = SirenField(3, 20, style_dim=8).double()
    w, points = torch.randn(2, 8).double(), (2 * torch.rand(2, 15, 3) - 1).double().requires_grad_()
    viewdirs = torch.nn.functional.normalize(torch.randn(2, 5, 3).double(), dim=-1)
    sdf, features, logits = network(w, points, viewdirs)
    slope, = torch.autograd.grad(sdf.sum(), points, create_graph=True)
    found = fold(network, w).with_slope(points, viewdirs)
    for value, expected in zip(found, (sdf, features, logits, slope), strict=True):
        assert_close(value, expected, 1e-10)
    weights = [parameter for name, parameter in network.named_parameters() if name.startswith('pts_linears')]
    derivatives = [torch.autograd.grad(eikonal_loss(value), weights, retain_graph=True) for value in (slope, found[3])]
    for one, other in zip(*derivatives, strict=True):
        assert_close(other, one, 1e-8)


@torch.no_grad()
def test_scratch_memory_is_used_again_and_changes_nothing():
    network = SirenField(3, 20, style_dim=8)
    field, points = fold(network, torch.randn(1, 8)), torch.rand(1, 12, 3)
    viewdirs = torch.nn.functional.normalize(torch.randn(1, 4, 3), dim=-1)
    scratch = Scratch()
    working = field._replace(scratch=scratch)
    for value, expected in zip(working(points, viewdirs), field(points, viewdirs), strict=True):
        assert torch.equal(value, expected)
    places = {name: buffer.data_ptr() for name, buffer in scratch.buffers.items()}
    working(points[:, :6], viewdirs[:, :2])
    assert places == {name: buffer.data_ptr() for name, buffer in scratch.buffers.items()}


def test_the_backward_pass_evaluates_tiles_again_and_keeps_none(both):
    """While the loss is made, the memory of a tile's activations is gone."""
    _, tiled = both
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        tiled(W, CAMERAS, rng=rngs())
    assert sum(size == 3 * 81 * 7 * 24 for size in kept) == 0  # no activations of all samples

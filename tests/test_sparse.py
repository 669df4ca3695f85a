"""op/sparse.py and op/refine.py: views from few evaluations equal those of the definition."""
import copy

import numpy as np
import pytest
import torch

import checkpoint
from camera import cameras_at
from model import build_generator
from op.fast import fast_parts
from op.refine import Field, influence, sdf_volume
from op.sparse import SURFACE, SparseRenderer
from options import parse
from surfaces.meshes import surface_mesh
from surfaces.rendering import render_surface
from volume_renderer import SigmoidDensity, VolumeRenderer, ray_weights


class Head:
    """The golden head: surfaces, silhouettes, ears; one view from far aside."""

    def __init__(self, path):
        saved, generators = checkpoint.read(path), []
        for flags in ([], ['--dense']):
            opt = checkpoint.reconcile(parse('generate_shapes_and_images', '', flags), saved, path)
            generator = build_generator(opt, **fast_parts(opt))
            generators.append(checkpoint.load_state(generator, saved['g_ema'], path).requires_grad_(False))
        self.sparse, self.dense = (generator.renderer for generator in generators)
        self.w = generators[0].map(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
        self.cameras = cameras_at(torch.tensor([[0.2, 0.1], [0.9, -0.4]]))


@pytest.fixture(scope='module')
def head(head_checkpoint):
    return Head(head_checkpoint)


@pytest.fixture
def evaluated(head, monkeypatch):
    """A list that gets the number of points whenever the sparse renderer evaluates distances at single points."""
    counts, sdf_at = [], head.sparse.sdf_at
    monkeypatch.setattr(head.sparse, 'sdf_at', lambda field, points, camera: (
        counts.append(len(points)), sdf_at(field, points, camera))[1])
    return counts


@pytest.fixture
def given_up(monkeypatch):
    """A list that grows by one whenever a view is left to the definition."""
    views, march = [], VolumeRenderer.march

    def counted(self, field, rays, wanted, rng=None):
        views.append(rays)
        return march(self, field, rays, wanted, rng)

    monkeypatch.setattr(VolumeRenderer, 'march', counted)
    return views


@pytest.mark.parametrize('views, resolution, most, most_of_depth', [(slice(1), 128, 0.12, 0.09),
                                                                    (slice(2), 64, 0.3, 0.25)])
def test_the_same_surface(head, evaluated, views, resolution, most, most_of_depth):
    w, cameras = head.w[views], head.cameras[views]
    dense = render_surface(head.dense, w, cameras, sdf=True, resolution=resolution)
    few = render_surface(head.sparse, w, cameras, sdf=True, resolution=resolution)
    assert 0 < sum(evaluated) < most * dense.sdf.numel()
    assert (few.xyz - dense.xyz).norm(dim=1).max() < 1e-4
    assert (few.background - dense.background).abs().max() < 1e-3
    for i in range(len(w)):
        mesh, expected = (surface_mesh(surface.sdf[i:i + 1], cameras[i:i + 1]) for surface in (few, dense))
        assert np.array_equal(mesh.faces, expected.faces)
        assert np.abs(mesh.vertices - expected.vertices).max() < 1e-5
    evaluated.clear()
    depth_only = render_surface(head.sparse, w, cameras, resolution=resolution)
    assert depth_only.sdf is None and 0 < sum(evaluated) < most_of_depth * dense.sdf.numel()
    assert (depth_only.xyz - dense.xyz).norm(dim=1).max() < 1e-4


def test_the_same_surface_in_slabs(head, monkeypatch):
    """As large surfaces are found, here two slabs of a small one."""
    monkeypatch.setattr('op.sparse.SLAB_SAMPLES', 140_000)
    camera = head.cameras[:1]
    few, dense = (render_surface(renderer, head.w[:1], camera, sdf=True, resolution=64)
                  for renderer in (head.sparse, head.dense))
    depth_only = render_surface(head.sparse, head.w[:1], camera, resolution=64)
    for surface in (few, depth_only):
        assert (surface.xyz - dense.xyz).norm(dim=1).max() < 1e-4
        assert (surface.background - dense.background).abs().max() < 1e-3
    mesh, expected = (surface_mesh(surface.sdf, camera) for surface in (few, dense))
    assert np.array_equal(mesh.faces, expected.faces) and np.abs(mesh.vertices - expected.vertices).max() < 1e-5


@pytest.mark.parametrize('samples', [24, 30, 64])
@torch.no_grad()
def test_the_same_picture(head, samples, given_up):
    few = head.sparse(head.w, head.cameras, samples=samples)
    assert not given_up
    assert_same_picture(few, head.dense(head.w, head.cameras, samples=samples))


@torch.no_grad()
def test_a_picture_evaluates_nothing_twice(head, monkeypatch):
    points, evaluate_at = [], head.sparse.evaluate_at
    monkeypatch.setattr(head.sparse, 'evaluate_at', lambda field, at, viewdirs, camera: (
        points.append(at), evaluate_at(field, at, viewdirs, camera))[1])
    head.sparse(head.w[:1], head.cameras[:1])
    points = torch.cat(points)
    assert len(points.unique(dim=0)) == len(points) < 0.5 * 64 * 64 * 24


def assert_same_picture(few, dense):
    assert (few.thumbnail - dense.thumbnail).abs().max() < 1e-3
    assert (few.features - dense.features).abs().max() < 2e-3
    assert (few.features - dense.features).square().mean().sqrt() < 1e-4
    assert (few.xyz - dense.xyz).norm(dim=1).max() < 1e-4 and (few.background - dense.background).abs().max() < 1e-3


@torch.no_grad()
def test_the_same_jittered_picture(head, monkeypatch, evaluated):
    """As stage 2 trains on: each ray's samples have an offset of their own, and each image its own rng."""
    for renderer in (head.sparse, head.dense):
        monkeypatch.setattr(renderer, 'perturb', 1.)

    def rngs():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    dense, used_rngs = head.dense(head.w, head.cameras, rng=rngs()), rngs()
    few = head.sparse(head.w, head.cameras, rng=used_rngs)
    assert evaluated
    assert (few.thumbnail - dense.thumbnail).abs().max() < 1e-3
    assert (few.features - dense.features).abs().max() < 2e-3
    assert (few.xyz - dense.xyz).norm(dim=1).max() < 1e-4
    for used in used_rngs:  # what is drawn next, the decoder's noise, is as after a dense picture
        expected = torch.Generator().manual_seed(used.initial_seed())
        torch.rand(head.sparse.resolution ** 2, generator=expected)
        assert torch.equal(torch.rand(3, generator=used), torch.rand(3, generator=expected))


def test_where_gradients_or_slopes_are_wanted_it_is_the_definition(head, evaluated):
    w = head.w[:1].clone().requires_grad_()
    small = {'resolution': 32, 'samples': 24}
    few, dense = (renderer(w, head.cameras[:1], **small) for renderer in (head.sparse, head.dense))
    assert torch.equal(few.thumbnail, dense.thumbnail)
    slopes = [torch.autograd.grad(view.xyz.sum(), w)[0] for view in (few, dense)]
    assert torch.equal(*slopes) and slopes[0].abs().max() > 0
    with torch.no_grad():
        few, dense = (renderer(head.w[:1], head.cameras[:1], color=False, eikonal=True, **small)
                      for renderer in (head.sparse, head.dense))
    assert torch.equal(few.eikonal, dense.eikonal) and not evaluated


@torch.no_grad()
def test_it_works_without_tiles(head):
    """On the definition itself, as with STYLESDF_OPS=plain."""
    settings = {'depth': 4, 'width': 64, 'perturb': 0., 'force_background': True, 'static_viewdirs': True}
    plain, few = (kind(64, **settings) for kind in (VolumeRenderer, SparseRenderer))
    for renderer in (plain, few):
        renderer.load_state_dict(head.sparse.state_dict())
    assert_same_picture(*(renderer(head.w[:1], head.cameras[:1]) for renderer in (few, plain)))


@pytest.mark.parametrize('sharper', [1.15, 1.6, 2.5])
@torch.no_grad()
def test_a_sharper_field(head, sharper, given_up):
    few, dense = copy.deepcopy(head.sparse), copy.deepcopy(head.dense)
    for renderer in (few, dense):
        for layer in renderer.network.pts_linears:
            layer.weight *= sharper
    w, cameras = head.w[:1], head.cameras[:1]
    surfaces = [render_surface(renderer, w, cameras, sdf=True, resolution=64) for renderer in (few, dense)]
    assert (surfaces[0].xyz - surfaces[1].xyz).norm(dim=1).max() < 1e-4
    meshes = [surface_mesh(surface.sdf, cameras) for surface in surfaces]
    if sharper < 2:  # beyond that nothing is negative in this view
        assert np.array_equal(*(mesh.faces for mesh in meshes))
    assert [mesh is None for mesh in meshes] == [sharper > 2] * 2
    given_up.clear()
    picture = few(w, cameras)
    assert not given_up
    assert_same_picture(picture, dense(w, cameras))


# ---------------------------------------------------------------------------------------------- analytic volumes

SIZE, SPACING, SCALE = 96, 2.5e-3, 3e-3


class Volume:
    """Distances of an analytic field at samples (row, column, depth) of a cube; it counts how many were asked for."""

    def __init__(self, field):
        self.field, self.asked = field, []

    def __call__(self, index):
        self.asked.append(index)
        return self.field(((index - SIZE / 2) * SPACING).float())

    def all(self):
        return self.field((torch.cartesian_prod(*[torch.arange(SIZE) - SIZE / 2] * 3) * SPACING).float()).view(
            SIZE, SIZE, SIZE)

    @property
    def share(self):
        """How many of the volume's samples were evaluated; none twice."""
        index = torch.cat(self.asked)
        assert len(index.unique(dim=0)) == len(index)
        return len(index) / SIZE ** 3


def ball(p, radius=0.07):
    return p.norm(dim=1) - radius


def ripples(p, amplitude, wave=400.):
    return amplitude * SCALE * torch.sin(wave * p).prod(dim=1)


FIELDS = {  # name: (field, the largest share of samples that may be evaluated)
    'ball': (ball, 0.06),
    'thin sheet': (lambda p: (p[:, 2] + 0.3 * p[:, 0]).abs() - 0.7 * SPACING, 0.2),
    'hole': (lambda p: torch.maximum(ball(p), 1.5 * SPACING - p[:, :2].norm(dim=1)), 0.08),
    'one behind the other': (lambda p: torch.minimum(ball(p + torch.tensor([0.02, 0., 0.05]), 0.04),
                                                     ball(p - torch.tensor([0., 0.02, 0.05]), 0.05)), 0.08),
    'a crease': (lambda p: torch.maximum(ball(p), p[:, 2] - 0.04), 0.08),
    'ripples of 0.2': (lambda p: ball(p) + ripples(p, 0.2), 0.15),
    'ripples of 1': (lambda p: ball(p) + ripples(p, 1.), 0.2),
    'ripples of 3': (lambda p: ball(p) + ripples(p, 3., 900.), 0.4),
    'fine ripples': (lambda p: ball(p) + ripples(p, 1., 2000.), 0.25),
    'a rough patch': (lambda p: ball(p) + ripples(p, 1., 1500.) * (100 * p[:, 0] - 3).clamp(0, 1), 0.15),
    'a wave that the nodes do not see': (
        lambda p: ball(p) + 2e-3 * torch.sin((p[:, 2] / SPACING + SIZE / 2) * np.pi / 2), 0.25),
}


def cut_edges(volume, _):
    """The index (P,3) of samples at the ends of the edges that the zero level cuts."""
    inside, ends = volume < 0, torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    for axis in range(3):
        cut = inside.diff(dim=axis)
        ends.narrow(axis, 0, SIZE - 1).logical_or_(cut)
        ends.narrow(axis, 1, SIZE - 1).logical_or_(cut)
    return ends.nonzero()


def searched(volume, size=SIZE, scale=SCALE):
    return sdf_volume(Field(volume, (size,) * 3, SigmoidDensity(scale), SPACING, SURFACE, True, cut_edges))


def depths(volume):
    weights = ray_weights(SigmoidDensity(SCALE).value(volume), torch.full_like(volume, SPACING), force_background=True)
    return weights @ (SPACING * torch.arange(SIZE)), weights[..., -1]


@pytest.mark.parametrize('name', FIELDS)
def test_analytic_fields(name):
    field, most = FIELDS[name]
    volume = Volume(field)
    found, exact = searched(volume), volume.all()
    (depth, background), (expected, expected_background) = (depths(values) for values in (found, exact))
    assert (depth - expected).abs().max() < 1e-4 and (background - expected_background).abs().max() < 1e-3
    assert torch.equal(found < 0, exact < 0)
    assert volume.share < most


def test_a_fog_costs_no_more_than_everything():
    volume = Volume(lambda p: 2e-3 * torch.sin(3000. * p).sum(dim=1) - 1e-3)
    found = searched(volume, scale=0.05)
    assert (found == volume.all()).float().mean() > 0.5 and volume.share < 1.15


def test_small_volumes_are_left_to_others():
    assert searched(Volume(ball), size=16) is None


def test_influence_is_the_derivative_of_depth_and_background():
    density = SigmoidDensity(0.01)
    sdf = (0.03 * torch.randn(5, 24, dtype=torch.float64)).requires_grad_()
    t = 0.01 * torch.arange(24, dtype=torch.float64)
    weights = ray_weights(density.value(sdf), torch.full_like(sdf, 0.01), force_background=True)
    depth, = torch.autograd.grad((weights @ t).sum(), sdf, retain_graph=True)
    background, = torch.autograd.grad(weights[:, -1].sum(), sdf)
    expected = torch.maximum(depth.abs(), 0.1 * background.abs())
    assert (influence(sdf, density, 0.01)[0] - expected).detach()[:, :-1].abs().max() < 1e-3 * expected.max()


@torch.no_grad()
def test_an_empty_view_and_a_raw_density_work(head):
    empty = copy.deepcopy(head.sparse)
    empty.network.sigma_linear.bias += 1
    rendering = render_surface(empty, head.w[:1], head.cameras[:1], sdf=True)
    assert (rendering.background > 0.99).all() and surface_mesh(rendering.sdf, head.cameras[:1]) is None
    raw = SparseRenderer(4, depth=1, width=4, perturb=0., sdf=False)
    assert render_surface(raw, torch.zeros(1, 4), head.cameras[:1]).xyz.isfinite().all()

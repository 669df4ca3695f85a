"""Surfaces against the original's meshes and against analytic shapes."""
import json
import math

import numpy as np
import pytest
import torch
import trimesh
from conftest import assert_close
from golden_head import FLAGS, head_state

from camera import cameras_at
from model import build_generator
from op import sparse
from op.sparse import influence, sdf_volume
from options import parse
from surfaces.files import load_mesh, save_mesh
from surfaces.meshes import align_volume, depth_mesh, grid_faces, marching_cubes_mesh, surface_mesh, volume_points
from surfaces.rendering import render_surface
from volume_renderer import VolumeRenderer, ray_weights, sdf_to_density


class Sphere(torch.nn.Module):
    """A field whose zero level is a sphere, in place of the SIREN; points come scaled by 2 / (far - near)."""

    def __init__(self, radius, center=(0., 0., 0.), scale=2 / 0.24):
        super().__init__()
        self.radius, self.center, self.scale = radius, torch.tensor(center), scale

    def fold(self, w):
        return self

    def image(self, b):
        return self

    def hidden(self, points, scratch=None):
        return points / self.scale

    def sdf(self, points):
        return (points - self.center).norm(dim=-1, keepdim=True) - self.radius


@pytest.fixture
def sphere_renderer():
    renderer = VolumeRenderer(4, depth=1, width=4, perturb=0., force_background=True)
    renderer.network = Sphere(0.06, (0.01, -0.02, 0.005))
    renderer.sigmoid_beta.data.fill_(5e-4)
    return renderer


@pytest.fixture(scope='module')
def head():
    """(renderer, latents, cameras) of the golden head: surfaces, silhouettes, ears; one view from far aside."""
    generator = build_generator(parse('generate_shapes_and_images', '', FLAGS)).requires_grad_(False)
    generator.load_state_dict(head_state())
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    return generator.renderer, generator.map(z), cameras_at(torch.tensor([[0.2, 0.1], [0.9, -0.4]]))


def test_few_evaluations_give_the_same_surface(head, monkeypatch):
    renderer, w, cameras = head
    evaluated = []
    counted = renderer.sdf_at
    monkeypatch.setattr(renderer, 'sdf_at', lambda field, points, camera: (
        evaluated.append(len(points)), counted(field, points, camera))[1])
    dense = render_surface(renderer, w, cameras, sdf=True, dense=True)
    assert not evaluated
    few = render_surface(renderer, w, cameras, sdf=True)
    assert sum(evaluated) < 0.12 * dense.sdf.numel()
    assert (few.xyz - dense.xyz).norm(dim=1).max() < 1e-4
    assert (few.background - dense.background).abs().max() < 1e-3
    for i in range(2):
        mesh, expected = (surface_mesh(surface.sdf[i:i + 1], cameras[i:i + 1]) for surface in (few, dense))
        assert np.array_equal(mesh.faces, expected.faces)
        assert np.abs(mesh.vertices - expected.vertices).max() < 1e-5
    evaluated.clear()
    depth_only = render_surface(renderer, w, cameras)
    assert depth_only.sdf is None and sum(evaluated) < 0.09 * dense.sdf.numel()
    assert (depth_only.xyz - dense.xyz).norm(dim=1).max() < 1e-4


@pytest.mark.parametrize('samples', [24, 64])
@torch.no_grad()
def test_few_evaluations_give_the_same_picture(head, samples, monkeypatch):
    renderer, w, cameras = head
    dense = renderer(w, cameras, samples=samples)
    views = []
    monkeypatch.setattr(sparse, '_render_view', lambda *arguments, original=sparse._render_view, **wanted: (
        views.append(original(*arguments, **wanted)), views[-1])[1])
    few = sparse.render(renderer, w, cameras, samples=samples)
    assert views[0] is not None  # of so extreme a view as the other one the probes may say that all is to be evaluated
    assert (few.thumbnail - dense.thumbnail).abs().max() < 1e-3
    assert (few.features - dense.features).abs().max() < 2e-3
    assert (few.features - dense.features).square().mean().sqrt() < 1e-4
    assert (few.xyz - dense.xyz).norm(dim=1).max() < 1e-4 and (few.background - dense.background).abs().max() < 1e-3


@torch.no_grad()
def test_few_evaluations_give_the_same_jittered_picture(head, monkeypatch):
    """As stage 2 trains on: each ray's samples have an offset of their own, and each image its own generator."""
    renderer, w, cameras = head
    monkeypatch.setattr(renderer, 'perturb', 1.)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    dense, few_draws = renderer(w, cameras, rng=generators()), generators()
    views = []
    monkeypatch.setattr(sparse, '_render_view', lambda *arguments, original=sparse._render_view, **wanted: (
        views.append(original(*arguments, **wanted)), views[-1])[1])
    few = sparse.render(renderer, w, cameras, rng=few_draws)
    assert views[0] is not None
    assert (few.thumbnail - dense.thumbnail).abs().max() < 1e-3
    assert (few.features - dense.features).abs().max() < 2e-3
    assert (few.xyz - dense.xyz).norm(dim=1).max() < 1e-4
    for used in few_draws:  # what is drawn next, the decoder's noise, is as after a dense picture
        expected = torch.Generator().manual_seed(used.initial_seed())
        torch.rand(renderer.resolution ** 2, generator=expected)
        assert torch.equal(torch.rand(3, generator=used), torch.rand(3, generator=expected))


def test_offset_samples_of_a_cubic_are_exact():
    t, offset = torch.arange(9, dtype=torch.float64), torch.tensor([[0.], [0.3], [1.]], dtype=torch.float64)

    def cubic(t):
        return 0.1 * t ** 3 - 0.7 * t ** 2 + t - 2

    found = sparse.offset_by(cubic(t).expand(3, -1), offset)
    assert torch.allclose(found[:, 1:-2], cubic(t + offset)[:, 1:-2])
    straight = sparse.offset_by(t.expand(3, -1), offset)  # at the ends too
    assert torch.allclose(straight, t + offset)


def test_a_rough_field_is_evaluated_everywhere(head, monkeypatch):
    """Bumps finer than the coarse grid cannot be interpolated, and are not."""
    renderer, w, cameras = head

    def bumpy(field, points, camera):
        return points.norm(dim=-1) - 0.06 + 3e-3 * torch.sin(2000 * points).prod(dim=-1)

    monkeypatch.setattr(renderer, 'sdf_at', bumpy)
    dense = []
    monkeypatch.setattr(VolumeRenderer, 'forward', lambda self, *arguments, **wanted: dense.append(wanted) or 'dense')
    assert render_surface(renderer, w[:1], cameras[:1]) == 'dense' and dense[0]['samples'] == 128


@pytest.mark.parametrize('sharper', [1.15, 1.3, 1.6, 2.5])
def test_a_sharper_field_is_right_or_evaluated_everywhere(head, sharper):
    renderer, w, cameras = head
    field = VolumeRenderer(64, depth=4, width=64, perturb=0., force_background=True)
    field.load_state_dict(renderer.state_dict())
    with torch.no_grad():
        for layer in field.network.pts_linears:
            layer.weight *= sharper
    few, dense = (render_surface(field, w[:1], cameras[:1], dense=dense) for dense in (False, True))
    error = (few.xyz - dense.xyz).norm(dim=1)
    assert error.max() < 1e-4


def test_a_wave_between_the_nodes_is_noticed():
    """It is nothing at all at the nodes of the coarse grid, but the probes find it."""
    def wave(index):
        return (64. - index[:, 2]) * 1e-3 + torch.sin(index[:, 2] * np.pi / 2) * 2e-3

    volume = sdf_volume(wave, (128, 128, 128), 3e-3, 1e-3)
    exact = wave(torch.cartesian_prod(*[torch.arange(128)] * 3)).view(128, 128, 128)
    assert volume is None or (influence(exact, 3e-3, 1e-3) * (volume - exact).abs()).max() < 1e-5


def test_influence_is_the_derivative_of_depth_and_mask():
    sdf = (0.03 * torch.randn(5, 24, dtype=torch.float64)).requires_grad_()
    t = 0.01 * torch.arange(24, dtype=torch.float64)
    weights = ray_weights(sdf_to_density(sdf, 0.01), torch.full_like(sdf, 0.01), force_background=True)
    depth, = torch.autograd.grad((weights @ t).sum(), sdf, retain_graph=True)
    mask, = torch.autograd.grad(weights[:, -1].sum(), sdf)
    expected = torch.maximum(depth.abs(), 0.1 * mask.abs())
    assert (influence(sdf, 0.01, 0.01) - expected).detach()[:, :-1].abs().max() < 1e-3 * expected.max()


def test_an_empty_view_and_a_raw_density_work(head):
    renderer, w, cameras = head
    empty = VolumeRenderer(64, depth=4, width=64, perturb=0., force_background=True)
    empty.load_state_dict(renderer.state_dict())
    empty.network.sigma_linear.bias.data += 1
    rendering = render_surface(empty, w[:1], cameras[:1], sdf=True)
    assert (rendering.background > 0.99).all() and surface_mesh(rendering.sdf, cameras[:1]) is None
    raw = VolumeRenderer(4, depth=1, width=4, perturb=0., sdf=False)
    assert render_surface(raw, torch.zeros(1, 4), cameras[:1]).xyz.isfinite().all()


def test_alignment(golden):
    expected = golden('surfaces')
    assert_close(align_volume(expected['volume'], 0.88, 1.12), expected['aligned'], 1e-5)
    assert_close(align_volume(expected['cube'], 0.88, 1.12), expected['cube_aligned'], 1e-5)


def test_marching_cubes(golden):
    expected = golden('surfaces')
    mesh = marching_cubes_mesh(expected['cube_aligned'][0], 0.12)
    assert_close(torch.tensor(mesh.vertices), expected['mc_vertices'], 1e-6)
    assert np.array_equal(mesh.faces, expected['mc_faces'])
    assert mesh.is_watertight and mesh.volume == pytest.approx(expected['mc_volume'].item(), rel=1e-5)  # outward
    assert mesh.area == pytest.approx(expected['mc_area'].item(), rel=1e-5)


def test_depth_mesh(golden):
    """The original's diagonals are Delaunay's arbitrary choice, so area and mean normal agree only roughly."""
    expected = golden('surfaces')
    mesh = depth_mesh(expected['xyz'][0])
    assert_close(torch.tensor(mesh.vertices), expected['depth_vertices'], 1e-6)
    assert len(mesh.faces) == expected['depth_faces'].item()
    assert mesh.area == pytest.approx(expected['depth_area'].item(), rel=0.03)
    normal = mesh.face_normals.mean(0)
    assert np.abs(normal - expected['depth_mean_normal'].numpy()).max() < 0.03


def test_grid_faces_cover_a_flat_grid_facing_the_viewer():
    height, width = 4, 6
    y, x = torch.meshgrid(-torch.arange(height), torch.arange(width), indexing='ij')  # rows go down
    mesh = depth_mesh(torch.stack([x, y, torch.zeros_like(x)]).float())
    assert len(grid_faces(height, width)) == 2 * (height - 1) * (width - 1)
    assert mesh.area == pytest.approx((height - 1) * (width - 1))
    assert np.allclose(mesh.face_normals, [0, 0, 1])


@pytest.mark.parametrize('viewpoint', [[0., 0.], [0.5, -0.3]])
def test_a_sphere_comes_out_as_a_sphere(sphere_renderer, viewpoint):
    camera = cameras_at(torch.tensor([viewpoint]))
    surface = render_surface(sphere_renderer, torch.zeros(1, 4), camera, sdf=True)
    assert surface.sdf.shape == (1, 128, 128, 128, 1) and surface.thumbnail is None

    depth = depth_mesh(surface.xyz[0])
    seen = surface.background[0].flatten().numpy() < 0.01
    distance = np.linalg.norm(depth.vertices - [0.01, -0.02, 0.005], axis=1)[seen]
    assert 2000 < seen.sum() < 8000
    assert np.abs(distance - 0.06).max() < 0.24 / 128  # within a sample
    towards_camera = camera.extrinsics[0, :, 3].numpy()
    front = seen[depth.faces].all(axis=1)
    assert (depth.face_normals[front] @ towards_camera > -0.05).all()

    mesh = surface_mesh(surface.sdf, camera)
    assert mesh.is_watertight and mesh.volume > 0  # outward
    points, viewdirs = volume_points(mesh.vertices, sphere_renderer, camera)
    distance = (points - torch.tensor([0.01, -0.02, 0.005])).norm(dim=1)
    assert (distance - 0.06).abs().max() < 2e-4  # linear interpolation between samples 2 mm apart
    assert_close(viewdirs.norm(dim=1), torch.ones(len(points)), 1e-5)


def test_volume_points_invert_the_box(sphere_renderer):
    """The corners of the volume are the first and last samples of the corner rays."""
    camera = cameras_at(torch.tensor([[0.3, 0.2]]), fov=8.)
    size = 16
    index = np.array([[0, 0, size - 1], [size - 1, size - 1, size - 1.]])
    vertices = (index / size - 0.5) * 0.24 * (1, -1, -1)
    points, local = volume_points(vertices, sphere_renderer, camera, size)
    rotation, origin = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    last = 0.88 + 0.24 * (1 - 1 / size)
    half = (1 - 1 / size) * math.tan(math.radians(8))
    expected = torch.tensor([[-half, half, -1.], [half, -half, -1.]])
    assert_close(points, origin + expected @ rotation.T * last, 1e-5)
    assert_close(local, torch.nn.functional.normalize(expected, dim=1), 1e-5)


@pytest.mark.parametrize('value', [1., -1., 0.])
def test_no_zero_crossing_is_no_mesh(value):
    assert marching_cubes_mesh(torch.full((8, 8, 8, 1), value), 0.12) is None


@pytest.mark.parametrize('suffix', ['obj', 'ply', 'glb'])
def test_mesh_files(tmp_path, suffix):
    mesh = trimesh.creation.icosphere(subdivisions=1)
    colors = np.random.default_rng(0).integers(0, 256, (len(mesh.vertices), 3), dtype=np.uint8)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
    save_mesh(tmp_path / f'a.{suffix}', mesh)
    loaded = load_mesh(tmp_path / f'a.{suffix}')
    assert np.allclose(loaded.vertices, mesh.vertices, atol=1e-6) and np.array_equal(loaded.faces, mesh.faces)
    difference = np.abs(loaded.visual.vertex_colors[:, :3].astype(int) - colors)
    assert difference.max() <= (7 if suffix == 'glb' else 0)  # linear colors in 8 bits are coarse where it is dark
    assert difference[colors > 64].max() <= 1
    assert np.array_equal(mesh.visual.vertex_colors[:, :3], colors)  # it stays as it was
    assert [path.name for path in tmp_path.iterdir()] == [f'a.{suffix}']


def glb_parts(path):
    """(JSON, binary chunk) of a GLB file (glTF 2.0, section 4.4)."""
    data = path.read_bytes()
    assert data[:8] == b'glTF' + (2).to_bytes(4, 'little')
    length = int.from_bytes(data[12:16], 'little')
    return json.loads(data[20:20 + length]), data[28 + length:]


def test_glb_colors_are_linear_and_matte(tmp_path):
    """Read from the file itself: half as much light as white is sRGB 188, and mid gray is a fifth of it."""
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 2], [0, 3, 1]], process=False)
    colors = [[0, 255, 128], [188, 10, 64], [255, 255, 255], [0, 0, 0]]
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.array(colors, dtype=np.uint8))
    save_mesh(tmp_path / 'a.glb', mesh)
    tree, data = glb_parts(tmp_path / 'a.glb')
    primitive = tree['meshes'][0]['primitives'][0]
    accessor = tree['accessors'][primitive['attributes']['COLOR_0']]
    assert (accessor['componentType'], accessor['type'], accessor['normalized']) == (5121, 'VEC4', True)
    start = tree['bufferViews'][accessor['bufferView']].get('byteOffset', 0) + accessor.get('byteOffset', 0)
    stored = np.frombuffer(data, np.uint8, 16, start).reshape(4, 4)
    assert stored.tolist() == [[0, 255, 55, 255], [128, 1, 13, 255], [255, 255, 255, 255], [0, 0, 0, 255]]


@pytest.mark.parametrize('colored', [True, False])
def test_glb_is_no_metal(tmp_path, colored):
    mesh = trimesh.creation.icosphere(subdivisions=1)
    if colored:
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.full((len(mesh.vertices), 3), 90, np.uint8))
    save_mesh(tmp_path / 'a.glb', mesh)
    tree, _ = glb_parts(tmp_path / 'a.glb')
    primitive = tree['meshes'][0]['primitives'][0]
    material = tree['materials'][primitive['material']]['pbrMetallicRoughness']
    assert (material['metallicFactor'], material['roughnessFactor']) == (0, 1)  # both are 1 where they are not given
    assert ('COLOR_0' in primitive['attributes']) == colored

"""Surfaces against the original's meshes and against analytic shapes."""
import json
import math

import numpy as np
import pytest
import torch
import trimesh
from conftest import assert_close

from camera import cameras_at
from surfaces.files import load_mesh, save_mesh
from surfaces.meshes import align_volume, depth_mesh, grid_faces, marching_cubes_mesh, surface_mesh, volume_points
from surfaces.rendering import render_surface
from volume_renderer import VolumeRenderer


class Sphere(torch.nn.Module):
    """A field whose zero level is a sphere, in place of the SIREN; points come scaled by 2 / (far - near)."""

    def __init__(self, radius, center=(0., 0., 0.), scale=2 / 0.24):
        super().__init__()
        self.radius, self.center, self.scale = radius, torch.tensor(center), scale

    def forward(self, w, points, viewdirs=None):
        return (points / self.scale - self.center).norm(dim=-1, keepdim=True) - self.radius, None, None


@pytest.fixture
def sphere_renderer():
    renderer = VolumeRenderer(4, depth=1, width=4, perturb=0., force_background=True)
    renderer.network = Sphere(0.06, (0.01, -0.02, 0.005))
    renderer.sigmoid_beta.data.fill_(5e-4)
    return renderer


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


@pytest.mark.parametrize('colored', [True, False])
def test_obj_text_is_trimeshs(tmp_path, colored):
    mesh = trimesh.creation.icosphere(subdivisions=2)
    if colored:
        colors = np.random.default_rng(0).integers(0, 256, (len(mesh.vertices), 3), dtype=np.uint8)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
    save_mesh(tmp_path / 'a.obj', mesh)
    expected = mesh.export(file_type='obj', include_normals=False, include_texture=False, header=None)
    assert (tmp_path / 'a.obj').read_text().split() == expected.split()


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

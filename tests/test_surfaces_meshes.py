"""Meshes against the original's and against analytic shapes."""
import math

import numpy as np
import pytest
import torch
from conftest import assert_close

from camera import cameras_at
from surfaces.meshes import align_volume, depth_mesh, grid_faces, marching_cubes_mesh, surface_mesh, volume_points
from volume_renderer import VolumeRenderer


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


def test_volume_points_invert_the_box():
    """The corners of the volume are the first and last samples of the corner rays."""
    camera = cameras_at(torch.tensor([[0.3, 0.2]]), fov=8.)
    size = 16
    index = np.array([[0, 0, size - 1], [size - 1, size - 1, size - 1.]])
    vertices = (index / size - 0.5) * 0.24 * (1, -1, -1)
    points, local = volume_points(vertices, VolumeRenderer(4, depth=1, width=4, perturb=0.), camera, size)
    rotation, origin = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    last = 0.88 + 0.24 * (1 - 1 / size)
    half = (1 - 1 / size) * math.tan(math.radians(8))
    expected = torch.tensor([[-half, half, -1.], [half, -half, -1.]])
    assert_close(points, origin + expected @ rotation.T * last, 1e-5)
    assert_close(local, torch.nn.functional.normalize(expected, dim=1), 1e-5)


@pytest.mark.parametrize('value', [1., -1., 0.])
def test_no_zero_crossing_is_no_mesh(value):
    assert marching_cubes_mesh(torch.full((8, 8, 8, 1), value), 0.12) is None


@pytest.mark.parametrize('value', [1., -1.])
def test_a_field_of_one_sign_has_no_surface(value):
    """Neither one that is negative everywhere, whose box would have walls."""
    assert surface_mesh(torch.full((1, 8, 8, 8, 1), value), cameras_at(torch.zeros(1, 2))) is None

"""Meshes against the original's and against analytic shapes."""
import itertools
import math

import numpy as np
import pytest
import torch
import trimesh
from conftest import assert_close

from camera import cameras_at
from surfaces import meshes
from surfaces.meshes import (
    align_volume,
    decimated,
    depth_mesh,
    grid_faces,
    largest_piece,
    marching_cubes_mesh,
    surface_mesh,
    volume_points,
)
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


def two_balls(size=40):
    """The SDF volume (1,H,W,N,1) of two balls, one of them larger, that cross many slices."""
    place = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing='ij'), dim=-1)
    balls = [(place - torch.tensor(middle)).norm(dim=-1) - radius
             for middle, radius in (([0.2, 0.1, 0.05], 0.5), ([-0.6, -0.5, -0.6], 0.2))]
    return torch.minimum(*balls)[None, ..., None]


def test_slabs_give_the_same_mesh(monkeypatch):
    camera, sdf = cameras_at(torch.zeros(1, 2)), two_balls()
    whole = surface_mesh(sdf, camera)
    monkeypatch.setattr(meshes, 'SLAB_SAMPLES', 7 * 40 * 40)  # 7 slices at a time, and the last slab has fewer
    mesh = surface_mesh(sdf, camera)
    assert mesh.is_watertight and len(mesh.split()) == 2
    assert (len(mesh.vertices), len(mesh.faces)) == (len(whole.vertices), len(whole.faces))
    corners = [np.sort(one.triangles.reshape(-1, 9).round(7).astype('f4'), axis=0) for one in (mesh, whole)]
    assert np.abs(corners[0] - corners[1]).max() < 1e-6
    assert mesh.volume == pytest.approx(whole.volume, rel=1e-6)
    assert surface_mesh(sdf + 10, camera) is None


def test_the_largest_piece_and_fewer_triangles():
    mesh = surface_mesh(two_balls(), cameras_at(torch.zeros(1, 2)))
    large = largest_piece(mesh)
    assert large.is_watertight and len(large.split()) == 1
    assert large.volume == pytest.approx(max(piece.volume for piece in mesh.split()))
    fewer = decimated(large, 500)
    assert 400 < len(fewer.faces) <= 500 and fewer.volume == pytest.approx(large.volume, rel=0.01)
    assert decimated(fewer, 10 ** 6) is fewer
    ball = trimesh.creation.icosphere(2)
    assert len(largest_piece(ball).faces) == len(ball.faces)


def test_decisive_samples_are_those_that_could_change_the_mesh():
    """Against the definition, value by value: a noisy ball that reaches over the sides of the frustum."""
    rng = torch.Generator().manual_seed(0)
    size, near, far, margin = 12, 0.88, 1.12, 2e-3
    x = torch.linspace(-1, 1, size)
    radius = (x[:, None, None].square() + x[None, :, None].square() + (1.6 * x).square()).sqrt()
    sdf = 0.1 * (radius - 1.1) + 0.01 * torch.randn(size, size, size, generator=rng)
    deviation = 10 ** (-7 + 6 * torch.rand(size, size, size, generator=rng))
    aligned = align_volume(sdf[None, ..., None], near, far)[0, ..., 0]
    limits = torch.zeros_like(aligned)  # how far off a value may be; infinity where it may be off by anything
    for at in itertools.product(range(size), repeat=3):
        value, cut = aligned[at], []
        for axis, step in itertools.product(range(3), (-1, 1)):
            beside = [place + step * (axis == i) for i, place in enumerate(at)]
            if 0 <= beside[axis] < size and (aligned[tuple(beside)] < 0) != (value < 0):
                cut.append((value - aligned[tuple(beside)]).abs() * meshes.VERTEX_DEVIATION / ((far - near) / size))
        limits[at] = min([value.abs() / meshes.SURE, *cut]) if cut or value.abs() < margin else torch.inf
    expected = set()
    scale = torch.linspace(far / near, 1, size)
    for row, column, depth in itertools.product(range(size), repeat=3):
        place = ((x[[row, column]] * scale[depth] + 1) / 2 * (size - 1)).clamp(0, size - 1)
        low = place.floor().clamp(max=size - 2).int().tolist()
        for below, beside in itertools.product((0, 1), repeat=2):
            sample = low[0] + below, low[1] + beside, depth
            if deviation[sample] > limits[row, column, depth]:
                expected.add(sample)
    found = meshes.decisive_samples(sdf[None, ..., None], deviation[None, ..., None], near, far, margin)
    assert 100 < len(expected) < size ** 3 / 2 and set(map(tuple, found.tolist())) == expected
    assert len(found) == len(expected)

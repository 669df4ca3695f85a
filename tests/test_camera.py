"""Cameras against the original's numbers and against geometry."""
import math

import pytest
import torch
from conftest import assert_close

from camera import azimuth_sweep, cameras_at, fixed_viewpoints, project, sample_viewpoints, video_viewpoints
from volume_renderer import camera_directions


@pytest.mark.parametrize('name, fov', [('locations0', 6.), ('locations1', [6., 4.5, 7.5, 9.])])
def test_cameras_at_given_locations(golden, name, fov):
    expected = golden('cameras')
    cameras = cameras_at(expected['locations'], 64, fov, 0.12)
    for field in ('extrinsics', 'focal', 'near', 'far', 'viewpoint'):
        assert_close(getattr(cameras, field), expected[f'{name}_{field}'], 1e-6, field)


@pytest.mark.parametrize('name, uniform', [('gaussian', False), ('uniform', True)])
def test_random_viewpoints_repeat_the_originals_draws(golden, name, uniform):
    expected = golden('cameras')
    viewpoints = sample_viewpoints(5, 0.3, 0.15, uniform, torch.Generator().manual_seed(3))
    assert_close(viewpoints, expected[f'{name}_viewpoint'], 1e-6)
    assert_close(cameras_at(viewpoints).extrinsics, expected[f'{name}_extrinsics'], 1e-6)


def test_azimuth_sweep(golden):
    expected = golden('cameras')
    viewpoints = azimuth_sweep(2, 0.3, 0.15, rng=torch.Generator().manual_seed(3))
    assert_close(viewpoints, expected['sweep_viewpoint'], 1e-6)
    assert_close(cameras_at(viewpoints).extrinsics, expected['sweep_extrinsics'], 1e-6)


def test_cameras_are_rotations_that_look_at_the_origin():
    cameras = cameras_at(torch.tensor([[0.4, -0.3], [-1.2, 0.7]], dtype=torch.float64))
    rotation, position = cameras.extrinsics[:, :, :3], cameras.extrinsics[:, :, 3]
    assert_close(rotation.transpose(1, 2) @ rotation, torch.eye(3, dtype=torch.float64).expand(2, 3, 3), 1e-12)
    assert torch.linalg.det(rotation).allclose(torch.ones(2, dtype=torch.float64))
    assert_close(-rotation[:, :, 2], -position, 1e-12)  # the camera looks along -z, towards the origin


def test_fixed_views_and_slices():
    viewpoints = fixed_viewpoints(0.3, 0.15)
    assert len(set(map(tuple, viewpoints.tolist()))) == 13
    assert viewpoints[0].tolist() == [0, 0] and viewpoints[:, 0].max().item() == pytest.approx(0.45)
    cameras = cameras_at(viewpoints, resolution=32, fov=30.)
    assert len(cameras) == 13 and len(cameras[2:4]) == 2
    assert cameras.focal[0].item() == pytest.approx(16 / math.tan(math.pi / 6))
    assert cameras[5:6].viewpoint.tolist() == viewpoints[5:6].tolist()
    assert cameras.magnified(2).focal[0].item() == pytest.approx(2 * cameras.focal[0].item())


@pytest.mark.parametrize('uniform, azimuth_only', [(False, False), (True, False), (False, True)])
def test_trajectories(uniform, azimuth_only):
    viewpoints = video_viewpoints(250, 0.3, 0.15, uniform, azimuth_only).double()
    for i in (0, 60, 125, 249):
        angle = 2 * math.pi * i / 249
        azimuth = (0.3 if uniform else 0.45) * math.cos(angle)
        elevation = 0.075 + 0.075 * math.sin(angle) if uniform else 0.225 * math.sin(angle)
        expected = [azimuth, 0. if azimuth_only else elevation]
        assert viewpoints[i].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(video_viewpoints(1, 0.3, 0.15)) == 1


def test_project_undoes_the_rays():
    cameras = cameras_at(torch.tensor([[0.4, -0.2]]), 16, fov=9)
    directions = camera_directions(16, cameras.focal)[0] @ cameras.extrinsics[0, :, :3].T
    points = cameras.extrinsics[0, :, 3] + directions * torch.linspace(0.9, 1.1, 256)[:, None]
    pixels, depth = project(points, cameras, 16)
    centers = torch.arange(16) + 0.5
    assert torch.allclose(pixels.view(16, 16, 2)[..., 0], centers.expand(16, 16), atol=1e-4)
    assert torch.allclose(pixels.view(16, 16, 2)[..., 1], centers[:, None].expand(16, 16), atol=1e-4)
    assert torch.allclose(depth, torch.linspace(0.9, 1.1, 256), atol=1e-6)

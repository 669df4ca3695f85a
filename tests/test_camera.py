"""Cameras against the original's numbers and against geometry."""
import math

import pytest
import torch
from conftest import assert_close

from camera import azimuth_sweep, cameras_at, fixed_viewpoints, sample_viewpoints


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

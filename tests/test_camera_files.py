"""Cameras in files, against the places where points appear by camera.py."""
import json

import numpy as np
import pytest
import torch

from camera import cameras_at, project
from surfaces.camera_files import camera_entries, save_cameras


def test_a_camera_file_says_where_points_appear(tmp_path):
    cameras = cameras_at(torch.tensor([[0.3, 0.2], [-2., 0.5]]), 64, fov=8., dist_radius=0.2)
    save_cameras(tmp_path / 'cameras' / 'a.json', camera_entries(cameras, ['one', 'two'], 256, 64))
    entries = json.loads((tmp_path / 'cameras' / 'a.json').read_text())['cameras']
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    for i, (entry, name) in enumerate(zip(entries, ['one', 'two'], strict=True)):
        assert entry['name'] == name and entry['width'] == entry['height'] == 256
        assert entry['yfov_degrees'] == pytest.approx(16)  # --fov is half the opening angle
        assert (entry['near'], entry['far']) == pytest.approx((0.8, 1.2))
        assert entry['azimuth_degrees'] == pytest.approx([17.1887, -114.5916][i], abs=1e-3)
        local = np.linalg.inv(entry['camera_to_world']) @ np.concatenate([points.numpy().T, np.ones((1, 20))])
        column = entry['center_pixels'][0] + entry['focal_pixels'] * local[0] / -local[2]
        row = entry['center_pixels'][1] - entry['focal_pixels'] * local[1] / -local[2]
        pixels, depth = project(points, cameras[i:i + 1].magnified(4), 256)
        assert np.allclose(np.stack([column, row], axis=1), pixels, atol=1e-3) and np.allclose(-local[2], depth)

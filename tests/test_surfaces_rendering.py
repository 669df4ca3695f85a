"""Surfaces rendered from a field: an analytic sphere comes out as a sphere."""
import numpy as np
import pytest
import torch
from conftest import assert_close

from camera import cameras_at
from op.sparse import SparseRenderer
from surfaces.meshes import depth_mesh, surface_mesh, volume_points
from surfaces.rendering import render_surface
from volume_renderer import VolumeRenderer


class Sphere(torch.nn.Module):
    """A field whose zero level is a sphere, in place of the SIREN; points come scaled by 2 / (far - near)."""

    def __init__(self, radius, center=(0., 0., 0.), scale=2 / 0.24):
        super().__init__()
        self.radius, self.center, self.scale = radius, torch.tensor(center), scale

    def forward(self, w, points, viewdirs=None):
        return (points / self.scale - self.center).norm(dim=-1, keepdim=True) - self.radius, None, None


@pytest.fixture(params=[SparseRenderer, VolumeRenderer])
def sphere_renderer(request):
    renderer = request.param(4, depth=1, width=4, perturb=0., force_background=True)
    renderer.network = Sphere(0.06, (0.01, -0.02, 0.005))
    renderer.sigmoid_beta.data.fill_(5e-4)
    return renderer


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

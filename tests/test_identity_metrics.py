"""Geometry of one identity: analytic spheres are consistent, fields that follow the camera are not."""
import math
from types import SimpleNamespace

import pytest
import torch
import trimesh
from torch import nn

import options
from camera import cameras_at
from metrics import identity
from metrics.identity import View, common_points, depth_distance, is_single_surface, measure_identity
from volume_renderer import Rendering, VolumeRenderer

HALF = 0.12  # the near and far planes' distance from the origin


class Spheres(nn.Module):
    """A field of spheres in place of a network: rows of center and radius, in the field's own units."""

    def __init__(self, *spheres):
        super().__init__()
        self.spheres, self.offset, self.scale = torch.tensor(spheres), torch.zeros(3), 1.

    def forward(self, w, points, viewdirs=None):
        distances = (points[..., None, :] - self.offset - self.spheres[:, :3]).norm(dim=-1) - self.spheres[:, 3]
        return self.scale * distances.amin(dim=-1, keepdim=True), None, None


class Following(VolumeRenderer):
    """A renderer whose spheres move with the camera: by `follow` along its axes."""
    follow = (0., 0., 0.)

    def forward(self, w, cameras, **options_):
        self.network.offset = cameras.extrinsics[0, :, :3] @ torch.tensor(self.follow)
        return super().forward(w, cameras, **options_)


def scene(*spheres, follow=(0., 0., 0.), beta=2e-3):
    """A generator of a scene of spheres."""
    renderer = Following(8, 32, 24, 2, 8, perturb=0., force_background=True)
    renderer.network, renderer.follow = Spheres(*spheres), follow
    with torch.no_grad():
        renderer.sigmoid_beta.fill_(beta)
    return SimpleNamespace(renderer=renderer, map=lambda z, *_: z, full_pipeline=False)


def measured(generator, *kinds):
    opt = options.parse('evaluate', '', ['--renderer_spatial_output_dim', '32'])
    return measure_identity(generator, torch.zeros(1, 8), opt, kinds)


@pytest.fixture(autouse=True)
def small_surfaces(monkeypatch):
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 96)


# ---------------------------------------------------------------------------------------------- depth consistency

SPHERE = (0., 0., 0., 0.5)


def depth(*spheres, **scene_options):
    return measured(scene(*spheres, **scene_options), 'depth')['depth']['depth']


def test_a_sphere_is_consistent_and_what_follows_the_camera_is_not():
    still = depth(SPHERE)
    assert still < 0.45  # percent of the depth range; samples along a ray are 1.04 apart
    sideways = [depth(SPHERE, follow=(shift, 0., 0.)) for shift in (0.1, 0.3)]
    towards = [depth(SPHERE, follow=(0., 0., shift)) for shift in (0.1, 0.3)]
    for moved in (sideways, towards):
        assert 2 * still < moved[0] < moved[1] and moved[1] > 6 * still, (still, moved)


def test_what_only_one_view_sees_is_left_out():
    """A small sphere floats before a large one and hides another part of it from each view."""
    scattered = depth((0., 0., -0.3, 0.5), (0.1, 0., 0.6, 0.12))
    assert scattered < 2 * depth(SPHERE)
    # The hidden parts would count for much: without a rule, all points inside the image are compared.
    generator = scene((0., 0., -0.3, 0.5), (0.1, 0., 0.6, 0.12))
    views = [identity.viewed(generator, torch.zeros(1, 8), camera_at(angle))[0]
             for angle in (0., 0.45)]
    for view, other in (views, views[::-1]):
        counted, surface = len(common_points(view, other)), int((view.background < 0.05).sum())
        assert 0.5 * surface < counted < 0.98 * surface


def test_nothing_in_common_is_nan():
    assert math.isnan(depth((0., 0., 0., -1.)))  # no surface anywhere


def camera_at(azimuth):
    return cameras_at(torch.tensor([[azimuth, 0.]]), 32)


def flat_view(azimuth, depth_offset, hole=False):
    """A View of a wall through the origin (moved by depth_offset towards +z), with a hole or without."""
    camera = camera_at(azimuth)
    pixels = torch.arange(32) + 0.5
    x, y = (pixels - 16) / camera.focal.item(), -(pixels - 16) / camera.focal.item()
    local = torch.stack([x.expand(32, 32), y[:, None].expand(32, 32), -torch.ones(32, 32)], dim=-1)
    rays = local @ camera.extrinsics[0, :, :3].T
    origin = camera.extrinsics[0, :, 3]
    points = origin + rays * ((depth_offset - origin[2]) / rays[..., 2:])
    mask = torch.zeros(1, 1, 32, 32)
    if hole:
        mask[..., 12:20, 12:20] = 1.
    return View(None, points.permute(2, 0, 1)[None], mask, camera, 32)


def test_walls_at_known_distances():
    """Two parallel walls: the distance between them, in percent of the depth range, wherever both views look."""
    assert depth_distance(flat_view(0., 0.), flat_view(0.3, 0.)) < 0.4  # a refined pixel is 0.7 wide
    for offset in (0.006, -0.006):
        assert depth_distance(flat_view(0., 0.), flat_view(0., offset)) == pytest.approx(2.5, rel=0.05)
    # A wall that one view looks through and the other shows is a contradiction, not an occlusion: all points count.
    one, nearer = flat_view(0., 0.), flat_view(0.3, 0.05)
    assert len(common_points(one, nearer)) > 0.6 * 32 ** 2
    assert len(common_points(flat_view(0., 0., hole=True), one)) == 32 ** 2 - 64


# ---------------------------------------------------------------------------------------------- images, field, mesh

@pytest.mark.parametrize('sticks', (True, False))
def test_view_consistency_of_images(sticks):
    """Colors that are a function of the surface point agree between views; those of the screen do not."""
    generator = scene(SPHERE)
    screen = torch.linspace(-1, 1, 96).expand(1, 3, 96, 96)

    class Painter(SimpleNamespace):
        def render(self, w, cameras, **_):
            surface = identity.render_surface(self.renderer, w, cameras)
            return SimpleNamespace(thumbnail=(surface.xyz * 30).sin() if sticks else (screen * 12).sin())

    difference = measured(Painter(**vars(generator)), 'view')['view']['view']
    assert difference < 5 if sticks else difference > 20


def test_eikonal_residual_and_single_surfaces():
    generator = scene(SPHERE)
    generator.renderer.network.scale = HALF  # so that in world units it is a true distance
    one = measured(generator, 'field')['field']
    assert one['single'] == 1 and one['eikonal'] == pytest.approx(0, abs=1e-5)
    assert measured(scene((-0.5, 0., 0., 0.2), (0.5, 0., 0., 0.2)), 'field')['field']['single'] == 0
    assert measured(scene((0., 0., 0., 5.)), 'field')['field']['single'] == 0  # inside everywhere: no surface
    assert identity.eikonal_residual(torch.tensor([[3., 4, 0], [0, 0, 0]])) == 2.5


def test_specks_do_not_spoil_a_single_surface():
    ball = trimesh.creation.icosphere(3)
    speck, other = (trimesh.creation.icosphere(2, radius).apply_translation([3, 0, 0]) for radius in (0.05, 0.5))
    assert is_single_surface(ball) and is_single_surface(trimesh.util.concatenate([ball, speck]))
    assert not is_single_surface(trimesh.util.concatenate([ball, other]))
    assert not is_single_surface(None)


def test_a_field_without_sdf_has_no_eikonal_residual():
    generator = scene(SPHERE)
    renderer = VolumeRenderer(8, 32, 24, 2, 8, sdf=False, perturb=0., force_background=True)
    assert isinstance(renderer(torch.zeros(1, 8), camera_at(0.)), Rendering)
    generator.renderer = renderer
    assert all(math.isnan(value) for value in measured(generator, 'field')['field'].values())

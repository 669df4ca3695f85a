"""Cameras on the unit sphere that look at the origin: sampling for training and generation, and the video trajectories.

World frame: y up, z towards the frontal camera. Camera frame: x right, y up, looking along -z. Angles are radians
except the field of view, which is half the opening angle in degrees (so 6 means 12 degrees across).
"""
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The 13 views of --fixed_camera_angles, in units of the (azimuth, elevation) spread.
FIXED_VIEWS = ((0, 0),
               (-1.5, 0), (-1, 0), (-0.5, 0), (0.5, 0), (1, 0), (1.5, 0),
               (0, -1.5), (0, -1), (0, -0.5), (0, 0.5), (0, 1), (0, 1.5))


@dataclasses.dataclass(frozen=True)
class Cameras:
    """B pinhole cameras; `cameras[index]` takes a slice or a list of them."""
    extrinsics: Tensor  # (B,3,4) camera to world: rotation | position
    focal: Tensor       # (B,1,1) focal length in pixels of `resolution`
    near: Tensor        # (B,1,1) where samples along a ray begin, in units of the ray direction
    far: Tensor         # (B,1,1) where they end
    viewpoint: Tensor   # (B,2) azimuth, elevation

    def __getitem__(self, index):
        return Cameras(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})

    def __len__(self):
        return len(self.viewpoint)

    def magnified(self, factor):
        """The same cameras for images `factor` times as wide."""
        return dataclasses.replace(self, focal=self.focal * factor)


def cameras_at(viewpoint, resolution=64, fov=6., dist_radius=0.12):
    """Cameras at given viewpoints (docs/conventions.md, Axes and cameras).

    viewpoint: (B,2) azimuth and elevation. resolution: rays along an image side. fov: half angle in degrees, one
    number or (B,) one for each view. dist_radius: near and far lie this far before and behind the origin.
    """
    azimuth, elevation = viewpoint[:, :1], viewpoint[:, 1:]
    z = torch.cat([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], dim=1)
    up = torch.zeros_like(z)  # filled there: a copy from here would wait for the GPU's work so far
    up[:, 1] = 1.
    x = F.normalize(torch.linalg.cross(up, z), dim=1)
    y = F.normalize(torch.linalg.cross(z, x), dim=1)
    extrinsics = torch.stack([x, y, z, z], dim=2)  # the camera sits on the unit sphere: position = z

    fov = torch.as_tensor(fov, dtype=torch.float64).to('cpu').expand(len(viewpoint))
    focal = (0.5 * resolution / torch.tan(fov * math.pi / 180)).to(z, non_blocking=True).view(-1, 1, 1)
    ones = torch.ones_like(focal)
    return Cameras(extrinsics, focal, ones * (1 - dist_radius), ones * (1 + dist_radius), viewpoint)


def cameras_of(opt, viewpoint):
    """Cameras at viewpoints (B,2) as an option tree describes them, for the rays of its renderer."""
    return cameras_at(viewpoint, opt.model.renderer_spatial_output_dim, opt.camera.fov, opt.camera.dist_radius)


def sample_viewpoints(n, azim, elev, uniform=False, rng=None, device=None):
    """(n,2) random viewpoints: N(0, azim^2), N(0, elev^2), or with `uniform` U(-azim, azim), U(-elev, elev).

    All azimuths are drawn before all elevations, as the original does, so that a seed gives the same views.
    """
    def draw(spread):
        if uniform:
            return 2 * spread * torch.rand(n, 1, generator=rng, device=device) - spread
        return torch.randn(n, 1, generator=rng, device=device) * spread

    return torch.cat([draw(azim), draw(elev)], dim=1)


def azimuth_sweep(identities, azim, elev, views=8, rng=None, device=None):
    """(identities * views, 2) viewpoints for sample grids: the azimuth runs from -azim to azim for each identity,
    whose elevation is one draw from U(-elev, elev)."""
    azimuth = torch.linspace(-azim, azim, views, device=device).repeat(identities)
    elevation = 2 * elev * torch.rand(identities, generator=rng, device=device) - elev
    return torch.stack([azimuth, elevation.repeat_interleave(views)], dim=1)


def fixed_viewpoints(azim, elev, device=None):
    """(13,2) viewpoints of --fixed_camera_angles: frontal, six azimuths, six elevations."""
    return torch.tensor(FIXED_VIEWS, device=device) * torch.tensor([azim, elev], device=device)


def video_viewpoints(frames, azim, elev, uniform=False, azimuth_only=False, device=None):
    """(frames,2) viewpoints of a video: once round an ellipse, the last frame where the first was.

    azim, elev: the spread of the viewpoints that the model was trained on. The azimuth swings to +-1.5 azim, the
    elevation to +-1.5 elev; with `uniform` to +-azim, and from 0 to elev. azimuth_only: from side to side at
    elevation 0.
    """
    angle = torch.linspace(0, 2 * math.pi, frames, dtype=torch.float64)
    if uniform:
        azimuth, elevation = azim * angle.cos(), elev / 2 + elev / 2 * angle.sin()
    else:
        azimuth, elevation = 1.5 * azim * angle.cos(), 1.5 * elev * angle.sin()
    if azimuth_only:
        elevation = torch.zeros_like(angle)
    return torch.stack([azimuth, elevation], dim=1).float().to(device)


def project(points, cameras, resolution):
    """Where world points (…,3) appear in one camera: pixel coordinates (…,2) and depth (…) along the viewing direction.

    cameras: one camera, its focal length for images of `resolution`. Coordinates are (column, row), with pixel centers
    at 0.5, 1.5, …
    """
    local = (points - cameras.extrinsics[0, :, 3]) @ cameras.extrinsics[0, :, :3]
    depth = -local[..., 2]
    pixels = torch.stack([local[..., 0], -local[..., 1]], dim=-1) / depth[..., None] * cameras.focal[0, 0]
    return pixels + resolution / 2, depth

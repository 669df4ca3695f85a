"""How well views of one identity agree: one view, carried into another by the known surface, is compared with it.

The measure of flicker between the frames of a video, and of view consistency between any two poses.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from camera import Cameras, project

MAX_BACKGROUND = 0.05   # a pixel counts as surface below this probability of background
DEPTH_TOLERANCE = 0.01  # two depths agree within this share of the distance between the near and far planes


class View(NamedTuple):
    """One view: an image and the surface behind it."""
    image: Tensor    # (1,C,S,S)
    xyz: Tensor      # (1,3,h,w) surface points in the world
    background: Tensor     # (1,1,h,w) probability of background
    camera: Cameras  # one camera
    resolution: int  # that the camera's focal length is for


class Warp(NamedTuple):
    """A view carried into another one."""
    image: Tensor    # (1,C,S,S) meaningful where visible
    visible: Tensor  # (S,S) true where both views see the same point of the surface
    motion: Tensor   # (S,S) pixels between the places where the two views see it


def warp(source, target):
    """Carry the source view's image into the target view: a Warp.

    Each pixel of the target knows its surface point; the point is projected into the source, and the source's image is
    read there (bilinearly). It is visible if the source sees a surface at the same depth there.
    """
    size = target.image.shape[-1]

    def enlarged(x):
        return F.interpolate(x, size=(size, size), mode='bilinear')

    points, background = enlarged(target.xyz)[0].movedim(0, -1), enlarged(target.background)[0, 0]
    pixels, depth = project(points, source.camera.magnified(size / source.resolution), size)
    grid = (pixels / size * 2 - 1)[None]
    _, source_depth = project(source.xyz[0].movedim(0, -1), source.camera, source.resolution)
    seen = F.grid_sample(source_depth[None, None], grid, align_corners=False)[0, 0]
    tolerance = DEPTH_TOLERANCE * (source.camera.far - source.camera.near).item()
    visible = (background < MAX_BACKGROUND) & ((seen - depth).abs() < tolerance) & (grid[0].abs() < 1).all(dim=-1)
    image = F.grid_sample(source.image, grid, align_corners=False)
    center = torch.arange(size, device=pixels.device) + 0.5
    here = torch.stack(torch.meshgrid(center, center, indexing='xy'), dim=-1)
    return Warp(image, visible, (pixels - here).norm(dim=-1))


def view_difference(source, target):
    """Mean absolute difference between the target's image and the source's carried into it, where both see the surface.

    In units of the images; nan where they see nothing in common.
    """
    carried = warp(source, target)
    return (carried.image - target.image).abs().mean(dim=(0, 1))[carried.visible].mean().item()

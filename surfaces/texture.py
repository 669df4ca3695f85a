"""Textures: a picture that lies on a mesh, painted from pictures of the surface as cameras see it.

A point of the surface takes its color from the first picture where that sees it well, elsewhere from the other
pictures, by how squarely each looks at the surface, and where none sees it from the field itself. What hides a point
from a camera is found in the depths of the mesh.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from camera import project
from surfaces.atlas import lay_out
from surfaces.rasterizing import barycentric, centers, rasterize

MOST_TEXELS_A_PIXEL, DETAILED = 4, 1024  # Pictures of less than DETAILED pixels a side are enlarged, so often at most.
GRAZING, SQUARE = 0.07, 0.35 # cosines between normal and view from which a picture begins to count, and counts fully
SHARPNESS = 4              # power of that cosine by which the other pictures are blended
DEPTH_PIXELS = 512         # at least so many along a side of the depths that say what is hidden
SLACK = 2.                 # pixels of these depths by which a point may lie behind what is seen there
COLORED = 1 << 18          # texels that are painted at a time


def texels_a_pixel(size):
    """How many texels lie along a side of each pixel of pictures of size x size, where a texture shows them."""
    return max(1, min(MOST_TEXELS_A_PIXEL, DETAILED // size))


class Picture(NamedTuple):
    """What a texture is painted from."""
    image: Tensor    # (3,S,S) in [-1, 1]
    camera: object   # Cameras, one of them, with the focal length for images of S pixels


# ---------------------------------------------------------------------------------------------- painting

def smooth_step(x, low, high):
    """From 0 below `low` to 1 above `high`, smoothly."""
    x = ((x - low) / (high - low)).clamp(0, 1)
    return x * x * (3 - 2 * x)


class View:
    """A picture, and the depths of the mesh as its camera sees it."""

    def __init__(self, picture, corners):
        """corners: (F,3,3) of the mesh's triangles in the world."""
        self.image, self.camera = picture
        self.size = self.image.shape[-1]
        self.detail = max(1, math.ceil(DEPTH_PIXELS / self.size))
        side = self.detail * self.size
        places, depth = project(corners, self.camera.magnified(self.detail), side)
        _, self.depth = rasterize(places, side, side, depth)
        self.depth = self.depth.view(1, 1, side, side)

    def __call__(self, points, normals):
        """Colors (P,3) in [-1, 1] at points (P,3) with unit normals (P,3), and how well (P,) each is seen: the cosine
        between normal and view, 0 where it is hidden or outside of the picture."""
        place, depth = project(points, self.camera, self.size)
        grid = (place / self.size * 2 - 1)[None, None]
        colors = F.grid_sample(self.image[None], grid, mode='bicubic', padding_mode='border',
                               align_corners=False)[0, :, 0].T
        cosine = (F.normalize(self.camera.extrinsics[0, :, 3] - points, dim=1) * normals).sum(1).clamp(min=0)
        found = F.grid_sample(self.depth.nan_to_num(posinf=1e6), grid, mode='nearest', padding_mode='border',
                              align_corners=False)[0, 0, 0]
        pixel = depth / self.camera.focal.flatten() / self.detail
        slope = (1 - cosine ** 2).sqrt() / cosine.clamp(min=GRAZING)
        seen = (depth < found + SLACK * pixel * (1 + slope)) & (grid[0, 0].abs() <= 1).all(1) & (depth > 0)
        return colors, torch.where(seen, cosine, 0.)


def painted(points, normals, views, own):
    """Colors (P,3) in [-1, 1] of points (P,3) with unit normals (P,3). own (P,3): the field's colors there."""
    colors, cosine = views[0](points, normals)
    cover = smooth_step(cosine, GRAZING, SQUARE)[:, None]
    total, weights, best = torch.zeros_like(colors), 1e-12, torch.zeros_like(cover)
    for view in views[1:]:
        other, cosine = view(points, normals)
        well = smooth_step(cosine, GRAZING, SQUARE)[:, None]
        weight = well * cosine[:, None] ** SHARPNESS
        total, weights, best = total + weight * other, weights + weight, torch.maximum(best, well)
    beneath = torch.lerp(own, total / weights, best)
    return torch.lerp(beneath, colors, cover)


def filled(picture, known):
    """The picture (H,W,3) with the color of the nearest texel that is known (H,W) wherever none is."""
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return picture[tuple(nearest)]


def textured(mesh, colors, pictures):
    """A mesh in the world, with vertex normals, with a texture that is painted from Pictures, the first one first.

    colors: (V,3) in [0, 1], the field's own, of its vertices. Returns a copy whose vertices on cuts are there several
    times.
    """
    device, camera, side = pictures[0].image.device, pictures[0].camera, pictures[0].image.shape[-1]
    points, normals, faces = (torch.tensor(np.array(array), device=device) for array in (
        np.asarray(mesh.vertices, np.float32), np.asarray(mesh.vertex_normals, np.float32), mesh.faces))
    finer = texels_a_pixel(side)
    atlas = lay_out(faces, points, camera.magnified(finer), finer * side)
    views = [View(picture, points[faces]) for picture in pictures]
    values = points, normals, 2 * colors - 1
    places = atlas.place[torch.as_tensor(atlas.faces, device=device)]
    width, height = atlas.size
    shown = rasterize(places, width, height)
    texture = torch.zeros(width * height, 3, dtype=torch.uint8, device=device)
    for texel in (shown >= 0).nonzero()[:, 0].split(COLORED):
        triangle = shown[texel]
        weights = barycentric(places[triangle], centers(texel, width))[:, :, None]
        at, normal, own = ((value[faces[triangle]] * weights).sum(1) for value in values)
        found = painted(at, F.normalize(normal, dim=1), views, own)
        texture[texel] = ((found.clamp(-1, 1) + 1) * 127.5 + 0.5).byte()
    picture = filled(texture.view(height, width, 3).cpu().numpy(), (shown >= 0).view(height, width).cpu().numpy())
    uv = (atlas.place / torch.tensor([width, height], device=device)).cpu().numpy()
    uv[:, 1] = 1 - uv[:, 1]  # v counts from below
    cut = trimesh.Trimesh(mesh.vertices[atlas.vertex], atlas.faces, process=False,
                          vertex_normals=mesh.vertex_normals[atlas.vertex])
    cut.visual = trimesh.visual.TextureVisuals(uv=uv, material=trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(picture), metallicFactor=0., roughnessFactor=1., doubleSided=True))
    return cut

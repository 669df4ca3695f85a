"""Noise that sticks to a surface (supplement C.1)."""
import math

import numpy as np
import torch
import torch.nn.functional as F

from camera import project
from surfaces.meshes import SURFACE_RESOLUTION, volume_points

# Noise on surfaces: triangles have edges of about 1/1.5 pixel in the frontal view; the filter reaches over 4 pixels to
# each side and rolls off over 20% of the band. A point's place counts to a quarter of a pixel, and in small maps more
# finely (subpixels_of).
SUBDIVISION, FILTER_REACH, FILTER_ROLLOFF = 1.5, 4, 0.2
SUBPIXELS, MOST_SUBPIXELS, FINE_SIDE = 4, 32, 1024
FILTER_BLOCK = 64  # pixels filtered by one matrix product
SLOW = 0.5  # pixels a frame, below which noise that stands still flickers less than noise that sticks (docs/video.md)
NUMBERS_AT_MOST = 1 << 24  # noise values of a layer: a mesh of very many triangles, which are small, is divided less


def root_raised_cosine(step, reach, rolloff):
    """Samples of the root-raised-cosine pulse, `step` of them a pixel, over `reach` pixels to both sides.

    Its copies shifted by whole pixels are orthogonal (Nyquist's criterion), and it passes next to nothing of what a
    grid of pixels cannot carry. Scaled to unit energy.
    """
    t = (torch.arange(2 * reach * step, dtype=torch.float64) + 0.5) / step - reach
    pulse = (torch.sin(math.pi * t * (1 - rolloff)) + 4 * rolloff * t * torch.cos(math.pi * t * (1 + rolloff))) \
        / (math.pi * t * (1 - (4 * rolloff * t) ** 2))
    return (pulse / pulse.norm()).float()


def subpixels_of(size):
    """Into how many parts, along each side, the pixels of a layer's map are divided.

    From frame to frame a surface moves by few hundredths of the pixels of a small map. Were its noise rounded to
    quarters of them, it would jump.
    """
    return min(max(FINE_SIDE // size, SUBPIXELS), MOST_SUBPIXELS)


def filter_block(taps, pixels, step):
    """(pixels, pixels * step + len(taps) - step) matrix that filters the subpixels around a block of pixels.

    step: subpixels along a pixel's side, for which the taps are.
    """
    matrix = torch.zeros(pixels, pixels * step + len(taps) - step)
    for i in range(pixels):
        matrix[i, i * step:i * step + len(taps)] = taps
    return matrix


def filtered(subpixels, block, step):
    """(size,size) pixels from (fine,fine) subpixels, `step` a pixel, filtered along both axes with a filter_block.

    Matrix products over blocks of rows: on a CPU twice as fast as strided convolutions of one channel.
    """
    stride = len(block) * step
    pad = (block.shape[1] - stride) // 2
    for _ in range(2):  # columns, then rows
        padded = F.pad(subpixels, (0, 0, pad, pad))
        subpixels = torch.cat([block @ padded[i:i + block.shape[1]] for i in range(0, len(subpixels), stride)]).T
    return subpixels


def subdivision_weights(n):
    """(n^2,3) barycentric coordinates of the centers of the n^2 equal triangles that a triangle divides into."""
    upright = [(i + 1 / 3, j + 1 / 3) for i in range(n) for j in range(n - i)]
    inverted = [(i + 2 / 3, j + 2 / 3) for i in range(n) for j in range(n - 1 - i)]
    uv = torch.tensor(upright + inverted) / n
    return torch.cat([1 - uv.sum(dim=1, keepdim=True), uv], dim=1)


class SurfaceNoise:
    """Noise maps for the decoder that stick to a surface (paper, supplement C.1).

    Every triangle of a finely subdivided mesh owns one standard normal number a decoder layer. A view's map is the sum
    of the numbers that each pixel sees, weighted by a filter around its center and divided by the root of the summed
    squared weights. So a pixel's noise is exactly N(0, 1); the filter's shifted copies are orthogonal, so pixels are
    independent, as in training; and since it is smooth, a surface that moves by part of a pixel takes its noise along
    instead of drawing a new number for the pixel, as the nearest vertex would.
    """

    def __init__(self, corners, sizes, rng=None):
        """corners: (F,3,3) corners of the triangles in the world, counter-clockwise seen from outside. sizes: the side
        of each decoder layer's map. rng: what the numbers are drawn from, on the device of the corners."""
        self.corners = corners
        self.normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=1)
        self.sizes = sizes
        # Into how many parts the triangles' edges, about a pixel long at SURFACE_RESOLUTION, are divided.
        limit = max(1, math.isqrt(NUMBERS_AT_MOST // max(1, len(corners))))
        self.divisions = {size: min(limit, max(1, round(SUBDIVISION * size / SURFACE_RESOLUTION))) for size in sizes}
        self.numbers = [torch.randn(len(corners), self.divisions[size] ** 2, generator=rng,
                                    device=corners.device) for size in sizes]
        self.weights = {size: subdivision_weights(divisions).to(corners) for size, divisions in self.divisions.items()}
        self.filters = {}
        for size in set(sizes):
            taps = root_raised_cosine(subpixels_of(size), FILTER_REACH, FILTER_ROLLOFF)
            self.filters[size] = filter_block(taps, min(FILTER_BLOCK, size), subpixels_of(size)).to(corners)

    def maps(self, camera, resolution, fixed):
        """The layers' noise maps, a list of (1,1,h,w), for one camera whose focal length is for `resolution`.

        fixed: the maps that pixels keep where they see nothing of the mesh.
        """
        faces = self.visible_faces(camera, resolution)
        maps, seen = [], {}
        for size, numbers, background in zip(self.sizes, self.numbers, fixed, strict=True):
            if size not in seen:
                places = self._places(self.corners[faces], camera, resolution, size)
                count = self._sums(places, torch.ones_like(places, dtype=torch.float32), size)
                covered = F.max_pool2d(count[None], subpixels_of(size))[0] > 0
                energy = filtered(count, self.filters[size].square(), subpixels_of(size))
                seen[size] = places, covered, energy.clamp(min=1e-12).rsqrt()  # covered pixels have much more
            places, covered, scale = seen[size]
            sums = self._sums(places, numbers[faces].flatten(), size)
            projected = filtered(sums, self.filters[size], subpixels_of(size)) * scale
            maps.append(torch.where(covered, projected, background))
        return maps

    def visible_faces(self, camera, resolution):
        """Indices of the triangles that face the camera with nothing in front of them."""
        towards = camera.extrinsics[0, :, 3] - self.corners[:, 0]
        front = ((towards * self.normals).sum(dim=1) > 0).nonzero()[:, 0]
        cells, depth = _cells(self.corners[front].mean(dim=1), camera, resolution, SURFACE_RESOLUTION)
        nearest = depth.new_full((SURFACE_RESOLUTION ** 2 + 1,), math.inf).scatter_reduce(0, cells, depth, 'amin')
        steepness = 3 * resolution / SURFACE_RESOLUTION / camera.focal[0, 0, 0]  # 3 cells wide, at distance 1
        return front[depth < nearest[cells] + steepness]

    def _places(self, corners, camera, resolution, size):
        """The subpixel that each small triangle's center falls into."""
        points = torch.einsum('kc,fcd->fkd', self.weights[size], corners).flatten(0, 1)
        return _cells(points, camera, resolution, size * subpixels_of(size))[0]

    @staticmethod
    def _sums(places, values, size):
        """(fine,fine) sums of the values in each subpixel."""
        fine = size * subpixels_of(size)
        return values.new_zeros(fine ** 2 + 1).index_add(0, places, values)[:-1].view(fine, fine)


def _cells(points, camera, resolution, size):
    """Index (P,) of the cell of a size x size grid over the image in which each point (P,3) appears (size^2: in none),
    and its depth (P,). The camera's focal length is for `resolution`."""
    pixels, depth = project(points, camera.magnified(size / resolution), size)
    column, row = pixels.floor().long().unbind(dim=-1)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    return torch.where(inside, row * size + column, size ** 2), depth


def pixels_a_frame(cameras, resolution, size):
    """About how many pixels of a size x size image the surface moves on average from one camera to the next.

    cameras: their focal lengths are for `resolution`. The surface is taken to lie half way between the origin and the
    near plane.
    """
    positions = cameras.extrinsics[:, :, 3]
    angles = (positions[1:] - positions[:-1]).norm(dim=1)  # on the unit sphere
    depth = (cameras.far - cameras.near).flatten()[0] / 4
    return (angles.mean() * depth * cameras.focal.flatten()[0] * size / resolution).item()


def frontal_noise(mesh, renderer, camera, sizes, rng=None):
    """SurfaceNoise on the marching-cubes mesh of a camera's view.

    The mesh's own coordinates are those of a simplified box: its true place in the world comes from volume_points, else
    the noise would slide over the surface from view to view.
    """
    points, _ = volume_points(mesh.vertices, renderer, camera)
    return SurfaceNoise(points[torch.as_tensor(np.asarray(mesh.faces), device=points.device)], sizes, rng)

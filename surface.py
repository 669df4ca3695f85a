"""Surfaces from a rendered field: depth meshes, marching cubes, mesh files (paper, section 4.3 and figure 5),
pictures of a surface, and noise that sticks to it (supplement C.1).

Meshes are trimesh.Trimesh objects, oriented outward. A depth mesh lies in the world, as its view sees it. A
marching-cubes mesh lies in the frame of the camera that the SDF volume was rendered from: x right, y up, z towards
the camera, in a cube of half-width dist_radius.
"""
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from skimage.measure import marching_cubes

import sparse
from camera import project
from utils import atomic_path
from volume_renderer import sample_depths

SURFACE_RESOLUTION = 128  # rays along a side, and samples a ray, that surfaces are taken from (spec section 5)
SHADED_RESOLUTION = 512   # pixels along a side of pictures of a surface
# Those pictures' light, and how white plaster reflects it (spec section 5; the shininess is PyTorch3D's default).
LIGHT, AMBIENT, DIFFUSE, SPECULAR, SHININESS = (0., 1., 5.), 0.1, 0.65, 0.2, 64

# Noise on surfaces: a point's place counts to a quarter of a pixel; triangles have edges of about 1/1.5 pixel in the
# frontal view; the filter reaches over 4 pixels to each side and rolls off over 20% of the band.
SUBPIXELS, SUBDIVISION, FILTER_REACH, FILTER_ROLLOFF = 4, 1.5, 4, 0.2
FILTER_BLOCK = 64  # pixels filtered by one matrix product
NUMBERS_AT_MOST = 1 << 24  # for a layer: a mesh of very many triangles is divided less, which it needs less


# ---------------------------------------------------------------------------------------------- rendering for surfaces

@torch.no_grad()
def render_surface(renderer, w, cameras, *, sdf=False, dense=False):
    """Render w (B,style_dim) at the resolution of surfaces; a Rendering without colours, with the SDF if asked for.

    cameras: for the renderer's own resolution. dense: evaluate the field at every sample, instead of only where that
    changes the result (sparse.py).
    """
    cameras = cameras.magnified(SURFACE_RESOLUTION / renderer.resolution)
    wanted = {'resolution': SURFACE_RESOLUTION, 'samples': SURFACE_RESOLUTION, 'colour': False, 'sdf': sdf}
    if dense:
        return renderer(w, cameras, **wanted)

    def decisive(volume):
        return decisive_samples(volume, cameras.near[0].item(), cameras.far[0].item(),
                                sparse.SURFACE.zero * renderer.sigmoid_beta.item())

    return sparse.render(renderer, w, cameras, decisive=decisive if sdf else None, **wanted)


# ---------------------------------------------------------------------------------------------- depth mesh

def grid_faces(height, width):
    """Two triangles for each cell of a grid of height x width vertices numbered row by row: (2 (h-1) (w-1), 3).

    Counter-clockwise where x grows along the rows and y falls from row to row, as in an image.
    """
    corner = np.arange(height * width).reshape(height, width)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]
    return np.stack([np.stack([a, c, b], axis=-1), np.stack([b, c, d], axis=-1)], axis=2).reshape(-1, 3)


def depth_mesh(xyz):
    """Mesh of one view: a vertex for each pixel at its surface point, two triangles for each cell, facing the camera.

    xyz: (3,H,W) surface points in the world.
    """
    _, height, width = xyz.shape
    vertices = xyz.flatten(1).T.cpu().numpy()
    return trimesh.Trimesh(vertices, grid_faces(height, width), process=False)


# ---------------------------------------------------------------------------------------------- marching cubes

def _box_grid(height, width, samples, near, far, device):
    """(N,H,W,2) where each sample of the box lies in its depth slice of the frustum: x, y, within [-1, 1] inside.

    A slice of the box is as large as the frustum is at its far end, far/near times what it is at the first sample.
    """
    scale = torch.linspace(far / near, 1., samples, device=device)[:, None, None]
    x = torch.linspace(-1, 1, width, device=device)[None, None, :] * scale
    y = torch.linspace(-1, 1, height, device=device)[None, :, None] * scale
    return torch.stack([x.expand(-1, height, -1), y.expand(-1, -1, width)], dim=-1)


def align_volume(sdf, near, far):
    """Resample an SDF volume from the camera's frustum onto the box around it (spec section 5, Marching cubes).

    sdf: (B,H,W,N,1), its samples from near to far along each ray. Returns (B,H,W,N,1); 1 outside the frustum.
    """
    grid = _box_grid(*sdf.shape[1:4], near, far, sdf.device)
    slices = sdf[..., 0].permute(0, 3, 1, 2)  # (B,N,H,W): depth stays as it is, so each slice is a 2D resampling
    aligned = torch.stack([F.grid_sample(volume[:, None], grid, padding_mode='border', align_corners=True)[:, 0]
                           for volume in slices])
    aligned.masked_fill_((grid.abs() > 1).any(dim=-1), 1.)
    return aligned.permute(0, 2, 3, 1)[..., None]


def decisive_samples(sdf, near, far, margin):
    """(P,3) index (row, column, depth) of the samples that decide the marching-cubes mesh of an SDF volume.

    sdf: (1,H,W,N,1). They are those which align_volume mixes into a value on an edge that crosses zero, or into one
    nearer to zero than `margin`, whose side is in doubt.
    """
    _, height, width, samples, _ = sdf.shape
    aligned = align_volume(sdf, near, far)[0, ..., 0].permute(2, 0, 1)  # (N,H,W)
    wanted, inside = aligned.abs() < margin, aligned < 0
    for axis in range(3):
        before, after = slice(None, -1), slice(1, None)
        lead = (slice(None),) * axis
        crosses = inside[(*lead, before)] != inside[(*lead, after)]
        wanted[(*lead, before)] |= crosses
        wanted[(*lead, after)] |= crosses
    place = _box_grid(height, width, samples, near, far, sdf.device)[wanted]
    size = torch.tensor([width, height], device=sdf.device)
    low = ((place + 1) / 2 * (size - 1)).floor().long()
    depth = wanted.nonzero()[:, 0]
    corners = [torch.stack([low[:, 1] + dy, low[:, 0] + dx, depth], dim=1) for dy in (0, 1) for dx in (0, 1)]
    limit = torch.tensor([height - 1, width - 1, samples - 1], device=sdf.device)
    return torch.cat(corners).clamp(min=0).minimum(limit).unique(dim=0)


def marching_cubes_mesh(sdf, dist_radius):
    """Zero level of an aligned SDF volume (H,W,N,1), or None where the SDF does not cross zero.

    Vertices lie at ((index / size) - 0.5) 2 dist_radius along each axis, y and z flipped.
    """
    volume = sdf[..., 0].transpose(0, 1).float().cpu().numpy()  # (W,H,N): x, y, z
    if not (volume.min() < 0 < volume.max()):
        return None
    indices, faces, _, _ = marching_cubes(volume, 0)
    vertices = (indices / volume.shape - 0.5) * (2 * dist_radius) * (1, -1, -1)
    return trimesh.Trimesh(vertices, faces, process=False)


def surface_mesh(sdf, camera):
    """Marching-cubes mesh (or None) of a rendered SDF volume (1,H,W,N,1) seen from one camera."""
    near, far = camera.near.item(), camera.far.item()
    return marching_cubes_mesh(align_volume(sdf, near, far)[0], (far - near) / 2)


def volume_points(vertices, renderer, camera, size=SURFACE_RESOLUTION):
    """World points (P,3) of marching-cubes vertices (P,3), and their rays' unit directions in the camera frame (P,3).

    The mesh's own coordinates are a simplification (its box is not quite the frustum), so the way there is undone.
    camera: the one that `renderer` rendered the volume from, for the renderer's own resolution. size: the volume's.
    """
    device = camera.focal.device
    near, far = camera.near.item(), camera.far.item()
    depths = sample_depths(camera.near, camera.far, size, offset_sampling=renderer.offset_sampling)[0, 0]
    vertices = torch.as_tensor(np.asarray(vertices), dtype=torch.float32, device=device)
    index = (vertices * torch.tensor([1., -1., -1.], device=device) / (far - near) + 0.5) * size
    position = index / (size - 1)  # 0 at the first sample of an axis, 1 at the last
    scale = torch.lerp(torch.tensor(far / near, device=device), torch.tensor(1., device=device), position[:, 2:])
    pixel = ((position[:, :2] * 2 - 1) * scale + 1) / 2 * (size - 1)
    focal = camera.focal[0, 0] * (size / renderer.resolution)
    offset = (pixel + 0.5 - size / 2) / focal
    local = torch.stack([offset[:, 0], -offset[:, 1], -torch.ones_like(offset[:, 0])], dim=1)
    t = torch.lerp(depths[0], depths[-1], position[:, 2:])
    rotation, origin = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    return origin + local @ rotation.T * t, F.normalize(local, dim=1)


# ---------------------------------------------------------------------------------------------- pictures of a surface

def grid_normals(xyz):
    """Unit normals (3,H,W) of a depth mesh's vertices (3,H,W): the sum of their faces' normals, weighted by area."""
    a, b, c, d = xyz[:, :-1, :-1], xyz[:, :-1, 1:], xyz[:, 1:, :-1], xyz[:, 1:, 1:]  # the two faces of grid_faces
    upper, lower = torch.linalg.cross(c - a, b - a, dim=0), torch.linalg.cross(c - b, d - b, dim=0)
    normals = torch.zeros_like(xyz)
    normals[:, :-1, :-1] += upper
    normals[:, :-1, 1:] += upper + lower
    normals[:, 1:, :-1] += upper + lower
    normals[:, 1:, 1:] += lower
    return F.normalize(normals, dim=0)


def phong(points, normals, eye):
    """Phong's reflection (…) in [0, 1] at points (3,…) with unit normals (3,…), seen from `eye` (3,).

    A white surface in the light of the videos (Phong 1975; constants above).
    """
    def towards(position):
        return F.normalize(position.view(3, *[1] * (points.dim() - 1)) - points, dim=0)

    to_light = towards(torch.tensor(LIGHT).to(points, non_blocking=True))
    cosine = (normals * to_light).sum(0)
    mirrored = 2 * cosine * normals - to_light
    highlight = (mirrored * towards(eye)).sum(0).clamp(min=0) * (cosine > 0)
    return (AMBIENT + DIFFUSE * cosine.clamp(min=0) + SPECULAR * highlight ** SHININESS).clamp(max=1)


def draw_surface(xyz, mask, camera, style='phong', size=SHADED_RESOLUTION):
    """Picture (3,size,size) in [-1, 1] of one view's depth mesh from its own camera (1 of them).

    xyz (3,H,W), mask (1,H,W): the view's surface points and probability of background. The mesh's vertices are the
    pixels' own points, so no rasteriser is needed: points and normals are interpolated between pixel centres.

    style: 'phong', plaster on white with the background's sheet, as the original draws it; 'normals', as colours (x
    right, y up, z to the camera: red, green, blue) on white; 'depth', from white at the near plane to black at the far
    one. The last two leave out the background.
    """
    def enlarged(x):
        return F.interpolate(x[None], size=(size, size), mode='bilinear')[0]

    points, normals, mask = enlarged(xyz), F.normalize(enlarged(grid_normals(xyz)), dim=0), enlarged(mask)
    rotation, eye = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    if style == 'phong':
        # The mesh ends at the centres of the outermost pixels: beyond them there is nothing to see.
        place = (torch.arange(size, device=xyz.device) + 0.5) / size * len(xyz[0]) - 0.5
        inside = (place >= 0) & (place <= len(xyz[0]) - 1)
        picture = torch.where(inside & inside[:, None], phong(points, normals, eye), 1.)[None]
    elif style == 'normals':
        local = torch.einsum('ij,ihw->jhw', rotation, normals)
        picture = torch.lerp((local + 1) / 2, torch.ones_like(local), mask)
    else:
        depth = torch.einsum('i,ihw->hw', rotation[:, 2], eye[:, None, None] - points)
        picture = ((camera.far - depth) / (camera.far - camera.near)).clamp(0, 1) * (1 - mask)
    return 2 * picture.expand(3, -1, -1) - 1


# ---------------------------------------------------------------------------------------------- noise on a surface

def root_raised_cosine(step, reach, rolloff):
    """Samples of the root-raised-cosine pulse, `step` of them a pixel, over `reach` pixels to both sides.

    Its copies shifted by whole pixels are orthogonal (Nyquist's criterion), and it passes next to nothing of what a
    grid of pixels cannot carry. Scaled to unit energy.
    """
    t = (torch.arange(2 * reach * step, dtype=torch.float64) + 0.5) / step - reach
    pulse = (torch.sin(math.pi * t * (1 - rolloff)) + 4 * rolloff * t * torch.cos(math.pi * t * (1 + rolloff))) \
        / (math.pi * t * (1 - (4 * rolloff * t) ** 2))
    return (pulse / pulse.norm()).float()


def filter_block(taps, pixels):
    """(pixels, pixels * step + len(taps) - step) matrix that filters the subpixels around a block of pixels."""
    step = SUBPIXELS
    matrix = torch.zeros(pixels, pixels * step + len(taps) - step)
    for i in range(pixels):
        matrix[i, i * step:i * step + len(taps)] = taps
    return matrix


def filtered(subpixels, block):
    """(size,size) pixels from (fine,fine) subpixels, filtered along both axes with a filter_block.

    Matrix products over blocks of rows: on a CPU twice as fast as strided convolutions of one channel.
    """
    step = len(block) * SUBPIXELS
    pad = (block.shape[1] - step) // 2
    for _ in range(2):  # columns, then rows
        padded = F.pad(subpixels, (0, 0, pad, pad))
        subpixels = torch.cat([block @ padded[i:i + block.shape[1]] for i in range(0, len(subpixels), step)]).T
    return subpixels


def subdivision_weights(n):
    """(n^2,3) barycentric coordinates of the centres of the n^2 equal triangles that a triangle divides into."""
    upright = [(i + 1 / 3, j + 1 / 3) for i in range(n) for j in range(n - i)]
    inverted = [(i + 2 / 3, j + 2 / 3) for i in range(n) for j in range(n - 1 - i)]
    uv = torch.tensor(upright + inverted) / n
    return torch.cat([1 - uv.sum(dim=1, keepdim=True), uv], dim=1)


class SurfaceNoise:
    """Noise maps for the decoder that stick to a surface (paper, supplement C.1).

    Every triangle of a finely subdivided mesh owns one standard normal number a decoder layer. A view's map is the sum
    of the numbers that each pixel sees, weighted by a filter around its centre and divided by the root of the summed
    squared weights. So a pixel's noise is exactly N(0, 1); the filter's shifted copies are orthogonal, so pixels are
    independent, as in training; and since it is smooth, a surface that moves by part of a pixel takes its noise along
    instead of drawing a new number for the pixel, as the nearest vertex would.
    """

    def __init__(self, corners, sizes, generator=None):
        """corners: (F,3,3) corners of the triangles in the world, counter-clockwise seen from outside. sizes: the side
        of each decoder layer's map. generator: what the numbers are drawn from, on the device of the corners."""
        self.corners = corners
        self.normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=1)
        self.sizes = sizes
        # Into how many parts the triangles' edges, about a pixel long at SURFACE_RESOLUTION, are divided.
        most = max(1, math.isqrt(NUMBERS_AT_MOST // max(1, len(corners))))
        self.divisions = {size: min(most, max(1, round(SUBDIVISION * size / SURFACE_RESOLUTION))) for size in sizes}
        self.numbers = [torch.randn(len(corners), self.divisions[size] ** 2, generator=generator,
                                    device=corners.device) for size in sizes]
        self.weights = {size: subdivision_weights(divisions).to(corners) for size, divisions in self.divisions.items()}
        taps = root_raised_cosine(SUBPIXELS, FILTER_REACH, FILTER_ROLLOFF)
        self.filters = {size: filter_block(taps, min(FILTER_BLOCK, size)).to(corners) for size in set(sizes)}

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
                covered = F.max_pool2d(count[None], SUBPIXELS)[0] > 0
                energy = filtered(count, self.filters[size].square())
                seen[size] = places, covered, energy.clamp(min=1e-12).rsqrt()  # covered pixels have much more
            places, covered, scale = seen[size]
            projected = filtered(self._sums(places, numbers[faces].flatten(), size), self.filters[size]) * scale
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
        """The subpixel that each small triangle's centre falls into."""
        points = torch.einsum('kc,fcd->fkd', self.weights[size], corners).flatten(0, 1)
        return _cells(points, camera, resolution, size * SUBPIXELS)[0]

    @staticmethod
    def _sums(places, values, size):
        """(fine,fine) sums of the values in each subpixel."""
        fine = size * SUBPIXELS
        return values.new_zeros(fine ** 2 + 1).index_add(0, places, values)[:-1].view(fine, fine)


def _cells(points, camera, resolution, size):
    """Index (P,) of the cell of a size x size grid over the image in which each point (P,3) appears (size^2: in none),
    and its depth (P,). The camera's focal length is for `resolution`."""
    pixels, depth = project(points, camera.magnified(size / resolution), size)
    column, row = pixels.floor().long().unbind(dim=-1)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    return torch.where(inside, row * size + column, size ** 2), depth


def frontal_noise(mesh, renderer, camera, sizes, generator=None):
    """SurfaceNoise on the marching-cubes mesh of a camera's view.

    The mesh's own coordinates are those of a simplified box: its true place in the world comes from volume_points, else
    the noise would slide over the surface from view to view.
    """
    points, _ = volume_points(mesh.vertices, renderer, camera)
    return SurfaceNoise(points[torch.as_tensor(np.asarray(mesh.faces), device=points.device)], sizes, generator)


# ---------------------------------------------------------------------------------------------- colours and files

@torch.no_grad()
def colour_vertices(mesh, renderer, w, camera, points, viewdirs):
    """Give a mesh the field's own colours at points (P,3), the world positions of its vertices, seen along viewdirs.

    viewdirs: (P,3) unit vectors. camera: one camera, for the scale of the points.
    """
    colours = renderer.colour_at(w, points, viewdirs, camera)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=(colours * 255).round().byte().cpu().numpy())
    return mesh


def srgb_to_linear(colours):
    """Light intensities in [0, 1] from sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light):
    """The inverse of srgb_to_linear."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def for_gltf(mesh, **material):
    """A copy of a mesh as glTF, and viewers that are built on it, show it right.

    Its vertex colours are linear there (glTF 2.0, section 3.7.2.1), not sRGB as in other files; in 8 bits the darkest
    become a little coarse. Without a material it would be a metal's (section 5.19): it gets a matte one. material: more
    of trimesh's PBRMaterial.
    """
    visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(
        metallicFactor=0., roughnessFactor=1., **material))
    if mesh.visual.kind == 'vertex':
        colours = mesh.visual.vertex_colors.copy()
        colours[:, :3] = np.rint(255 * srgb_to_linear(colours[:, :3] / 255))
        visual.vertex_attributes['color'] = colours
    mesh = mesh.copy(include_cache=True)  # normals that were given are in it
    mesh.visual = visual
    return mesh


def save_mesh(path, mesh):
    """Write a mesh atomically in the format of the path's suffix (.obj, .ply, .glb)."""
    with atomic_path(path) as temporary:
        if temporary.suffix == '.obj':
            mesh.export(temporary, include_normals=False, include_texture=False, header=None)
        elif temporary.suffix == '.glb':
            for_gltf(mesh).export(temporary)
        else:
            mesh.export(temporary)


def load_mesh(path):
    """The mesh in a file, its vertices in the file's order; vertex colours are sRGB, as save_mesh took them."""
    # Beside a material trimesh would drop them.
    mesh = trimesh.load_mesh(path, process=False, maintain_order=True, skip_materials=True)
    if Path(path).suffix == '.glb' and mesh.visual.kind == 'vertex':
        colours = mesh.visual.vertex_colors.copy()
        colours[:, :3] = np.rint(255 * linear_to_srgb(colours[:, :3] / 255))
        mesh.visual.vertex_colors = colours
    return mesh

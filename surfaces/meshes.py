"""Depth meshes and marching cubes (paper, section 4.3 and figure 5).

Meshes are trimesh.Trimesh objects, oriented outward. A depth mesh lies in the world, as its view sees it. A
marching-cubes mesh lies in the frame of the camera that the SDF volume was rendered from: x right, y up, z towards
the camera, in a cube of half-width dist_radius.
"""
import functools

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from skimage.measure import marching_cubes

from volume_renderer import sample_depths

VERTEX_DEVIATION = 2.5e-6  # by which a vertex may be off, in the world, as a standard deviation
SURE = 6                 # so many deviations from zero, a value has its side for sure
SLAB_SAMPLES = 1 << 23    # of an SDF volume that become a mesh at a time
SAME_VERTEX = 2 ** -12    # samples: vertices of neighboring slabs that are nearer to each other are one
SURFACE_RESOLUTION = 128  # rays along a side, and samples a ray, that surfaces are taken from (docs/conventions.md)


def grid_faces(height, width):
    """Two triangles for each cell of a grid of height x width vertices numbered row by row: (2 (h-1) (w-1), 3).

    Counter-clockwise where x grows along the rows and y falls from row to row, as in an image.
    """
    corner = np.arange(height * width).reshape(height, width)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]
    return np.stack([np.stack([a, c, b], axis=-1), np.stack([b, c, d], axis=-1)], axis=2).reshape(-1, 3)


def depth_mesh(xyz, surface=None):
    """Mesh of one view: a vertex for each pixel at its surface point, two triangles for each cell, facing the camera.

    xyz: (3,H,W) surface points in the world. surface: (H,W) which of them the mesh is to have, if not all: then of the
    triangles those between such points, and no other vertices.
    """
    _, height, width = xyz.shape
    vertices, faces = xyz.flatten(1).T.cpu().numpy(), grid_faces(height, width)
    if surface is not None:
        faces = faces[surface.flatten().cpu().numpy()[faces].all(1)]
        kept, faces = np.unique(faces, return_inverse=True)
        vertices, faces = vertices[kept], faces.reshape(-1, 3)
    return trimesh.Trimesh(vertices, faces, process=False)


# ---------------------------------------------------------------------------------------------- marching cubes

def _box_grid(height, width, samples, near, far, device, slices=slice(None)):
    """(N,H,W,2) where each sample of the box lies in its depth slice of the frustum: x, y, within [-1, 1] inside.

    A slice of the box is as large as the frustum is at its far end, far/near times what it is at the first sample.
    slices: which of the N slices of depth.
    """
    scale = torch.linspace(far / near, 1., samples, device=device)[slices, None, None]
    x = torch.linspace(-1, 1, width, device=device)[None, None, :] * scale
    y = torch.linspace(-1, 1, height, device=device)[None, :, None] * scale
    return torch.stack([x.expand(-1, height, -1), y.expand(-1, -1, width)], dim=-1)


def align_volume(sdf, near, far, slices=slice(None)):
    """Resample an SDF volume from the camera's frustum onto the box around it (docs/conventions.md, Meshes).

    sdf: (B,H,W,N,1), its samples from near to far along each ray. slices: which of the N slices of depth to return.
    Returns (B,H,W,N,1); 1 outside the frustum.
    """
    grid = _box_grid(*sdf.shape[1:4], near, far, sdf.device, slices)
    volumes = sdf[..., 0].permute(0, 3, 1, 2)[:, slices]  # (B,N,H,W): depth stays, so each slice is a 2D resampling
    aligned = torch.stack([F.grid_sample(volume[:, None], grid, padding_mode='border', align_corners=True)[:, 0]
                           for volume in volumes])
    aligned.masked_fill_((grid.abs() > 1).any(dim=-1), 1.)
    return aligned.permute(0, 2, 3, 1)[..., None]


@functools.lru_cache(maxsize=4)
def _resampling(size, samples, near, far, device):
    """What align_volume does along one axis: (N,size,size) matrices from the frustum's samples to the box's, (N,size)
    where the box's lie outside of the frustum, and (N,size) the first of the two samples that each is mixed of."""
    place = _box_grid(1, size, samples, near, far, 'cpu')[:, 0, :, 0]  # (N,size)
    position = ((place + 1) / 2 * (size - 1)).clamp(0, size - 1)
    low = position.floor().clamp(max=size - 2)
    matrix = torch.zeros(samples, size, size).scatter_(2, low.long()[..., None], (1 - position + low)[..., None])
    matrix.scatter_(2, low.long()[..., None] + 1, (position - low)[..., None])
    return matrix.to(device), (place.abs() > 1).to(device), low.long().to(device)


def decisive_samples(sdf, deviation, near, far, margin):
    """(P,3) index (row, column, depth) of the samples that the marching-cubes mesh of an SDF volume must know exactly.

    sdf, deviation: (1,H,W,N,1) distances, and how far off they may be, as standard deviations. A sample is needed if
    its deviation could change the side of one of align_volume's values that it is mixed into, or could move a vertex on
    an edge at that value by more than VERTEX_DEVIATION. Values that are farther from zero than `margin` keep their
    side.
    """
    _, height, width, samples, _ = sdf.shape
    slices = _slices_where(sdf[0, ..., 0] < margin)  # all values of the others are positive
    (rows, above, top), (columns, beside, left) = (
        [tensor[slices] for tensor in _resampling(size, samples, near, far, sdf.device)] for size in (height, width))
    by_depth = sdf[0, ..., slices, 0].permute(2, 0, 1).contiguous()  # so the products take a third of the time
    aligned = rows @ by_depth @ columns.mT  # align_volume's values but for rounding
    aligned.masked_fill_(above[:, :, None] | beside[:, None, :], 1.)
    inside, needed = aligned < 0, aligned.abs() < margin  # (N,H,W), as aligned
    for axis, size in enumerate(aligned.shape):
        cut = inside.narrow(axis, 0, size - 1) ^ inside.narrow(axis, 1, size - 1)
        for end in (0, 1):
            needed.narrow(axis, end, size - 1).logical_or_(cut)
    at = needed.nonzero()
    limit = _limits(aligned, at, (far - near) / samples)
    depth, down, right = at.T
    corner = (top[depth, down] * width + left[depth, right]) * samples + depth + slices.start
    corners = torch.stack([corner, corner + samples, corner + samples * width, corner + samples * (width + 1)])
    found = corners[deviation.flatten()[corners] > limit].unique()
    return torch.stack([found // (width * samples), found // samples % width, found % samples], dim=1)


def _slices_where(mask):
    """The slice of the depths of a mask (H,W,N) from the first to the last that has a true sample, and one beside them
    at each end."""
    depths = mask.flatten(0, 1).any(0).nonzero()[:, 0].tolist() or [0]
    return slice(max(0, depths[0] - 1), depths[-1] + 2)


def _limits(aligned, at, step):
    """How far off (P,) the values at (P,3) of an aligned volume (N,H,W) may be for their side to be sure, and for the
    vertices on the edges to their neighbors to be right. step: between samples, in the world."""
    flat, place = aligned.flatten(), (at * torch.tensor(aligned.stride(), device=at.device)).sum(1)
    value = flat[place]
    limit = value.abs() / SURE
    for axis, (size, stride) in enumerate(zip(aligned.shape, aligned.stride(), strict=True)):
        for toward in (-1, 1):
            other = flat[place + (at[:, axis] + toward).clamp(0, size - 1).sub_(at[:, axis]).mul_(stride)]
            steepness = (value - other).abs_().mul_(VERTEX_DEVIATION / step)
            limit = limit.where((value < 0) == (other < 0), limit.minimum(steepness))
    return limit


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
    """Marching-cubes mesh of a rendered SDF volume (1,H,W,N,1) seen from one camera; None where the SDF does not cross
    zero.

    That is asked of the samples themselves: aligned to the box, an SDF that is negative throughout would get walls,
    since outside of the frustum it counts as positive.
    """
    if not sdf.min() < 0 < sdf.max():
        return None
    near, far = camera.near.item(), camera.far.item()
    if sdf.numel() > SLAB_SAMPLES:
        return mesh_in_slabs(sdf, near, far)
    return marching_cubes_mesh(align_volume(sdf, near, far)[0], (far - near) / 2)


def mesh_in_slabs(sdf, near, far):
    """What marching_cubes_mesh makes of an aligned SDF volume (1,H,W,N,1), from a few slices of depth at a time, so
    that memory does not grow with their number. Neighboring slabs share a slice, and the vertices on it."""
    _, height, width, samples, _ = sdf.shape
    step = max(1, SLAB_SAMPLES // (height * width))
    corners, faces, count = [], [], 0
    for start in range(0, samples - 1, step):
        aligned = align_volume(sdf, near, far, slice(start, start + step + 1))
        volume = aligned[0, ..., 0].transpose(0, 1).float().cpu().numpy()
        if volume.min() < 0 < volume.max():
            indices, triangles, _, _ = marching_cubes(volume, 0)
            corners.append(indices + [0, 0, start])
            faces.append(triangles + count)
            count += len(indices)
    if not count:
        return None
    indices, faces = np.concatenate(corners), np.concatenate(faces)
    shared = np.flatnonzero((indices[:, 2] % step == 0) & (indices[:, 2] > 0))
    _, first, same = np.unique(np.rint(indices[shared] / SAME_VERTEX).astype(np.int64), axis=0, return_index=True,
                               return_inverse=True)
    number = np.arange(len(indices))
    number[shared] = shared[first][same.reshape(-1)]
    kept, faces = np.unique(number[faces], return_inverse=True)
    vertices = (indices[kept] / (width, height, samples) - 0.5) * (far - near) * (1, -1, -1)
    return trimesh.Trimesh(vertices, faces.reshape(-1, 3), process=False)


def largest_piece(mesh):
    """The piece of a mesh that has the largest area, of those whose triangles hang together."""
    labels = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    largest = np.bincount(labels, weights=mesh.area_faces).argmax()
    kept = mesh.faces[labels == largest]
    vertices, faces = np.unique(kept, return_inverse=True)
    return trimesh.Trimesh(mesh.vertices[vertices], faces.reshape(-1, 3), process=False)


def decimated(mesh, triangles):
    """The mesh with at most about so many triangles (quadric error decimation: Garland and Heckbert 1997)."""
    if len(mesh.faces) <= triangles:
        return mesh
    reduced = mesh.simplify_quadric_decimation(face_count=triangles)
    return trimesh.Trimesh(reduced.vertices, reduced.faces, process=False)


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

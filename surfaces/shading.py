"""Pictures of a surface."""

import torch
import torch.nn.functional as F

SHADED_RESOLUTION = 512   # pixels along a side of pictures of a surface
# Those pictures' light, and how white plaster reflects it (docs/conventions.md; the shininess is PyTorch3D's default).
LIGHT, AMBIENT, DIFFUSE, SPECULAR, SHININESS = (0., 1., 5.), 0.1, 0.65, 0.2, 64


def unit(vectors):
    """The vectors (3,…) at length 1. F.normalize takes 30 times as long along the first of several axes on a CPU."""
    return vectors / vectors.square().sum(0).sqrt_().clamp_(min=1e-12)


def grid_normals(xyz):
    """Unit normals (3,H,W) of a depth mesh's vertices (3,H,W): the sum of their faces' normals, weighted by area."""
    a, b, c, d = xyz[:, :-1, :-1], xyz[:, :-1, 1:], xyz[:, 1:, :-1], xyz[:, 1:, 1:]  # the two faces of grid_faces
    upper, lower = torch.linalg.cross(c - a, b - a, dim=0), torch.linalg.cross(c - b, d - b, dim=0)
    normals = torch.zeros_like(xyz)
    normals[:, :-1, :-1] += upper
    normals[:, :-1, 1:] += upper + lower
    normals[:, 1:, :-1] += upper + lower
    normals[:, 1:, 1:] += lower
    return unit(normals)


def phong(points, normals, eye):
    """Phong's reflection (…) in [0, 1] at points (3,…) with unit normals (3,…), seen from `eye` (3,).

    A white surface in the light of the videos (Phong 1975; constants above).
    """
    def towards(position):
        return unit(position.view(3, *[1] * (points.dim() - 1)) - points)

    to_light = towards(torch.tensor(LIGHT).to(points, non_blocking=True))
    cosine = (normals * to_light).sum(0)
    mirrored = 2 * cosine * normals - to_light
    highlight = (mirrored * towards(eye)).sum(0).clamp(min=0) * (cosine > 0)
    return (AMBIENT + DIFFUSE * cosine.clamp(min=0) + SPECULAR * highlight ** SHININESS).clamp(max=1)


def shade_surface(xyz, background, camera, style='phong', size=SHADED_RESOLUTION, framed=True):
    """Picture (3,size,size) in [-1, 1] of one view's depth mesh from its own camera (1 of them).

    xyz (3,H,W), background (1,H,W): the view's surface points and probability of background. The mesh's vertices are
    the pixels' own points, so no rasterizer is needed: points and normals are interpolated between pixel centers.

    style: 'phong', plaster on white with the background's sheet, as the original draws it; 'normals', as colors (x
    right, y up, z to the camera: red, green, blue) on white; 'depth', from white at the near plane to black at the far
    one. The last two leave out the background.

    framed: the mesh ends at the centers of the outermost pixels, which leaves a thin white frame around phong, as the
    original has it; without the frame the picture goes on to its edge.
    """
    def enlarged(x):
        return F.interpolate(x[None], size=(size, size), mode='bilinear')[0]

    points, normals = enlarged(xyz), unit(enlarged(grid_normals(xyz)))
    background = enlarged(background)
    rotation, eye = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    if style == 'phong':
        picture = phong(points, normals, eye)[None]
        if framed:
            place = (torch.arange(size, device=xyz.device) + 0.5) / size * len(xyz[0]) - 0.5
            inside = (place >= 0) & (place <= len(xyz[0]) - 1)
            picture = torch.where(inside & inside[:, None], picture, 1.)
    elif style == 'normals':
        local = torch.einsum('ij,ihw->jhw', rotation, normals)
        picture = torch.lerp((local + 1) / 2, torch.ones_like(local), background)
    else:
        depth = torch.einsum('i,ihw->hw', rotation[:, 2], eye[:, None, None] - points)
        picture = ((camera.far - depth) / (camera.far - camera.near)).clamp(0, 1) * (1 - background)
    return 2 * picture.expand(3, -1, -1) - 1

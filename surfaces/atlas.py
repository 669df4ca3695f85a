"""Where the triangles of a mesh lie on its texture.

Most of them lie there as a camera sees them: on the first sheet those that the camera of the picture sees squarely, so
that the texture shows the picture itself there, pixel for pixel; on five more sheets those that are seen from behind
and from the four sides. What none of them sees, as the inside of an ear, xatlas flattens. The sheets lie side by side.
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from camera import project
from surfaces.rasterizing import rasterize
from utils import UserError

# Axes of the sheets in the frame of the camera: right, up, and towards the one who looks.
SIDES = torch.tensor([[[-1., 0, 0], [0, 1, 0], [0, 0, -1]],   # from behind
                      [[0, 0, -1.], [0, 1, 0], [1, 0, 0]],    # from the right
                      [[0, 0, 1.], [0, 1, 0], [-1, 0, 0]],    # from the left
                      [[1., 0, 0], [0, 0, -1], [0, 1, 0]],    # from above
                      [[1., 0, 0], [0, 0, 1], [0, -1, 0]]])   # from below
SIDES_DENSITY = 0.5    # texels along a side of a texel of the first sheet
FRONT_BONUS = 1.5      # A triangle lies on the first sheet although another sees it more squarely, up to this factor.
LEAST_COSINE = 0.15    # A sheet holds no triangle that it sees at a smaller cosine.
MARGIN = 3             # texels around a sheet
SLACK = 1.5            # texels by which a triangle may lie behind what is seen of a sheet


class Atlas(NamedTuple):
    """A layout of a mesh on a texture. Vertices on cuts are there several times."""
    vertex: np.ndarray   # (V,) the number that each vertex has in the mesh
    faces: np.ndarray    # (F,3)
    place: Tensor        # (V,2) column and row of each on the texture, in texels
    size: tuple          # (width, height) of the texture


class Sheet(NamedTuple):
    """Triangles of a mesh laid flat."""
    faces: Tensor        # (K,) their numbers
    places: Tensor       # (K,3,2) of their corners, in texels


def check_xatlas():
    """Raise UserError where xatlas is missing."""
    try:
        import xatlas  # noqa: F401
    except ImportError:
        raise UserError('--texture needs xatlas; install it by: pip install -r requirements-texture.txt') from None


def seen_faces(places, depth, step):
    """Which triangles (F,) a sheet shows, of those with corners at places (F,3,2), in texels, and depths (F,3).

    step: how deep a texel is. The middle of a triangle decides.
    """
    low = places.amin((0, 1)).floor()
    width, height = (places.amax((0, 1)).ceil() - low).long().tolist()
    places = places - low
    _, nearest = rasterize(places, width, height, depth)
    column, row = places.mean(1).long().unbind(1)
    flatness = (depth.amax(1) - depth.amin(1)) / 2
    return depth.mean(1) <= nearest[(row * width + column).clamp(0, len(nearest) - 1)] + flatness + SLACK * step


def sheets_of(corners, camera, size):
    """The Sheets of triangles with corners (F,3,3) in the world, and the numbers of those that lie on none.

    camera: of the picture, one, with the focal length for `size` texels a side. The first sheet has the picture's own
    coordinates.
    """
    rotation, position = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=1)
    flat, normals = (normals == 0).all(1), F.normalize(normals, dim=1)
    density = camera.focal.flatten() / position.norm()
    places, depth = project(corners, camera, size)
    cosine = (F.normalize(position - corners.mean(1), dim=1) * normals).sum(1)
    views = [(places, torch.where(seen_faces(places, depth, 1 / density), FRONT_BONUS * cosine, 0.))]
    for axes in SIDES.to(corners):
        local = (corners - position) @ rotation @ axes.T
        places = local[..., :2] * torch.tensor([1., -1.], device=corners.device) * density * SIDES_DENSITY
        cosine = normals @ rotation @ axes[2]
        depth = 4 - local[..., 2]  # positive, since the surface is within 2 of the camera
        views.append((places, torch.where(seen_faces(places, depth, 1 / density / SIDES_DENSITY), cosine, 0.)))
    score, choice = torch.stack([score for _, score in views]).max(0)
    choice[score < LEAST_COSINE] = len(views)
    choice[flat] = 0  # triangles without area, which nobody sees
    sheets = []
    for number, (places, _) in enumerate(views):
        chosen = (choice == number).nonzero()[:, 0]
        if len(chosen):
            sheets.append(Sheet(chosen, places[chosen]))
    return sheets, (choice == len(views)).nonzero()[:, 0]


def flattened(corners, faces, texels):
    """The Sheet of triangles `faces` (K,) with corners (K,3,3) that xatlas makes of them. texels: for a unit of the
    world."""
    import xatlas

    vertices, index = np.unique(corners.flatten(0, 1).cpu().numpy(), axis=0, return_inverse=True)
    atlas, packing = xatlas.Atlas(), xatlas.PackOptions()
    atlas.add_mesh(vertices, index.reshape(-1, 3).astype(np.uint32))
    packing.texels_per_unit, packing.padding, packing.create_image = texels, MARGIN, False
    atlas.generate(xatlas.ChartOptions(), packing)
    _, triangles, uv = atlas[0]
    places = torch.as_tensor(np.nan_to_num(uv) * np.array([atlas.width, atlas.height], np.float32)).to(corners)
    return Sheet(faces, places[torch.as_tensor(triangles.astype(np.int64)).to(faces)])


def packed(sheets):
    """The Sheets moved beside each other, by whole texels, and the (width, height) of the texture that holds them."""
    lows = [(sheet.places.amin((0, 1)).floor() - MARGIN) for sheet in sheets]
    sizes = [(sheet.places.amax((0, 1)).ceil() + MARGIN - low).long().tolist()
             for sheet, low in zip(sheets, lows, strict=True)]
    widest = max(width for width, _ in sizes)
    room = max(widest, int(sum(width * height for width, height in sizes) ** 0.5 * 1.1))
    moved, used, column, row, shelf = [None] * len(sheets), 0, 0, 0, 0
    for i in sorted(range(len(sheets)), key=lambda i: -sizes[i][1]):  # shelves, the highest sheets first
        if column + sizes[i][0] > room:
            column, row, shelf = 0, row + shelf, 0
        corner = torch.tensor([column, row], device=lows[i].device)
        moved[i] = sheets[i]._replace(places=sheets[i].places - lows[i] + corner)
        column, shelf, used = column + sizes[i][0], max(shelf, sizes[i][1]), max(used, column + sizes[i][0])
    return moved, (used, row + shelf)


def lay_out(faces, points, camera, size):
    """The Atlas of triangles `faces` (F,3) of points (V,3) in the world; camera, size: as for sheets_of.

    The triangles keep their order.
    """
    corners = points[faces]
    sheets, rest = sheets_of(corners, camera, size)
    if len(rest):
        density = (camera.focal.flatten() / camera.extrinsics[0, :, 3].norm()).item() * SIDES_DENSITY
        sheets.append(flattened(corners[rest], rest, density))
    sheets, texture = packed(sheets)
    place = torch.zeros(len(faces), 3, 2, device=points.device)
    number = torch.zeros(len(faces), dtype=torch.long, device=points.device)
    for i, sheet in enumerate(sheets):
        place[sheet.faces], number[sheet.faces] = sheet.places, i
    # A corner on the same place of the same sheet is one vertex.
    keys = torch.cat([faces.flatten()[:, None], number.repeat_interleave(3)[:, None],
                      (place * 64).round().long().flatten(0, 1)], dim=1)
    _, first, index = np.unique(keys.cpu().numpy(), axis=0, return_index=True, return_inverse=True)
    first = torch.as_tensor(first).to(faces)
    return Atlas(faces.flatten()[first].cpu().numpy(), index.reshape(-1, 3), place.flatten(0, 1)[first], texture)

"""Which triangle each pixel of a grid shows: for pictures of a mesh, and for textures, whose pixels lie on triangles.

Pixels are numbered row by row. Places on the grid are (column, row), with pixel centers at 0.5, 1.5, …
"""
import torch

CANDIDATES = 1 << 21  # pairs of a pixel and a triangle that are tried at a time: what bounds the memory
TOUCHING = 1e-4       # A pixel center that lies outside of a triangle by so little, in barycentric terms, is inside.


def signed_area(a, b, c):
    """Twice the area (…) of triangles with corners (…,2), by which side c lies on as seen from a to b."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def barycentric(corners, places):
    """(P,3) barycentric coordinates of places (P,2) in triangles with corners (P,3,2); nan in those without area."""
    a, b, c = corners.unbind(dim=1)
    weights = torch.stack([signed_area(b, c, places), signed_area(c, a, places), signed_area(a, b, places)], dim=1)
    return weights / signed_area(a, b, c)[:, None]


def candidates(corners, width, height):
    """Yield (triangle (P,), pixel (P,)) of all pixels in the boxes around triangles (F,3,2), so many at a time."""
    limit = torch.tensor([width - 1, height - 1], device=corners.device)
    first = (corners.amin(1) - 0.5).ceil().clamp(min=0).minimum(limit + 1).long()
    last = (corners.amax(1) - 0.5).floor().clamp(min=-1).minimum(limit).long()
    sides = (last - first + 1).clamp(min=0)
    ends = sides.prod(1).cumsum(0)
    start, count = 0, len(corners)
    while start < count:
        done = ends[start - 1] if start else ends.new_zeros(())
        stop = max(start + 1, torch.searchsorted(ends, done + CANDIDATES, right=True).item())
        triangle = torch.arange(start, stop, device=corners.device).repeat_interleave(sides[start:stop].prod(1))
        number = torch.arange(len(triangle), device=corners.device) + done - (ends - sides.prod(1))[triangle]
        width_of = sides[triangle, 0]
        column, row = first[triangle, 0] + number % width_of, first[triangle, 1] + number // width_of
        yield triangle, row * width + column
        start = stop


def centers(pixels, width):
    """(P,2) the places of pixels (P,)."""
    return torch.stack([pixels % width + 0.5, pixels // width + 0.5], dim=1)


def rasterize(corners, width, height, depth=None):
    """(height * width,) the triangle that each pixel shows, of those with corners (F,3,2) on the grid; -1: none.

    depth: (F,3) of the corners, where the triangles are seen by a camera: then the nearest is shown (and those that
    reach behind the camera are left out), and a second tensor returned, (height * width,) the depth of each pixel, inf
    where there is none. Without it, where triangles lie on each other, which they should not, any of them is shown.
    """
    shown = torch.full((width * height,), -1, device=corners.device)
    nearest = torch.full((width * height,), torch.inf, device=corners.device)
    for triangle, pixel in candidates(corners, width, height):
        weights = barycentric(corners[triangle], centers(pixel, width))
        inside = (weights >= -TOUCHING).all(1)
        if depth is not None:
            inside &= (depth[triangle] > 0).all(1)
        triangle, pixel = triangle[inside], pixel[inside]
        if depth is None:
            shown[pixel] = triangle
            continue
        far = 1 / (weights[inside] / depth[triangle]).sum(1)  # it is the inverse of the depth that is linear
        nearest.scatter_reduce_(0, pixel, far, 'amin')
        seen = far == nearest[pixel]
        shown[pixel[seen]] = triangle[seen]
    return shown if depth is None else (shown, nearest)

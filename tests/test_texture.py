"""Painted textures: a picture's colors where it sees the surface, elsewhere those of others, or of the field."""
import numpy as np
import pytest
import torch
import trimesh

from camera import cameras_at
from surfaces.texture import Picture, View, filled, painted, textured
from volume_renderer import camera_directions

SIZE = 64
RED, GREEN, BLUE = (torch.tensor(color) for color in ([1., -1, -1], [-1., 1, -1], [-1., -1, 1]))


def picture(azimuth, color):
    """A Picture of one color (3,), or of a pattern, from an azimuth."""
    return Picture(color.view(3, 1, 1).expand(3, SIZE, SIZE) if color.dim() == 1 else color,
                   cameras_at(torch.tensor([[azimuth, 0.]]), SIZE))


def wall_behind_ball():
    """Corners of the triangles of a wall at z = -0.05, and of a ball in front of its middle."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.03)
    wall = trimesh.Trimesh([[-.1, -.1, -.05], [.1, -.1, -.05], [.1, .1, -.05], [-.1, .1, -.05]], [[0, 1, 2], [0, 2, 3]])
    return torch.tensor(trimesh.util.concatenate([ball, wall]).triangles).float()


def test_what_is_hidden_from_one_picture_comes_from_another_or_from_the_field():
    corners = wall_behind_ball()
    views = [View(picture(azimuth, color), corners) for azimuth, color in ((0., RED), (0.9, GREEN), (-0.9, GREEN))]
    points = torch.tensor([[0, 0, .03],         # the ball's front: red
                           [0, 0, -.05],        # the wall right behind it: hidden from the front, seen from the sides
                           [-.08, 0, -.05],     # the wall beside it
                           [0, 0, -.03]])       # the ball's back: nobody sees it
    normals = torch.tensor([[0, 0, 1.], [0, 0, 1], [0, 0, 1], [0, 0, -1]])
    expected = torch.stack([RED, GREEN, RED, BLUE])
    assert torch.allclose(painted(points, normals, views, BLUE.expand(4, 3)), expected, atol=1e-3)
    alone = painted(points, normals, views[:1], BLUE.expand(4, 3))
    assert torch.allclose(alone, torch.stack([RED, BLUE, RED, BLUE]), atol=1e-3)


def test_other_pictures_are_blended_by_how_squarely_they_look():
    corners = wall_behind_ball()
    views = [View(picture(azimuth, color), corners) for azimuth, color in ((3., RED), (0.7, GREEN), (-0.3, BLUE))]
    found = painted(torch.tensor([[0.08, 0, -.05]]), torch.tensor([[0, 0, 1.]]), views, RED[None])
    toward = torch.nn.functional.normalize(torch.tensor(
        [[np.sin(a) - 0.08, 0, np.cos(a) + 0.05] for a in (0.7, -0.3)]), dim=1)[:, 2].float()
    share = toward ** 4 / (toward ** 4).sum()
    assert torch.allclose(found[0], share[0] * GREEN + share[1] * BLUE, atol=1e-2)


def test_outside_of_a_picture_is_not_seen():
    view = View(picture(0., RED), torch.tensor([[[-1., -1, 0], [1, -1, 0], [0, 1, 0]]]))
    _, cosine = view(torch.tensor([[0.05, 0, 0.], [0.2, 0, 0]]), torch.tensor([[0., 0, 1]] * 2))
    assert cosine[0] > 0.99 and cosine[1] == 0


def test_unknown_texels_take_the_nearest_color():
    texture = np.zeros((4, 6, 3), np.uint8)
    texture[1, 1], texture[2, 4] = 50, 200
    known = texture[..., 0] > 0
    assert filled(texture, known)[0, 0, 0] == 50 and filled(texture, known)[3, 5, 0] == 200


def test_a_textured_ball_looks_like_the_picture_and_has_smooth_normals():
    pytest.importorskip('xatlas', reason='needs xatlas (requirements-texture.txt)')
    pattern = torch.sin(torch.arange(SIZE) / 3).view(1, -1, 1) * torch.sin(torch.arange(SIZE) / 4 + 1).view(1, 1, -1)
    front = picture(0.3, pattern.expand(3, -1, -1) * torch.tensor([0.9, 0.5, -0.7]).view(3, 1, 1))
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.07)
    ball = trimesh.Trimesh(ball.vertices, ball.faces, process=False, vertex_normals=ball.vertices / 0.07)
    mesh = textured(ball, torch.full((len(ball.vertices), 3), 0.5), [front])
    assert np.allclose(mesh.vertex_normals, mesh.vertices / 0.07, atol=1e-4)
    rays = camera_directions(SIZE, front.camera.focal)[0] @ front.camera.extrinsics[0, :, :3].T
    origin = front.camera.extrinsics[0, :, 3]
    nearest = -(rays @ origin) / (rays ** 2).sum(1)
    offset = (origin + nearest[:, None] * rays).norm(dim=1)
    hit = offset < 0.063  # well inside of the outline
    depth = nearest - ((0.07 ** 2 - offset ** 2).clamp(min=0) / (rays ** 2).sum(1)).sqrt()
    points = (origin + depth[:, None] * rays)[hit].numpy()
    _, _, triangle = trimesh.proximity.closest_point_naive(mesh, points[::7])
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[triangle], points[::7])
    uv = (mesh.visual.uv[mesh.faces[triangle]] * weights[:, :, None]).sum(1)
    texture = np.asarray(mesh.visual.material.baseColorTexture)
    column, row = (uv * [1, -1] + [0, 1]).T * [[texture.shape[1]], [texture.shape[0]]]
    shown = texture[row.astype(int), column.astype(int)].astype(float)
    expected = (front.image.numpy()[:, hit.view(SIZE, SIZE).numpy()].T[::7] + 1) * 127.5
    assert np.abs(shown - expected).mean() < 4 and len(shown) > 100

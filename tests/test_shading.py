"""Pictures of surfaces: against an analytic sphere, and against the same mesh ray-cast by Embree."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from camera import cameras_at
from surfaces.meshes import depth_mesh
from surfaces.shading import shade_surface
from volume_renderer import camera_directions


def sphere_view(radius=0.09, resolution=128):
    """Depth map of an analytic sphere before a far plane: (camera, xyz (3,H,W), mask (1,H,W), normals (H,W,3))."""
    camera = cameras_at(torch.tensor([[0.3, 0.1]]), resolution)
    directions = (camera_directions(resolution, camera.focal)[0] @ camera.extrinsics[0, :, :3].T).double()
    origin = camera.extrinsics[0, :, 3].double()
    along, length = directions @ origin, directions.square().sum(1)
    root = along.square() - length * (1 - radius ** 2)
    t = torch.where(root > 0, (-along - root.clamp(min=0).sqrt()) / length, 1.12)
    points = (origin + directions * t[:, None]).view(resolution, resolution, 3)
    mask = (root <= 0).view(1, resolution, resolution).float()
    return camera, points.movedim(-1, 0).float(), mask, (points / radius)


def test_drawn_surfaces_of_a_sphere():
    camera, xyz, mask, normals = sphere_view()
    covered = F.max_pool2d(mask[None], 9, 1, 4)[0, 0] == 0  # away from the silhouette
    points = xyz.movedim(0, -1).double()
    rotation, eye = camera.extrinsics[0, :, :3].double(), camera.extrinsics[0, :, 3].double()

    light = F.normalize(torch.tensor([0., 1., 5.]).double() - points, dim=-1)
    cosine = (light * normals).sum(-1, keepdim=True)
    mirrored = 2 * cosine * normals - light
    highlight = (mirrored * F.normalize(eye - points, dim=-1)).sum(-1).clamp(min=0) ** 64
    cosine = cosine[..., 0]
    expected = {'phong': (0.1 + 0.65 * cosine.clamp(min=0) + 0.2 * highlight * (cosine > 0)).expand(3, -1, -1),
                'normals': ((normals @ rotation + 1) / 2).movedim(-1, 0),
                'depth': ((1.12 - (eye - points) @ rotation[:, 2]) / 0.24).expand(3, -1, -1)}
    background = {'phong': None, 'normals': 1., 'depth': 0.}
    for style, picture in expected.items():
        drawn = (shade_surface(xyz, mask, camera, style, size=128) + 1) / 2  # at the pixels' own centers
        error = (drawn - picture)[:, covered].abs()
        assert error.max() < (0.02 if style != 'depth' else 1e-4) and error.mean() < 2e-3, style
        if background[style] is not None:
            assert torch.allclose(drawn[:, 0, 0], torch.tensor(background[style]))
        assert shade_surface(xyz, mask, camera, style).shape == (3, 512, 512)


def test_drawing_equals_ray_casting_the_mesh(head_views):
    """The same mesh through Embree: area-weighted vertex normals, interpolated at the hits of a 512 x 512 image."""
    pytest.importorskip('embreex', reason='needs embreex (requirements-test.txt)')
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
    camera, surface = head_views['cameras'][1], head_views['surfaces'][1]
    mesh = depth_mesh(surface.xyz[0])
    corners = mesh.vertices[mesh.faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(mesh.vertices)
    np.add.at(normals, mesh.faces.reshape(-1), np.repeat(areas, 3, axis=0))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)

    scene = EmbreeScene()
    TriangleMesh(scene, corners.astype(np.float32))
    eye = camera.extrinsics[0, :, 3].numpy()
    rays = (camera_directions(512, camera.magnified(8).focal)[0] @ camera.extrinsics[0, :, :3].T).numpy()
    hits = scene.run(np.tile(eye, (len(rays), 1)), rays, output=True)
    hit, weights = hits['primID'] >= 0, np.stack([1 - hits['u'] - hits['v'], hits['u'], hits['v']], axis=1)
    faces = mesh.faces[hits['primID'][hit]]
    points = np.einsum('pk,pkd->pd', weights[hit], mesh.vertices[faces])
    normal = np.einsum('pk,pkd->pd', weights[hit], normals[faces])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    light = unit(np.array([0, 1, 5]) - points)
    cosine = (light * normal).sum(1)
    mirrored = 2 * cosine[:, None] * normal - light
    highlight = np.maximum((mirrored * unit(eye - points)).sum(1), 0) ** 64 * (cosine > 0)
    expected = np.ones(len(rays))
    expected[hit] = 0.1 + 0.65 * np.maximum(cosine, 0) + 0.2 * highlight

    drawn = ((shade_surface(surface.xyz[0], surface.background[0], camera) + 1) / 2)[0].numpy()
    error = 255 * np.abs(drawn - expected.reshape(512, 512))
    assert ((drawn == 1) == ~hit.reshape(512, 512)).mean() > 0.999  # the edge of the mesh
    assert error[hit.reshape(512, 512)].mean() < 0.2 and np.quantile(error, 0.999) < 5


def test_without_its_frame_the_picture_goes_on_to_the_edge():
    camera, xyz, background, _ = sphere_view()
    framed, whole = (shade_surface(xyz, background, camera, framed=framed) for framed in (True, False))
    assert (framed[:, 0] == 1).all() and (whole[:, 0] < 1).all()
    assert torch.equal(framed[:, 2:-2, 2:-2], whole[:, 2:-2, 2:-2])

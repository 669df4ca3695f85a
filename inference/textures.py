"""The textured mesh of one identity: its surface, wearing its pictures."""
import numpy as np
import torch
import trimesh

from camera import cameras_of, video_viewpoints
from inference.latents import render_latents
from surfaces.atlas import check_xatlas
from surfaces.meshes import volume_points
from surfaces.rendering import normals_at
from surfaces.texture import Picture, textured
from utils import UserError


def check_texture(opt):
    """Raise UserError for flags that contradict --texture, or where it needs what is not installed."""
    if 'texture_views' in opt.given and not opt.inference.texture:
        raise UserError('--texture_views belongs to --texture; add that flag, or leave this one out.')
    if not opt.inference.texture:
        return
    if opt.inference.no_surface_renderings:
        raise UserError('--texture makes a mesh, and --no_surface_renderings none; use one of them.')
    check_xatlas()


def views_for_texture(opt, cameras):
    """The Cameras that a texture is painted from: the first ones of the identity's own, and where these are fewer than
    --texture_views, more once round the ellipse of videos."""
    count = opt.inference.texture_views
    own, more = cameras[:count], count - len(cameras)
    if more <= 0:
        return own, None
    viewpoints = video_viewpoints(more + 1, opt.camera.azim, opt.camera.elev, opt.camera.uniform)[:-1]
    return own, cameras_of(opt, viewpoints.to(cameras.viewpoint))


@torch.no_grad()
def texture_pictures(generator, latents, cameras, shown, opt, noise='fixed'):
    """The Pictures that --texture is painted from: those of the identity's views, as they are shown, and more.

    shown: the uint8 pictures (S,S,3 or 4) of all its cameras. noise: of the further pictures, as for Generator.noise;
    it draws nothing, so that the next identity stays as it is.
    """
    if not opt.inference.texture:
        return []
    own, others = views_for_texture(opt, cameras)
    device, size = latents.w.device, len(shown[0])
    images = [torch.tensor(picture[..., :3], device=device).movedim(-1, 0) / 127.5 - 1 for picture in shown[:len(own)]]
    cameras = [own[i:i + 1] for i in range(len(own))]
    for i in range(len(others) if others else 0):
        cameras.append(others[i:i + 1])
        images.append(render_latents(generator, latents, cameras[-1], noise)[0][0].clamp(-1, 1))
    return [Picture(image, camera.magnified(size / generator.renderer.resolution))
            for image, camera in zip(images, cameras, strict=True)]


@torch.no_grad()
def textured_mesh(mesh, renderer, w, camera, size, pictures):
    """The marching-cubes mesh of w (1,style_dim) as `camera` sees it, moved into the world, with the field's normals
    and a texture painted from Pictures. size: of the volume that the mesh is of."""
    points, viewdirs = volume_points(mesh.vertices, renderer, camera, size)
    normals, colors = normals_at(renderer, w, points, camera), renderer.color_at(w, points, viewdirs, camera)
    # Where the field is rough, its slope may point anywhere.
    usual = torch.as_tensor(np.array(mesh.vertex_normals), dtype=points.dtype, device=points.device)
    usual = usual @ camera.extrinsics[0, :, :3].T
    normals = torch.where((normals * usual).sum(1, keepdim=True) > 0, normals, usual)
    world = trimesh.Trimesh(points.cpu().numpy(), mesh.faces, process=False, vertex_normals=normals.cpu().numpy())
    return textured(world, colors, pictures)

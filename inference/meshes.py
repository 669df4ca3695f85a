"""The meshes of one identity: depth meshes of its views, and marching-cubes meshes."""
import numpy as np
import torch
import torch.nn.functional as F

from camera import cameras_of
from inference.textures import textured_mesh
from surfaces.files import color_vertices
from surfaces.matting import OPAQUE
from surfaces.meshes import decimated, depth_mesh, largest_piece, surface_mesh, volume_points
from surfaces.rendering import render_surface


def resolution_of(opt):
    """Rays along a side of surfaces, and samples a ray: those of --surface_resolution, or None for the usual number."""
    return opt.inference.surface_resolution if 'surface_resolution' in opt.given else None


def chosen_detail(mesh, opt):
    """A marching-cubes mesh, or None, with as many pieces and triangles as --single_surface and --decimate ask for."""
    if mesh is not None and opt.inference.single_surface:
        mesh = largest_piece(mesh)
    return decimated(mesh, opt.inference.decimate) if mesh is not None and opt.inference.decimate else mesh


def generate_meshes(generator, w, cameras, opt, pictures=()):
    """Yield (kind of results.MESHES, index of the view, mesh) of the identity w (1,style_dim), truncated: the depth
    mesh of each view, and of the first one the marching-cubes mesh, which is None where the SDF does not cross zero.
    With --transparent depth meshes have no background, and are None where nothing is left.

    pictures: Pictures that this mesh is painted from, for one with a texture.
    """
    renderer = generator.renderer
    for i in range(len(cameras)):
        camera = cameras[i:i + 1]
        surface = render_surface(renderer, w, camera, sdf=i == 0 and renderer.has_sdf,
                                 resolution=resolution_of(opt))
        mesh = depth_mesh(surface.xyz[0], surface.background[0, 0] < 1 - OPAQUE if opt.inference.transparent else None)
        if opt.inference.vertex_colors and len(mesh.faces):
            points = torch.tensor(np.array(mesh.vertices), dtype=w.dtype, device=w.device)
            directions = F.normalize(points - camera.extrinsics[0, :, 3], dim=1)
            viewdirs = directions @ camera.extrinsics[0, :, :3]  # static view directions are in the camera frame
            color_vertices(mesh, renderer, w, camera, points, viewdirs)
        yield 'depth_mesh', i, mesh if len(mesh.faces) else None
        if surface.sdf is not None:
            mesh, size = chosen_detail(surface_mesh(surface.sdf, camera), opt), surface.sdf.shape[1]
            if mesh is not None and opt.inference.vertex_colors:
                color_vertices(mesh, renderer, w, camera, *volume_points(mesh.vertices, renderer, camera, size))
            yield 'marching_cubes_mesh', i, mesh
            if mesh is not None and pictures:
                yield 'textured_mesh', i, textured_mesh(mesh, renderer, w, camera, size, pictures)


def frontal_mesh(generator, w, opt):
    """(marching-cubes mesh, camera) of the frontal view of w (1,style_dim); the mesh is None where the SDF does not
    cross zero."""
    camera = cameras_of(opt, torch.zeros(1, 2, device=w.device))
    sdf = render_surface(generator.renderer, w, camera, sdf=True).sdf
    return surface_mesh(sdf, camera), camera

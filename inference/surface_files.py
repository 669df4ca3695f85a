"""The surfaces of one identity as files: meshes, maps, and the cameras that they are seen by."""
from tqdm import tqdm

from inference import results
from inference.maps import check_maps, generate_maps, map_facts
from inference.meshes import generate_meshes
from inference.textures import check_texture, texture_pictures
from surfaces.camera_files import camera_entries, save_cameras
from surfaces.files import save_mesh
from surfaces.maps import save_map
from surfaces.textured_files import save_textured_glb, save_textured_obj

__all__ = ['check_surfaces', 'map_facts', 'write_surfaces']


def check_surfaces(opt):
    """Raise UserError for flags of textures and maps that contradict others, or need what is not installed."""
    check_texture(opt)
    check_maps(opt)


def write_meshes(folder, identity, meshes, cameras, suffix, progress, later):
    """Write an identity's meshes, as generate_meshes yields them.

    cameras: camera_entries of the views. suffix: the meshes' format. progress: called with a text. later: a
    BackgroundWriter. Returns the files' names.
    """
    name, files = identity.short_name, []
    for kind, view, mesh in meshes:
        view_name = cameras[view]['name']
        progress(f'{kind} {view_name}')
        if mesh is None:
            tqdm.write(f'identity {name}: ' + (
                f'view {view_name} shows only background; no depth mesh.' if kind == 'depth_mesh' else
                f'the SDF does not cross zero in view {view_name}; no marching-cubes mesh.'))
            continue
        if kind == 'textured_mesh':
            glb, obj, mtl, png = (results.mesh_file(name, kind, view_name, suffix)
                                  for suffix in ('glb', 'obj', 'mtl', 'png'))
            later(save_textured_glb, folder / glb, mesh, cameras)
            later(save_textured_obj, folder / obj, mesh)
            files += [glb, obj, mtl, png]
            continue
        files.append(results.mesh_file(name, kind, view_name, suffix))
        later(save_mesh, folder / files[-1], mesh)
    return files


def write_maps(folder, identity, maps, facts, view_names, progress, later):
    """Write an identity's maps, as generate_maps yields them. facts: of map_facts. Returns the files' names."""
    files = []
    for kind, view, values in maps:
        progress(f'{kind} map {view_names[view]}')
        files.append(results.map_file(identity.long_name, kind, view_names[view], facts['format']))
        later(save_map, folder / files[-1], values, *facts['ranges'][kind])
    return files


def write_surfaces(folder, identity, generator, latents, cameras, shown, noise, facts, opt, progress, later):
    """Write the meshes, maps and cameras of an identity's Latents, as the flags ask for them.

    shown: its uint8 pictures (S,S,3), which a texture is painted from. noise: of the decoder, in more of these; as for
    Generator.noise. facts: of map_facts. The rest as for write_meshes. Returns the files' names.
    """
    names, files = results.view_names(cameras.viewpoint.tolist()), []
    entries = camera_entries(cameras, names, len(shown[0]), generator.renderer.resolution)
    if opt.inference.texture or opt.inference.maps:
        files.append(results.cameras_file(identity.long_name))
        later(save_cameras, folder / files[-1], entries)
    if not opt.inference.no_surface_renderings:
        pictures = texture_pictures(generator, latents, cameras, shown, opt, noise)
        meshes = generate_meshes(generator, latents.w, cameras, opt, pictures)
        files += write_meshes(folder, identity, meshes, entries, opt.inference.mesh_format, progress, later)
    maps = generate_maps(generator, latents.w, cameras, opt) if opt.inference.maps else ()
    return files + write_maps(folder, identity, maps, facts, names, progress, later)

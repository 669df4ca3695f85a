"""Generate images, thumbnails and meshes from a trained model.

    python generate_shapes_and_images.py --expname cats_demo --identities 4 --num_views_per_id 2

Writes under RESULTS_DIR/EXPNAME/MODEL/{random_angles|fixed_angles|chosen_angles}: images/, depth_map_meshes/,
marching_cubes_meshes/ and index.json, which lists what was made from which seed, view and checkpoint; with --page also
RESULTS_DIR/EXPNAME/MODEL/index.html, which shows all of the model's results in a browser. --save_latents adds latents/,
files that --latents takes instead of seeds.
"""
import options

if __name__ == '__main__':
    options.run('generate_shapes_and_images', __doc__)

import time
from functools import partial

import torch
from tqdm import tqdm

from camera import cameras_of
from checkpoint import file_hash
from inference import results
from inference.background import BackgroundWriter
from inference.camera_paths import warn_beyond_training
from inference.identities import (
    check_identities,
    draw_latents,
    draw_viewpoints,
    files_for,
    identities,
    identity_count,
    seeded,
)
from inference.latents import Owner, save_latents, tuned_generator
from inference.loading import load_generator
from inference.maps import check_maps, generate_maps, map_facts
from inference.meshes import generate_meshes
from inference.pictures import check_row, generate_images, proportioned
from inference.textures import check_texture, texture_pictures
from surfaces.camera_files import camera_entries, save_cameras
from surfaces.files import save_mesh
from surfaces.maps import save_map
from surfaces.textured_files import save_textured_glb, save_textured_obj
from utils import UserError, save_image_row, select_device, to_uint8, writable_folder
from web.results_page import write_page


def check_views(opt):
    """Raise UserError for flags that contradict --views; say where these lie beyond the training's."""
    if not opt.inference.views:
        return
    for name in ('fixed_camera_angles', 'num_views_per_id'):
        if name in opt.given:
            raise UserError(f'--views and --{name} both say which views to render; use one of them.')
    warn_beyond_training(opt, torch.deg2rad(torch.tensor(opt.inference.views)), '--views')


def report_missing_parts(generator, path, opt):
    """Say what a model without decoder or without SDF leaves out."""
    if not generator.full_pipeline:
        print(f'{path} has no decoder: thumbnails and surfaces only.')
    if not opt.inference.no_surface_renderings and not generator.renderer.has_sdf:
        print(f'{path} has no SDF: depth meshes, but no marching-cubes meshes'
              f'{" and no textured ones" if opt.inference.texture else ""}.')


def write_pictures(folder, identity, batches, views, shaped, progress, later):
    """Write an identity's rows of images and thumbnails, from the batches of generate_images of so many views.

    shaped: gives a picture its proportions in the file. progress: called with a text. later: a BackgroundWriter.
    Returns the files' names, and the uint8 images (S,S,3), or thumbnails where there is no decoder.
    """
    rows = {kind: [] for kind in results.PICTURES}
    for image, thumbnail in batches:
        rows['thumbnail'].extend(to_uint8(thumbnail))
        rows['image'].extend(to_uint8(image) if image is not None else ())
        progress(f'view {len(rows["thumbnail"])} of {views}')
    files = {results.picture_file(identity.long_name, kind): row for kind, row in rows.items() if row}
    for file, row in files.items():
        later(save_image_row, folder / file, [shaped(picture) for picture in row])
    return list(files), rows['image'] or rows['thumbnail']


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


def write_surfaces(folder, identity, generator, w, cameras, size, pictures, facts, opt, progress, later):
    """Write the meshes, maps and cameras of an identity w (1,style_dim), as the flags ask for them.

    size: of its images. pictures: that a texture is painted from. facts: of map_facts. Returns the files' names.
    """
    names, files = results.view_names(cameras.viewpoint.tolist()), []
    entries = camera_entries(cameras, names, size, generator.renderer.resolution)
    if opt.inference.texture or opt.inference.maps:
        files.append(results.cameras_file(identity.long_name))
        later(save_cameras, folder / files[-1], entries)
    if not opt.inference.no_surface_renderings:
        meshes = generate_meshes(generator, w, cameras, opt, pictures)
        files += write_meshes(folder, identity, meshes, entries, opt.inference.mesh_format, progress, later)
    maps = generate_maps(generator, w, cameras, opt) if opt.inference.maps else ()
    return files + write_maps(folder, identity, maps, facts, names, progress, later)


def index_entry(identity, viewpoints, files, model, maps, opt):
    """What index.json says about one identity. maps: map_facts."""
    entry = {'seed': identity.seed, 'checkpoint': model, 'truncation_ratio': opt.inference.truncation_ratio,
             'truncation_mean': {'draws': opt.inference.truncation_mean, 'seed': opt.experiment.seed},
             'fov': opt.camera.fov, 'dist_radius': opt.camera.dist_radius, 'precision': opt.machine.precision,
             'views': [{'azim': azim, 'elev': elev} for azim, elev in viewpoints.tolist()], 'files': files}
    entry |= {'maps': maps} if opt.inference.maps else {}
    return entry | ({'latents': identity.saved.hash} if identity.saved else {})


def show_progress(bar, name, text):
    """Show beside the progress bar what is being made of an identity."""
    bar.set_postfix_str(f'{name}: {text}')


def kept_of(saved):
    """What latents that come from a file have beside w and w', as arguments of save_latents."""
    return {'noise': saved.noise, 'tuned': saved.tuned} if saved else {}


def source_of(identity, opt):
    """Where an identity's latents come from, in words."""
    if identity.saved:
        return identity.saved.source
    return f'{identity.short_name}, seed {identity.seed}, truncation {opt.inference.truncation_ratio:g}'


def main(opt):
    check_identities(opt)
    device = select_device(opt.machine.device)
    generator, opt, path, model_name = load_generator(opt, device, graphs=not opt.inference.latents)
    check_row(opt)
    check_views(opt)
    check_texture(opt)
    check_maps(opt)
    shaped = proportioned(opt)
    folder = writable_folder(results.generation_folder(opt, model_name), '--results_dir')
    results.read_index(folder)  # an unusable one is noticed before the work
    saved, directions = files_for(opt, generator, results.model_folder(opt, model_name))
    owner = Owner.of(generator, opt) if opt.inference.save_latents else None
    model = {'file': str(path), 'sha256': file_hash(path)}
    report_missing_parts(generator, path, opt)

    rng = seeded(opt.experiment.seed, device)
    means = generator.mean_latents(opt.inference.truncation_mean, rng)
    facts, image_seconds, mesh_seconds = map_facts(generator, opt), 0., 0.
    count = identity_count(opt, saved)
    with BackgroundWriter() as later, \
            tqdm(identities(opt, rng, saved), total=count, unit='identity', desc='generating') as bar:
        for identity in bar:
            started, progress = time.perf_counter(), partial(show_progress, bar, identity.short_name)
            latents = draw_latents(generator, identity, opt, means, directions)
            viewpoints = draw_viewpoints(opt, identity.rng, identity.saved)
            cameras = cameras_of(opt, viewpoints)
            tuned, noise = generator, None
            if identity.saved and generator.full_pipeline:
                tuned = tuned_generator(generator, identity.saved.tuned)
                noise = generator.noise(identity.saved.decoder_noise, 1)
            batches = generate_images(tuned, latents, cameras, opt, identity.rng, noise)
            files, shown = write_pictures(folder, identity, batches, len(cameras), shaped, progress, later)
            if owner:
                files.append(results.latents_file(identity.long_name))
                save_latents(folder / files[-1], latents, owner, viewpoints, source=source_of(identity, opt),
                             **kept_of(identity.saved))
            pictured = time.perf_counter()
            pictures = texture_pictures(tuned, latents, cameras, shown, opt, noise or 'fixed')
            files += write_surfaces(folder, identity, generator, latents.w, cameras, len(shown[0]), pictures, facts,
                                    opt, progress, later)
            image_seconds += pictured - started
            mesh_seconds += time.perf_counter() - pictured
            later(results.add_to_index, folder, identity.long_name,
                  index_entry(identity, viewpoints, files, model, facts, opt))
    print(f'{count} {"identity" if count == 1 else "identities"} in {folder}: '
          f'{(image_seconds + mesh_seconds) / count:.1f} s each '
          f'({image_seconds / count:.1f} s images, {mesh_seconds / count:.1f} s surfaces)')
    if opt.inference.page:
        print(f'Page: {write_page(folder.parent)}')

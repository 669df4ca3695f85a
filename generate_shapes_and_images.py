"""Generate images, thumbnails and meshes from a trained model.

    python generate_shapes_and_images.py --expname ffhq1024x1024 --identities 4 --num_views_per_id 2

Writes under RESULTS_DIR/EXPNAME/MODEL/{random_angles|fixed_angles}: images/, depth_map_meshes/,
marching_cubes_meshes/ and index.json, which lists what was made from which seed, view and checkpoint; with --page also
RESULTS_DIR/EXPNAME/MODEL/index.html, a page to look at.
"""
import interrupts  # noqa: F401

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import options
from camera import cameras_at, fixed_viewpoints, sample_viewpoints
from checkpoint import file_hash, load_generator
from surfaces.files import color_vertices, save_mesh
from surfaces.meshes import depth_mesh, surface_mesh, volume_points
from surfaces.rendering import render_surface
from utils import UserError, atomic_path, run_command, save_image_row, select_device, to_uint8, writable_folder

# The original draws noise for at most this many views at a time; the same seed must draw the same.
VIEWS_PER_DRAW = 8
# Pixels of decoded images at a time, so that memory does not grow with the views.
PIXELS_AT_ONCE = {'cpu': 1 << 20, 'cuda': 1 << 23}
ROW_PIXELS = 1 << 17  # width of a row of pictures: few programs open a wider one


class Identity(NamedTuple):
    """One identity to generate, and the names of its files."""
    image: str                    # images/{image}.png
    sample: str                   # depth_map_meshes/sample_{sample}_…
    seed: int
    rng: torch.Generator


def identities(opt, random):
    """The identities that the flags ask for: of --seeds, each with a generator of its own, else of one stream."""
    if opt.inference.seeds is None:
        for i in range(opt.inference.identities):
            yield Identity(f'{i:07d}', f'{i}', opt.experiment.seed, random)
    else:
        for seed in opt.inference.seeds:
            own = torch.Generator(random.device).manual_seed(seed)
            yield Identity(f'seed{seed:07d}', f'seed{seed}', seed, own)


def draw_viewpoints(opt, random):
    """(views,2) viewpoints of one identity."""
    if opt.inference.fixed_camera_angles:
        return fixed_viewpoints(opt.camera.azim, opt.camera.elev, random.device)
    return sample_viewpoints(opt.inference.num_views_per_id, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                             random, random.device)


def view_names(viewpoints):
    """A name for each view, azim{a}_elev{e} in whole degrees; views that would share one are numbered."""
    names = []
    for azimuth, elevation in viewpoints.tolist():
        name = f'azim{int(math.degrees(azimuth))}_elev{int(math.degrees(elevation))}'
        names.append(name if name not in names else f'{name}_view{len(names)}')
    return names


def check_row(opt):
    """Raise UserError for more views than a row of pictures holds, which bounds the memory that it takes."""
    most = ROW_PIXELS // opt.model.size
    if not opt.inference.fixed_camera_angles and opt.inference.num_views_per_id > most:
        raise UserError(f'--num_views_per_id {opt.inference.num_views_per_id}: a row of pictures of {opt.model.size} '
                        f'pixels holds at most {most}; ask for fewer views, or use --seeds and several runs.')


@torch.no_grad()
def generate_images(generator, z, cameras, opt, means, random):
    """Yield (image, thumbnail) batches in [-1, 1] of one identity; image is None for a field without decoder."""
    for first in range(0, len(cameras), VIEWS_PER_DRAW):
        views = cameras[first:first + VIEWS_PER_DRAW]
        noise, at_once = None, len(views)
        if generator.full_pipeline:
            noise = generator.decoder.random_noise(len(views), random)
            budget = PIXELS_AT_ONCE.get(z.device.type, PIXELS_AT_ONCE['cuda'])
            at_once = max(1, budget // opt.model.size ** 2)
        for start in range(0, len(views), at_once):
            part = slice(start, start + at_once)
            generated = generator(z, views[part], psi=opt.inference.truncation_ratio, means=means,
                                  noise=noise and [layer[part] for layer in noise],
                                  dense=opt.inference.dense)
            yield generated.image, generated.rendering.thumbnail


def generate_meshes(generator, z, cameras, opt, means):
    """Yield (folder, kind, view index, mesh or None) for one identity: each view's depth mesh, and of the first view
    the marching-cubes mesh."""
    renderer = generator.renderer
    w = generator.map(z, opt.inference.truncation_ratio, means)
    for i in range(len(cameras)):
        camera = cameras[i:i + 1]
        surface = render_surface(renderer, w, camera, sdf=i == 0 and renderer.has_sdf,
                                 dense=opt.inference.dense)
        mesh = depth_mesh(surface.xyz[0])
        if opt.inference.vertex_colors:
            points = surface.xyz[0].flatten(1).T
            directions = torch.nn.functional.normalize(points - camera.extrinsics[0, :, 3], dim=1)
            viewdirs = directions @ camera.extrinsics[0, :, :3]  # static view directions are in the camera frame
            color_vertices(mesh, renderer, w, camera, points, viewdirs)
        yield 'depth_map_meshes', 'depth_mesh', i, mesh
        if surface.sdf is not None:
            mesh = surface_mesh(surface.sdf, camera)
            if mesh is not None and opt.inference.vertex_colors:
                color_vertices(mesh, renderer, w, camera, *volume_points(mesh.vertices, renderer, camera))
            yield 'marching_cubes_meshes', 'marching_cubes_mesh', i, mesh


def read_index(path):
    """The index.json of an earlier run in the same folder, or an empty one."""
    try:
        index = json.loads(path.read_text())
        index['results'].items()
        return index
    except FileNotFoundError:
        return {'results': {}}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f'{path} is not an index that this command wrote; move it away.') from None


def update_index(path, name, entry):
    """Put an identity's entry into the index, which is read again, since another run may have added to it.

    Files of an earlier entry of that name that are still there stay listed, as `earlier_files`.
    """
    index = read_index(path)
    old = index['results'].get(name, {})
    earlier = {file for file in old.get('files', []) + old.get('earlier_files', [])
               if file not in entry['files'] and (path.parent / file).is_file()}
    index['results'][name] = entry | ({'earlier_files': sorted(earlier)} if earlier else {})
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + '\n')


def main():
    opt = options.parse('generate_shapes_and_images', __doc__)
    device = select_device(opt.machine.device)
    generator, opt, model_path, model_name = load_generator(opt, device)
    if opt.inference.cuda_graphs:
        generator.use_cuda_graphs()
    check_row(opt)
    folder = writable_folder(
        Path(opt.inference.results_dir) / opt.experiment.expname / model_name
        / ('fixed_angles' if opt.inference.fixed_camera_angles else 'random_angles'), '--results_dir')
    index_path = folder / 'index.json'
    read_index(index_path)  # an unusable one is noticed before the work
    model = {'file': str(model_path), 'sha256': file_hash(model_path)}
    if not generator.full_pipeline:
        print(f'{model_path} has no decoder: thumbnails and surfaces only.')
    if not opt.inference.no_surface_renderings and not generator.renderer.has_sdf:
        print(f'{model_path} has no SDF: depth meshes, but no marching-cubes meshes.')

    random = torch.Generator(device).manual_seed(opt.experiment.seed)
    means = generator.mean_latents(opt.inference.truncation_mean, random)
    total = len(opt.inference.seeds or range(opt.inference.identities))
    image_seconds = mesh_seconds = 0.
    bar = tqdm(identities(opt, random), total=total, unit='identity', desc='generating')
    for identity in bar:
        started = time.perf_counter()
        z = torch.randn(1, opt.model.style_dim, generator=identity.rng, device=device)
        viewpoints = draw_viewpoints(opt, identity.rng)
        cameras = cameras_at(viewpoints, opt.model.renderer_spatial_output_dim, opt.camera.fov,
                             opt.camera.dist_radius)
        names = view_names(viewpoints)
        files = []

        rows = {'': [], '_thumb': []}
        for image, thumbnail in generate_images(generator, z, cameras, opt, means, identity.rng):
            rows['_thumb'].extend(to_uint8(thumbnail))
            rows[''].extend(to_uint8(image) if image is not None else ())
            bar.set_postfix_str(f'{identity.sample}: view {len(rows["_thumb"])} of {len(names)}')
        for ending, views in rows.items():
            if views:
                files.append(f'images/{identity.image}{ending}.png')
                save_image_row(folder / files[-1], views)
        image_seconds += time.perf_counter() - started

        started = time.perf_counter()
        if not opt.inference.no_surface_renderings:
            for kind_folder, kind, view, mesh in generate_meshes(generator, z, cameras, opt, means):
                bar.set_postfix_str(f'{identity.sample}: {kind} {names[view]}')
                if mesh is None:
                    tqdm.write(f'identity {identity.sample}: the SDF does not cross zero in view {names[view]}; '
                               'no marching-cubes mesh.')
                    continue
                files.append(f'{kind_folder}/sample_{identity.sample}_{kind}_{names[view]}.{opt.inference.mesh_format}')
                save_mesh(folder / files[-1], mesh)
        mesh_seconds += time.perf_counter() - started

        update_index(index_path, identity.image, {
            'seed': identity.seed, 'checkpoint': model, 'truncation_ratio': opt.inference.truncation_ratio,
            'truncation_mean': {'draws': opt.inference.truncation_mean, 'seed': opt.experiment.seed},
            'fov': opt.camera.fov, 'dist_radius': opt.camera.dist_radius, 'precision': opt.machine.precision,
            'views': [{'azim': azim, 'elev': elev} for azim, elev in viewpoints.tolist()], 'files': files})
    print(f'{total} {"identity" if total == 1 else "identities"} in {folder}: '
          f'{(image_seconds + mesh_seconds) / total:.1f} s each '
          f'({image_seconds / total:.1f} s images, {mesh_seconds / total:.1f} s surfaces)')
    if opt.inference.page:
        from web.page import write_page  # it needs this module
        print(f'Page: {write_page(folder.parent)}')


if __name__ == '__main__':
    run_command(main)

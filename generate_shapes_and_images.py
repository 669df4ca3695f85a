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
from inference.directions import directions_path
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
from inference.parallel import two_at_a_time, two_at_once
from inference.pictures import check_row, generate_images, proportioned, skip_noise
from utils import UserError, save_image_row, select_device, to_uint8, writable_folder


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


def wants_surfaces(opt):
    """Whether a flag asks for meshes or maps, or is about them."""
    return not opt.inference.no_surface_renderings or bool(
        {'maps', 'map_size', 'map_format', 'texture', 'texture_views'} & set(opt.given))


class Generation:
    """A run of this command: its model, and what is the same for all identities."""

    def __init__(self, opt):
        check_identities(opt)
        self.device = select_device(opt.machine.device)
        self.generator, opt, path, model_name = load_generator(opt, self.device, graphs=not opt.inference.latents)
        self.opt = opt
        check_row(opt)
        check_views(opt)
        self.write_surfaces, self.map_facts = None, {}
        if wants_surfaces(opt):
            # Not earlier: what surfaces need takes a second to import, for which pictures alone should not wait.
            from inference.surface_files import check_surfaces, map_facts, write_surfaces
            check_surfaces(opt)
            self.write_surfaces, self.map_facts = write_surfaces, map_facts(self.generator, opt)
        self.shaped = proportioned(opt)
        self.folder = writable_folder(results.generation_folder(opt, model_name), '--results_dir')
        results.read_index(self.folder)  # an unusable one is noticed before the work
        own_folder = results.model_folder(opt, model_name)
        self.saved, self.directions = files_for(opt, self.generator, own_folder)
        self.edits = {'directions': file_hash(directions_path(opt, own_folder))} if opt.inference.edit else {}
        self.count = identity_count(opt, self.saved)
        self.owner = Owner.of(self.generator, opt) if opt.inference.save_latents else None
        self.model = {'file': str(path), 'sha256': file_hash(path)}
        report_missing_parts(self.generator, path, opt)

    def draw(self):
        """Yield (Identity, its Latents, its viewpoints (V,2)).

        Where two identities are made at once, the noise of the first is drawn later than the second: then all that it
        will draw is skipped here, and drawn from a stream of its own.
        """
        rng = seeded(self.opt.experiment.seed, self.device)
        means = self.generator.mean_latents(self.opt.inference.truncation_mean, rng)
        for identity in identities(self.opt, rng, self.saved):
            latents = draw_latents(self.generator, identity, self.opt, means, self.directions)
            viewpoints = draw_viewpoints(self.opt, identity.rng, identity.saved)
            if identity.rng is rng and not identity.saved and two_at_once(self.device, self.count):
                identity = identity._replace(rng=rng.clone_state())
                skip_noise(self.generator, len(viewpoints), rng)
            yield identity, latents, viewpoints

    def write(self, drawn, bar, later):
        """Write all files of what `draw` yields. bar: tqdm's. later: a BackgroundWriter.

        Returns the name and the entry that index.json has for it, and the seconds that images and surfaces took.
        """
        started, (identity, latents, viewpoints) = time.perf_counter(), drawn
        generator, opt, noise = self.generator, self.opt, None
        progress = partial(show_progress, bar, identity.short_name)
        cameras = cameras_of(opt, viewpoints)
        if identity.saved and generator.full_pipeline:
            generator = tuned_generator(generator, identity.saved.tuned)
            noise = generator.noise(identity.saved.decoder_noise, 1)
        batches = generate_images(generator, latents, cameras, opt, identity.rng, noise)
        files, shown = write_pictures(self.folder, identity, batches, len(cameras), self.shaped, progress, later)
        if self.owner:
            files.append(results.latents_file(identity.long_name))
            save_latents(self.folder / files[-1], latents, self.owner, viewpoints, camera=opt.camera,
                         source=source_of(identity, opt), **kept_of(identity.saved))
        pictured = time.perf_counter()
        if self.write_surfaces:
            files += self.write_surfaces(self.folder, identity, generator, latents, cameras, shown, noise or 'fixed',
                                         self.map_facts, opt, progress, later)
        entry = index_entry(identity, viewpoints, files, self.model, self.map_facts, opt) | self.edits
        return identity.long_name, entry, (pictured - started, time.perf_counter() - pictured)


def main(opt):
    run, seconds = Generation(opt), []
    with BackgroundWriter() as later, tqdm(total=run.count, unit='identity', desc='generating') as bar:
        written = two_at_a_time(partial(run.write, bar=bar, later=later), run.draw(), run.device, run.count)
        for name, entry, parts in written:
            later(results.add_to_index, run.folder, name, entry)
            seconds.append(parts)
            bar.update()
        each = bar.format_dict['elapsed'] / run.count
    images, surfaces = (sum(parts) / run.count for parts in zip(*seconds, strict=True))
    print(f'{run.count} {"identity" if run.count == 1 else "identities"} in {run.folder}: {each:.1f} s each '
          f'({images:.1f} s images, {surfaces:.1f} s surfaces'
          f'{", two at a time" if two_at_once(run.device, run.count) else ""})')
    if opt.inference.page:
        from web.results_page import write_page
        print(f'Page: {write_page(run.folder.parent)}')

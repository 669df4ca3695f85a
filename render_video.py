"""Render videos of a trained model's identities: the images, and their surfaces from the same camera.

    python render_video.py --expname cats_demo --identities 2 --side_by_side

Writes under RESULTS_DIR/EXPNAME/MODEL/videos/[with_noise_projection/] for each identity sample_video_{i}_{path},
sample_depth_video_{i}_{path} and, with --side_by_side, sample_side_by_side_video_{i}_{path}. The path in the name is
elipsoid (--path ellipse, the default), azim, orbit, dolly, or path_NAME of a file NAME.csv of key frames. With --page
also RESULTS_DIR/EXPNAME/MODEL/index.html, which shows all of the model's results in a browser. Ctrl-C finishes the
videos that are being written with the frames they have.
"""
import options

if __name__ == '__main__':
    options.run('render_video', __doc__)

from functools import partial

from tqdm import tqdm

from inference import results
from inference.camera_paths import path_cameras, path_name, warn_beyond_training
from inference.frames import record, render_frames
from inference.identities import check_identities, files_for, identity_count, seeded, subjects
from inference.latents import tuned_generator
from inference.loading import load_generator
from inference.meshes import frontal_mesh
from inference.pictures import proportioned
from inference.video_files import WITH_ALPHA, check_encoder
from surfaces.files import save_mesh
from surfaces.noise import SLOW, frontal_noise, pixels_a_frame
from utils import UserError, select_device, writable_folder
from web.results_page import write_page

GIF_MAX_FPS = 50  # viewers slow down a GIF whose frames last less than 2/100 s


def check(opt, generator, path):
    """Raise UserError for flags that contradict each other, or that this model or machine cannot follow."""
    check_encoder(opt.video.format)
    check_identities(opt)
    for name in ('seeds', 'mix', 'latents'):
        if opt.video.interpolate and opt.inference[name]:
            raise UserError(f'--{name} and --interpolate each name the identities to show; use one of them.')
    if opt.video.format == 'gif' and opt.video.fps > GIF_MAX_FPS:
        raise UserError(f'--fps {opt.video.fps} is more than a GIF can show; use up to {GIF_MAX_FPS}, or --format mp4.')
    if opt.video.side_by_side and opt.inference.no_surface_videos:
        raise UserError('--side_by_side shows the surface, which --no_surface_videos leaves out; use one of them.')
    if opt.inference.transparent and opt.video.format not in WITH_ALPHA:
        raise UserError(f'--transparent: a video in {opt.video.format} has no alpha; add --format webm, webp or '
                        'frames.')
    if opt.inference.azim_video and 'path' in opt.given:
        raise UserError('--azim_video and --path both say how the camera moves; use one of them.')
    if opt.model.project_noise:
        if opt.video.interpolate:
            raise UserError('--project_noise ties the noise to the surface of one identity, and --interpolate shows a '
                            'changing one; use one of them.')
        if not generator.full_pipeline:
            raise UserError(f'--project_noise: {path} has no decoder, and so no noise; leave the flag out.')
        if not generator.renderer.has_sdf:
            raise UserError(f'--project_noise: {path} has no SDF, and so no surface for the noise; leave the '
                            'flag out.')


def surface_and_noise(generator, subject, fixed, folder, opt):
    """(whether the subject's surface is shown, a function from a camera to the decoder's noise maps).

    The noise is the checkpoint's, or with --project_noise sticks to the subject's frontal mesh, which is then saved.
    An SDF that does not cross zero has no surface; one line says what is left out.
    """
    renderer, projecting = generator.renderer, opt.model.project_noise
    shown = not opt.inference.no_surface_videos
    if not (renderer.has_sdf and (shown or projecting)):
        return shown, lambda camera: fixed
    mesh, frontal = frontal_mesh(generator, subject.latents.w[:1], opt)
    if mesh is None:
        missing = ['surface video'] * shown + ['projected noise'] * projecting
        tqdm.write(f'identity {subject.name}: the SDF does not cross zero in the frontal view, so there is no surface; '
                   f'left out: {", ".join(missing)}.')
        return False, lambda camera: fixed
    if not projecting:
        return shown, lambda camera: fixed
    save_mesh(folder / results.frontal_mesh_file(subject.name, opt.inference.mesh_format), mesh)
    noise = frontal_noise(mesh, renderer, frontal, generator.decoder.noise_sizes,
                          seeded(subject.seed, subject.latents.w.device))
    return shown, partial(noise.maps, resolution=renderer.resolution, fixed=fixed)


def main(opt):
    device = select_device(opt.machine.device)
    generator, opt, path, model_name = load_generator(opt, device, graphs=not opt.inference.latents)
    check(opt, generator, path)
    shaped = proportioned(opt)
    saved, directions = files_for(opt, generator, results.model_folder(opt, model_name))
    folder = writable_folder(results.video_folder(opt, model_name), '--results_dir')
    if not generator.full_pipeline:
        print(f'{path} has no decoder: videos of thumbnails.')
    fixed = generator.decoder.fixed_noise() if generator.full_pipeline else None
    path_of_camera = 'azimuth' if opt.inference.azim_video else opt.video.path
    cameras = path_cameras(opt, path_of_camera, opt.video.frames, device)
    warn_beyond_training(opt, cameras.viewpoint, f'--path {path_of_camera}')
    if opt.model.project_noise and len(cameras) > 1:
        pixels = pixels_a_frame(cameras, generator.renderer.resolution, opt.model.size)
        if pixels < SLOW:
            print(f'--project_noise: the surface moves only about {pixels:.2f} pixels from frame to frame; so slowly, '
                  'fixed noise flickers less (docs/video.md).')

    rng = seeded(opt.experiment.seed, device)
    means = generator.mean_latents(opt.inference.truncation_mean, rng)
    count = 1 if opt.video.interpolate else identity_count(opt, saved)
    with tqdm(total=count * opt.video.frames, unit='frame', desc='rendering') as bar:
        for subject in subjects(generator, opt, rng, means, saved, directions):
            bar.set_postfix_str(subject.name)
            own = subject.saved and subject.saved.noise or fixed
            shown, noise = surface_and_noise(generator, subject, own, folder, opt)
            tuned = tuned_generator(generator, subject.saved and subject.saved.tuned)
            frames = render_frames(tuned, subject.latents, cameras, noise, opt, surfaces=shown,
                                   shaped=shaped)
            record(frames, folder, subject.name, path_name(path_of_camera), opt, bar)
        seconds = bar.format_dict['elapsed'] / bar.n
    print(f'{count} {"identity" if count == 1 else "identities"} in {folder}: {seconds:.2f} s a frame')
    if opt.inference.page:
        print(f'Page: {write_page(results.model_folder(opt, model_name))}')

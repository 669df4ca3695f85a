"""Render videos of a trained model's identities: the images, and their surfaces from the same camera.

    python render_video.py --expname ffhq1024x1024 --identities 2 --side_by_side

Writes under RESULTS_DIR/EXPNAME/MODEL/videos/[with_noise_projection/] for each identity sample_video_{i}_{path},
sample_depth_video_{i}_{path} and, with --side_by_side, sample_side_by_side_video_{i}_{path}; path: elipsoid or azim.
With --page also RESULTS_DIR/EXPNAME/MODEL/index.html, a page to look at. Ctrl-C finishes the videos that are being
written with the frames they have.
"""
import interrupts  # noqa: F401

import contextlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import CubicSpline
from torch import Tensor
from tqdm import tqdm

import options
from camera import cameras_at, video_viewpoints
from checkpoint import load_generator
from generate_shapes_and_images import identities
from inference.video_files import video_path, video_writer
from surfaces.files import save_mesh
from surfaces.meshes import surface_mesh
from surfaces.noise import frontal_noise
from surfaces.rendering import render_surface
from surfaces.shading import draw_surface
from utils import UserError, run_command, select_device, to_uint8, writable_folder
from web.page import write_page

IMAGE_CRF, DEPTH_CRF = 10, 1  # H.264 quality (spec section 5)
GIF_MAX_FPS = 50              # viewers slow down a GIF whose frames last less than 2/100 s
SEEDS_IN_NAME = 8             # so many seeds of a walk appear in its file's name


class Subject(NamedTuple):
    """What one video shows."""
    name: str
    seed: int
    w: Tensor  # the renderer's latents, truncated: (1,style_dim), or (frames,style_dim) of a walk


def check(opt, generator, model_path):
    """Raise UserError for flags that contradict each other or that this model cannot follow."""
    if opt.video.interpolate and opt.inference.seeds:
        raise UserError('--seeds and --interpolate each name the identities to show; use one of them.')
    if opt.video.format == 'gif' and opt.video.fps > GIF_MAX_FPS:
        raise UserError(f'--fps {opt.video.fps} is more than a GIF can show; use up to {GIF_MAX_FPS}, or --format mp4.')
    if opt.video.side_by_side and opt.inference.no_surface_videos:
        raise UserError('--side_by_side shows the surface, which --no_surface_videos leaves out; use one of them.')
    if opt.model.project_noise:
        if opt.video.interpolate:
            raise UserError('--project_noise ties the noise to the surface of one identity, and --interpolate shows a '
                            'changing one; use one of them.')
        if not generator.full_pipeline:
            raise UserError(f'--project_noise: {model_path} has no decoder, and so no noise; leave the flag out.')
        if not generator.renderer.has_sdf:
            raise UserError(f'--project_noise: {model_path} has no SDF, and so no surface for the noise; leave the '
                            'flag out.')


def subjects(generator, opt, random, means):
    """Yield the Subjects that the flags ask for."""
    def w_of(identity):
        z = torch.randn(1, opt.model.style_dim, generator=identity.rng, device=identity.rng.device)
        return generator.map(z, opt.inference.truncation_ratio, means)

    if not opt.video.interpolate:
        for identity in identities(opt, random):
            yield Subject(identity.sample, identity.seed, w_of(identity))
        return
    seeds = opt.video.interpolate
    stops = [w_of(identity) for identity in identities(options.replaced(opt, seeds=seeds), random)]
    name = '_'.join(str(seed) for seed in seeds[:SEEDS_IN_NAME])
    more = f'_and_{len(seeds) - SEEDS_IN_NAME}_more' if len(seeds) > SEEDS_IN_NAME else ''
    yield Subject(f'walk_{name}{more}', seeds[0], closed_walk(torch.cat(stops), opt.video.frames))


def closed_walk(stops, steps):
    """(steps,C) points at equal times on a smooth closed curve through stops (S,C); the last is the first again.

    A periodic cubic spline; it goes through w rather than z, where straight lines pass through unlikely latents.
    """
    loop = torch.cat([stops, stops[:1]]).cpu().double().numpy()
    curve = CubicSpline(np.linspace(0, 1, len(loop)), loop, bc_type='periodic')
    return torch.from_numpy(curve(np.linspace(0, 1, steps))).to(stops)


def frontal_mesh(generator, w, opt):
    """(marching-cubes mesh, camera) of the frontal view of a latent (1,style_dim).

    The mesh is None where the SDF does not cross zero. That is asked of the samples themselves: aligned to the box,
    an SDF that is negative throughout has walls, since outside the frustum it counts as positive.
    """
    camera = cameras_at(torch.zeros(1, 2, device=w.device), generator.renderer.resolution, opt.camera.fov,
                        opt.camera.dist_radius)
    sdf = render_surface(generator.renderer, w, camera, sdf=True, dense=opt.inference.dense).sdf
    return surface_mesh(sdf, camera) if sdf.min() < 0 < sdf.max() else None, camera


@torch.no_grad()
def render_frames(generator, w, cameras, noise, opt, means, surfaces=True):
    """Yield each camera's pictures, uint8 arrays (H,W,3) by the name of the video that they belong to.

    w: (1,style_dim), or a latent for each camera. noise: a function from a camera to the decoder's noise maps.
    surfaces: False for the image alone.
    """
    renderer, still = generator.renderer, len(w) == 1
    if generator.full_pipeline:  # once a video: the mapping to w'
        w_prime = generator.decoder.map(w, opt.inference.truncation_ratio, means.w_prime)
        weights = generator.decoder.modulate(w_prime) if still else None
    for i in range(len(cameras)):
        camera, which = cameras[i:i + 1], slice(0, 1) if still else slice(i, i + 1)
        rendering = generator.render(w[which], camera, dense=opt.inference.dense)
        image = rendering.thumbnail
        if generator.full_pipeline:
            image = generator.decoder.synthesize(
                rendering.features, weights if still else generator.decoder.modulate(w_prime[which]), noise(camera))
        drawn = {'video': image[0]}
        if surfaces:
            surface = render_surface(renderer, w[which], camera, dense=opt.inference.dense)
            drawn['depth_video'] = draw_surface(surface.xyz[0], surface.background[0], camera, opt.video.depth_style)
        pictures = {video: to_uint8(picture) for video, picture in drawn.items()}  # last: it waits for a GPU's work
        if surfaces and opt.video.side_by_side:
            pictures['side_by_side_video'] = side_by_side(pictures['video'], pictures['depth_video'])
        yield pictures


def side_by_side(image, surface):
    """Two pictures (H,W,3) beside each other, the lower one enlarged to the height of the other."""
    height = max(len(image), len(surface))

    def at_height(picture):
        return picture if len(picture) == height else np.asarray(
            Image.fromarray(picture).resize((height, height), Image.Resampling.BICUBIC))

    return np.concatenate([at_height(image), at_height(surface)], axis=1)


def record(frames, folder, subject, opt, bar):
    """Write frames, dicts of pictures by the name of their video, as they come.

    Stopped early, it says how many frames the videos have.
    """
    ending = 'azim' if opt.inference.azim_video else 'elipsoid'  # the original's spelling
    count = 0
    with contextlib.ExitStack() as stack:
        add = {}
        try:
            for pictures in frames:
                for video, picture in pictures.items():
                    if video not in add:
                        path = video_path(folder, f'sample_{video}_{subject.name}_{ending}', opt.video.format)
                        crf = DEPTH_CRF if video == 'depth_video' else IMAGE_CRF
                        add[video] = stack.enter_context(video_writer(path, opt.video.format, opt.video.fps, crf))
                    add[video](picture)
                count += 1
                bar.update()
        except KeyboardInterrupt:
            if count:
                tqdm.write(f'identity {subject.name}: stopped; its videos have {count} of {opt.video.frames} frames.')
            raise


def main():
    opt = options.parse('render_video', __doc__)
    device = select_device(opt.machine.device)
    generator, opt, model_path, model_name = load_generator(opt, device)
    if opt.inference.cuda_graphs:
        generator.use_cuda_graphs()
    check(opt, generator, model_path)
    renderer, projecting = generator.renderer, opt.model.project_noise
    results = Path(opt.inference.results_dir) / opt.experiment.expname / model_name
    folder = writable_folder(results / 'videos' / ('with_noise_projection' if projecting else ''), '--results_dir')
    if not generator.full_pipeline:
        print(f'{model_path} has no decoder: videos of thumbnails.')
    fixed = generator.decoder.fixed_noise() if generator.full_pipeline else None
    viewpoints = video_viewpoints(opt.video.frames, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                                  opt.inference.azim_video, device)
    cameras = cameras_at(viewpoints, renderer.resolution, opt.camera.fov, opt.camera.dist_radius)

    random = torch.Generator(device).manual_seed(opt.experiment.seed)
    means = generator.mean_latents(opt.inference.truncation_mean, random)
    videos = 1 if opt.video.interpolate else len(opt.inference.seeds or range(opt.inference.identities))
    with tqdm(total=videos * opt.video.frames, unit='frame', desc='rendering') as bar:
        for subject in subjects(generator, opt, random, means):
            bar.set_postfix_str(subject.name)
            surfaces, noise = not opt.inference.no_surface_videos, lambda camera: fixed
            if renderer.has_sdf and (surfaces or projecting):
                mesh, frontal = frontal_mesh(generator, subject.w[:1], opt)
                if mesh is None:
                    missing = ['surface video'] * surfaces + ['projected noise'] * projecting
                    tqdm.write(f'identity {subject.name}: the SDF does not cross zero in the frontal view, so there is '
                               f'no surface; left out: {", ".join(missing)}.')
                    surfaces = False
                elif projecting:
                    save_mesh(folder / f'sample_{subject.name}_frontal_marching_cubes_mesh.{opt.inference.mesh_format}',
                              mesh)
                    on_surface = frontal_noise(mesh, renderer, frontal, generator.decoder.noise_sizes,
                                               torch.Generator(device).manual_seed(subject.seed))
                    noise = partial(on_surface.maps, resolution=renderer.resolution, fixed=fixed)
            frames = render_frames(generator, subject.w, cameras, noise, opt, means, surfaces)
            record(frames, folder, subject, opt, bar)
        seconds = bar.format_dict['elapsed'] / bar.n
    print(f'{videos} {"identity" if videos == 1 else "identities"} in {folder}: {seconds:.2f} s a frame')
    if opt.inference.page:
        print(f'Page: {write_page(results)}')


if __name__ == '__main__':
    run_command(main)

"""Flicker of a video with fixed, random and projected noise: the numbers and the picture of docs/video.md.

    python benchmarks/flicker.py --expname shape
    python benchmarks/flicker.py --expname shape --untrained_decoder 1024

Frame t is carried into frame t + GAP by the known surface and compared with it where both see the surface
(metrics/views.py): the mean absolute difference, in levels of 255. Also takes render_video.py's flags.
"""
import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import options
from utils import UserError, run_command, save_image_row, select_device, to_uint8, writable_file


def read_flags():
    """(the flags of this benchmark, the option tree of render_video.py)."""
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    at_least_one = options.explained(options.at_least(1))
    parser.add_argument('--pairs', type=at_least_one, default=8,
                        help='pairs of frames, spread over the video (default: 8)')
    parser.add_argument('--gap', type=at_least_one, default=1, help='frames between the two of a pair (default: 1)')
    parser.add_argument('--untrained_decoder', type=options.explained(options.power_of_two(8, most=8192)),
                        metavar='SIZE',
                        help='an untrained decoder of this size, channel multiplier 1, in place of the checkpoint\'s')
    parser.add_argument('--noise_weight', type=float, default=0.05, help='its noise weights (default: 0.05)')
    parser.add_argument('--picture', help='also write this picture of the surface, and of what stays of the noise')
    own, rest = parser.parse_known_args()
    opt = options.parse('render_video', __doc__, rest)
    if own.gap >= opt.video.frames:
        raise UserError(f'--gap {own.gap}: the video has {opt.video.frames} frames; give a smaller one, or more '
                        '--frames.')
    return own, opt


if __name__ == '__main__':
    run_command('flicker', read_flags)

import torch
from tqdm import tqdm

from camera import cameras_of, video_viewpoints
from inference.loading import load_generator
from inference.meshes import frontal_mesh
from metrics.views import View, warp
from op.bands import BandedDecoder
from surfaces.noise import frontal_noise
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface

# The table's columns: by how many pixels the surface moves between the two frames.
SPEEDS = {'all': (0, math.inf), '< 0.5': (0, 0.5), '0.5-1': (0.5, 1), '1-2': (1, 2), '2-4': (2, 4),
          '> 4': (4, math.inf)}


def noise_sources(generator, w, opt, rng):
    """The kinds of noise by name: functions from a camera to the decoder's maps."""
    decoder, resolution = generator.decoder, generator.renderer.resolution
    mesh, frontal = frontal_mesh(generator, w, opt)
    if mesh is None:
        raise UserError('this identity has no surface in the frontal view; try another --seed.')
    on_surface = frontal_noise(mesh, generator.renderer, frontal, decoder.noise_sizes, rng)
    fixed = decoder.fixed_noise()
    return {'none': lambda camera: [torch.zeros_like(noise) for noise in fixed],
            'fixed': lambda camera: fixed,
            'random': lambda camera: decoder.random_noise(1, rng),
            'projected': lambda camera: on_surface.maps(camera, resolution, fixed)}


def views(generator, w, w_prime, camera, sources):
    """A View of one camera for each kind of noise."""
    rendering = generator.renderer(w, camera)
    surface = render_surface(generator.renderer, w, camera)
    return {name: View(generator.decoder(rendering.features, w_prime, noise(camera)), surface.xyz, surface.background,
                       camera, generator.renderer.resolution) for name, noise in sources.items()}


def by_speed(source, target):
    """(S,2): number of pixels and sum of their differences in each range of SPEEDS."""
    carried = warp(source, target)
    difference = (carried.image - target.image).abs().mean(dim=(0, 1)) * 127.5
    inside = [carried.visible & (carried.motion >= low) & (carried.motion < high) for low, high in SPEEDS.values()]
    return torch.tensor([[where.sum(), difference[where].sum()] for where in inside], dtype=torch.float64)


def save_picture(path, frames):
    """Two rows: a first frame's image and surface in each style; then, on gray and 8 times as strong, what fixed noise
    adds to that frame, and what fixed, random and projected noise add on average over all frames carried into it."""
    target = frames[0]['none']
    size = target.image.shape[-1]

    def added(frame, noise):
        return frame['none']._replace(image=8 * (frame[noise].image - frame['none'].image))

    def average(noise):
        carried = [warp(added(frame, noise), target) for frame in frames]
        seen = torch.stack([one.visible for one in carried]).sum(0)
        return torch.stack([one.image[0] * one.visible for one in carried]).sum(0) / seen.clamp(min=1)

    styles = [shade_surface(target.xyz[0], target.background[0], target.camera, style, size)
              for style in ('phong', 'normals', 'depth')]
    rows = [torch.cat([target.image[0], *styles], dim=2),
            torch.cat([added(frames[0], 'fixed').image[0], *map(average, ('fixed', 'random', 'projected'))], dim=2)]
    save_image_row(path, [to_uint8(torch.cat(rows, dim=1))])


@torch.no_grad()
def main(flags):
    own, opt = flags
    device = select_device(opt.machine.device)
    generator, opt, path, _ = load_generator(opt, device)
    if own.picture:
        writable_file(own.picture, '--picture')
    if not generator.full_pipeline and not own.untrained_decoder:
        raise UserError(f'{path} holds no decoder, whose noise could flicker; give --untrained_decoder SIZE.')
    if own.untrained_decoder:
        if own.untrained_decoder < generator.renderer.resolution:
            raise UserError(f'--untrained_decoder {own.untrained_decoder}: this field has '
                            f'{generator.renderer.resolution} rays along a side; give at least as much.')
        torch.manual_seed(opt.experiment.seed)
        decoder = BandedDecoder(own.untrained_decoder, opt.model.style_dim, 1, generator.renderer.resolution,
                                opt.rendering.width)
        for name, weight in decoder.named_parameters():
            if name.endswith('noise.weight'):
                weight.fill_(own.noise_weight)
        generator.decoder = decoder.to(device).requires_grad_(False)

    rng = torch.Generator(device).manual_seed(opt.experiment.seed)
    means = generator.mean_latents(opt.inference.truncation_mean, rng)
    z = torch.randn(1, opt.model.style_dim, generator=rng, device=device)
    w = generator.map(z, opt.inference.truncation_ratio, means)
    w_prime = generator.decoder.map(w, opt.inference.truncation_ratio, means.w_prime)
    sources = noise_sources(generator, w, opt, rng)
    viewpoints = video_viewpoints(opt.video.frames, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                                  opt.inference.azim_video, device)
    cameras = cameras_of(opt, viewpoints)

    totals = {name: torch.zeros(len(SPEEDS), 2, dtype=torch.float64) for name in sources}
    firsts = torch.linspace(0, opt.video.frames - 1 - own.gap, own.pairs).round().int().unique().tolist()
    for first in tqdm(firsts, unit='pair'):
        earlier, later = (views(generator, w, w_prime, cameras[i:i + 1], sources) for i in (first, first + own.gap))
        for name, total in totals.items():
            total += by_speed(earlier[name], later[name])
    if own.picture:
        frontal_first = [opt.video.frames // 4, *firsts]  # the ellipse passes the front after a quarter
        save_picture(own.picture, [views(generator, w, w_prime, cameras[i:i + 1], sources)
                                   for i in tqdm(frontal_first, unit='view')])

    print(f'size {generator.decoder.size}, {opt.video.frames} frames, {own.gap} apart, {len(firsts)} pairs; '
          'levels of 255 by the pixels that the surface moves')
    print(f'{"noise":10}' + ''.join(f'{speed:>8}' for speed in SPEEDS))
    for name, total in totals.items():
        print(f'{name:10}' + ''.join(f'{summed / pixels:8.2f}' if pixels else ' ' * 8
                                     for pixels, summed in total.tolist()))
    pixels = totals['fixed'][:, 0]
    print(f'{"pixels":10}' + ''.join(f'{share:8.0%}' for share in (pixels / pixels[0]).tolist()))

"""How well photos are inverted: differences between pictures, viewpoints and depths."""
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from camera import cameras_of
from inference.latents import Latents, latents_of_w, render_latents, tuned_generator
from inversion.inverting import Inversion
from losses import feature_loss
from metrics.blocks import Blocks
from metrics.similarity import psnr, ssim
from training.random_numbers import draw_fakes


def angle_between(viewpoints, others, opt):
    """The angle (B,) in degrees between the directions in which cameras at viewpoints (B,2) look."""
    a, b = (cameras_of(opt, views.double()).extrinsics[:, :, 2] for views in (viewpoints, others))
    return 2 * torch.rad2deg(torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1)))


def depth_of(xyz, cameras):
    """Depths (B,H,W) of surface points (B,3,H,W) from their cameras, in units of the depth range."""
    toward = -cameras.extrinsics[:, :, 2]
    from_camera = xyz - cameras.extrinsics[:, :, 3, None, None]
    return (from_camera * toward[:, :, None, None]).sum(1) / (cameras.far - cameras.near)


def depth_error(depth, other, background, other_background):
    """Mean absolute difference (B,) of depths (B,H,W), in % of the depth range, where both views see the surface.

    background, other_background: (B,1,H,W) the weights of the background. nan where they see none in common.
    """
    seen = ((background[:, 0] < 0.5) & (other_background[:, 0] < 0.5)).to(depth)
    count = seen.sum(dim=(1, 2))
    total = ((depth - other).abs() * seen).sum(dim=(1, 2))
    return torch.where(count > 0, 100 * total / count.clamp(min=1), torch.full_like(total, math.nan))


# ---------------------------------------------------------------------------------------------- measuring

STAGES = ('guess', 'fit', 'tuned')
OWN = ('psnr', 'ssim', 'perceptual', 'view', 'depth', 'novel', 'seconds')
PHOTO = ('psnr', 'ssim', 'perceptual', 'seconds')
NOVEL = 15.         # degrees of azimuth to both sides


class Truth(NamedTuple):
    """What an image of the model's own was made from."""
    latents: Latents
    viewpoint: Tensor  # (1,2)
    noise: list | None

    def seen(self, inverter, degrees=0.):
        """(picture (1,3,S,S), depth (1,H,W), background) from `degrees` of azimuth further round."""
        return seen(inverter, inverter.generator, self.latents, self.viewpoint, self.noise, degrees)


@torch.no_grad()
def seen(inverter, generator, latents, viewpoint, noise, degrees=0.):
    """(picture (1,3,S,S), depth (1,H,W), background (1,1,H,W)) of Latents from `degrees` of azimuth beside a viewpoint.
    """
    viewpoint = viewpoint + viewpoint.new_tensor([[math.radians(degrees), 0.]])
    cameras = cameras_of(inverter.opt, viewpoint)
    picture, rendering = render_latents(generator, latents, cameras, 'fixed' if noise is None else noise)
    return picture, depth_of(rendering.xyz, cameras), rendering.background


def own_image(inverter, number, draw_noise=False):
    """(image (1,3,S,S), Truth) of the model's own, by number: identity and viewpoint of the training's distribution are
    drawn as evaluation draws them, and so is the noise where it is to be found too; else it is the checkpoint's."""
    opt, generator = inverter.opt, inverter.generator
    fakes = draw_fakes(opt, 'inversion', 0, [number], inverter.device)
    w = generator.map(fakes.z, inverter.psi, inverter.means)
    noise = generator.decoder.random_noise(1, fakes.rngs[0]) if draw_noise and generator.full_pipeline else None
    truth = Truth(latents_of_w(generator, w, inverter.psi, inverter.means), fakes.cameras.viewpoint, noise)
    return truth.seen(inverter)[0].clamp(-1, 1), truth


def measure_inversion(inverter, image, guesser, settings, truth=None):
    """{stage: {measure: number}} of the inversion of one image (1,3,S,S) at the STAGES: the first guess alone, after
    the optimization, and with a tuned decoder. truth: its Truth, for OWN measures; without it, those of PHOTO."""
    found = {}

    def take(stage, generator, latents, viewpoint, noise, seconds):
        picture, depth, background = seen(inverter, generator, latents, viewpoint, noise)
        picture = picture.clamp(-1, 1)
        entry = {'psnr': psnr(picture, image).item(), 'ssim': ssim(picture, image).item(), 'perceptual': math.nan,
                 'seconds': seconds}
        if inverter.features:
            maps = inverter.features.maps(picture), inverter.features.maps(image)
            entry['perceptual'] = feature_loss(*maps).item()
        if truth:
            _, true_depth, true_background = truth.seen(inverter)
            sides = [psnr(seen(inverter, generator, latents, viewpoint, noise, degrees)[0],
                          truth.seen(inverter, degrees)[0].clamp(-1, 1)).item() for degrees in (-NOVEL, NOVEL)]
            entry |= {'view': angle_between(viewpoint, truth.viewpoint, inverter.opt).item(),
                      'depth': depth_error(depth, true_depth, background, true_background).item(),
                      'novel': sum(sides) / 2}
        found[stage] = entry

    guesser.prepare()
    began = time.perf_counter()
    with torch.no_grad():
        guess = guesser.first_guess(image)
        latents = inverter.latents(guess.u)
    take('guess', inverter.generator, latents, guess.viewpoint, None, time.perf_counter() - began)
    began = time.perf_counter()
    inversion, fitted = Inversion(inverter, image, guesser, settings), None
    for phase, _, _ in inversion.run():
        if phase == 'decoder' and fitted is None:
            fitted = time.perf_counter() - began
    ended = time.perf_counter() - began
    one = inversion.found
    take('fit', inverter.generator, one.latents, one.viewpoint, one.noise, ended if fitted is None else fitted)
    if inversion.differences[0]:
        take('tuned', tuned_generator(inverter.generator, inversion.differences[0]), one.latents, one.viewpoint,
             one.noise, ended)
    return found


def measure_inversions(inverter, guesser, settings, own, photos, folder, processes):
    """The filled Blocks of the measures of `own` images of the model and of photos (dataset.Images, or None); a row of
    numbers for each image, stage after stage. Kept in a folder, so that an interruption costs one image."""
    counts = {'inversion-own': own} | ({'inversion-photos': len(photos)} if photos else {})
    stages = STAGES[:3 if settings.tune_steps else 2]

    def row(kind, number):
        if kind == 'inversion-own':
            image, truth = own_image(inverter, number, settings.fit_noise)
        else:
            image, truth = photos[number][None].to(inverter.device), None
        found = measure_inversion(inverter, image, guesser, settings, truth)
        return [found[stage][name] for stage in stages for name in (OWN if truth else PHOTO)]

    def results(todo):
        for block, kinds in todo:
            yield {kind: [torch.tensor([row(kind, number) for number in block], dtype=torch.float64)]
                   for kind in kinds}

    blocks = Blocks(folder, counts, 1)
    blocks.fill('inversions', results, processes)
    return blocks


def summarize_inversions(blocks, tuned):
    """The entries of metrics.json from filled Blocks: mean, median and worst tenth of each measure at each stage."""
    results = {}
    for kind, measures in (('own', OWN), ('photos', PHOTO)):
        if f'inversion-{kind}' not in blocks.counts:
            continue
        rows, = blocks.load(f'inversion-{kind}')
        stages = STAGES[:3 if tuned else 2]
        for i, (stage, name) in enumerate((stage, name) for stage in stages for name in measures):
            values = rows[:, i][~rows[:, i].isnan()]
            if not len(values):
                continue
            worst = 0.9 if name in ('view', 'depth', 'seconds', 'perceptual') else 0.1
            results[f'{kind} {stage} {name}'] = {
                'value': values.mean().item(), 'median': values.median().item(), 'least': values.min().item(),
                'most': values.max().item(), 'worst_tenth': values.quantile(worst).item(), 'images': len(values)}
    return results

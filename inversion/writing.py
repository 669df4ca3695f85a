"""What was found of a photo, how sure it is, and the files that are written of it."""
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from camera import cameras_of
from inference import results
from inference.latents import LATENTS_FILE, SavedLatents, decoded, render_latents, save_latents, tuned_generator
from inference.loaded_model import LoadedModel
from metrics.similarity import psnr
from surfaces.files import save_mesh
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface
from utils import save_image_row, to_uint8

ANGLES = (-20., -10., 0., 10., 20.)  # degrees of azimuth of the views, elevation 0
GOOD, FAIR = 24., 18.                # dB of a reconstruction by the latents alone
HELD_BACK = 1.                       # dB that latents for a tuned decoder (fitting.PIVOT) fall short of others
FAR_OUT = 4.5                        # standard deviations of w; of forty photos of cats the farthest was at 4.1
FAR_ROUND = 3.                       # times the training's spread of viewpoints
FRAMES = 60                          # of --video


def verdict(inverter, found, decibels):
    """One clause that says how sure what was Found of one photo is.

    decibels: PSNR of its picture by the decoder as it was, since a tuned one comes near to anything.
    """
    spread = found.viewpoint.new_tensor([inverter.opt.camera.azim, inverter.opt.camera.elev]).clamp(min=1e-3)
    turned = (found.viewpoint[0] / spread).abs().max().item()
    out = found.u[0].square().mean().sqrt().item()
    reasons = []
    if decibels < FAIR:
        reasons.append('the reconstruction is unlike the photo')
    if out > FAR_OUT:
        reasons.append(f'it lies {out:.1f} standard deviations from the identities that the model makes')
    if turned > FAR_ROUND:
        reasons.append('it seems to be seen from further round than any photo of the training')
    if reasons:
        return f'not sure: {"; ".join(reasons)} (is it what this model makes, upright and as large as in its photos?)'
    return 'sure' if decibels >= GOOD else 'fairly sure'


class Outcome(NamedTuple):
    """What an Inversion has found of one photo, as far as it has come."""
    saved: SavedLatents
    picture: Tensor    # (1,3,S,S), the reconstruction as generation makes it
    decibels: float    # its PSNR
    verdict: str       # how sure it is
    loss: float

    @property
    def line(self):
        azimuth, elevation = torch.rad2deg(self.saved.viewpoints[0]).tolist()
        return f'azimuth {azimuth:.1f}, elevation {elevation:.1f} degrees, {self.decibels:.1f} dB; {self.verdict}'


def outcome_of(inversion, index=0, name='photo', source='a photo'):
    """The Outcome of photo `index` of an Inversion that has made its first guess."""
    inverter, found, image = inversion.inverter, inversion.found.select(index), inversion.images[index:index + 1]
    saved = saved_of(inversion, index, name, source)
    picture, rendering = picture_of(inverter, saved)
    decibels = by_latents = psnr(picture, image).item()
    if saved.tuned:  # tuning leaves the field as it is, so only the decoder is evaluated again
        with torch.no_grad():
            untuned = decoded(inverter.generator, saved.latents, rendering, saved.decoder_noise)
        by_latents = psnr(untuned, image).item() + HELD_BACK
    return Outcome(saved, picture, decibels, verdict(inverter, found, by_latents), found.loss.item())


def saved_of(inversion, index=0, name='photo', source='a photo'):
    """The SavedLatents of photo `index` of an Inversion that has made its first guess."""
    found = inversion.found.select(index)
    return SavedLatents(name, found.latents, found.viewpoint, found.noise, inversion.differences[index], source)


def picture_of(inverter, saved):
    """The picture (1,3,S,S) of SavedLatents as generation makes it, and its Rendering."""
    generator = tuned_generator(inverter.generator, saved.tuned)
    with torch.no_grad():
        return render_latents(generator, saved.latents, cameras_of(inverter.opt, saved.viewpoints), saved.decoder_noise)


def write_photo(inverter, folder, crop, outcome, owner, model_path, facts, video=False):
    """Write all files of one inverted photo below `folder`, and its entry in the index.

    crop: the Crop. outcome: its Outcome. facts: what else the entry is to say. video: whether the head is to turn. The
    latents, which took the time, come first. Where the writing ends early, what was written is listed, and nothing is
    left of an earlier result of that name, which may be of another photo.
    """
    opt, saved, name = inverter.opt, outcome.saved, outcome.saved.name
    results.remove_inversion(folder, name)
    save_latents(folder / name / LATENTS_FILE, saved.latents, owner, saved.viewpoints, camera=opt.camera,
                 noise=saved.noise, tuned=saved.tuned, source=saved.source)
    files = [f'{name}/{LATENTS_FILE}']
    try:
        for file in files_beside_latents(inverter, crop, outcome, folder / name, model_path, video):
            files.append(f'{name}/{file.name}')
    finally:
        azimuth, elevation = saved.viewpoints[0].tolist()
        results.add_to_index(folder, name, {
            'photo': crop.source.where, 'viewpoint': {'azim': azimuth, 'elev': elevation}, 'psnr': outcome.decibels,
            'loss': outcome.loss if math.isfinite(outcome.loss) else None,
            'fov': opt.camera.fov, 'dist_radius': opt.camera.dist_radius, 'tuned': bool(saved.tuned),
            'latents': owner.weights, 'files': files, **facts})


def files_beside_latents(inverter, crop, outcome, folder, model_path, video):
    """Write the pictures, the mesh and the video of one inverted photo; yields each file that is finished."""
    opt, saved = inverter.opt, outcome.saved
    model = LoadedModel(inverter.generator, opt, inverter.means, model_path)

    def picture(end, images):
        save_image_row(folder / end, images)
        return folder / end

    yield picture('photo.png', [np.asarray(crop.image)])
    yield picture('reconstruction.png', [to_uint8(outcome.picture)[0]])
    yield picture('views.png', [model.picture(saved, model.cameras([[angle, 0.]])) for angle in ANGLES])
    camera = cameras_of(opt, saved.viewpoints)
    surface = render_surface(inverter.generator.renderer, saved.latents.w, camera)
    yield picture('depth.png', [to_uint8(shade_surface(surface.xyz[0], surface.background[0], camera, 'depth'))])
    mesh = model.mesh(saved)
    if mesh is not None:
        path = folder / f'mesh.{opt.inference.mesh_format}'
        save_mesh(path, mesh)
        yield path
    if video:
        path = folder / 'video.mp4'
        model.video(path, saved, frames=FRAMES)
        yield path

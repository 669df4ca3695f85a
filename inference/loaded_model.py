"""One loaded model, and what app.py, the service and notebooks ask of it: a picture, the surface, a mesh, a video.

    model = load_model('cats_demo')
    w = model.w_of([3], psi=0.7)
    image = model.picture(w, model.cameras([[20., 0.]]), psi=0.7)

    saved = model.read('latents/anna.pt')
    image = model.picture(saved, model.cameras([[20., 0.]]))

Nothing in it changes after loading, and every random number comes from an rng of the call's own, so threads may share
one model.
"""
import dataclasses
import functools
from pathlib import Path

import torch
from munch import Munch
from torch import Tensor

import options
from camera import cameras_of, video_viewpoints
from inference.frames import IMAGE_CRF, render_frames
from inference.identities import closed_walk, draw_w, identities, of_seeds, seeded
from inference.latents import Latents, Owner, SavedLatents, latents_of_w, read_latents, tuned_generator
from inference.loading import load_generator
from inference.meshes import frontal_mesh
from inference.video_files import video_writer
from model import Generator, MeanLatents
from surfaces.files import color_vertices
from surfaces.meshes import volume_points
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface
from utils import select_device, to_uint8

FPS = 20


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A generator for inference, the flags that it was loaded with, and its mean latents for truncation.

    What is shown is a w (1,style_dim), a Latents or a SavedLatents. `psi` of a picture or video is the truncation in
    [0, 1] that its w was drawn with, since the decoder truncates too; it does not matter for the other two.
    """
    generator: Generator
    opt: Munch
    means: MeanLatents
    path: Path

    @property
    def device(self):
        return self.means.w.device

    def w_of(self, seeds, psi):
        """(len(seeds),style_dim) truncated latents w of the identities that --seeds draws."""
        opt = options.replaced(of_seeds(self.opt, seeds), truncation_ratio=psi)
        drawn = identities(opt, torch.Generator(self.device))
        return torch.cat([draw_w(self.generator, identity, opt, self.means) for identity in drawn])

    def read(self, path):
        """The SavedLatents in a file, of this model. Raises UserError."""
        return read_latents(path, self.generator, self.owner, self.opt)

    @functools.cached_property
    def owner(self):
        """What files of latents know this model by."""
        return Owner.of(self.generator, self.opt)

    def latents(self, shown, psi=1.):
        """The Latents of what is shown: w, Latents or SavedLatents."""
        if isinstance(shown, SavedLatents):
            return shown.latents
        return shown if isinstance(shown, Latents) else latents_of_w(self.generator, shown, psi, self.means)

    def cameras(self, degrees, zoom=1.):
        """Cameras at viewpoints (B,2), azimuth and elevation in degrees. zoom: 2 shows half the width, twice as large.
        """
        viewpoints = torch.deg2rad(torch.tensor(degrees, device=self.device))
        return cameras_of(self.opt, viewpoints).magnified(zoom)

    def _frames(self, shown, cameras, psi, with_surface=False):
        """The frames (inference.frames) of one identity, or of one latent a camera; the same noise in all."""
        opt = options.replaced(self.opt, side_by_side=with_surface)
        saved = shown if isinstance(shown, SavedLatents) else None
        generator = tuned_generator(self.generator, saved and saved.tuned)
        noise = generator.decoder.fixed_noise() if generator.full_pipeline else None
        maps = saved and saved.noise or noise
        return render_frames(generator, self.latents(shown, psi), cameras, lambda _: maps, opt, surfaces=with_surface)

    def picture(self, shown, camera, psi=1.):
        """The image (size,size,3), uint8, from one camera; without a decoder the thumbnail."""
        return next(self._frames(shown, camera, psi))['video']

    def surface(self, shown, camera):
        """The shaded surface (512,512,3), uint8, from one camera."""
        view = render_surface(self.generator.renderer, _w_of(shown), camera)
        return to_uint8(shade_surface(view.xyz[0], view.background[0], camera, framed=False))

    def mesh(self, shown):
        """The frontal marching-cubes mesh with vertex colors; None where there is no surface."""
        w = _w_of(shown)
        if not self.generator.renderer.has_sdf:
            return None
        mesh, camera = frontal_mesh(self.generator, w, self.opt)
        if mesh is None:
            return None
        renderer = self.generator.renderer
        return color_vertices(mesh, renderer, w, camera, *volume_points(mesh.vertices, renderer, camera))

    def video(self, path, shown, psi=1., frames=40, with_surface=False):
        """Write a video (H.264) to `path`, once round the ellipse of render_video.py; returns the path.

        shown: several w, (N,style_dim), are walked through and back to the first. with_surface: the surface beside the
        image.
        """
        for _ in self.video_steps(path, shown, psi, frames, with_surface):
            pass
        return path

    def video_steps(self, path, shown, psi=1., frames=40, with_surface=False):
        """Write a video as `video` does; yields the number of frames so far after each of them.

        Where nobody asks for the next one any more (the generator is closed), nothing is left of the video.
        """
        camera = self.opt.camera
        viewpoints = video_viewpoints(frames, camera.azim, camera.elev, camera.uniform, device=self.device)
        if isinstance(shown, Tensor) and len(shown) > 1:
            shown = closed_walk(shown, frames)
        pictures = self._frames(shown, cameras_of(self.opt, viewpoints), psi, with_surface)
        with video_writer(path, fps=FPS, crf=IMAGE_CRF) as add:
            for i, picture in enumerate(pictures):
                add(picture['side_by_side_video' if with_surface else 'video'])
                yield i + 1


def _w_of(shown):
    """The w of what is shown: w, Latents or SavedLatents."""
    shown = shown.latents if isinstance(shown, SavedLatents) else shown
    return shown.w if isinstance(shown, Latents) else shown


def load_model(expname, **flags):
    """The LoadedModel of an experiment, or of a checkpoint's file (NAME.pt); flags: other flags of app.py by name.

    Raises UserError, as these do.
    """
    typed = [text for name, value in flags.items() for text in (f'--{name}', str(value))]
    named = '--model' if str(expname).endswith('.pt') else '--expname'
    return load(options.parse('app', '', [named, str(expname), *typed]))


def load(opt):
    """The LoadedModel of an option tree of app.py."""
    device = select_device(opt.machine.device)
    generator, opt, path, _ = load_generator(opt, device)
    rng = seeded(opt.experiment.seed, device)
    return LoadedModel(generator, opt, generator.mean_latents(opt.inference.truncation_mean, rng), path)

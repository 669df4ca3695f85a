"""One loaded model, and what app.py, the service and notebooks ask of it: a picture, the surface, a mesh, a video.

    model = load_model('cats_demo')
    w = model.w_of([3], psi=0.7)
    image = model.picture(w, model.cameras([[20., 0.]]), psi=0.7)

Nothing in it changes after loading, and every random number comes from an rng of the call's own, so threads may share
one model.
"""
import dataclasses
from pathlib import Path

import torch
from munch import Munch

import options
from camera import cameras_of, video_viewpoints
from inference.frames import IMAGE_CRF, render_frames
from inference.identities import closed_walk, draw_w, identities, seeded
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

    `psi` of a picture or video is the truncation in [0, 1] that its w was drawn with, since the decoder truncates too.
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
        opt = options.replaced(self.opt, seeds=tuple(seeds), truncation_ratio=psi)
        drawn = identities(opt, torch.Generator(self.device))
        return torch.cat([draw_w(self.generator, identity, opt, self.means) for identity in drawn])

    def cameras(self, degrees, zoom=1.):
        """Cameras at viewpoints (B,2), azimuth and elevation in degrees. zoom: 2 shows half the width, twice as large.
        """
        viewpoints = torch.deg2rad(torch.tensor(degrees, device=self.device))
        return cameras_of(self.opt, viewpoints).magnified(zoom)

    def _frames(self, w, cameras, psi, with_surface=False):
        """The frames (inference.frames) of w (1,style_dim), or of one latent a camera; the same noise in all."""
        opt = options.replaced(self.opt, truncation_ratio=psi, side_by_side=with_surface)
        noise = self.generator.decoder.fixed_noise() if self.generator.full_pipeline else None
        return render_frames(self.generator, w, cameras, lambda _: noise, opt, self.means, surfaces=with_surface)

    def picture(self, w, camera, psi):
        """The image (size,size,3), uint8, of w (1,style_dim) from one camera; without a decoder the thumbnail."""
        return next(self._frames(w, camera, psi))['video']

    def surface(self, w, camera):
        """The shaded surface (512,512,3), uint8, of w (1,style_dim) from one camera."""
        view = render_surface(self.generator.renderer, w, camera)
        return to_uint8(shade_surface(view.xyz[0], view.background[0], camera, framed=False))

    def mesh(self, w):
        """The frontal marching-cubes mesh of w (1,style_dim) with vertex colors; None where there is no surface."""
        if not self.generator.renderer.has_sdf:
            return None
        mesh, camera = frontal_mesh(self.generator, w, self.opt)
        if mesh is None:
            return None
        renderer = self.generator.renderer
        return color_vertices(mesh, renderer, w, camera, *volume_points(mesh.vertices, renderer, camera))

    def video(self, path, w, psi, frames=40, with_surface=False):
        """Write a video (H.264) to `path`, once round the ellipse of render_video.py; returns the path.

        w: (1,style_dim), or several latents, which the video then walks through and back to the first. with_surface:
        the surface beside the image.
        """
        for _ in self.video_steps(path, w, psi, frames, with_surface):
            pass
        return path

    def video_steps(self, path, w, psi, frames=40, with_surface=False):
        """Write a video as `video` does; yields the number of frames so far after each of them.

        Where nobody asks for the next one any more (the generator is closed), nothing is left of the video.
        """
        camera = self.opt.camera
        viewpoints = video_viewpoints(frames, camera.azim, camera.elev, camera.uniform, device=w.device)
        if len(w) > 1:
            w = closed_walk(w, frames)
        pictures = self._frames(w, cameras_of(self.opt, viewpoints), psi, with_surface)
        with video_writer(path, fps=FPS, crf=IMAGE_CRF) as add:
            for i, picture in enumerate(pictures):
                add(picture['side_by_side_video' if with_surface else 'video'])
                yield i + 1


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

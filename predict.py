"""The model as a service in Replicate's form: cog.yaml names this Predictor (https://cog.run).

    cog predict -i seed=3 -i azimuth=20

STYLESDF_MODEL names the model, as --expname does elsewhere: the model in the box unless set. A seed draws the identity
that it draws with --seeds.
"""
import os
import tempfile

import torch
from cog import BasePredictor, Input, Path
from PIL import Image

import options
from camera import cameras_at, video_viewpoints
from checkpoint import load_generator
from generate_shapes_and_images import generate_meshes
from render_video import IMAGE_CRF, render_frames
from surface import save_mesh
from utils import select_device
from video import video_path, video_writer

FPS = 25


class Predictor(BasePredictor):
    """One identity from one viewpoint: its picture, and on demand its mesh and a video around it."""

    def setup(self):
        """Load the model once, and the mean latents that truncation pulls to."""
        opt = options.parse('render_video', '', ['--expname', os.environ.get('STYLESDF_MODEL', 'cats_demo')])
        self.generator, self.opt, *_ = load_generator(opt, select_device(opt.machine.device))
        self.device = next(self.generator.parameters()).device
        random = torch.Generator(self.device).manual_seed(opt.experiment.seed)
        self.means = self.generator.mean_latents(opt.inference.truncation_mean, random)

    @torch.no_grad()
    def predict(
        self,
        seed: int | None = Input(description='Identity; empty: a random one', default=None, ge=0, le=2 ** 31),
        truncation: float = Input(description='1: the full variety, 0: the mean of all', default=0.7, ge=0, le=1),
        azimuth: float = Input(description='Degrees to the right', default=0, ge=-45, le=45),
        elevation: float = Input(description='Degrees up', default=0, ge=-30, le=30),
        mesh: bool = Input(description='Also the surface, a GLB file with the colours of the field', default=True),
        video: bool = Input(description='Also a video once around the frontal view', default=False),
        frames: int = Input(description='Frames of the video', default=50, ge=2, le=250),
    ) -> list[Path]:
        """The picture (PNG), then the mesh (GLB) and the video (MP4) that were asked for."""
        opt = options.replaced(self.opt, truncation_ratio=truncation, vertex_colors=True)
        seed = torch.seed() % 2 ** 31 if seed is None else seed
        print(f'Seed: {seed}')
        random = torch.Generator(self.device).manual_seed(seed)
        z = torch.randn(1, opt.model.style_dim, generator=random, device=self.device)
        w = self.generator.map(z, truncation, self.means)
        noise = self.generator.decoder.fixed_noise() if self.generator.full_pipeline else None
        folder = tempfile.mkdtemp()

        def cameras(viewpoints):
            return cameras_at(viewpoints, self.generator.renderer.resolution, opt.camera.fov, opt.camera.dist_radius)

        def pictures(views):
            return (frame['video'] for frame in render_frames(self.generator, w, views, lambda _: noise, opt,
                                                              self.means, surfaces=False))

        view = cameras(torch.deg2rad(torch.tensor([[azimuth, elevation]], device=self.device)))
        files = [Path(folder) / 'image.png']
        Image.fromarray(next(pictures(view))).save(files[0])
        if mesh and self.generator.renderer.has_sdf:
            for _, kind, _, surface in generate_meshes(self.generator, z, view, opt, self.means):
                if kind == 'marching_cubes_mesh' and surface is not None:
                    files.append(Path(folder) / 'surface.glb')
                    save_mesh(files[-1], surface)
        if video:
            files.append(Path(video_path(folder, 'video', 'mp4')))
            viewpoints = video_viewpoints(frames, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                                          device=self.device)
            with video_writer(files[-1], fps=FPS, crf=IMAGE_CRF) as add:
                for picture in pictures(cameras(viewpoints)):
                    add(picture)
        return files

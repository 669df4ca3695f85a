"""What benchmarks/speed.py compares with: the definitions themselves, and the plainest order of work around them.

    with plain():
        generator = build_generator(opt, **fast_parts(opt))   # opt has --dense: the definitions in model.py and others

The formulas are those of volume_renderer.py and model.py: `plain()` sets STYLESDF_OPS=plain, by which no kernel and no
faster class is used. What training does besides is replaced by its plain form too. `surface` and `video_frames` are
the plain order of work: colors and features are computed also where only a surface is wanted, and latents and styles
anew for each frame.
"""
import contextlib
import os
from unittest import mock

import torch

from surfaces.meshes import SURFACE_RESOLUTION
from surfaces.shading import shade_surface
from training import run
from training.state import EMA_DECAY, State
from utils import to_uint8


@contextlib.contextmanager
def plain():
    """Inside, generators that are built, and what trains them, compute the plain way. They must be float32 models."""
    with (mock.patch.dict(os.environ, {'STYLESDF_OPS': 'plain'}), mock.patch.object(run, 'adam', adam),
          mock.patch.object(State, 'update_ema', update_ema)):
        yield


# ---------------------------------------------------------------------------------------------- surfaces and videos

@torch.no_grad()
def surface(renderer, w, camera):
    """render_surface of one view, with the SDF, and with colors and features too."""
    camera = camera.magnified(SURFACE_RESOLUTION / renderer.resolution)
    return renderer(w, camera, resolution=SURFACE_RESOLUTION, samples=SURFACE_RESOLUTION, sdf=True)


@torch.no_grad()
def video_frames(generator, z, cameras, opt, means):
    """inference.frames.render_frames of one identity z (1,style_dim): each frame begins with z."""
    for i in range(len(cameras)):
        camera = cameras[i:i + 1]
        image = generator(z, camera, psi=opt.inference.truncation_ratio, means=means, noise='fixed').image
        view = surface(generator.renderer, generator.map(z, opt.inference.truncation_ratio, means), camera)
        shaded = shade_surface(view.xyz[0], view.background[0], camera, opt.video.depth_style)
        yield {'video': to_uint8(image)[0], 'depth_video': to_uint8(shaded)}


# ---------------------------------------------------------------------------------------------- training

def adam(parameters, lr, betas):
    """training.run.adam as PyTorch has it by default."""
    return torch.optim.Adam(parameters, lr, betas)


def update_ema(state):
    """State.update_ema, one parameter after the other."""
    with torch.no_grad():
        for mean, new in zip(state.g_ema.parameters(), state.g.parameters(), strict=True):
            if new.requires_grad:
                mean.mul_(EMA_DECAY).add_(new, alpha=1 - EMA_DECAY)

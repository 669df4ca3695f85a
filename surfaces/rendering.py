"""Rays and samples that surfaces are taken from."""

import torch

from op import sparse
from surfaces.meshes import SURFACE_RESOLUTION, decisive_samples


@torch.no_grad()
def render_surface(renderer, w, cameras, *, sdf=False, dense=False):
    """Render w (B,style_dim) at the resolution of surfaces; a Rendering without colors, with the SDF if asked for.

    cameras: for the renderer's own resolution. dense: evaluate the field at every sample, instead of only where that
    changes the result (sparse.py).
    """
    cameras = cameras.magnified(SURFACE_RESOLUTION / renderer.resolution)
    wanted = {'resolution': SURFACE_RESOLUTION, 'samples': SURFACE_RESOLUTION, 'color': False, 'sdf': sdf}
    if dense:
        return renderer(w, cameras, **wanted)

    def decisive(volume):
        return decisive_samples(volume, cameras.near[0].item(), cameras.far[0].item(),
                                sparse.SURFACE.zero * renderer.sigmoid_beta.item())

    return sparse.render(renderer, w, cameras, decisive=decisive if sdf else None, **wanted)

"""Rays and samples that surfaces are taken from."""
import torch

from surfaces.meshes import SURFACE_RESOLUTION, decisive_samples


@torch.no_grad()
def render_surface(renderer, w, cameras, *, sdf=False):
    """Render w (B,style_dim) at the resolution of surfaces; a Rendering without colors, with the SDF if asked for.

    renderer: a VolumeRenderer or a subclass. cameras: for the renderer's own resolution.
    """
    cameras = cameras.magnified(SURFACE_RESOLUTION / renderer.resolution)

    def decisive(volume, deviation, margin):
        return decisive_samples(volume, deviation, cameras.near[0].item(), cameras.far[0].item(), margin)

    return renderer(w, cameras, resolution=SURFACE_RESOLUTION, samples=SURFACE_RESOLUTION, color=False, sdf=sdf,
                    decisive=decisive if sdf else None)

"""Rays and samples that surfaces are taken from."""
import torch
import torch.nn.functional as F

from surfaces.meshes import SURFACE_RESOLUTION, decisive_samples

POINTS_AT_ONCE = 1 << 16  # of normals


@torch.no_grad()
def render_surface(renderer, w, cameras, *, sdf=False, resolution=None, samples=None):
    """Render w (B,style_dim) at the resolution of surfaces; a Rendering without colors, with the SDF if asked for.

    renderer: a VolumeRenderer or a subclass. cameras: for the renderer's own resolution. resolution: rays a side, if
    other than SURFACE_RESOLUTION. samples: samples a ray, if other than those.
    """
    resolution = resolution or SURFACE_RESOLUTION
    samples = samples or resolution
    cameras = cameras.magnified(resolution / renderer.resolution)

    def decisive(volume, deviation, margin):
        return decisive_samples(volume, deviation, cameras.near[0].item(), cameras.far[0].item(), margin)

    return renderer(w, cameras, resolution=resolution, samples=samples, color=False, sdf=sdf,
                    decisive=decisive if sdf else None)


@torch.no_grad()
def normals_at(renderer, w, points, camera):
    """(P,3) unit normals of the field's level surfaces at world points (P,3): outward, where the signed distance of w
    (1,style_dim) grows. camera: one, for the scale of the points."""
    field = renderer.field(w)
    slopes = [renderer.evaluate(field, some[None, :, None], None, camera, eikonal=True)[-1][0, :, 0].detach()
              for some in points.split(POINTS_AT_ONCE)]
    return F.normalize(torch.cat(slopes), dim=1)

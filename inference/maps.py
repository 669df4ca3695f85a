"""The maps of one identity: --maps."""
import math

import torch

from surfaces.maps import check_map_format, map_of, map_range
from surfaces.meshes import SURFACE_RESOLUTION
from surfaces.rendering import render_surface
from utils import UserError


def check_maps(opt):
    """Raise UserError for flags that belong to --maps without it, or a format that cannot be written here."""
    for name in ('map_size', 'map_format'):
        if name in opt.given and not opt.inference.maps:
            raise UserError(f'--{name} belongs to --maps; add that flag, or leave this one out.')
    if opt.inference.maps:
        check_map_format(opt.inference.map_format)


def map_size(generator, opt):
    """Pixels along a side of maps."""
    return {'thumbnail': generator.renderer.resolution, 'surface': opt.inference.surface_resolution,
            'image': opt.model.size if generator.full_pipeline else generator.renderer.resolution}[
                opt.inference.map_size]


def map_facts(generator, opt):
    """What index.json says about maps: their size, and the lowest and highest number of each kind."""
    near, far = 1 - opt.camera.dist_radius, 1 + opt.camera.dist_radius
    half_width = far * math.tan(math.radians(opt.camera.fov))
    return {'size': map_size(generator, opt), 'format': opt.inference.map_format,
            'ranges': {kind: list(map_range(kind, near, far, half_width)) for kind in opt.inference.maps}}


@torch.no_grad()
def generate_maps(generator, w, cameras, opt):
    """Yield (kind, index of the view, numbers (H,W) or (H,W,3)) of the identity w (1,style_dim)."""
    size = map_size(generator, opt)
    samples = max(SURFACE_RESOLUTION, opt.inference.surface_resolution)
    for i in range(len(cameras)):
        camera = cameras[i:i + 1]
        surface = render_surface(generator.renderer, w, camera, resolution=size, samples=samples)
        for kind in opt.inference.maps:
            yield kind, i, map_of(kind, surface, camera)

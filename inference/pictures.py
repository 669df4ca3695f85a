"""The pictures of one identity: images and thumbnails from all its viewpoints, and their proportions."""
import numpy as np
import torch
from PIL import Image

from imaging.lmdb_files import read_fit
from inference.latents import render_latents
from surfaces.matting import without_background
from utils import UserError

# The original draws noise for at most this many views at a time; the same seed must draw the same.
VIEWS_PER_DRAW = 8
# Pixels of decoded images at a time, so that memory does not grow with the views.
PIXELS_AT_ONCE = {'cpu': 1 << 20, 'cuda': 1 << 23}
ROW_PIXELS = 1 << 17  # width of a row of pictures: few programs open a wider one


def check_row(opt):
    """Raise UserError for more views than a row of pictures holds, which bounds the memory that it takes."""
    limit, inference = ROW_PIXELS // opt.model.size, opt.inference
    views, flag = ((len(inference.views), '--views') if inference.views else
                   (1, '') if inference.fixed_camera_angles else
                   (inference.num_views_per_id, f'--num_views_per_id {inference.num_views_per_id}'))
    if views > limit:
        raise UserError(f'{flag}: a row of pictures of {opt.model.size} pixels holds at most {limit}, not {views}; ask '
                        'for fewer views, or use --seeds and several runs.')


def proportioned(opt):
    """A function that brings a uint8 picture (S,S,C) into the proportions that --proportions_of asks for.

    Without that flag, and where the photos of that data set were cropped or are square, it returns the picture as it
    is. Raises UserError where there is no data set.
    """
    path = opt.inference.proportions_of
    if not path:
        return lambda picture: picture
    fit, aspect = read_fit(path)
    if fit.mode not in ('pad', 'squeeze') or aspect == 1:
        print(f'--proportions_of {path}: its photos {"are square" if aspect == 1 else "were cropped to squares"}, so '
              'pictures stay square.')
        return lambda picture: picture
    return lambda picture: np.asarray(fit.undone(Image.fromarray(picture), aspect))


def skip_noise(generator, views, rng):
    """Draw from rng, and forget, the noise that generate_images draws for so many views."""
    for first in range(0, views if generator.full_pipeline else 0, VIEWS_PER_DRAW):
        generator.decoder.random_noise(min(VIEWS_PER_DRAW, views - first), rng)


@torch.no_grad()
def generate_images(generator, latents, cameras, opt, rng, noise=None):
    """Yield (image, thumbnail) batches in [-1, 1] of the Latents of one identity, seen from `cameras`.

    The image is None for a field without decoder. With --transparent both have a fourth channel, alpha. noise: the
    decoder's maps, a list of (1,1,h,w), the same in all views; without them each view has its own, drawn from rng.
    """
    for first in range(0, len(cameras), VIEWS_PER_DRAW):
        views = cameras[first:first + VIEWS_PER_DRAW]
        maps, at_once = noise, len(views)
        if generator.full_pipeline:
            maps = noise or generator.decoder.random_noise(len(views), rng)
            budget = PIXELS_AT_ONCE.get(latents.w.device.type, PIXELS_AT_ONCE['cuda'])
            at_once = max(1, budget // opt.model.size ** 2)
        for start in range(0, len(views), at_once):
            chunk = slice(start, start + at_once)
            own = noise or maps and [layer[chunk] for layer in maps]
            picture, rendering = render_latents(generator, latents, views[chunk], own)
            pictures = picture if generator.full_pipeline else None, rendering.thumbnail
            if opt.inference.transparent:
                pictures = [one if one is None else without_background(one, rendering.background) for one in pictures]
            yield pictures

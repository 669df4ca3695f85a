"""A contact sheet of directions: one row for each, with an identity moved along it."""
import numpy as np
import torch
from PIL import Image, ImageDraw

from camera import cameras_of
from inference.directions import edited
from inference.latents import render_latents
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface
from utils import atomic_path, to_uint8

AMOUNTS = (-3., -1.5, 0., 1.5, 3.)  # standard deviations
CELL = 192                          # pixels
LABEL = 18                          # pixels of the line with a direction's name above its row


@torch.no_grad()
def sheet_rows(generator, latents, directions, opt, surfaces=True):
    """Yield (name, rows of pictures (CELL,CELL,3)) of each direction: the images from the front, and below them, for
    directions that move w, the surfaces. latents: of the identity that is moved. surfaces: False leaves these out."""
    camera = cameras_of(opt, torch.zeros(1, 2, device=latents.w.device))
    for name, step in directions.items():
        moved = [edited(latents, ((name, amount),), directions) for amount in AMOUNTS]
        rows = [[_cell(to_uint8(render_latents(generator, one, camera)[0])[0]) for one in moved]]
        if surfaces and step.w is not None:
            views = [render_surface(generator.renderer, one.w, camera) for one in moved]
            rows.append([_cell(to_uint8(shade_surface(view.xyz[0], view.background[0], camera, framed=False)))
                         for view in views])
        yield name, rows


def _cell(picture):
    return np.asarray(Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.BICUBIC))


def save_sheet(path, rows):
    """Write the rows of sheet_rows as one PNG, atomically."""
    strips = []
    for name, lines in rows:
        label = Image.new('RGB', (CELL * len(AMOUNTS), LABEL), 'white')
        for i, amount in enumerate(AMOUNTS):
            ImageDraw.Draw(label).text((CELL * i + 4, 3), f'{name} {amount:+g}'.replace('+0', '0'), fill='black')
        strips += [np.asarray(label), *(np.concatenate(line, axis=1) for line in lines)]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(strips)).save(temporary)

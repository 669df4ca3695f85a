"""Teach a field its own faces, with those that are hollow turned inside out.

    python -m training.turn_hollow_faces demo/cats_demo.pt --out turned.pt --steps 5000

A hollow mask, seen from the other side, gives nearly the same picture as a face (losses.relief_loss). So the new field
learns the features and thumbnails of the given one, from the view that is mirrored in azimuth and elevation where the
given surface is hollow, while its own surfaces have to stand out as far as the given ones are deep. What it writes is a
field for --init_ckpt of train_volume_renderer.py. Faces are less clear afterwards, and training has to go on.
"""
import argparse
from pathlib import Path

import options
from utils import UserError, run_command, writable_folder


def read_flags():
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a checkpoint with a field and its mapping')
    parser.add_argument('--out', type=Path, required=True, help='the file to write')
    parser.add_argument('--steps', type=options.explained(options.at_least(1)), default=5000,
                        help='Ctrl-C writes what has been learned so far')
    return parser.parse_args()


if __name__ == '__main__':
    run_command('training.turn_hollow_faces', read_flags)

import copy
import math

import torch
from tqdm import tqdm

import checkpoint
import losses
from camera import cameras_of, sample_viewpoints
from inference.loaded_model import load_model

RADIUS = 0.09              # of the sphere that reliefs are compared with
BATCH, RAYS, SAMPLES = 6, 32, 24
VIEWS = 0.2, 0.12          # spread of azimuth and elevation
PSI = 0.4, 1.              # of the identities, drawn evenly
RELIEF = 0.8, 2.           # the least and most that surfaces have to stand out
FINEST_BETA, COARSEST_BETA = 0.0017, 0.004  # of the new field: soft at first, so that surfaces can move
EIKONAL, FAR, COLOR = 0.1, 20., 2.          # weights of the losses; those of features and relief are 1
RATE, LAST_RATE, WARM_UP = 2e-4, 2e-5, 50   # learning rates, and the steps until the first is reached
MEMORY = 0.995             # of the moving average of the weights, which is what is written


def progress(step, steps):
    """(learning rate, beta) of a step: the rate falls along a cosine, beta falls straight and ends early."""
    share = step / steps
    rate = LAST_RATE + (RATE - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2
    return (min(1, (step + 1) / WARM_UP) * rate,
            FINEST_BETA + (COARSEST_BETA - FINEST_BETA) * max(0, 1 - 1.2 * share))


def terms(given, new, w, opt):
    """The weighted losses of a batch of w (B,style_dim) by name."""
    def cameras(viewpoints):
        return cameras_of(opt, viewpoints).magnified(RAYS / given.resolution)

    views = sample_viewpoints(len(w), *VIEWS)
    with torch.no_grad():
        front = cameras(torch.zeros_like(views))
        depth = losses.relief(given(w, front, resolution=RAYS, samples=SAMPLES, color=False).xyz, front, RADIUS)
        mirrored = torch.where(depth < 0, -1., 1.)[:, None]
        target = given(w, cameras(mirrored * views), resolution=RAYS, samples=SAMPLES)
    seen = cameras(views)
    shown = new(w, seen, resolution=RAYS, samples=SAMPLES, sdf=True, eikonal=True)
    relief = losses.relief(shown.xyz, seen, RADIUS)
    return {'features': (shown.features - target.features).abs().mean(),
            'color': COLOR * (shown.thumbnail - target.thumbnail).abs().mean(),
            'relief': (relief - depth.abs().clamp(*RELIEF)).abs().mean(),
            'eikonal': EIKONAL * losses.eikonal_loss(shown.eikonal),
            'far': FAR * losses.far_plane_loss(shown.sdf)}


def main(flags):
    writable_folder(flags.out.parent, '--out')
    if flags.out.is_dir():
        raise UserError(f'--out {flags.out} is a folder; give the name of a file.')
    torch.manual_seed(0)
    saved, model = checkpoint.read(flags.model), load_model(flags.model, device='cpu')
    given = model.generator.renderer
    if not given.has_sdf:
        raise UserError(f'{flags.model} has no signed distances (--no_sdf), and so no surface that could be turned.')
    given.perturb = 0.
    new = copy.deepcopy(given).requires_grad_()
    new.perturb = 1.
    new.sigmoid_beta.requires_grad_(False)
    average = copy.deepcopy(new.state_dict())

    def save():
        given.load_state_dict(average)
        options = {'options': saved['options']} if 'options' in saved else {}  # what a training goes on with
        checkpoint.save(flags.out, {'g_ema': checkpoint.without_decoder(model.generator.state_dict()), **options})

    try:
        train(model, new, average, flags.steps)
    except KeyboardInterrupt:
        save()
        raise
    save()


def train(model, new, average, steps):
    """Train the renderer `new` on that of the model. average: the moving average of its weights, changed in place."""
    optimizer = torch.optim.Adam(new.network.parameters(), RATE, betas=(0.9, 0.99))
    bar = tqdm(range(steps), unit=' steps')
    for step in bar:
        optimizer.param_groups[0]['lr'], beta = progress(step, steps)
        new.sigmoid_beta.fill_(beta)
        with torch.no_grad():
            w = model.generator.map(torch.randn(BATCH, model.opt.model.style_dim))
            w = model.means.w + torch.empty(BATCH, 1).uniform_(*PSI) * (w - model.means.w)
        found = terms(model.generator.renderer, new, w, model.opt)
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
        bar.set_postfix({name: f'{value.item():.3f}' for name, value in found.items()})
        for name, value in new.state_dict().items():
            average[name].lerp_(value, 1 - min(MEMORY, (step + 1) / (step + 10)))

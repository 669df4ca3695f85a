"""Teach a field its own faces, with those that are hollow turned inside out.

    python -m training.turn_hollow_faces demo/cats_demo.pt --out turned.pt --steps 5000

A hollow mask, seen from the other side, gives nearly the same picture as a face (losses.relief_loss). So the new field
learns the features and thumbnails of the given one, from the view that is mirrored in azimuth and elevation where the
given surface is hollow, while its own surfaces have to stand out as far as the given ones are deep. What it writes is a
field for --init_ckpt of train_volume_renderer.py. Faces are less clear afterwards, and training has to go on.
"""
from training.command_line import read_flags
from utils import run_command

if __name__ == '__main__':
    run_command('training.turn_hollow_faces', lambda: read_flags(__doc__, 5000))

import torch

import losses
from camera import cameras_of, sample_viewpoints
from training.distillation import FieldLesson, distill

RADIUS = 0.09              # of the sphere that reliefs are compared with
BATCH, RAYS, SAMPLES = 6, 32, 24
VIEWS = 0.2, 0.12          # spread of azimuth and elevation
PSI = 0.4, 1.              # of the identities, drawn evenly
RELIEF = 0.8, 2.           # the least and most that surfaces have to stand out
FINEST_BETA, COARSEST_BETA = 0.0017, 0.004  # of the new field: soft at first, so that surfaces can move
EIKONAL, FAR, COLOR = 0.1, 20., 2.          # weights of the losses; those of features and relief are 1


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


class Turning(FieldLesson):
    """Turn what is hollow, and keep the rest."""

    rates = 2e-4, 2e-5

    def beta(self, step):
        """That of the new field falls straight, and ends early."""
        return FINEST_BETA + (COARSEST_BETA - FINEST_BETA) * max(0, 1 - 1.2 * step / self.steps)

    def terms(self, step):
        self.new.sigmoid_beta.fill_(self.beta(step))
        return terms(self.given, self.new, self.draw(BATCH, PSI), self.model.opt)


def main(flags):
    distill(flags, Turning, keep_decoder=False)

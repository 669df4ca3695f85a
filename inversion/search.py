"""A first guess without an encoder: the best of many random identities from a grid of viewpoints."""
import torch

from inversion.inverter import Guess
from losses import pyramid_loss

IDENTITIES = 64
AZIMUTHS, ELEVATIONS = (-1.6, -0.8, 0., 0.8, 1.6), (-1., 0., 1.)  # in units of the training's spread
AT_ONCE = 16
SEED = 1


@torch.no_grad()
def candidates(inverter, progress=lambda count: None):
    """(Guess of N candidates, their coarse thumbnails (N,3,r,r)). progress: called with the number made so far.

    The mean identity is among them.
    """
    rng = torch.Generator(inverter.device).manual_seed(SEED)
    u = inverter.draw(IDENTITIES, rng).u
    u[0] = 0.
    camera = inverter.opt.camera
    grid = torch.cartesian_prod(torch.tensor(AZIMUTHS) * camera.azim, torch.tensor(ELEVATIONS) * camera.elev)
    views = grid.to(u).repeat(len(u), 1)
    guess = Guess(views, u.repeat_interleave(len(grid), dim=0))
    thumbnails = []
    for start in range(0, len(views), AT_ONCE):
        thumbnails.append(inverter.render_coarse(guess.select(slice(start, start + AT_ONCE))))
        progress(min(len(views), start + AT_ONCE))
    return guess, torch.cat(thumbnails)


@torch.no_grad()
def best_candidates(found, photos, count):
    """A Guess of the `count` candidates, of different identities, that are most like each of B photos: those of the
    first photo, then those of the second, … found: from `candidates`."""
    guess, thumbnails = found
    per_identity = len(AZIMUTHS) * len(ELEVATIONS)
    indices = []
    for photo in photos.coarse.split(1):
        distance = pyramid_loss(thumbnails, photo.expand_as(thumbnails)).view(-1, per_identity)
        best, view = distance.min(dim=1)
        identity = best.argsort()[:count]
        indices.append(identity * per_identity + view[identity])
    return guess.select(torch.cat(indices))

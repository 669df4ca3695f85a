"""A first guess without an encoder: the best of many random identities from a grid of viewpoints."""
import torch

from inversion.inverter import Guess, shrunk
from inversion.preview import sides
from losses import pyramid_loss

IDENTITIES = 8
AZIMUTHS, ELEVATIONS = (-1.6, -0.8, 0., 0.8, 1.6), (-1., 0., 1.)  # in units of the training's spread
AT_ONCE = 16
SEED = 1


@torch.no_grad()
def candidates(inverter, preview, progress=lambda count: None):
    """(Guess of N candidates, their smallest previews (N,3,r,r)). progress: called with the number made so far.

    The mean identity is among them.
    """
    rng = torch.Generator(inverter.device).manual_seed(SEED)
    u = inverter.draw(IDENTITIES, rng).u
    u[0] = 0.
    camera = inverter.opt.camera
    grid = torch.cartesian_prod(torch.tensor(AZIMUTHS) * camera.azim, torch.tensor(ELEVATIONS) * camera.elev)
    views = grid.to(u).repeat(len(u), 1)
    guess = Guess(views, u.repeat_interleave(len(grid), dim=0))
    pictures = []
    for start in range(0, len(views), AT_ONCE):
        pictures.append(preview.pictures(guess.select(slice(start, start + AT_ONCE)), sides(inverter)[0]))
        progress(min(len(views), start + AT_ONCE))
    return guess, torch.cat(pictures)


@torch.no_grad()
def best_candidates(found, images, count):
    """A Guess of the `count` candidates, of different identities, that are most like each of B images: those of the
    first image, then those of the second, … found: from `candidates`."""
    guess, previews = found
    per_identity = len(AZIMUTHS) * len(ELEVATIONS)
    indices = []
    for image in shrunk(images, previews.shape[-1]).split(1):
        distance = pyramid_loss(previews, image.expand_as(previews)).view(-1, per_identity)
        best, view = distance.min(dim=1)
        identity = best.argsort()[:count]
        indices.append(identity * per_identity + view[identity])
    return guess.select(torch.cat(indices))

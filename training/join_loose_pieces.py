"""Join the loose pieces of a field's surfaces to the heads that they belong to.

    python -m training.join_loose_pieces demo/cats_demo.pt --out joined.pt --steps 1200

In part of the identities an ear hovers before the head, or a body begins a little below it: the pictures do not tell.
So of many identities it is found which parts of the inside are not connected with the largest one. The new field learns
the features, thumbnails and distances of the given one, while the shortest way from each piece to the largest part has
to lie inside. Specks have to disappear instead. The pictures hardly change, so a decoder goes on to fit, and what is
written has it.
"""
from training.command_line import read_flags
from utils import run_command

if __name__ == '__main__':
    run_command('training.join_loose_pieces', lambda: read_flags(__doc__, 1200))

from typing import NamedTuple

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor
from tqdm import tqdm

import losses
from camera import cameras_of, sample_viewpoints
from training.distillation import FieldLesson, distill
from training.random_numbers import image_rngs

GRID = 56              # samples along each axis of the volume in which pieces are looked for
SPECK = 0.003          # of the largest part's volume: what is smaller disappears
IDENTITIES, EVERY = 160, 60  # that are looked through, and the steps until others are
PSI = 0.6, 1.          # of the identities, drawn evenly
MENDED = 12            # identities whose pieces are joined in a step
BRIDGE = 0.008         # radius of the way that has to lie inside
BRIDGE_POINTS, SPECK_POINTS = 192, 128  # of an identity in a step
BEYOND = 0.15          # of the way's length, by which it goes on into both ends
MARGIN = 0.003         # how far inside or outside the points have to be
NEAREST = 8            # of a piece's samples, one of which the way begins at
BATCH, RAYS, SAMPLES = 6, 32, 24  # pictures of a step that are compared with the given field
VIEWS = 0.2, 0.12      # spread of their azimuth and elevation
NEAR = 0.02            # distances this near to a surface are to stay as they were, above all
JOIN, VANISH, COLOR, DISTANCE, FAR = 20., 20., 2., 10., 20.  # weights of the losses; that of features is 1


class Pieces(NamedTuple):
    """What is loose in the volume of one identity."""
    ways: list     # of pairs of points (3,): in a piece, and the nearest in the largest part
    specks: Tensor  # (P,3) the samples inside of specks


def loose_pieces(sdf, points):
    """The Pieces of distances (N,N,N) at points (N,N,N,3). Parts are connected along the axes of the volume."""
    parts, _ = scipy.ndimage.label(sdf.numpy() < 0)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # outside
    largest = sizes.argmax()

    def samples(part):
        return points[torch.from_numpy(parts == part)]

    ways, specks, tree = [], [points.new_zeros(0, 3)], None
    for part in np.flatnonzero(sizes):
        if part == largest:
            continue
        inside = samples(part)
        if sizes[part] < SPECK * sizes[largest]:
            specks.append(inside)
            continue
        tree = tree or KDTree(samples(largest).numpy())
        distances, nearest = tree.query(inside.numpy())
        begin = np.argsort(distances)[:NEAREST]
        begin = begin[torch.randint(len(begin), ()).item()]
        ways.append((inside[begin], torch.from_numpy(tree.data[nearest[begin]]).to(inside)))
    return Pieces(ways, torch.cat(specks))


def points_along(ways, count):
    """`count` random points (count,3) within BRIDGE of ways, each of which is a pair of points (3,)."""
    begin, end = (torch.stack(ends)[torch.randint(len(ways), (count,))] for ends in zip(*ways, strict=True))
    share = torch.rand(count, 1) * (1 + 2 * BEYOND) - BEYOND
    aside = BRIDGE * torch.rand(count, 1).sqrt() * F.normalize(torch.randn(count, 3), dim=1)
    return begin + share * (end - begin) + aside


class Joining(FieldLesson):
    """Keep the field, but for what is loose."""

    rates, memory = (3e-5, 3e-6), 0.99

    def __init__(self, model, new, flags):
        super().__init__(model, new, flags)
        self.given.perturb = 1.  # its samples have the same jitter as those that are compared with them
        self.front = cameras_of(model.opt, torch.zeros(1, 2)).magnified(GRID / self.given.resolution)

    @torch.no_grad()
    def look_through(self):
        """Find the Pieces of new random identities."""
        self.w = self.draw(IDENTITIES, PSI)
        self.pieces = []
        rays = self.new.rays(self.front, GRID, GRID, offset_sampling=True, perturb=0.)
        for w in self.w.split(1):
            sdf = self.new.evaluate(self.new.field(w), rays.points, None, self.front)[0]
            self.pieces.append(loose_pieces(sdf.view(GRID, GRID, GRID), rays.points.view(GRID, GRID, GRID, 3)))

    def terms(self, step):
        if step % EVERY == 0:
            self.look_through()
        loose = [i for i, found in enumerate(self.pieces) if found.ways]
        specked = [i for i, found in enumerate(self.pieces) if len(found.specks)]
        if step % EVERY == 0:
            tqdm.write(f'step {step}: of {len(self.pieces)} identities {len(loose)} have loose pieces, {len(specked)} '
                       'have specks')
        joined, cleared = ([some[i] for i in torch.randperm(len(some))[:MENDED]] for some in (loose, specked))
        terms = self.kept(torch.cat([self.w[joined[:BATCH // 2]],
                                     self.draw(BATCH - len(joined[:BATCH // 2]), PSI)]), step)
        if joined:
            points = torch.stack([points_along(self.pieces[i].ways, BRIDGE_POINTS) for i in joined])
            terms['join'] = JOIN * F.relu(MARGIN + self.distances(joined, points)).mean()
        if cleared:
            points = torch.stack([self.pieces[i].specks[torch.randint(len(self.pieces[i].specks), (SPECK_POINTS,))]
                                  for i in cleared])
            terms['specks'] = VANISH * F.relu(MARGIN - self.distances(cleared, points)).mean()
        return terms

    def distances(self, identities, points):
        """The new field's distances (n,P,1) of n of the identities at points (n,P,3)."""
        return self.new.network(self.w[identities], self.new.scale(points, self.front))[0]

    def kept(self, w, step):
        """The terms that keep pictures and surfaces of w (B,style_dim) as they were."""
        cameras = cameras_of(self.model.opt, sample_viewpoints(len(w), *VIEWS)).magnified(RAYS / self.given.resolution)

        def rendering(renderer):
            rngs = image_rngs(0, 'keep', step, range(len(w)), 'cpu')
            return renderer(w, cameras, resolution=RAYS, samples=SAMPLES, sdf=True, rng=rngs)

        with torch.no_grad():
            before = rendering(self.given)
        now = rendering(self.new)
        near = torch.exp(-before.sdf.abs() / NEAR)
        return {'features': (now.features - before.features).abs().mean(),
                'color': COLOR * (now.thumbnail - before.thumbnail).abs().mean(),
                'distance': DISTANCE * ((now.sdf - before.sdf).abs() * near).mean(),
                'far': FAR * losses.far_plane_loss(now.sdf)}


def main(flags):
    distill(flags, Joining)

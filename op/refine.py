"""Signed distances at all samples of a view, most of them without asking the field.

What the result needs is known without any belief in smoothness: for a depth, the samples that a ray can see and that
have density; for a mesh, both ends of every edge that the zero level cuts. The search goes from coarse to fine:

1. Every 4th sample of every 4th ray is evaluated. Between these the distance may go beyond what they show by as much as
   it bends nearby. The cells that then have room for a surface are looked into: their middles are evaluated. Where
   these are off by more, the room grows (`Search.cells`).
2. Twice the gaps are halved (`Level`). The new samples are interpolated, by weights that are fitted to samples of this
   very field. How far off each may be, its deviation, is what was measured nearby, times a factor that is measured at
   samples chosen at random. Those are evaluated whose deviation matters.
3. At the end (`Samples.settle`) all that the deviations may do to the depth of a ray is added up. Rays chosen at random
   show how much of it comes true. Samples are evaluated until it is little enough, on every ray.

So the cost grows with the roughness of the field: a smooth one is interpolated nearly everywhere, a rough one is
evaluated in the band around its visible surface, and a fog, where all samples count, at all of them. Where an evaluated
sample was off by far more than its deviation, its surroundings are judged again. Measured: docs/performance.md.
"""
import itertools
from functools import lru_cache, partial
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from op.threads import for_each

COARSEST = 4         # the first samples are so far apart along each axis
FEWEST_NODES = 6     # along an axis, which the interpolation needs
# The kinds of a level's samples: which of their indices are odd. Each is predicted from the kinds before it.
NODES, CENTERS = ((0, 0, 0),), ((1, 1, 1),)
FACES = ((0, 1, 1), (1, 0, 1), (1, 1, 0))
EDGES = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
REACH = 14           # square of how far away neighbors count in a prediction, in samples
REACH_FACES = 9      # the same where the faces beside an edge are known
PAD = 3              # samples beyond the ends that these reach
CACHED_SAMPLES = 1 << 16  # of a volume that a CPU works on at a time
PROBES = 250         # samples of a kind that are chosen at random, to measure by
FEWEST_PROBES = 60   # to fit weights to
SMOOTH = 1e-3        # in scales of the density: less rough is as good as smooth
PROBE_RAYS = 64
QUANTILE, QUANTILE_OF_NORMAL = 0.97, 2.17  # the 97th of 100 normal numbers is 2.17 deviations off
SURPRISING = 5       # deviations: an evaluated sample that was off by more has neighbors that are judged again
FAR = 5              # deviations: so far off an error can be, where a few samples of many matter
ZERO = 6             # in deviations: samples nearer to zero are evaluated, because their sign decides the mesh
AT_ENDS = 3          # deviations are so much larger at the ends of the volume
BENDS = 0.5          # of the second differences nearby: how far beyond its corners the distance in a coarse cell may go
UNSEEN = 1e-3        # transmittance of what no ray reaches
WEIGHTY = 1e-3       # a coarse cell is looked into if one of its samples may have so much weight
IN_PLAY = 0.1        # of a tolerance: what may matter so much is predicted with care
ROUNDS = 8           # of judging again
DECISIVE_ROUNDS = 2  # exact distances may move the mesh to other edges, but hardly twice
LEAST_SHARE = 0.2    # see Samples.true_share
STEEPEST = 20        # exponent, only so that it stays a number
NOTHING = 1e-8       # effect on a depth, in the world, that is none
NEVER = float('inf')
DOUBT_REACH = 2      # samples: how far around a surprise deviations are raised
CUBE = tuple(itertools.product(range(-DOUBT_REACH, DOUBT_REACH + 1), repeat=3))
PLACES_AT_ONCE = 4096  # whose surroundings are judged again
TINY = 1e-9          # a distance, or its square, in the world, that is none


class Tolerances(NamedTuple):
    """What the deviation of one sample may do to the depth of its ray, in the world, by kind; and what all may do."""
    nodes: float     # samples of the coarser level, from which the finer one is interpolated
    centers: float
    faces: float
    ray: float       # the largest error of a depth
    sure: float      # that is so many standard deviations


class Found(NamedTuple):
    """Distances of a volume of samples (row, column, depth)."""
    values: Tensor
    deviation: Tensor  # how far off they may be: 0 where the field was evaluated
    exact: Tensor      # where that is


# ---------------------------------------------------------------------------------------------- along the axes

def separable(volume, matrices):
    """Apply a matrix (to, from) along each axis of a volume."""
    first, second, third = matrices
    return (first @ (second @ (volume @ third.T)).flatten(1)).unflatten(1, (len(second), len(third)))


@lru_cache(maxsize=64)
def stencils(nodes, device):
    """(2 nodes - 1, nodes) weights of Lagrange interpolation at half steps, from the nearest FEWEST_NODES nodes."""
    positions = torch.arange(2 * nodes - 1, dtype=torch.float64) / 2
    first = (positions.floor().long() - FEWEST_NODES // 2 + 1).clamp(0, nodes - FEWEST_NODES)
    index = first[:, None] + torch.arange(FEWEST_NODES)
    weights = torch.ones(len(positions), FEWEST_NODES, dtype=torch.float64)
    for p in range(FEWEST_NODES):
        for q in range(FEWEST_NODES):
            if p != q:
                weights[:, p] *= (positions - index[:, q]) / (index[:, p] - index[:, q])
    matrix = torch.zeros(len(positions), nodes, dtype=torch.float64).scatter_(1, index, weights)
    return matrix.float().to(device)


@lru_cache(maxsize=64)
def constant(numbers, device):
    """Numbers as a tensor."""
    return torch.tensor(numbers).to(device)


def halved(volume):
    """The volume with its gaps halved, by interpolation from the nearest FEWEST_NODES nodes along each axis."""
    return separable(volume, [stencils(size, volume.device) for size in volume.shape])


def halved_linearly(volume):
    """The volume with its gaps halved, by the means of neighbors."""
    for axis in (2, 1, 0):  # first along the axis whose samples lie side by side in memory, while they are few
        size = volume.shape[axis]
        finer = volume.new_empty([2 * size - 1 if i == axis else other for i, other in enumerate(volume.shape)])
        part(finer, (0,), axis).copy_(volume)
        torch.lerp(volume.narrow(axis, 0, size - 1), volume.narrow(axis, 1, size - 1), 0.5,
                   out=part(finer, (1,), axis))
        volume = finer
    return volume


def from_cells(cells):
    """For each sample the mean of a volume over the cells that it lies in or beside."""
    padded = F.pad(cells[None, None], (1,) * 6, mode='replicate')[0, 0]
    return halved_linearly(padded)[1:-1, 1:-1, 1:-1].contiguous()


def part(volume, kind, first_axis=0):
    """The samples of a kind, as a view. kind: for each axis, from the first one on, whether its odd samples are."""
    return volume[(slice(None),) * first_axis + tuple(slice(odd, None, 2) for odd in kind)]


def neighborhood(combine, volume, reach=1):
    """combine (torch.maximum or torch.add) over the cube of samples within `reach` of each."""
    for axis in range(3):
        source, volume = volume, volume.clone()
        for shift in range(1, reach + 1):
            count = source.shape[axis] - shift
            for to, start in ((shift, 0), (0, shift)):
                here = volume.narrow(axis, to, count)
                here.copy_(combine(here, source.narrow(axis, start, count)))
    return volume


def corners(combine, volume, axes=3):
    """combine (torch.minimum or torch.maximum) over the corners of each cell between samples, along the first axes."""
    for axis, size in enumerate(volume.shape[:axes]):
        volume = combine(volume.narrow(axis, 0, size - 1), volume.narrow(axis, 1, size - 1))
    return volume


def bends(volume, axes=3):
    """The sum of the second differences along the first axes, each without its sign; 0 at the ends."""
    total = torch.zeros_like(volume)
    for axis, size in enumerate(volume.shape[:axes]):
        before, here, behind = (volume.narrow(axis, start, size - 2) for start in range(3))
        total.narrow(axis, 1, size - 2).add_((before + behind).sub_(here, alpha=2).abs_())
    return total


def factor_of(errors, inherited, roughness):
    """By what a roughness (n,) has to be multiplied to be the standard deviation of errors (n,), of which `inherited`
    (n,) is the variance that has other reasons: what most samples show, or the roughest ones, whichever is more."""
    if not len(errors):
        return 1.
    left, roughness = (errors.square() - inherited).clamp_(min=0).sqrt_(), roughness.clamp(min=TINY)
    most = torch.quantile(left / roughness, QUANTILE) / QUANTILE_OF_NORMAL
    return torch.maximum(most, left.norm() / roughness.norm())


def picked(places, count, rng):
    """About `count` of some places (n,3), chosen at random."""
    if len(places) <= count:
        return places
    return places[torch.randint(len(places), (count,), generator=rng).unique().to(places.device, non_blocking=True)]


# ---------------------------------------------------------------------------------------------- what matters

def transmittances(share, density, spacing):
    """The transmittance (…,N) behind each sample of a ray. share: of the greatest density, see `shares`."""
    return share.cumsum(-1).mul_(-spacing / density.scale).exp_()


def shares(distance, density):
    """The density of distances as a share of the greatest (volume_renderer.SigmoidDensity)."""
    return (distance * (-1 / density.scale)).sigmoid_()


def influence(distance, density, spacing):
    """How much the distance (…,N) of each sample of a ray matters: |d depth / d distance| of the ray, or a tenth of
    |d background / d distance|, whichever is larger; and the transmittance (…,N) behind each.

    These are the derivatives of the weights that volume_renderer.py computes. What is behind a sample has on average
    the depth of the sample plus the sum of the transmittances from there.
    """
    share = shares(distance, density)
    transmittance = transmittances(share, density, spacing)
    upto = transmittance.cumsum(-1)
    lever = (upto[..., -2:-1] - upto).add_(transmittance).clamp_(min=0.1 / spacing * transmittance[..., -2:-1])
    slope = torch.addcmul(share, share, share, value=-1)
    return lever.mul_(slope).mul_((spacing / density.scale) ** 2), transmittance


# ---------------------------------------------------------------------------------------------- predictions

@lru_cache(maxsize=64)
def neighbors(kind, known, reach, device):
    """The offsets (M,3) from a sample of a kind to samples of the known kinds, within the root of `reach`; and a matrix
    (M,classes) that takes the mean over those which are alike by symmetry."""
    classes = {}
    for offset in itertools.product(range(-PAD, PAD + 1), repeat=3):
        odd = tuple((a + b) % 2 for a, b in zip(kind, offset, strict=True))
        if odd in known and sum(x * x for x in offset) <= reach:
            classes.setdefault(tuple(map(abs, offset)), []).append(offset)
    own = torch.tensor([i for i, alike in enumerate(classes.values()) for _ in alike])
    means = torch.zeros(len(own), len(classes))
    means[torch.arange(len(own)), own] = torch.tensor([1 / len(alike) for alike in classes.values()])[own]
    return torch.tensor(sum(classes.values(), [])).to(device), means.to(device)


class Group(NamedTuple):
    """Samples of one kind that are predicted alike."""
    places: Tensor  # (P,3)
    kind: tuple
    at_ends: bool   # of the volume: some of the neighbors lie beyond them
    faces: bool     # whether the faces beside them are known


class Prediction:
    """Weighted sums of the known samples around samples of a kind, with weights fitted to some that were evaluated."""

    def __init__(self, padded, group):
        """padded: the volume with PAD samples beyond its ends. group: the Group that is predicted."""
        known, reach = ((*NODES, *CENTERS, *FACES), REACH_FACES) if group.faces else ((*NODES, *CENTERS), REACH)
        offsets, self.means = neighbors(group.kind, known, reach, padded.device)
        self.strides = constant(padded.stride(), padded.device)
        self.flat, self.steps = padded.flatten(), (offsets * self.strides).sum(1).int()

    def around(self, places):
        """The values (M,P) around places (P,3): in this order memory is read from its beginning to its end."""
        index = self.steps[:, None] + ((places + PAD) * self.strides).sum(1).int()  # short numbers take half the time
        return self.flat.index_select(0, index.flatten()).view(index.shape)

    def fit(self, places, values, variance):
        """Find the weights of each class of neighbors, which add up to 1, by least squares.

        values (P,): the exact ones at places (P,3). variance (P,): how rough the field is there; what is predicted in a
        smooth place must not suffer from a rough one.
        """
        x = (self.around(places).T @ self.means).double()
        middle = x.mean(1, keepdim=True)
        x, y, share = x - middle, values.double()[:, None] - middle, variance.double().rsqrt()[:, None]
        x, y = x * share, y * share
        square = x.T @ x
        square.diagonal().add_(1e-8 * square.trace())
        weights = torch.linalg.solve_ex(square, x.T @ y).result[:, 0]  # it does not make a GPU wait
        self.weights = self.means @ (weights - weights.mean() + 1 / len(weights)).float()
        return self

    def __call__(self, places):
        """The predictions (P,) at places (P,3)."""
        return torch.cat([self.weights @ self.around(some) for some in places.split(16384)])


def beyond(volume, pad=PAD):
    """The volume with `pad` samples beyond its ends, as a line through the end and a sample before it has them."""
    padded = volume.new_empty([size + 2 * pad for size in volume.shape])
    padded[(slice(pad, -pad),) * 3] = volume
    for axis, size in enumerate(padded.shape):
        for end, inner, outer in ((pad, pad + 1, 0), (size - pad - 1, size - 2 * pad - 1, size - pad)):
            mirrored = padded.narrow(axis, inner, pad).flip(axis)
            torch.sub(2 * padded.narrow(axis, end, 1), mirrored, out=padded.narrow(axis, outer, pad))
    return padded


# ---------------------------------------------------------------------------------------------- the search

class Field(NamedTuple):
    """What a search is for."""
    evaluate: callable   # from an index (P,3) (row, column, depth; also some beyond the end) to distances (P,)
    shape: tuple         # of the volume
    density: tuple       # what turns distances into density, with a number as its scale
    spacing: float       # between the samples of a ray, in the world
    tolerances: Tolerances
    hidden: bool         # whether the zero level matters where no ray sees it, as it does for a closed mesh
    # From distances and their deviations to the index (P,3) of samples that the mesh must know exactly, some of which
    # may be known already.
    decisive: callable = None


class Samples:
    """A volume of samples, every `stride`-th of the result, that are known to a deviation or exactly."""

    def __init__(self, field, found, stride, rng):
        self.field, self.stride, self.rng = field, stride, rng
        self.values, self.deviation, self.exact = found
        self.spacing = stride * field.spacing
        self.influence = torch.empty_like(self.values)
        self.reached = None if field.hidden else torch.empty_like(self.exact)
        self.by_rows(self.weigh_rays)

    def by_rows(self, work):
        """[work(rows)] of slices of rows that make up the volume. On a CPU what is computed of one stays in the cache.
        """
        rows, device = self.values.shape[0], self.values.device
        step = max(1, CACHED_SAMPLES // self.values[0].numel()) if device.type == 'cpu' else rows
        return for_each(work, [slice(first, min(rows, first + step)) for first in range(0, rows, step)], device)

    def weigh(self, places):
        """Find out anew what each sample matters on the rays through some places (P,3), whose distances changed."""
        self.weigh_rays(self.rays_through(places))

    def weigh_rays(self, rays):
        """Find out what each sample of some rays matters. rays: an index into rows, or into rows and columns."""
        self.influence[rays], transmittance = influence(self.values[rays], self.field.density, self.spacing)
        if self.reached is not None:
            self.reached[rays] = transmittance > UNSEEN

    def effect(self, deviation, influence):
        """What deviations may do to the depth of the samples' rays. Densities fall exponentially: the effect is more
        than in proportion where a deviation is not small beside their scale."""
        # What deviates by twice the scale can hardly be interpolated, and its errors are not normally distributed.
        far = (deviation * (0.5 / self.field.density.scale)).clamp_(1, 2).mul_(FAR).mul_(deviation)
        return self.moved(far, influence).mul_(1 / FAR)

    def moved(self, error, influence):
        """By how much a depth moves if a sample of this influence is nearer to the surface by an error."""
        scale = self.field.density.scale
        share = (error * (1 / scale)).clamp_(max=STEEPEST).exp_().sub_(1)  # expm1 takes PyTorch 2 to 17 times as long
        return share.mul_(influence).mul_(scale)

    def wanted(self, tolerance, of):
        """A mask of those samples that `of` takes of a volume whose deviation matters more than the tolerance, or
        leaves their side of the zero level in doubt. None of them is known exactly: the deviation of those is 0."""
        return self.in_doubt(lambda deviation, influence: self.effect(deviation, influence) > tolerance, of)

    def in_doubt(self, matters, of):
        """The same for samples for which `matters`, a function of deviations and influences, is true."""
        values, deviation, influence = (of(volume) for volume in (self.values, self.deviation, self.influence))
        near = values.abs() < ZERO * deviation
        if self.reached is not None:
            near &= of(self.reached)
        return near.logical_or_(matters(deviation, influence))

    def look(self, places, judge=False):
        """Evaluate places (P,3). Returns by how much their distances had to be raised (P,).

        judge: whether to raise the deviations around those that were off by far more than theirs.
        """
        if not len(places):
            return self.values.new_zeros(0)
        at, found = tuple(places.T), self.field.evaluate(places * self.stride)
        deviation = self.deviation[at]
        errors = self.take(places, found)
        if judge:
            off = errors.abs()
            moved = self.moved(off, self.influence[at]) > self.field.tolerances.faces
            surprising = ((off > SURPRISING * deviation) & (moved | (found.abs() < off))).nonzero()[:, 0]
            for some in surprising.split(PLACES_AT_ONCE):
                self.doubt(places[some], off[some] / 2)
        return errors

    def doubt(self, places, deviation):
        """Raise the deviations around places (P,3) to at least these (P,)."""
        near = places[:, None] + constant(CUBE, places.device)
        at = tuple(near.clamp_(min=0).minimum(constant(tuple(size - 1 for size in self.values.shape), places.device))
                   .flatten(0, 1).T)
        deviation = deviation[:, None].expand(near.shape[:2]).flatten().masked_fill(self.exact[at], 0)
        strides = self.deviation.stride()
        index = sum(i * stride for i, stride in zip(at, strides, strict=True))
        self.deviation.view(-1).scatter_reduce_(0, index, deviation, 'amax')

    def take(self, places, found):
        """Put in the exact distances (P,) at places (P,3). Returns by how much they had to be raised."""
        at = tuple(places.T)
        errors = found - self.values[at]
        self.values[at], self.deviation[at], self.exact[at] = found, 0., True
        return errors

    def settle_by(self, matters):
        """Evaluate the samples that are `in_doubt`, until there are none. Only rays near what was found are judged
        again."""
        rays = None
        for _ in range(ROUNDS):
            places = self.all_in_doubt(matters) if rays is None else self.in_doubt_on(rays, matters)
            if not len(places):
                return
            self.look(places, judge=True)
            self.weigh(places)
            rays = self.rays_through(places, DOUBT_REACH)

    def all_in_doubt(self, matters):
        """The index (P,3) of all samples that are `in_doubt`."""
        def in_rows(rows):
            places = self.in_doubt(matters, itemgetter(rows)).nonzero()
            places[:, 0] += rows.start
            return places

        return torch.cat(self.by_rows(in_rows))

    def in_doubt_on(self, rays, matters):
        """The index (P,3) of those on rays, given by their rows and columns."""
        ray, depth = self.in_doubt(matters, itemgetter(rays)).nonzero().T
        return torch.stack([rays[0][ray], rays[1][ray], depth], dim=1)

    def rays_through(self, places, reach=0):
        """The rows and columns of the rays through places (P,3), and of those up to `reach` beside them."""
        rays = self.values.new_zeros(self.values.shape[:2])
        rays[tuple(places.T[:2])] = 1.
        return tuple(F.max_pool2d(rays[None], 2 * reach + 1, 1, reach)[0].nonzero().T)

    # ------------------------------------------------------------------ the end

    def settle(self):
        """Evaluate samples until the mesh and all depths are right."""
        for _ in range(DECISIVE_ROUNDS if self.field.decisive else 0):
            index = self.field.decisive(self.values, self.deviation)
            index = index[self.exact[tuple(index.T)].logical_not()]
            self.look(index)
            self.weigh(index)
        limit = self.field.tolerances.ray / self.field.tolerances.sure / self.true_share()
        self.settle_by(partial(self.too_much, limit))

    def too_much(self, limit, deviation, influence):
        """A mask of the samples with the largest effects of each ray, without which the others add up to `limit`."""
        effect = self.effect(deviation, influence)
        many = effect.sum(-1) > limit
        own, threshold = effect[many], min(limit, self.field.tolerances.ray / FAR)
        for _ in range(ROUNDS):
            threshold = threshold * (limit / own.where(own <= threshold, 0).sum(-1, keepdim=True)).clamp(max=1)
        mask = effect > self.field.tolerances.ray / FAR  # one alone may be so far off
        mask[many] = own > threshold
        return mask

    def true_share(self):
        """How much of what the deviations may do to the depth of a ray comes true, as a standard deviation.

        Some rays are chosen at random, and evaluated, among those on which it may matter.
        """
        total = torch.cat(self.by_rows(lambda rows: self.effect(self.deviation[rows], self.influence[rows]).sum(-1)))
        rays = picked((total > IN_PLAY * self.field.tolerances.ray).nonzero(), PROBE_RAYS, self.rng)
        if not len(rays):
            return 1.
        row, column = rays.T
        effect = self.effect(self.deviation[row, column], self.influence[row, column])

        def depth_and_background():
            transmittance = transmittances(shares(self.values[row, column], self.field.density), self.field.density,
                                           self.spacing)
            return torch.stack([self.spacing * transmittance[..., :-1].sum(-1), 0.1 * transmittance[..., -2]])

        before = depth_and_background()
        ray, depth = (effect > NOTHING).nonzero().T
        places = torch.cat([rays[ray], depth[:, None]], dim=1)
        self.look(places, judge=True)
        self.weigh(places)
        errors = (depth_and_background() - before).abs().amax(0)
        return (errors / total[row, column]).square().mean().sqrt().clamp(min=LEAST_SHARE).item()


class Level(Samples):
    """Samples between nodes that were found before; a step from those to twice as many along each axis."""

    def __init__(self, field, nodes, roughness, stride, rng):
        """nodes: a Found. roughness: how far off an interpolation is near each node, up to a factor."""
        values, (kind,) = halved(nodes.values), CENTERS
        exact, deviation = torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values)
        part(exact, NODES[0]).copy_(nodes.exact)
        self.inherited = halved_linearly(nodes.deviation.square())  # variance
        self.roughness = corners(torch.add, roughness) / 8  # of the centers at first
        for axis, size in enumerate(self.roughness.shape):  # beyond the ends there are no neighbors
            for end in (0, size - 1):
                self.roughness.narrow(axis, end, 1).mul_(AT_ENDS)
        part(deviation, kind).copy_(self.roughness + part(self.inherited, kind).sqrt())  # the others' come later
        part(deviation, NODES[0]).copy_(nodes.deviation)
        super().__init__(field, Found(values, deviation, exact), stride, rng)

    def run(self, cells=None):
        """Evaluate what matters. cells: places (P,3) of centers that were evaluated, and their distances (P,)."""
        tolerances = self.field.tolerances
        self.settle_centers(cells, tolerances.nodes if self.stride > 1 else tolerances.centers)
        tolerance = tolerances.nodes if self.stride > 1 else tolerances.faces
        self.evaluate_among(self.predict(FACES, tolerance), tolerance)
        edges = self.predict(EDGES, tolerance)
        if self.stride == 1:  # the rest is settled for whole rays
            self.evaluate_among(edges, NEVER)
        else:
            self.weigh(self.exact.nonzero())
            self.settle_by(lambda deviation, influence: self.effect(deviation, influence) > tolerance)
        return self

    def found(self):
        cut = [slice(None)] * 3 if self.stride > 1 else [slice(size) for size in self.field.shape]
        return Found(*(volume[tuple(cut)].contiguous() for volume in (self.values, self.deviation, self.exact)))

    def evaluate_among(self, groups, tolerance):
        """Evaluate those of some groups that matter more than the tolerance, or whose side is in doubt."""
        if groups:
            places = torch.cat([group.places for group in groups])
            at = tuple(places.T)
            self.look(places[self.wanted(tolerance, itemgetter(at))], judge=True)

    def places(self, tolerance, kind):
        """The samples (P,3) of a kind that matter more than the tolerance, but none of those beyond the result, from
        where nothing finer is interpolated."""
        mask = self.wanted(tolerance, lambda volume: part(volume, kind).contiguous())
        if self.stride == 1:
            for axis, (size, odd) in enumerate(zip(self.field.shape, kind, strict=True)):
                end = (size - odd + 1) // 2
                mask.narrow(axis, end, mask.shape[axis] - end).fill_(False)
        return mask.nonzero() * 2 + constant(kind, mask.device)

    def settle_centers(self, cells, tolerance):
        """Evaluate the centers that matter, and find out by how much the interpolation is off nearby."""
        kind, = CENTERS
        if cells is None:
            places = picked(self.places(IN_PLAY * tolerance, kind), PROBES, self.rng)
            errors = self.look(places)
        else:
            places, distances = cells
            errors = self.take(places, distances)
        at = tuple(places.T)
        factor = factor_of(errors, self.inherited[at], self.roughness[tuple((places // 2).T)])
        expected = (self.roughness * factor).square()
        part(self.deviation, kind).copy_((expected + part(self.inherited, kind)).sqrt_()
                                         .masked_fill_(part(self.exact, kind), 0))
        more = self.places(tolerance, kind)
        more_errors = self.look(more, judge=True)
        known, squares = torch.zeros_like(expected), torch.zeros_like(expected)
        for some, off in ((places, errors), (more, more_errors)):
            known[tuple((some // 2).T)], squares[tuple((some // 2).T)] = 1., off.square()
        count, total = (neighborhood(torch.add, volume) for volume in (known, squares))
        nearby = total.add_(expected).div_(count.add_(1))
        # A mean does not hide what a single center shows.
        nearby = torch.maximum(nearby, neighborhood(torch.maximum, squares / 4))
        self.roughness = from_cells(nearby).sqrt_()
        self.inherited += from_cells(part(self.deviation, kind).square())

    def predict(self, kinds, tolerance):
        """Predict the samples of some kinds, faces or edges, and find their deviations.

        Only those that may matter are predicted from all that is around them; the others stay interpolated. Returns
        those, as Groups.
        """
        for kind in kinds:
            own = (part(self.roughness, kind).square() + part(self.inherited, kind)).sqrt_()
            part(self.deviation, kind).copy_(own.masked_fill_(part(self.exact, kind), 0))
        groups, padded = self.groups(IN_PLAY * tolerance, kinds), beyond(self.values)
        probes = [picked(group.places, PROBES, self.rng) for group in groups]
        errors = self.look(torch.cat(probes)).split(list(map(len, probes))) if groups else ()
        for_each(lambda given: self.predict_group(padded, *given), list(zip(groups, probes, errors, strict=True)),
                 padded.device)
        return groups

    def predict_group(self, padded, group, probe, error):
        """Predict the samples of a Group, and find their deviations.

        padded: the volume with PAD samples beyond its ends. probe: some of the samples (P,3), chosen at random, that
        were evaluated. error: by how much each of those was off before (P,).
        """
        at, by = tuple(group.places.T), tuple(probe.T)
        roughness, inherited, doubt = self.roughness[by], self.inherited[by], torch.zeros_like(self.values[at])
        if len(probe) >= FEWEST_PROBES:
            variance = (roughness.square() + inherited).add_((SMOOTH * self.field.density.scale) ** 2)
            prediction = Prediction(padded, group).fit(probe, self.values[by], variance)
            error = self.values[by] - prediction(probe)
            predicted, before = prediction(group.places), self.values[at]
            self.values[at] = before.where(self.exact[at], predicted)
            # Where two ways to interpolate differ by much, neither is believed.
            doubt = (predicted - before).abs_().square_().mul_(1 / SURPRISING ** 2)
        factor = factor_of(error, inherited, roughness) * (AT_ENDS if group.at_ends else 1)
        variance = torch.maximum((factor * self.roughness[at]).square_().add_(self.inherited[at]), doubt)
        self.deviation[at] = variance.sqrt_().where(self.exact[at].logical_not(), 0.)

    def groups(self, tolerance, kinds):
        """The samples of some kinds that matter more than the tolerance as Groups: a list, without empty ones."""
        own = for_each(partial(self.places, tolerance), kinds, self.values.device)
        places = torch.cat(own)
        upper = constant(tuple(size - PAD for size in self.values.shape), places.device)
        # 0: at the ends, 1: edges between four faces that were evaluated, 2: others
        sort = torch.full((len(places),), 2, device=places.device)
        if kinds is EDGES:
            known = torch.cat([self.between_faces(some, kind) for some, kind in zip(own, kinds, strict=True)])
            sort -= known.long()
        sort *= ((places >= PAD) & (places < upper)).all(1)
        sort += 3 * torch.cat([torch.full((len(some),), i, device=places.device) for i, some in enumerate(own)])
        counts = torch.bincount(sort, minlength=3 * len(kinds)).tolist()
        return [Group(some, kinds[i // 3], i % 3 == 0, i % 3 == 1)
                for i, some in enumerate(places[sort.argsort(stable=True)].split(counts)) if len(some)]

    def between_faces(self, places, kind):
        """Which edges of a kind lie between four faces that were evaluated."""
        flat, strides = self.exact.flatten(), self.exact.stride()
        at = (places * constant(strides, places.device)).sum(1)
        steps = [shift * stride for odd, stride in zip(kind, strides, strict=True) if not odd for shift in (-1, 1)]
        return torch.stack([flat[(at + step).clamp(0, len(flat) - 1)] for step in steps]).all(0)


def looked_into(field, nodes, rng):
    """The coarse cells that may matter: places (P,3) of their centers, their distances (P,), and for each
    node how far off an interpolation may be. nodes: distances of the coarse samples."""
    low, high = corners(torch.minimum, nodes), corners(torch.maximum, nodes)
    room = BENDS * corners(torch.maximum, neighborhood(torch.maximum, bends(nodes)))
    middles = part(halved(nodes), CENTERS[0])
    step, known = field.spacing, torch.zeros_like(room, dtype=torch.bool)
    found = torch.zeros_like(room)
    for attempt in range(ROUNDS):
        thinnest = field.density.value(high + room).mul_(step * COARSEST).cumsum(-1).neg_().exp_()
        before = F.pad(thinnest[..., :-1], (1, 0), value=1.)
        weight = before * -torch.expm1(-step * field.density.value(low - room))
        crossing = (low < room) & (high > -room)
        wanted = (weight > WEIGHTY) | (crossing if field.hidden else crossing & (before > UNSEEN))
        if not attempt:  # some more, to see whether something was overlooked
            others = picked((~wanted).nonzero(), PROBES, rng)
            wanted[tuple(others.T)] = True
        places = (wanted & ~known).nonzero()
        if not len(places):
            break
        at = tuple(places.T)
        found[at], known[at] = field.evaluate(places * COARSEST + COARSEST // 2), True
        errors = torch.where(known, found - middles, 0.).abs()
        room = torch.maximum(room, neighborhood(torch.maximum, torch.where(errors > room, 2 * errors, 0.)))
    places = known.nonzero()
    around = F.pad(room[None, None], (1,) * 6, mode='replicate')[0, 0]
    return places * 2 + 1, found[tuple(places.T)], corners(torch.maximum, around) / 3


@torch.no_grad()
def sdf_volume(field):
    """Distances at all samples of a Field. Returns None where the volume is too small to choose from; then every sample
    has to be evaluated."""
    nodes = [-(-(size - 1) // COARSEST) + 1 for size in field.shape]
    if min(nodes) <= FEWEST_NODES:
        return None
    rng = torch.Generator().manual_seed(0)
    values = field.evaluate(torch.cartesian_prod(*[torch.arange(count) * COARSEST for count in nodes])).view(*nodes)
    *cells, roughness = looked_into(field, values, rng)
    found = Found(values, torch.zeros_like(values), torch.ones_like(values, dtype=torch.bool))
    level = Level(field, found, roughness, 2, rng).run(cells)
    level = Level(field, level.found(), level.roughness, 1, rng).run()
    samples = Samples(field, level.found(), 1, rng)
    samples.settle()
    return samples.values

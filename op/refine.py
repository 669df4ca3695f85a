"""Signed distances at all samples of a view, most of them without asking the field.

The field is evaluated at every 4th sample of every 4th ray. Then the gaps are halved twice: the new samples are
interpolated, and those are evaluated whose interpolation is not good enough for the result. So the cost grows with the
roughness of the field: a smooth one is interpolated nearly everywhere, a rough one is evaluated in the band around its
visible surface, and a fog, where all samples count, at all of them.

A step that halves the gaps treats the new samples in three groups, named after how many of their indices are odd:

1. `centers`, three odd: the middles of the cells of known samples. By how much the interpolation was off there says how
   rough the field is nearby, and corrects the samples of the other groups.
2. `faces`, two odd, corrected by the centers beside them.
3. `edges`, one odd, corrected by the centers, and by the faces where those were evaluated.

How far off an interpolated sample may be, its deviation, is not taken from theory. It is the local size of the errors
that were found, or at first of the difference between two orders of interpolation, times a factor that is measured at
samples chosen at random in each step. Where an evaluated sample was off by far more than that, its surroundings are
judged again. Measured: docs/performance.md.
"""
import functools
from typing import NamedTuple

import torch
from torch import Tensor

COARSEST = 4       # the first samples are so far apart along each axis
FEWEST_NODES = 6   # along an axis, which the interpolation needs
CENTERS = (1, 1, 1)
FACES = ((0, 1, 1), (1, 0, 1), (1, 1, 0))
EDGES = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
NODES = (0, 0, 0)
KINDS = (NODES, *EDGES, *FACES, CENTERS)
CENTER_PROBES, OTHER_PROBES = 1 / 2000, 1 / 20000  # of all samples, at least FEWEST_PROBES; others: of each kind
FEWEST_PROBES = 24
# The 97th of 100 normal numbers is 2.17 deviations off. Errors that are not normal have more that are far off.
QUANTILE, QUANTILE_OF_NORMAL = 0.97, 2.17
MISJUDGED = 4      # deviations: an evaluated sample that was off by more has neighbors that are judged again
ROUNDS = 6         # of judging again
UNSEEN = 1e-3      # transmittance of what no ray reaches
FEW = 1e-4         # of all samples: so few that were evaluated last are not followed up
COARSER = 0.5      # what is allowed to samples from which others are interpolated
TINY = 1e-20
MOST = 0.7         # of a step's samples: where more are wanted, all are evaluated


class Tolerances(NamedTuple):
    """How exact distances have to be."""
    depth: float  # what the deviation of one sample may do to the depth of its ray, in the world
    ray: float    # what the deviations of all samples of a ray may do to it, if they all go the same way
    zero: float   # in deviations: samples nearer to the zero level are evaluated, because their sign decides the mesh


class Found(NamedTuple):
    """Distances of a volume of samples (row, column, depth)."""
    values: Tensor
    deviation: Tensor  # how far off they may be: 0 where the field was evaluated
    exact: Tensor      # where that is


# ---------------------------------------------------------------------------------------------- along the axes

def separable(volume, matrices):
    """Apply a matrix (to, from) along each axis of a volume; None leaves an axis as it is."""
    first, second, third = matrices
    if third is not None:
        volume = volume @ third.T
    if second is not None:
        volume = second @ volume
    if first is not None:
        volume = (first @ volume.flatten(1)).unflatten(1, volume.shape[1:])
    return volume


@functools.lru_cache(maxsize=64)
def stencils(nodes, count, device, order, only_odd=False):
    """(count, nodes) weights of Lagrange interpolation at half steps: positions 0, 0.5, 1, … from the nearest `order`
    nodes. only_odd: of the positions between nodes alone."""
    positions = torch.arange(count, dtype=torch.float64) / 2
    first = (positions.floor().long() - order // 2 + 1).clamp(0, nodes - order)
    index = first[:, None] + torch.arange(order)                             # (count,order)
    weights = torch.ones(count, order, dtype=torch.float64)
    for p in range(order):
        for q in range(order):
            if p != q:
                weights[:, p] *= (positions - index[:, q]) / (index[:, p] - index[:, q])
    matrix = torch.zeros(count, nodes, dtype=torch.float64).scatter_(1, index, weights)
    return matrix[int(only_odd)::1 + only_odd].float().contiguous().to(device)


@functools.lru_cache(maxsize=64)
def averages(cells, count, device):
    """(count, cells) matrix that gives each of the `count` samples between cells the mean of the two beside it."""
    place = torch.arange(count)
    matrix = torch.zeros(count, cells)
    for beside in (place - 1, place):
        matrix[place, beside.clamp(0, cells - 1)] += 0.5
    return matrix.to(device)


@functools.lru_cache(maxsize=64)
def differences(cells, nodes, device):
    """(cells, nodes) matrix that gives half the difference between the two nodes beside each cell."""
    place = torch.arange(cells)
    matrix = torch.zeros(cells, nodes)
    for beside, sign in ((place, -0.5), (place + 1, 0.5)):
        matrix[place, beside.clamp(max=nodes - 1)] += sign
    return matrix.to(device)


@functools.lru_cache(maxsize=64)
def smoothing(count, device):
    """(count, count) matrix of two running means over three neighbors."""
    mean = torch.zeros(count, count)
    for shift in (-1, 0, 1):
        mean[torch.arange(count), (torch.arange(count) + shift).clamp(0, count - 1)] += 1 / 3
    return (mean @ mean).to(device)


def part(volume, kind):
    """The samples of a kind, as a view: kind says for each axis whether their index is odd."""
    return volume[tuple(slice(odd, None, 2) for odd in kind)]


def split(volume):
    """{kind: the samples of it, a tensor of its own}."""
    return {kind: part(volume, kind).contiguous() for kind in KINDS}


def joined(volumes):
    """The volume that was split."""
    size = [volumes[NODES].shape[axis] + volumes[CENTERS].shape[axis] for axis in range(3)]
    volume = volumes[NODES].new_empty(size)
    for kind, own in volumes.items():
        part(volume, kind).copy_(own)
    return volume


def to_kind(cells, kind, like):
    """Means of a volume over the centers around each sample of a kind; like: a volume of samples of that kind."""
    return separable(cells, [None if odd else averages(size, count, cells.device)
                             for odd, size, count in zip(kind, cells.shape, like.shape, strict=True)])


def grown(volume, reach=1):
    """The largest value of a volume within `reach` of each sample, along the axes and across. Axis after axis, which
    takes a tenth of max_pool3d's time."""
    for axis in range(3):
        source, volume = volume, volume.clone()
        for shift in range(1, reach + 1):
            count = source.shape[axis] - shift
            for to, start in ((shift, 0), (0, shift)):
                here = volume.narrow(axis, to, count)
                torch.maximum(here, source.narrow(axis, start, count), out=here)
    return volume


def typical(ratios):
    """The standard deviation that most of some ratios (n,) show; of a normal distribution it is the true one."""
    return torch.quantile(ratios, QUANTILE) / QUANTILE_OF_NORMAL if len(ratios) else 1.


def fitted(y, x):
    """The factor by which x (n,) is most like y (n,): of least squares, and not negative."""
    return ((y * x).sum() / x.square().sum().clamp(min=TINY)).clamp(0, 3)


# ---------------------------------------------------------------------------------------------- what matters

def levers(distance, density, spacing):
    """What the density (…,N) at each sample of a ray does: |d depth / d (density x spacing)|, or a tenth of
    |d mask / d (density x spacing)|, the larger of the two. (The derivative of the quadrature; StyleSDF equation 4.)

    What is behind a sample has on average the depth of the sample plus the sum of the transmittances from there.
    """
    transmittance = density.value(distance).cumsum(-1).mul_(-spacing).exp_()  # behind each sample
    upto = transmittance.cumsum(-1)
    lever = (upto[..., -2:-1] - upto).add_(transmittance).mul_(spacing)
    return torch.maximum(lever, 0.1 * transmittance[..., -2:-1], out=lever)


def steepest(density, distance, reach):
    """The largest |slope| of a density within `reach` of a distance; by signed distances, the one nearest to zero."""
    if density.support is None:
        return torch.maximum(density.slope(distance - reach).abs(), density.slope(distance + reach).abs())
    return density.slope(torch.copysign((distance.abs() - reach).clamp_(min=0), distance)).abs()


def influence(distance, density, spacing):
    """How much the distance (…,N) of each sample of a ray matters: |d depth / d distance| of the ray, or a tenth of
    |d background / d distance|, whichever is larger. (The derivatives of the weights that volume_renderer.py computes.)
    """
    return levers(distance, density, spacing) * density.slope(distance).abs() * spacing


# ---------------------------------------------------------------------------------------------- the search

@torch.no_grad()
def sdf_volume(evaluate, shape, density, spacing, tolerances, hidden=True):
    """Distances at all samples of a volume, rows x columns x samples of a ray: a Found.

    evaluate: a function from an index (P,3) (row, column, depth; also some beyond the end) to distances (P,). shape: of
    the volume, from 21 along each axis. density: what turns distances into density, with a number as its scale.
    spacing: between the samples of a ray, in the world. hidden: whether the zero level matters where no ray sees it, as
    it does for a closed mesh. Returns None for a smaller shape; then every sample has to be evaluated.
    """
    nodes = [-(-size // COARSEST) + 1 for size in shape]
    if min(nodes) <= FEWEST_NODES:
        return None
    values = evaluate(torch.cartesian_prod(*[torch.arange(count) * COARSEST for count in nodes])).view(*nodes)
    found = Found(values, torch.zeros_like(values), torch.ones_like(values, dtype=torch.bool))
    stride = COARSEST
    while stride > 1:
        stride //= 2
        # One node beyond the end to interpolate with, but not in the result.
        counts = [-(-size // stride) + (stride > 1) for size in shape]
        found = Step(evaluate, found, counts, stride, density, spacing, tolerances, hidden).run()
    return found


class Step:
    """Halves the gaps between the samples of a Found.

    Each kind of samples has volumes of its own, in a dict by kind, because PyTorch is slow on every other element of a
    tensor. The samples of the kind NODES are those that were there before.
    """

    def __init__(self, evaluate, nodes, counts, stride, density, spacing, tolerances, hidden):
        """counts: of the new samples along the axes. stride: of them, in samples of the result. Else as sdf_volume."""
        self.evaluate, self.nodes, self.stride, self.density, self.hidden = evaluate, nodes, stride, density, hidden
        self.spacing, self.tolerances = stride * spacing, tolerances
        if stride > 1:  # an error moves all that is interpolated from it
            self.tolerances = Tolerances(COARSER * tolerances.depth, COARSER * tolerances.ray, tolerances.zero)
        device = nodes.values.device
        self.sizes = [(size, count, device) for size, count in zip(nodes.values.shape, counts, strict=True)]
        values = separable(nodes.values, [stencils(*size, 6) for size in self.sizes])
        self.weigh(values)
        self.values = split(values)
        self.deviation = split(separable(nodes.deviation, [stencils(*size, 2) for size in self.sizes]))
        self.exact = {kind: torch.zeros_like(volume, dtype=torch.bool) for kind, volume in self.values.items()}
        known = self.exact[NODES]
        known.copy_(nodes.exact[tuple(slice(size) for size in known.shape)])
        self.surprises = []  # cells (P,3), and what the deviations there should have been (P,)
        self.rng = torch.Generator().manual_seed(stride)

    def run(self):
        """The Found with all samples."""
        crossing = self.variation()
        centers = self.settle_centers(crossing)
        if centers is None:
            self.look({kind: exact.logical_not() for kind, exact in self.exact.items()})
        else:
            self.correct_by_centers(*centers, crossing)
            faces = self.wanted(FACES)
            self.correct_edges(faces, self.look(faces, judge=True))
            self.settle()
        return Found(*(joined(volumes) for volumes in (self.values, self.deviation, self.exact)))

    # ------------------------------------------------------------------ what is wanted

    def weigh(self, values):
        """Find out what matters by the distances (…,N) of all samples."""
        self.levers = split(levers(values, self.density, self.spacing).mul_(self.spacing))

    def influence(self, kind, reach):
        """How much a distance of this kind moves its ray's depth, at most, if it is right to `reach`."""
        return steepest(self.density, self.values[kind], reach).mul_(self.levers[kind])

    def wanted(self, kinds, together=False):
        """Masks of the samples that are not good enough as they are, for each of some kinds. together: whether what the
        samples of a ray may do together counts too; that takes all kinds."""
        effects = {kind: self.influence(kind, 2 * self.deviation[kind]).mul_(self.deviation[kind]) for kind in kinds}
        limits = self.limits(effects) if together else {kind[:2]: self.tolerances.depth for kind in kinds}
        masks = {}
        for kind, effect in effects.items():
            masks[kind] = effect > limits[kind[:2]]
            if self.tolerances.zero:
                near = self.values[kind].abs() < self.tolerances.zero * self.deviation[kind]
                masks[kind] |= near if self.hidden else near & (self.levers[kind] > UNSEEN * self.spacing ** 2)
            masks[kind] &= self.exact[kind].logical_not()
        return masks

    def limits(self, effects):
        """What the effect of one sample may be, for the rays (rows, columns, 1) of each kind: less on rays where many
        samples have an effect. effects: for all kinds; they are 0 where a sample is exact."""
        limits, most = {}, self.tolerances.ray
        for ray in {kind[:2] for kind in effects}:
            own = torch.cat([effect for kind, effect in effects.items() if kind[:2] == ray], dim=-1)  # (rows,columns,N)
            limits[ray] = torch.full_like(own[..., :1], self.tolerances.depth)
            many = own.where(own <= self.tolerances.depth, 0).sum(-1) > most
            own, limit = own[many], limits[ray][many]
            for _ in range(ROUNDS):
                limit = limit * (most / own.where(own <= limit, 0).sum(-1, keepdim=True).clamp(min=most))
            limits[ray][many] = limit
        return limits

    def region(self, kind, crossing):
        """Samples of a kind of which an error as large as the density's scale would matter; crossing: how far from zero
        the distance may reach zero nearby."""
        region = self.influence(kind, 0.) * self.density.scale > self.tolerances.depth
        if self.tolerances.zero and self.hidden:
            region |= self.values[kind].abs() < crossing
        return region.logical_and_(self.exact[kind].logical_not())

    def variation(self):
        """Over the centers: by how much the distance changes from there to that corner of the cell where it is nearest
        to zero, at most."""
        middle = [stencils(*size, 2, only_odd=True) for size in self.sizes]
        change = 0
        for axis in range(3):
            matrices = [differences(*m.shape, m.device) if i == axis else m for i, m in enumerate(middle)]
            change = separable(self.nodes.values, matrices).abs_().add_(change)
        return change

    # ------------------------------------------------------------------ evaluating

    def look(self, wanted, judge=False):
        """Evaluate the samples in `wanted`, a mask for each kind: {kind: by how much they had to be raised (n,)}.

        judge: whether to remember where they were off by far more than expected.
        """
        places = {kind: mask.nonzero() for kind, mask in wanted.items()}
        index = torch.cat([place * 2 + torch.tensor(kind, device=place.device) for kind, place in places.items()])
        found = self.evaluate(index * self.stride) if len(index) else self.values[NODES].new_zeros(0)
        errors = {}
        found = found.split([len(place) for place in places.values()])
        for (kind, mask), distances in zip(wanted.items(), found, strict=True):
            place = tuple(places[kind].T)
            errors[kind] = distances - self.values[kind][place]
            self.values[kind][place] = distances
            if judge:
                self.surprises.append(self.surprising(kind, places[kind], errors[kind].abs()))
            self.exact[kind] |= mask
            self.deviation[kind].masked_fill_(mask, 0)
        return errors

    def surprising(self, kind, places, errors):
        """The cells (P,3) of those samples of a kind that were off by far more than expected, where it matters, and
        half of what they were off by (P,). places: (n,3). errors: (n,)."""
        place = tuple(places.T)
        distances = self.values[kind][place]
        moved = steepest(self.density, distances, errors).mul_(self.levers[kind][place]).mul_(errors)
        matters = moved > self.tolerances.depth
        if self.tolerances.zero and self.hidden:
            matters |= distances.abs() < errors  # it may have been on the other side of zero
        surprising = matters & (errors > MISJUDGED * self.deviation[kind][place])
        return places[surprising], errors[surprising] / 2

    def probes(self, region, share):
        """Samples of a region (a mask) chosen at random, a mask again; share: how many, of all samples."""
        count = max(FEWEST_PROBES, int(share * 8 * region.numel()))
        places = region.flatten().nonzero()[:, 0]
        chosen = torch.zeros_like(region)
        if len(places):
            pick = torch.randint(len(places), (count,), generator=self.rng)
            chosen.view(-1)[places[pick.to(places.device)]] = True
        return chosen

    # ------------------------------------------------------------------ centers, faces, edges

    def settle_centers(self, crossing):
        """Evaluate the centers that have to be. Returns what they were off by, a volume over the centers, and the local
        mean of its square. Returns None where nearly all have to be evaluated."""
        values, deviation = self.values[CENTERS], self.deviation[CENTERS]
        smooth = [smoothing(size, values.device) for size in values.shape]
        rough = separable(self.nodes.values, [stencils(*size, 4, only_odd=True) for size in self.sizes])
        squares, inherited = separable(rough.sub_(values).square_(), smooth), deviation.square()
        probes = self.region(CENTERS, crossing)
        if self.stride == 1:  # before, there are so few that it is better to know all of them
            probes = self.probes(probes, CENTER_PROBES)
        errors = torch.zeros_like(squares)
        errors[probes] = self.look({CENTERS: probes})[CENTERS]
        ratio = (errors[probes].square() - inherited[probes]).clamp_(min=0) / squares[probes].clamp(min=TINY)
        squares = squares.mul_(typical(ratio.sqrt_()) ** 2).add_(inherited)
        deviation.copy_(squares.sqrt().masked_fill_(probes, 0))
        wanted = self.wanted([CENTERS])[CENTERS]
        if wanted.float().mean() > MOST:
            return None
        errors[wanted] = self.look({CENTERS: wanted})[CENTERS]
        squares = torch.where(wanted | probes, errors.square(), squares)
        # The mean around does not hide what a single center shows.
        return errors, torch.maximum(separable(squares, smooth), squares)

    def correct_by_centers(self, errors, squares, crossing):
        """Correct the faces and edges by what the centers beside them were off by, and find their deviations then.

        errors, squares, crossing: see settle_centers and region.
        """
        nearby = {kind: [to_kind(volume, kind, self.values[kind]) for volume in (errors, squares, crossing)]
                  for kind in (*FACES, *EDGES)}
        probes = {kind: self.probes(self.region(kind, crossing), OTHER_PROBES)
                  for kind, (_, _, crossing) in nearby.items()}
        self.left = {}  # kind: probes, and what their samples were off by after that
        for kind, found in self.look(probes).items():
            correction, squares, _ = nearby[kind]
            probe, known = probes[kind], self.exact[kind]
            beside = correction[probe]
            factor = fitted(found, beside)
            left = found - factor * beside
            share = typical(left.abs() / squares[probe].clamp(min=TINY).sqrt_())
            self.values[kind].add_(correction.mul_(factor).masked_fill_(known, 0))
            self.deviation[kind] = squares.sqrt_().mul_(share).masked_fill_(known, 0)
            self.left[kind] = probe, left

    def correct_edges(self, faces, found):
        """Correct the edges by what the faces beside them were off by, where most of these were evaluated.

        faces: the mask of those of each kind. found: what they were off by.
        """
        raised, known = {}, {}
        for kind in FACES:
            probe, left = self.left[kind]
            raised[kind] = torch.zeros_like(self.values[kind])
            raised[kind][probe] = left
            raised[kind][faces[kind]] = found[kind]
            known[kind] = (probe | faces[kind]).float()
        for kind in EDGES:
            probe, left = self.left[kind]
            beside, covered = (self.mean_of_faces(kind, volumes) for volumes in (raised, known))
            covered = covered > 0.7  # three of four
            enough = covered[probe]
            if enough.sum() < FEWEST_PROBES // 2:
                continue
            left, near = left[enough], beside[probe][enough]
            factor = fitted(left, near)
            share = ((left - factor * near).square().mean() / left.square().mean().clamp(min=TINY)).sqrt().clamp(max=1)
            self.values[kind].add_(beside.mul_(factor).masked_fill_(self.exact[kind], 0))
            self.deviation[kind].mul_(torch.where(covered, share, 1.))

    def mean_of_faces(self, kind, faces):
        """The mean over the four faces beside each edge of a kind; faces: a volume for each of their kinds."""
        count = self.values[kind].shape
        total = 0
        for axis in range(3):
            if not kind[axis]:
                face = faces[tuple(int(odd or i == axis) for i, odd in enumerate(kind))]
                matrices = [averages(face.shape[i], count[i], face.device) if i == axis else None for i in range(3)]
                total = separable(face, matrices).add_(total)
        return total.mul_(0.5)

    def settle(self):
        """Evaluate what else is wanted, judging again what lies around surprises, until there are none."""
        for _ in range(ROUNDS):
            self.doubt()
            found = self.look(self.wanted(KINDS, together=True), judge=True)
            few = sum(map(len, found.values())) < FEW * sum(map(torch.numel, self.values.values()))
            if few and not any(len(cells) for cells, _ in self.surprises):
                return
            self.weigh(joined(self.values))

    def doubt(self):
        """Raise the deviations around the surprises so far."""
        cells, deviation = (torch.cat(values) for values in zip(*self.surprises, strict=True))
        self.surprises = []
        if not len(cells):
            return
        shape = self.values[CENTERS].shape
        cells = cells.minimum(torch.tensor(shape, device=cells.device) - 1)
        flat = (cells[:, 0] * shape[1] + cells[:, 1]) * shape[2] + cells[:, 2]
        around = deviation.new_zeros(shape.numel()).scatter_reduce(0, flat, deviation, 'amax').view(shape)
        around = grown(around)
        for kind in KINDS[1:]:
            raised = torch.maximum(self.deviation[kind], to_kind(around, kind, self.values[kind]))
            self.deviation[kind] = raised.masked_fill_(self.exact[kind], 0)

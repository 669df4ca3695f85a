"""Directions in the latents of a model, along which identities are edited: found without labels, or from two groups.

    shape1, shape2, …    directions of w, which the field renders: they change shape and colors in all views
    color1, color2, …    directions of w', which the decoder paints with: they leave the surface as it is
    a name               the difference between the means of two groups of latents, in w and w'

Principal components (GANSpace, Harkonen et al. 2020) are the directions in which the latents of random identities
differ most. Closed-form factorization (SeFa, Shen and Zhou 2021) needs no identities: it takes the directions that
change the modulation of the layers most. A direction has the length of one standard deviation of random identities
along it, so that amounts of 1 to 3 are moderate.
"""
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
from inference.latents import Latents, Owner
from model import ModulatedConv2d, truncate
from utils import UserError, printable
from volume_renderer import FiLMSiren

FORMAT = 'StyleSDF directions 1'
FILE = 'directions.pt'
SAMPLES = 10_000      # random identities whose spread gives directions their length
MAX_DIRECTIONS = 1000
SAMPLES_SEED = 0


class Direction(NamedTuple):
    """One step along a direction; None where the direction leaves that latent alone."""
    w: Tensor | None        # (1,style_dim)
    w_prime: Tensor | None  # (1,1 or L,2*style_dim)


def edited(latents, edits, directions):
    """Latents moved along directions. edits: ((name, amount), …) or None; directions: {name: Direction}.

    Raises UserError for a direction that is not there.
    """
    w, w_prime = latents
    for name, amount in edits or ():
        if name not in directions:
            raise UserError(f'--edit {name}: there is no such direction; there are {", ".join(directions)}.')
        step = directions[name]
        w = w if step.w is None else w + amount * step.w
        w_prime = w_prime if step.w_prime is None or w_prime is None else w_prime + amount * step.w_prime
    return Latents(w, w_prime)


# ---------------------------------------------------------------------------------------------- finding

def find_directions(generator, means, psi, method, count):
    """{name: Direction} of the first `count` directions of shape and, where there is a decoder, of color.

    method: 'pca' or 'factorization'. psi, means: the truncation of the identities whose spread is the unit.
    """
    device = generator.style[0].weight.device
    rng = torch.Generator(device).manual_seed(SAMPLES_SEED)
    with torch.no_grad():
        w = generator.map(torch.randn(SAMPLES, generator.style_dim, generator=rng, device=device), psi, means)
        spaces = {'shape': (w, field_modulation)}
        if generator.full_pipeline:
            spaces['color'] = truncate(generator.decoder.style(w), psi, means.w_prime), decoder_modulation
        found = {}
        for kind, (samples, modulation) in spaces.items():
            if method == 'pca':
                steps = principal_steps(samples, count)
            else:
                steps = factorized_steps(modulation(generator), samples, count)
            for number, step in enumerate(steps, 1):
                found[f'{kind}{number}'] = Direction(step[None] if kind == 'shape' else None,
                                                     step[None, None] if kind == 'color' else None)
    return found


def principal_steps(samples, count):
    """(K,D) the first principal components of samples (N,D), each as long as the standard deviation along it."""
    centered = samples - samples.mean(0)
    values, vectors = torch.linalg.eigh((centered.T @ centered / (len(samples) - 1)).double())
    order = values.argsort(descending=True)[:count]
    return _signed(vectors[:, order].T.float()) * values[order].clamp(min=0).sqrt().float()[:, None]


def factorized_steps(modulation, samples, count):
    """(K,D) the right singular vectors of a modulation matrix (M,D) with the largest singular values (SeFa, equation
    7), each as long as the standard deviation of samples (N,D) along it."""
    values, vectors = torch.linalg.eigh((modulation.T @ modulation).double())
    vectors = _signed(vectors[:, values.argsort(descending=True)[:count]].T.float())
    return vectors * (samples @ vectors.T).std(0)[:, None]


def _signed(vectors):
    """Vectors (K,D), whose sign means nothing, with their largest entries positive: the same on every machine."""
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def field_modulation(generator):
    """(M,style_dim) all rows of the maps from w to the gains and shifts of the field, as its layers use them."""
    rows = []
    for layer in generator.renderer.modules():
        if isinstance(layer, FiLMSiren):
            origin = layer.gain_and_shift(torch.zeros(1, generator.style_dim, device=layer.weight.device))
            unit = layer.gain_and_shift(torch.eye(generator.style_dim, device=layer.weight.device))
            rows += [(at - start).T for at, start in zip(unit, origin, strict=True)]
    return torch.cat(rows)


def decoder_modulation(generator):
    """(M,2*style_dim) all rows of the maps from w' to the styles of the decoder's convolutions."""
    return torch.cat([layer.modulation.weight * layer.modulation.scale for layer in generator.decoder.modules()
                      if isinstance(layer, ModulatedConv2d)])


def direction_between(having, lacking):
    """The Direction from the mean of some Latents to that of others, lists: amount 1 leads all the way.

    It moves all layers of the field alike, so of latents with a w for each layer the mean over the layers counts.
    """
    def mean(latents):
        return torch.cat(latents).mean(0, keepdim=True)

    def common(w):
        return w.mean(1) if w.dim() == 3 else w

    w = mean([common(one.w) for one in having]) - mean([common(one.w) for one in lacking])
    if having[0].w_prime is None:
        return Direction(w, None)
    return Direction(w, mean([one.w_prime for one in having]) - mean([one.w_prime for one in lacking]))


# ---------------------------------------------------------------------------------------------- files

def save_directions(path, directions, owner):
    """Write {name: Direction} of the model `owner` (latents.Owner), atomically.

    Raises UserError for more than read_directions takes.
    """
    if len(directions) > MAX_DIRECTIONS:
        raise UserError(f'{path} would hold {len(directions)} directions, more than {MAX_DIRECTIONS}; give another '
                        'file with --out.')

    def plain(tensor):
        return None if tensor is None else tensor.detach().cpu().float().contiguous().clone()

    checkpoint.save(path, {'format': FORMAT, 'model': owner._asdict(), 'directions': {
        name: {'w': plain(step.w), 'w_prime': plain(step.w_prime)} for name, step in directions.items()}})


def read_directions(path, generator, owner):
    """{name: Direction} of a file of save_directions. Raises UserError as latents.read_latents does."""
    contents = checkpoint.contents_of(path)
    if not isinstance(contents, dict) or contents.get('format') != FORMAT:
        raise UserError(f'{path} holds no directions; give a file that find_directions.py wrote.')
    owner.check(contents.get('model'), path)
    entries = contents.get('directions')
    device, size = generator.style[0].weight.device, generator.style_dim
    layers = generator.decoder.num_layers if generator.full_pipeline else 1

    def tensor(value, *shapes):
        if value is None:
            return None
        if (not isinstance(value, Tensor) or not checkpoint.is_plain(value) or tuple(value.shape) not in shapes
                or not value.isfinite().all()):
            raise UserError(f'{path} is damaged: its directions do not have the size of this model.')
        return value.float().to(device)

    if not isinstance(entries, dict) or len(entries) > MAX_DIRECTIONS or not all(
            isinstance(name, str) and isinstance(step, dict) for name, step in entries.items()):
        raise UserError(f'{path} is damaged: it does not hold directions by their names.')
    return {printable(name): Direction(tensor(step.get('w'), (1, size)), tensor(
        step.get('w_prime'), (1, 1, 2 * size), (1, layers, 2 * size))) for name, step in entries.items()}


def directions_path(opt, folder):
    """The file that --directions names, or that of a model whose results are in `folder`."""
    return Path(opt.inference.directions or folder / FILE)


def directions_for(opt, generator, folder):
    """{name: Direction} that --edit needs, or an empty dict without it. folder: of the model's results.

    Raises UserError where there is no such file, or one of the directions is not in it.
    """
    if not opt.inference.edit:
        if opt.inference.directions:
            raise UserError('--directions: nothing is edited without --edit, such as --edit shape1=+2.')
        return {}
    path = directions_path(opt, folder)
    if not path.exists():
        raise UserError(f'--edit: {path} does not exist; make it with find_directions.py, or name a file of directions '
                        'with --directions.')
    directions = read_directions(path, generator, Owner.of(generator, opt))
    for name, _ in opt.inference.edit:
        if name not in directions:
            raise UserError(f'--edit {name}: {path} holds no such direction; it has {_listed(directions)}.')
    return directions


def _listed(names, most=40):
    names = list(names)
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')

"""Every random number of generation and video, by seed: latents, viewpoints and noise; and the walk between identities.

With the same weights, seed and kind of device the draws are the original's: from one stream seeded with --seed come
first the latents whose mean truncation needs, then for each identity its z, its viewpoints and, eight views at a time,
the decoder's noise (docs/conventions.md). With --seeds each identity has a stream of its own.
"""
from typing import NamedTuple

import numpy as np
import torch

import options
from camera import fixed_viewpoints, sample_viewpoints
from inference import results
from inference.directions import directions_for, edited
from inference.latents import Latents, SavedLatents, check_layer, latents_of_w, mixed, read_all
from utils import UserError

WHO = {'seeds': '--seeds', 'mix': '--mix', 'latents': '--latents'}  # all of them win over --identities


class Identity(NamedTuple):
    """One identity to generate. What is drawn for it must be drawn before the next one is asked for."""
    long_name: str
    short_name: str
    seed: int | None      # of the stream that it is drawn from; None for one of a file
    rng: torch.Generator
    second: torch.Generator | None = None  # of --mix: that of the identity whose decoder layers it takes
    layer: int = 0                         # of --mix: the first of these
    saved: SavedLatents | None = None      # of --latents


class Subject(NamedTuple):
    """What one video shows: an identity, or a walk through several."""
    name: str
    seed: int
    latents: Latents             # of one identity, or of the frames of a walk
    saved: SavedLatents | None   # of --latents


def seeded(seed, device):
    """A generator of random numbers on a device."""
    return torch.Generator(device).manual_seed(seed)


def check_identities(opt):
    """Raise UserError for flags that name different identities."""
    given = [flag for name, flag in WHO.items() if name in opt.given]
    if len(given) > 1:
        raise UserError(f'{" and ".join(given)} each say which identities to show; use one of them.')
    if opt.inference.latents and 'truncation_ratio' in opt.given:
        raise UserError('--latents are used as they are, and --truncation_ratio would change them; leave it out.')


def files_for(opt, generator, folder):
    """(the SavedLatents of --latents, the directions that --edit needs); folder: of the results of the model.

    Raises UserError for files that do not fit, and for a layer of --mix that the decoder does not have.
    """
    for _, _, layer in opt.inference.mix or ():
        check_layer(generator, layer)
    return read_all(opt.inference.latents, generator, opt), directions_for(opt, generator, folder)


def identities(opt, rng, saved=()):
    """The identities that the flags ask for: of --seeds or --mix, each with an rng of its own, else all from `rng`.

    saved: the SavedLatents of --latents.
    """
    inference, ending = opt.inference, results.edits_name(opt.inference.edit or ())

    def named(long_name, short_name, *rest, **more):
        return Identity(long_name + ending, short_name + ending, *rest, **more)

    if inference.latents:
        for one in saved:
            yield named(*[results.file_name(one.name)] * 2, None, rng, saved=one)
    elif inference.mix:
        for first, second, layer in inference.mix:
            yield named(*[results.mix_name(first, second, layer)] * 2, first, seeded(first, rng.device),
                        second=seeded(second, rng.device), layer=layer)
    elif inference.seeds is None:
        for number in range(inference.identities):
            yield named(results.long_name(number, False), results.short_name(number, False), opt.experiment.seed, rng)
    else:
        for seed in inference.seeds:
            yield named(results.long_name(seed, True), results.short_name(seed, True), seed, seeded(seed, rng.device))


def of_seeds(opt, seeds):
    """The option tree for the identities of these seeds alone."""
    return options.replaced(opt, seeds=tuple(seeds), latents=(), mix=None, edit=None)


def identity_count(opt, saved=()):
    """How many `identities` gives."""
    return len(saved) if opt.inference.latents else len(
        opt.inference.mix or opt.inference.seeds or range(opt.inference.identities))


def draw_z(opt, rng, count=1):
    """(count,style_dim) latents z ~ N(0, I)."""
    return torch.randn(count, opt.model.style_dim, generator=rng, device=rng.device)


def draw_viewpoints(opt, rng, saved=None):
    """(views,2) viewpoints of one identity: those of --views or the fixed ones, which need no draw, or random ones.

    Those of SavedLatents are their own, unless --num_views_per_id asks for random ones.
    """
    if opt.inference.views:
        return torch.deg2rad(torch.tensor(opt.inference.views, device=rng.device))
    if opt.inference.fixed_camera_angles:
        return fixed_viewpoints(opt.camera.azim, opt.camera.elev, rng.device)
    if saved and 'num_views_per_id' not in opt.given:
        return saved.viewpoints
    return sample_viewpoints(opt.inference.num_views_per_id, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                             rng, rng.device)


def draw_w(generator, identity, opt, means):
    """(1,style_dim) truncated latent w of an identity."""
    return generator.map(draw_z(opt, identity.rng), opt.inference.truncation_ratio, means)


def draw_latents(generator, identity, opt, means, directions=None):
    """The Latents of an identity: drawn, mixed, or those of its file; then moved along the directions of --edit."""
    if identity.saved:
        latents = identity.saved.latents
    else:
        psi = opt.inference.truncation_ratio
        latents = latents_of_w(generator, draw_w(generator, identity, opt, means), psi, means)
        if identity.second:
            other = generator.map(draw_z(opt, identity.second), psi, means)
            latents = mixed(latents, latents_of_w(generator, other, psi, means), identity.layer)
    return edited(latents, opt.inference.edit, directions)


def subjects(generator, opt, rng, means, saved=(), directions=None):
    """Yield the Subjects that the flags ask for: one for each identity, or the one walk of --interpolate."""
    if not opt.video.interpolate:
        for identity in identities(opt, rng, saved):
            latents = draw_latents(generator, identity, opt, means, directions)
            yield Subject(identity.short_name, identity.seed or 0, latents, identity.saved)
        return
    seeds = opt.video.interpolate
    stops = [draw_w(generator, stop, opt, means) for stop in identities(of_seeds(opt, seeds), rng)]
    w = closed_walk(torch.cat(stops), opt.video.frames)
    latents = edited(latents_of_w(generator, w, opt.inference.truncation_ratio, means), opt.inference.edit, directions)
    yield Subject(results.walk_name(seeds) + results.edits_name(opt.inference.edit or ()), seeds[0], latents, None)


def closed_walk(stops, steps):
    """(steps,C) points at equal times on a smooth closed curve through stops (S,C); the last is the first again.

    The curve is a periodic cubic spline. It goes through w rather than z, where straight lines pass through unlikely
    latents.
    """
    from scipy.interpolate import CubicSpline  # takes a while to import, and few commands need it

    loop = torch.cat([stops, stops[:1]]).cpu().double().numpy()
    curve = CubicSpline(np.linspace(0, 1, len(loop)), loop, bc_type='periodic')
    return torch.from_numpy(curve(np.linspace(0, 1, steps))).to(stops)

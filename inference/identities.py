"""Every random number of generation and video, by seed: latents, viewpoints and noise; and the walk between identities.

With the same weights, seed and kind of device the draws are the original's: from one stream seeded with --seed come
first the latents whose mean truncation needs, then for each identity its z, its viewpoints and, eight views at a time,
the decoder's noise (docs/conventions.md). With --seeds each identity has a stream of its own.
"""
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

import options
from camera import fixed_viewpoints, sample_viewpoints
from inference import results


class Identity(NamedTuple):
    """One identity to generate. What is drawn for it must be drawn before the next one is asked for."""
    number: int   # of --identities, from 0, or of --seeds: the seed
    by_seed: bool
    seed: int     # of the stream that it is drawn from
    rng: torch.Generator

    @property
    def long_name(self):
        return results.long_name(self.number, self.by_seed)

    @property
    def short_name(self):
        return results.short_name(self.number, self.by_seed)


class Subject(NamedTuple):
    """What one video shows: an identity, or a walk through several."""
    name: str
    seed: int
    w: Tensor  # the renderer's latents, truncated: (1,style_dim), or (frames,style_dim) of a walk


def seeded(seed, device):
    """A generator of random numbers on a device."""
    return torch.Generator(device).manual_seed(seed)


def identities(opt, rng):
    """The identities that the flags ask for: of --seeds, each with an rng of its own, else all from `rng`."""
    if opt.inference.seeds is None:
        for number in range(opt.inference.identities):
            yield Identity(number, False, opt.experiment.seed, rng)
    else:
        for seed in opt.inference.seeds:
            yield Identity(seed, True, seed, seeded(seed, rng.device))


def identity_count(opt):
    """How many `identities` gives."""
    return len(opt.inference.seeds or range(opt.inference.identities))


def draw_z(opt, rng, count=1):
    """(count,style_dim) latents z ~ N(0, I)."""
    return torch.randn(count, opt.model.style_dim, generator=rng, device=rng.device)


def draw_viewpoints(opt, rng):
    """(views,2) viewpoints of one identity: those of --views or the fixed ones, which need no draw, or random ones."""
    if opt.inference.views:
        return torch.deg2rad(torch.tensor(opt.inference.views, device=rng.device))
    if opt.inference.fixed_camera_angles:
        return fixed_viewpoints(opt.camera.azim, opt.camera.elev, rng.device)
    return sample_viewpoints(opt.inference.num_views_per_id, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                             rng, rng.device)


def draw_w(generator, identity, opt, means):
    """(1,style_dim) truncated latent w of an identity."""
    return generator.map(draw_z(opt, identity.rng), opt.inference.truncation_ratio, means)


def subjects(generator, opt, rng, means):
    """Yield the Subjects that the flags ask for: one for each identity, or the one walk of --interpolate."""
    if not opt.video.interpolate:
        for identity in identities(opt, rng):
            yield Subject(identity.short_name, identity.seed, draw_w(generator, identity, opt, means))
        return
    seeds = opt.video.interpolate
    stops = [draw_w(generator, stop, opt, means) for stop in identities(options.replaced(opt, seeds=seeds), rng)]
    yield Subject(results.walk_name(seeds), seeds[0], closed_walk(torch.cat(stops), opt.video.frames))


def closed_walk(stops, steps):
    """(steps,C) points at equal times on a smooth closed curve through stops (S,C); the last is the first again.

    The curve is a periodic cubic spline. It goes through w rather than z, where straight lines pass through unlikely
    latents.
    """
    loop = torch.cat([stops, stops[:1]]).cpu().double().numpy()
    curve = CubicSpline(np.linspace(0, 1, len(loop)), loop, bc_type='periodic')
    return torch.from_numpy(curve(np.linspace(0, 1, steps))).to(stops)

"""Joint optimization of viewpoint and latents until the model's picture is a photo (Ko et al., 3D GAN inversion with
pose optimization, WACV 2023; Lan et al., E3DGE, CVPR 2023, for StyleSDF).

It begins where least squares on small pictures have ended (solving.py), and compares the whole picture at all scales
and by all losses. Each layer of the field has its own w in it, and each layer of the decoder its own w', since together
they reach pictures that no single w makes (Abdal et al., Image2StyleGAN, ICCV 2019). Each photo has its own loss, so a
batch gives what one photo alone gives.
"""
import time
from typing import NamedTuple

import torch
from torch import Tensor

from camera import cameras_of
from inference.latents import Latents
from losses import depth_roughness, edge_loss, feature_loss, noise_correlation, pyramid_loss

BETAS = (0.9, 0.99)
# Adam's, of the coordinates, and in radians.
RATE_U, RATE_VIEW, RATE_LAYERS, RATE_W_PRIME, RATE_NOISE = 0.03, 0.002, 0.1, 0.3, 0.1
FAR = 0.04           # error of the pixels; below it steps are shorter, which Adam's do not become by themselves
NEAR = 0.02          # error of the pixels at the beginning, below which they alone lead on, in less time
PATIENCE = 8         # it ends where so many steps in a row have gained nothing
DECAY_FROM = 0.6     # share of the steps from which the rates fall to 0
STEEPEST = 80.       # degrees of elevation: beyond it "up" loses its meaning


class Weights(NamedTuple):
    """Weights of the terms of the loss."""
    edges: float = 0.1
    features: float = 0.05
    pull: float = 0.015      # of w towards its mean, in standard deviations squared, times the error of the pixels
    pull_layers: float = 0.006  # of the w of the field's layers towards a common one, likewise
    pull_prime: float = 0.006  # of the w' of the decoder's layers towards what follows from w, likewise
    view: float = 0.002      # of the viewpoint towards the front, in units of the training's spread squared, likewise
    depth: float = 0.05      # roughness of the depth, in units of the depth range
    noise: float = 1e3       # correlation of the noise, where it is fitted


# Where the decoder is tuned afterwards, latents need not make the whole photo; likely ones look right from the sides.
PIVOT = Weights(features=0.1, pull=0.15, pull_layers=0.06, pull_prime=0.06, view=0.05)


def rate_factor(done):
    """What the rates are multiplied by at a share `done` in [0, 1] of the steps."""
    return min(1., max(0., (1 - done) / (1 - DECAY_FROM)))


def clamped_viewpoint(viewpoint):
    """Viewpoints whose elevation stays clear of the poles."""
    limit = STEEPEST * torch.pi / 180
    return torch.cat([viewpoint[:, :1], viewpoint[:, 1:].clamp(-limit, limit)], dim=1)


def _step(adam, loss, factor, reach):
    """One step of Adam, its rates times a factor and, for each photo, times reach (B,)."""
    adam.zero_grad(set_to_none=True)
    loss.backward()
    unknowns = [value for group in adam.param_groups for value in group['params']]
    before = [value.detach().clone() for value in unknowns]
    for group in adam.param_groups:
        group.setdefault('full', group['lr'])
        group['lr'] = group['full'] * factor
    adam.step()
    with torch.no_grad():
        for value, start in zip(unknowns, before, strict=True):
            value.copy_(torch.lerp(start, value, reach.view(-1, *[1] * (value.dim() - 1))))


class Found(NamedTuple):
    """What was found of B photos."""
    latents: Latents
    viewpoint: Tensor    # (B,2)
    u: Tensor            # (B,style_dim) coordinates of w
    noise: list | None   # of (B,1,h,w), where it was fitted
    loss: Tensor         # (B,)

    @classmethod
    @torch.no_grad()
    def of(cls, inverter, guess):
        """A Guess as it is; its loss is not known."""
        loss = guess.u.new_full((len(guess.u),), torch.inf)
        return cls(inverter.latents(guess.u), guess.viewpoint, guess.u, None, loss)

    def select(self, index):
        """What was found of photo `index`, still as a batch."""
        index = slice(index, index + 1)
        return Found(self.latents.frames(index), self.viewpoint[index], self.u[index],
                     self.noise and [one[index] for one in self.noise], self.loss[index])


class Fitting:
    """The optimization of B images (B,3,S,S) from a Guess of each; `found` is the best so far, even interrupted.

    fit_noise: whether the decoder's noise maps are fitted too. They belong to the picture, not to the surface, so what
    is in them does not turn with the head.
    """

    def __init__(self, inverter, images, guess, weights=None, fit_noise=False):
        self.inverter, self.images, self.weights = inverter, images, weights or Weights()
        generator, batch = inverter.generator, len(guess.u)
        self.u, self.viewpoint = (value.clone().requires_grad_() for value in (guess.u, guess.viewpoint))
        groups = [{'params': [self.u], 'lr': RATE_U}, {'params': [self.viewpoint], 'lr': RATE_VIEW}]
        self.w_prime_offsets = self.noise = None
        if generator.full_pipeline:
            self.w_prime_offsets = torch.zeros(batch, generator.decoder.num_layers, 2 * generator.style_dim,
                                               device=inverter.device, requires_grad=True)
            groups.append({'params': [self.w_prime_offsets], 'lr': RATE_W_PRIME})
            if fit_noise:
                self.noise = [one.expand(batch, -1, -1, -1).clone().requires_grad_()
                              for one in generator.decoder.fixed_noise()]
                groups.append({'params': self.noise, 'lr': RATE_NOISE})
        layers = generator.renderer.network.num_layers
        self.w_offsets = torch.zeros(batch, layers, generator.style_dim, device=inverter.device, requires_grad=True)
        groups.append({'params': [self.w_offsets], 'lr': RATE_LAYERS})
        self.adam = torch.optim.Adam(groups, betas=BETAS)
        self.targets = inverter.features.maps(images) if inverter.features else None
        self.found = None
        self.error = None  # (B,) of the pixels in the last step
        self.near = None   # (B,) whether it was below NEAR at the beginning, as the model's own images are

    def latents(self):
        """The Latents at the present coordinates."""
        w, w_prime = self.inverter.latents(self.u)
        w = w[:, None] + self.inverter.w_space.step(self.w_offsets)                        # (B,layers,style_dim)
        return Latents(w, None if w_prime is None else w_prime + self.inverter.w_prime_space.step(self.w_prime_offsets))

    def terms(self, latents):
        """{name: (B,)} the terms of the loss, with their weights."""
        inverter, weights, images = self.inverter, self.weights, self.images
        viewpoint = clamped_viewpoint(self.viewpoint)
        picture, rendering = inverter.render(latents, viewpoint, 'fixed' if self.noise is None else self.noise)
        pull = weights.pull * self.u.square().mean(1) + weights.view * (viewpoint / inverter.spread).square().sum(1)
        pull = pull + weights.pull_layers * self.w_offsets.square().mean(dim=(1, 2))
        if self.w_prime_offsets is not None:
            pull = pull + weights.pull_prime * self.w_prime_offsets.square().mean(dim=(1, 2))
        pixels = pyramid_loss(picture, images)
        error = pixels.detach() if self.error is None else self.error
        terms = {'pixels': pixels, 'edges': weights.edges * edge_loss(picture, images), 'pull': error * pull}
        self.near = error < NEAR if self.near is None else self.near
        if self.targets is not None and not self.near.all():
            different = feature_loss(inverter.features.maps(picture), self.targets)
            terms['features'] = weights.features * different.where(~self.near, 0)
        if self.noise is not None:
            terms['noise'] = weights.noise * noise_correlation(self.noise)
        cameras = cameras_of(inverter.opt, viewpoint)
        toward = -cameras.extrinsics[:, :, 2]                                           # (B,3) where cameras look
        depth = (rendering.xyz * toward[:, :, None, None]).sum(1) / (cameras.far - cameras.near)
        terms['depth'] = weights.depth * depth_roughness(depth, rendering.background[:, 0])
        return terms

    def keep(self, latents, loss):
        """Keep what is better than all before, photo by photo. Returns whether anything is."""
        now = Found(Latents(*(None if one is None else one.detach() for one in latents)),
                    clamped_viewpoint(self.viewpoint.detach()), self.u.detach().clone(),
                    self.noise and [one.detach().clone() for one in self.noise], loss.detach())
        if self.found is None:
            self.found = now
            return True
        better, old = now.loss < self.found.loss, self.found

        def chosen(new, before):
            return None if new is None else torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, before)

        self.found = Found(Latents(*map(chosen, now.latents, old.latents)), chosen(now.viewpoint, old.viewpoint),
                           chosen(now.u, old.u), now.noise and list(map(chosen, now.noise, old.noise)),
                           chosen(now.loss, old.loss))
        return bool(better.any())

    def run(self, steps, seconds=0.):
        """Yield after each step (share done in [0, 1], {term: mean over the photos}); `steps` of them, or fewer where
        `seconds` are over or nothing is gained any more. With 0 steps the guess alone is judged."""
        began, step, done, idle = time.perf_counter(), 0, 0., 0
        while True:
            last = done >= 1 or step >= steps or idle >= PATIENCE
            with torch.set_grad_enabled(not last):
                latents = self.latents()
                terms = self.terms(latents)
                loss = sum(terms.values())
                idle = 0 if self.keep(latents, loss) else idle + 1
                if not last:
                    reach = (terms['pixels'].detach() / FAR).sqrt().clamp(max=1)
                    _step(self.adam, loss.sum(), rate_factor(done), reach)
            self.error = terms['pixels'].detach()
            step += 1
            spent = (time.perf_counter() - began) / seconds if seconds else 0.
            done = max(step / max(1, steps), spent)
            yield min(1., done), {name: term.mean().item() for name, term in terms.items()}
            if last:
                return

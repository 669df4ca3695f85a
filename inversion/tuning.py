"""Pivotal tuning: with the latents held fixed, the decoder itself is moved a little until the picture is the photo
(Roich et al., Pivotal Tuning for Latent-based Editing of Real Images, 2021).

Only the decoder's layers move, not its mapping to w' and not the field, so the surface stays what it was.
"""
import time

import torch

from camera import cameras_of
from inference.latents import copied_decoder, render_latents
from losses import edge_loss, feature_loss, pyramid_loss

RATE = 3e-3        # Adam's, of weights that are of the order of 1
STAY = 0.2         # weight of how much the picture of another identity changes
STAY_EVERY = 4     # it is looked at in one of so many steps
BETAS = (0.9, 0.99)


class Tuning:
    """The tuning of a decoder to one photo. `difference` is the best so far: {name: difference of weights}, or None.

    The decoder's picture of another identity is held where it is (their locality regularization), so that editing and
    turning still work.
    """

    def __init__(self, inverter, image, found, weights):
        self.inverter, self.image, self.found, self.weights = inverter, image, found, weights
        self.generator = copied_decoder(inverter.generator)
        # All of the decoder but its mapping network, since w' is given, and the biases that nothing reads (model.py).
        self.parameters = {name: value for name, value in self.generator.decoder.named_parameters()
                           if not name.startswith('style.') and not (name.endswith('bias') and value.dim() == 4
                                                                     and 'to_rgb' not in name)}
        self.noise = 'fixed' if found.noise is None else found.noise
        self.adam = torch.optim.Adam(self.parameters.values(), lr=RATE, betas=BETAS)
        cameras = cameras_of(inverter.opt, found.viewpoint)
        with torch.no_grad():
            self.features = inverter.generator.render(found.latents.w, cameras).features
            self.other = inverter.latents(inverter.draw(1, torch.Generator(inverter.device).manual_seed(2)).u)
            self.other_picture, other = render_latents(inverter.generator, self.other, cameras)
            self.other_features = other.features
        self.targets = inverter.features.maps(image) if inverter.features else None
        self.difference, self.loss = None, float('inf')

    def picture(self):
        """The tuned decoder's picture of the photo."""
        decoder = self.generator.decoder
        return decoder(self.features, self.found.latents.w_prime, self.generator.noise(self.noise, 1))

    def run(self, steps, seconds=0.):
        """Yield after each step (share done in [0, 1], {term: value})."""
        before = {name: value.detach().clone() for name, value in self.parameters.items()}
        for value in self.parameters.values():
            value.requires_grad_(True)
        began = time.perf_counter()
        for step in range(steps + 1):
            terms = self.terms(step)
            loss = sum(term for name, term in terms.items() if name != 'stay')
            if loss.item() < self.loss:
                self.loss = loss.item()
                self.difference = {name: (value.detach() - before[name]).half()
                                   for name, value in self.parameters.items()}
            done = max(step / max(1, steps), (time.perf_counter() - began) / seconds if seconds else 0.)
            yield min(1., done), {name: term.item() for name, term in terms.items()}
            if done >= 1:
                return
            self.adam.zero_grad(set_to_none=True)
            sum(terms.values()).backward()
            self.adam.param_groups[0]['lr'] = RATE * min(1., 2 * (1 - done))
            self.adam.step()

    def terms(self, step):
        """{name: scalar} the terms of the loss; now and then with that of the other identity."""
        picture = self.picture()
        terms = {'pixels': pyramid_loss(picture, self.image).mean(),
                 'edges': self.weights.edges * edge_loss(picture, self.image).mean()}
        if self.targets is not None:
            terms['features'] = self.weights.features * feature_loss(self.inverter.features.maps(picture),
                                                                     self.targets).mean()
        if step % STAY_EVERY == 1:
            other = self.generator.decoder(self.other_features, self.other.w_prime, self.generator.noise('fixed', 1))
            terms['stay'] = STAY * pyramid_loss(other, self.other_picture).mean()
        return terms

"""Quick small pictures of the model, and how they change with viewpoint and w.

A view with few rays goes through the first layer of the decoder, and a linear map turns the features there into the
colors of the shrunk picture. The map is fitted by least squares to pictures of the model's own. On the demo model such
a preview of 32x32 pixels takes 40 ms once its samples are chosen, and differs from the shrunk picture by 26 dB; the
field's own thumbnail differs by 20 dB.
"""
import torch

from camera import cameras_of
from inversion.inverter import Guess, shrunk
from op.chosen import can_choose, choose, render_chosen
from volume_renderer import Rendering

SIDES = (16, 32)   # of the previews, in pixels
PICTURES = 24      # that the maps are fitted to
RIDGE = 1e-4       # added to the mean square of the features
SEED = 3
STEP = 0.02        # of the coordinates, for derivatives: large enough for float32
COLUMNS = 66       # derivatives by so many coordinates: the viewpoint and the longest directions of w
AT_ONCE = 8        # views of one batch on a GPU


class Preview:
    """Previews of an Inverter's model. maps: for each side (C+1,3), the colors of features, and of 1."""

    def __init__(self, inverter, maps):
        self.inverter, self.maps = inverter, maps

    @classmethod
    @torch.no_grad()
    def fitted(cls, inverter, progress=lambda count: None):
        """A Preview with maps fitted to pictures of the model's own. progress: called with the number made so far."""
        preview = cls(inverter, {})
        sums = dict.fromkeys(sides(inverter), 0.)
        if not inverter.generator.full_pipeline:
            return preview
        rng = torch.Generator(inverter.device).manual_seed(SEED)
        for count in range(PICTURES):
            guess = inverter.draw(1, rng)
            picture = inverter.render(inverter.latents(guess.u), guess.viewpoint)[0]
            for side in sums:
                features = with_one(preview.features(guess, side))[0].flatten(1).T          # (side^2,C+1)
                both = torch.cat([features, shrunk(picture, side)[0].flatten(1).T], dim=1).double()
                sums[side] = sums[side] + features.T.double() @ both
            progress(count + 1)
        for side, products in sums.items():
            square, colors = products[:, :-3] / (PICTURES * side ** 2), products[:, -3:] / (PICTURES * side ** 2)
            square = square + RIDGE * torch.eye(len(square), device=square.device)
            preview.maps[side] = torch.linalg.solve(square, colors).to(picture)
        return preview

    def choose(self, guess, side):
        """The samples (op.chosen.Chosen) that matter for one Guess, or None where all are evaluated."""
        renderer = self.inverter.generator.renderer
        return choose(renderer, self.inverter.w_space.latents(guess.u), self.cameras(guess, side), side) if (
            can_choose(renderer, side)) else None

    @torch.no_grad()
    def pictures(self, guess, side, chosen=None):
        """Previews (B,3,side,side) of a Guess, all of `chosen` samples where they are given."""
        features = self.features(guess, side, chosen)
        if not self.maps:
            return features
        return torch.einsum('bchw,cd->bdhw', with_one(features), self.maps[side])

    def features(self, guess, side, chosen=None):
        """What the maps are applied to: (B,C,side,side); of a field without decoder the thumbnails themselves."""
        generator = self.inverter.generator
        latents, cameras = self.inverter.latents(guess.u), self.cameras(guess, side)
        full = generator.full_pipeline
        if chosen is None:
            rendering = generator.renderer(latents.w, cameras, resolution=side, features=full)
        else:
            rendering = Rendering.joined([render_chosen(generator.renderer, latents.w[b:b + 1], cameras[b:b + 1],
                                                        chosen, full) for b in range(len(cameras))])
        if not full:
            return rendering.thumbnail
        layer = generator.decoder.conv1
        weight = layer.conv.modulated_weight(latents.w_prime[:, 0])
        noise = rendering.features.new_zeros(1, 1, side, side)
        return layer(rendering.features.to(generator.decoder.dtype), weight, noise).float()

    def jacobian(self, guess, side, chosen, preview):
        """Derivatives (3*side^2,2+style_dim) of the preview of one Guess by viewpoint, in units of the training's
        spread, and coordinates; by differences. preview: (1,3,side,side) with these `chosen` samples."""
        x = to_vector(guess, self.inverter)
        matrix = x.new_zeros(preview.numel(), len(x))
        columns = min(len(x), COLUMNS)
        for start in range(0, columns, AT_ONCE):
            count = min(AT_ONCE, columns - start)
            moved = x + STEP * torch.eye(len(x), device=x.device)[start:start + count]
            pictures = self.pictures(to_guess(moved, self.inverter), side, chosen)
            matrix[:, start:start + count] = ((pictures - preview) / STEP).flatten(1).T
        return matrix

    def cameras(self, guess, side):
        renderer = self.inverter.generator.renderer
        return cameras_of(self.inverter.opt, guess.viewpoint).magnified(side / renderer.resolution)


def sides(inverter):
    """The sides of the previews of a model, the smallest first."""
    return sorted({min(side, inverter.generator.renderer.resolution) for side in SIDES})


def with_one(features):
    """(B,C+1,h,w): features and a channel of ones."""
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


def to_vector(guess, inverter):
    """One Guess as (2+style_dim,): the viewpoint in units of the training's spread, and the coordinates of w."""
    return torch.cat([guess.viewpoint / inverter.spread, guess.u], dim=1)[0]


def to_guess(vectors, inverter):
    """The inverse for vectors (B,2+style_dim)."""
    return Guess(vectors[:, :2] * inverter.spread, vectors[:, 2:])

"""Augmentation of everything that a discriminator sees, as strong as it needs (ADA, Karras et al. 2020, Training
generative adversarial networks with limited data).

Real and generated images are changed in the same random ways before the discriminator sees them, and gradients reach
the generator through the changes. Each change happens to an image with probability `strength`. While that stays well
below 1, the generator does not learn to make changed images itself, because unchanged ones remain the most common.
"""
import math

import torch
import torch.nn.functional as F

from utils import number

# Spread of each change (Karras et al. 2020, appendix B).
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.  # the last two in powers of two
SHIFT = 0.125         # the largest shift, in widths of the image
SCALING, STRETCHING = 0.2, 0.2  # in powers of two
NOISE = 0.1
CUTOUT = 0.5          # side of the square that is cut out, in widths of the image
MOST_STRENGTH = 0.85  # above this, generated images begin to look changed themselves

# Numbers that each image draws in [0, 1): whether each change happens, and how. Each image draws all of them every
# time, so that the strength never shifts what is drawn afterwards.
CHANGES = ('brightness', 'contrast', 'luma flip', 'hue', 'saturation', 'shift', 'cutout', 'noise', 'scale', 'turn',
           'stretch')
UNIFORM = ('hue', 'right', 'down', 'cut right', 'cut down', 'turn', 'stretch axis', 'flip')
NORMAL = ('brightness', 'contrast', 'saturation', 'noise', 'scale', 'stretch')


def augment(images, strength, rngs, geometric=False):
    """Images (B,3,S,S), about [-1, 1], with each change at probability `strength`. Differentiable, but only once.

    rngs: B random generators; an image's changes depend on its own alone. geometric: also turn, scale and stretch.
    Without it the viewpoint of a picture stays what it was, as stage 1 needs: color, shift, cutout and noise.
    """
    draws = _Draws(images, strength, rngs)
    images = recolored(images, draws)
    images = shifted(images, draws)
    if geometric:
        images = deformed(images, draws)
    return with_hole(with_noise(images, draws), draws)


def unchanged(images, rngs):
    """No augmentation."""
    return images


class _Draws:
    """The random numbers of a batch by name, each (B,)."""

    def __init__(self, images, strength, rngs):
        device, kind = images.device, images.dtype
        count = len(CHANGES) + len(UNIFORM)
        uniform = torch.stack([torch.rand(count, generator=rng, device=device, dtype=kind) for rng in rngs])
        normal = torch.stack([torch.randn(len(NORMAL), generator=rng, device=device, dtype=kind) for rng in rngs])
        self.noise = torch.stack([torch.randn(images.shape[1:], generator=rng, device=device, dtype=kind)
                                  for rng in rngs])
        self.happens = dict(zip(CHANGES, (uniform[:, :len(CHANGES)] < strength).T, strict=True))
        self.uniform = dict(zip(UNIFORM, uniform[:, len(CHANGES):].T, strict=True))
        self.normal = dict(zip(NORMAL, normal.T, strict=True))

    def choose(self, change, value, otherwise):
        """`value` (B,) for the images to which a change happens, `otherwise` for the rest."""
        return torch.where(self.happens[change], value, torch.full_like(value, otherwise))


def recolored(images, draws):
    """Brightness, contrast, inverted luminance, hue and saturation, in this order: one affine map of the colors."""
    gray = torch.full((3, 3), 1 / 3, device=images.device, dtype=images.dtype)  # projection onto the gray axis
    unit = torch.eye(3, device=images.device, dtype=images.dtype)

    def each(values):
        return values[:, None, None]

    brightness = draws.choose('brightness', BRIGHTNESS * draws.normal['brightness'], 0.)
    contrast = draws.choose('contrast', 2 ** (CONTRAST * draws.normal['contrast']), 1.)
    # As in ADA's own code, half of the images to which this change happens stay upright. If all were inverted, as many
    # images would be inverted as not at strength 0.5, and the generator could as well make inverted ones.
    flip = draws.choose('luma flip', (draws.uniform['flip'] < 0.5).to(contrast), 0.)
    angle = draws.choose('hue', 2 * math.pi * draws.uniform['hue'], 0.)
    saturation = draws.choose('saturation', 2 ** (SATURATION * draws.normal['saturation']), 1.)

    cross = torch.tensor([[0., -1, 1], [1, 0, -1], [-1, 1, 0]], device=images.device, dtype=images.dtype) / 3 ** 0.5
    # Rodrigues' formula for a rotation about the gray axis.
    hue = gray + each(angle.cos()) * (unit - gray) + each(angle.sin()) * cross
    chroma = gray + each(saturation) * (unit - gray)
    matrix = chroma @ hue @ (unit - 2 * each(flip) * gray) * each(contrast)
    offset = (matrix @ brightness[:, None, None].expand(-1, 3, 1)).squeeze(2)
    return torch.einsum('bij,bjhw->bihw', matrix, images) + offset[:, :, None, None]


def shifted(images, draws):
    """Shifted by whole pixels; what comes in from the edge is the mirror image."""
    side = images.shape[-1]
    most = int(SHIFT * side)

    def places(direction):
        pixels = draws.choose('shift', ((2 * most + 1) * draws.uniform[direction]).floor() - most, 0.).long()
        where = (torch.arange(side, device=images.device) - pixels[:, None]).abs()
        return torch.where(where < side, where, 2 * side - 2 - where)  # (B,S)

    down, right = places('down'), places('right')
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, 3)[image, down[:, :, None], right[:, None]].movedim(3, 1)


def deformed(images, draws):
    """Scaled, turned by any angle and stretched along any axis, about the center."""
    scale = draws.choose('scale', 2 ** (SCALING * draws.normal['scale']), 1.)
    stretch = draws.choose('stretch', 2 ** (STRETCHING * draws.normal['stretch']), 1.)
    angle = draws.choose('turn', 2 * math.pi * draws.uniform['turn'], 0.)
    axis = _turn(math.pi * draws.uniform['stretch axis'])
    stretching = axis @ torch.diag_embed(torch.stack([stretch, 1 / stretch], 1)) @ axis.transpose(1, 2)
    # grid_sample asks where in the old image each new pixel comes from, hence the inverse.
    matrix = torch.linalg.inv(scale[:, None, None] * _turn(angle) @ stretching)
    grid = F.affine_grid(F.pad(matrix, (0, 1)), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode='reflection', align_corners=False)


def _turn(angle):
    """Rotations (B,2,2)."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)


def with_noise(images, draws):
    """With white noise of a random strength."""
    strength = draws.choose('noise', NOISE * draws.normal['noise'].abs(), 0.)
    return images + strength[:, None, None, None] * draws.noise


def with_hole(images, draws):
    """With a square of gray, half as wide as the image, anywhere on it."""
    side = images.shape[-1]
    pixels = (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) / side

    def inside(direction):
        return (pixels - draws.uniform[direction][:, None]).abs() < CUTOUT / 2  # (B,S)

    hole = inside('cut down')[:, :, None] & inside('cut right')[:, None] & draws.happens['cutout'][:, None, None]
    return images.masked_fill(hole[:, None], 0.)


def sign_of_real(real, fake, relativistic):
    """How well a discriminator with these logits of real and of generated images knows the real ones: signs, +1 on
    average where it has learnt them by heart, and 0 where it cannot tell.

    The relativistic loss only compares logits, so that their own signs are arbitrary there.
    """
    return (real - fake if relativistic else real).detach().sign()


class Strength:
    """How strongly to augment: it grows while the discriminator knows the real images too well (ADA, section 3).

    Every INTERVAL images the strength moves one step, so that the average of `sign_of_real` comes toward `target`. The
    steps are as large as to take it from 0 to 1 in `images` real images.
    """
    INTERVAL, FIRST = 256, 0.

    def __init__(self, target, images):
        self.target, self.images = target, images
        self.value = self.FIRST
        self._signs, self._count = 0., 0

    def add(self, sign, images):
        """The mean sign of the scores of so many more real images, of all processes."""
        self._signs += sign * images
        self._count += images
        if self._count >= self.INTERVAL:
            step = self._count / self.images
            step = step if self._signs / self._count > self.target else -step
            self.value = min(max(self.value + step, 0.), MOST_STRENGTH)
            self._signs, self._count = 0., 0

    def state_dict(self):
        return {'value': self.value, 'signs': self._signs, 'count': self._count}

    def load_state_dict(self, state):
        """Raises ValueError, KeyError or TypeError for what `state_dict` cannot have given."""
        self.value = number(state['value'], 0., MOST_STRENGTH)
        self._count = number(state['count'], 0, self.INTERVAL)
        self._signs = number(state['signs'], -self._count - 1, self._count + 1)  # but for rounding


class Augmentation:
    """The augmentation of a run: `--augment` with its state. Without that flag it leaves images as they are."""

    def __init__(self, opt, geometric):
        self.on, self.geometric = opt.training.augment, geometric
        self.strength = Strength(opt.training.augment_target, opt.training.augment_images)

    def __call__(self, images, rngs):
        """Images (B,3,S,S) as the discriminator is to see them. Without augmentation nothing is drawn from `rngs`."""
        return augment(images, self.strength.value, rngs, self.geometric) if self.on else images

    def learn(self, run, values):
        """Adapt to the step that run.update has just taken with the discriminator, whose `values` it gave."""
        if self.on:
            self.strength.add(values['real_sign'], run.opt.training.batch * run.processes.size)
            run.record(augment=self.strength.value)

    def state_dict(self):
        return self.strength.state_dict()

    def load_state_dict(self, state):
        self.strength.load_state_dict(state)

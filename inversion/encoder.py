"""An encoder from a picture to a first guess of viewpoint and w, trained on the model's own samples.

The samples cost no labels and never end: random identities from random viewpoints, whose truth is known. They are
previews (preview.py), which take a fifth of the time of pictures. They are changed in brightness, contrast, color and
sharpness, and parts are covered, since photos differ from samples in these. The encoder is kept beside the model's
checkpoint, NAME_encoder.pt, and the maps of the previews with it.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import checkpoint
from inference.latents import camera_flags, other_flags
from inversion.inverter import Guess, shrunk
from inversion.preview import Preview, sides
from utils import UserError, printable

FORMAT = 'StyleSDF encoder 2'
SMALLEST_SIDE = 16         # of the pictures that it sees
CHANNELS = (16, 32, 64, 128)  # of its blocks, each of half the resolution
BATCH, FRESH = 32, 1       # pictures a step, of which so many are new
POOL = 6144                # pictures that are kept to be seen again
FIRST = 512                # pictures that are made before the first step
STEPS = 1500
RATE = 1e-3
WIDER = 1.25               # viewpoints are drawn from so many times the training's spread
PSI = (0.5, 1.1)           # distance from the mean of w, times that of random identities
VIEW_WEIGHT = 4.           # of the viewpoint's error against that of the coordinates of w
CAMERA = 'azim', 'elev', 'fov', 'dist_radius'  # flags that its viewpoints depend on
ANOTHER = 'train another one with --train_encoder'


class Block(nn.Module):
    """Two convolutions around which the input goes too, then half the resolution."""

    def __init__(self, channels, out):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.LeakyReLU(0.2))
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.LeakyReLU(0.2))
        self.skip = nn.Conv2d(channels, out, 1)

    def forward(self, x):
        return F.avg_pool2d(self.second(self.first(x)) + self.skip(x), 2)


class Encoder(nn.Module):
    """Pictures (B,3,S,S) in [-1, 1] to viewpoints, in units of the training's spread, and coordinates of w.

    preview: the model's Preview, whose pictures it was trained on.
    """

    def __init__(self, style_dim, side, preview=None):
        super().__init__()
        self.side, self.preview = side, preview
        channels, blocks = 3, []
        for out in CHANNELS:
            blocks.append(Block(channels, out))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        cells = max(1, side // 2 ** len(CHANNELS))
        self.head = nn.Sequential(nn.Linear(channels * cells ** 2, 256), nn.LeakyReLU(0.2),
                                  nn.Linear(256, 2 + style_dim))

    def forward(self, pictures):
        found = self.head(self.blocks(shrunk(pictures, self.side)).flatten(1))
        return found[:, :2], found[:, 2:]


def side_for(inverter):
    """The side of the pictures that the encoder of a model sees: that of the largest previews, at least 16."""
    return max(SMALLEST_SIDE, sides(inverter)[-1])


@torch.no_grad()
def guess_of(encoder, inverter, images):
    """The Guess of images (B,3,S,S)."""
    view, u = encoder.eval()(images)
    return Guess(view * inverter.spread, u)


# ---------------------------------------------------------------------------------------------- training

@torch.no_grad()
def samples(preview, count, rng, side):
    """(pictures (count,3,side,side), viewpoints, coordinates) of random identities of a Preview's model."""
    guess = preview.inverter.draw(count, rng, WIDER)
    share = torch.empty(count, 1, device=preview.inverter.device).uniform_(*PSI, generator=rng)
    guess = guess._replace(u=guess.u * share)
    pictures = preview.pictures(guess, sides(preview.inverter)[-1])
    return shrunk(pictures.clamp(-1, 1), side), guess.viewpoint / preview.inverter.spread, guess.u


def changed(pictures, rng):
    """Pictures (B,3,S,S) as a camera might have seen them: brightness, contrast and color, sharpness, something in
    front of them."""
    batch, _, side, _ = pictures.shape

    def random(*shape):
        return torch.rand(*shape, generator=rng, device=pictures.device)

    gain, shift = 0.8 + 0.4 * random(batch, 1, 1, 1), 0.4 * random(batch, 1, 1, 1) - 0.2
    tint = 0.9 + 0.2 * random(batch, 3, 1, 1)
    pictures = pictures * gain * tint + shift
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode='replicate'), 3, stride=1)
    pictures = torch.lerp(pictures, soft, 2 * random(batch, 1, 1, 1) - 0.5)  # softer or sharper
    pictures = pictures + 0.05 * random(batch, 1, 1, 1) * torch.randn(pictures.shape, generator=rng,
                                                                      device=pictures.device)
    place = torch.arange(side, device=pictures.device) / side
    low, size = random(2, batch, 1) * 0.9, 0.3 * random(2, batch, 1)
    rows, columns = (place > low) & (place < low + size)                                # (B,S) each
    covered = rows[:, :, None] & columns[:, None, :] & (random(batch, 1, 1) < 0.3)
    return torch.where(covered[:, None], 2 * random(batch, 3, 1, 1) - 1, pictures)


def train_encoder(inverter, steps=STEPS):
    """A trained Encoder of a model."""
    device, side = inverter.device, side_for(inverter)
    rng = torch.Generator(device).manual_seed(inverter.opt.experiment.seed)
    preview = Preview.fitted(inverter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inverter.opt.experiment.seed)
        encoder = Encoder(inverter.generator.style_dim, side, preview).to(device).train()
    adam = torch.optim.Adam(encoder.parameters(), lr=RATE)
    pool = None
    with tqdm(total=steps, desc='training the encoder', unit='step') as bar:
        first = min(FIRST, FRESH * steps)
        for made in range(0, first, FRESH):
            pool = joined(pool, samples(preview, FRESH, rng, side))
            bar.set_postfix_str(f'making pictures: {made + FRESH} of {first}')
        for step in range(steps):
            pool = joined(pool, samples(preview, FRESH, rng, side))
            fresh = torch.arange(len(pool[0]) - FRESH, len(pool[0]), device=device)
            index = torch.cat([torch.randint(len(pool[0]), (BATCH - FRESH,), generator=rng, device=device), fresh])
            pictures, view, u = (values[index].float() for values in pool)
            loss = encoder_loss(encoder, changed(pictures, rng), view, u)
            adam.param_groups[0]['lr'] = RATE * min(1., 2 * (1 - step / steps)) + 1e-6
            adam.zero_grad(set_to_none=True)
            sum(loss).backward()
            adam.step()
            bar.update()
            bar.set_postfix_str(f'viewpoint {loss[0].item():.3f}, w {loss[1].item():.3f}')
    return encoder.eval().requires_grad_(False)


def encoder_loss(encoder, pictures, view, u):
    """(of the viewpoint, of w), means over the batch."""
    guessed_view, guessed_u = encoder(pictures)
    return (VIEW_WEIGHT * F.smooth_l1_loss(guessed_view, view, beta=0.3), (guessed_u - u).square().mean())


def joined(pool, new):
    """The pool of pictures with new ones at its end; the oldest are dropped. Pictures are kept in half precision."""
    new = (new[0].half(), *new[1:])
    if pool is None:
        return new
    return tuple(torch.cat([old[max(0, len(old) + len(added) - POOL):], added])
                 for old, added in zip(pool, new, strict=True))


# ---------------------------------------------------------------------------------------------- files

def encoder_path(model_path):
    """The file of the encoder that belongs to a checkpoint."""
    path = Path(model_path)
    return path.with_name(f'{path.stem}_encoder.pt')


def save_encoder(path, encoder, owner):
    """Write an encoder of the model `owner` (inference.latents.Owner), in half precision."""
    preview = encoder.preview
    checkpoint.save(path, {'format': FORMAT, 'model': owner._asdict(), 'side': encoder.side,
                           'psi': preview.inverter.psi, 'camera': camera_flags(preview.inverter.opt.camera, CAMERA),
                           'maps': preview.maps,
                           'encoder': {name: value.half() for name, value in encoder.state_dict().items()}})


def maps_of(maps, inverter, path):
    """The maps of a Preview as they are in a file. Raises UserError where they are not those of this model."""
    generator = inverter.generator
    sizes = sides(inverter) if generator.full_pipeline else []
    shape = (generator.decoder.conv1.conv.weight.shape[1] + 1, 3) if sizes else None
    if not isinstance(maps, dict) or maps.keys() != set(sizes) or not all(
            isinstance(one, torch.Tensor) and checkpoint.is_plain(one) and one.shape == shape and one.isfinite().all()
            for one in maps.values()):
        raise UserError(f'{path} is damaged: its maps are not those of this model; remove it, and train an encoder '
                        'with --train_encoder.')
    return {side: one.float().to(inverter.device) for side, one in maps.items()}


def read_encoder(path, inverter, owner):
    """The Encoder in a file, or None where there is no such file. Raises UserError where it is damaged or belongs to
    another model."""
    if not Path(path).exists():
        return None
    try:
        contents = checkpoint.contents_of(path)
    except UserError as error:
        raise UserError(f'{str(error).rstrip(".")}, or remove it and {ANOTHER}.') from None
    side = contents.get('side') if isinstance(contents, dict) and contents.get('format') == FORMAT else None
    if not isinstance(side, int) or side != side_for(inverter):
        raise UserError(f'{path} is no encoder of this model; remove it, and {ANOTHER}.')
    owner.check(contents.get('model'), path, f'remove it, and {ANOTHER}')
    psi = contents.get('psi')
    if not isinstance(psi, int | float) or psi != inverter.psi:
        raise UserError(f'{path} was trained with --truncation_ratio {printable(psi)}, not {inverter.psi}; give the '
                        f'same, or {ANOTHER}.')
    for name, own, value in other_flags(contents.get('camera'), inverter.opt.camera, CAMERA):
        raise UserError(f'{path} was trained with --{name} {own:g}, not {value:g}; give the same, or {ANOTHER}.')
    preview = Preview(inverter, maps_of(contents.get('maps'), inverter, path))
    encoder = Encoder(inverter.generator.style_dim, side, preview)
    checkpoint.load_state(encoder, contents.get('encoder'), path)
    return encoder.to(inverter.device).eval().requires_grad_(False)

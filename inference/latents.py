"""The latents of one identity: made from z, mixed of two identities, and kept in files.

A file of latents is a dict written by torch.save and read with weights_only=True, so it cannot run code:

    format       FORMAT
    model        {'name': …, 'weights': …}: the model that the latents belong to, by the hash of its weights
    w            (1,style_dim) of the renderer, truncated as it is to be used; or (1,layers,style_dim), one for each
                 layer of the field, the one of the view direction last, as invert_photos.py finds them
    w_prime      (1,L,2*style_dim) of each decoder layer, likewise; None for a field without decoder
    viewpoints   (V,2) azimuth and elevation in radians: where the identity was seen from
    camera       {'fov': …, 'dist_radius': …} of those views; older files do not have it
    noise        the decoder's noise maps, a list of (1,1,h,w), or None for those of the checkpoint
    tuned        {name: difference} between a tuned decoder's weights and the checkpoint's, in half precision, or None
    source       where the latents come from, in words
"""
import copy
import hashlib
import math
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
from utils import UserError, printable

FORMAT = 'StyleSDF latents 1'
LATENTS_FILE = 'latents.pt'  # of a folder that is named after a photo
CAMERA = 'fov', 'dist_radius'  # flags that say what is seen from a viewpoint
MAX_VIEWS = 1000
MAX_NAME = 60       # of an identity that is named after its file
MAX_SOURCE = 500    # characters


class Latents(NamedTuple):
    """All that a model needs of one identity, or of F frames of a walk."""
    w: Tensor                # (1 or F,style_dim) of the renderer, or (1 or F,layers,style_dim) of each layer
    w_prime: Tensor | None   # (1 or F,L,2*style_dim) of each decoder layer; None for a field without decoder

    def frames(self, index):
        """The latents of a slice of the frames."""
        return Latents(self.w[index], None if self.w_prime is None else self.w_prime[index])


class SavedLatents(NamedTuple):
    """What a file of latents holds, on the device of the model."""
    name: str
    latents: Latents
    viewpoints: Tensor         # (V,2)
    noise: list | None         # of (1,1,h,w)
    tuned: dict | None         # name -> difference
    source: str
    hash: str = ''             # SHA-256 of the file

    @property
    def decoder_noise(self):
        """What Generator.noise takes: these maps, or else the checkpoint's."""
        return 'fixed' if self.noise is None else self.noise


# ---------------------------------------------------------------------------------------------- from w, and pictures

def latents_of_w(generator, w, psi=1., means=None):
    """The Latents of truncated w (F,style_dim), whose w' are truncated by psi too. means: MeanLatents."""
    if not generator.full_pipeline:
        return Latents(w, None)
    return Latents(w, generator.decoder.map(w, psi, means.w_prime if means else None))


def check_layer(generator, layer):
    """Raise UserError where the decoder does not have a layer that --mix may begin with."""
    if not generator.full_pipeline:
        raise UserError('--mix: this model has no decoder, whose layers could be mixed; leave the flag out.')
    if not 1 <= layer < generator.decoder.num_layers:
        raise UserError(f'--mix: there is no layer {layer} to begin with; the decoder of this model has the layers 1 '
                        f'to {generator.decoder.num_layers - 1}.')


def mixed(first, second, layer):
    """Latents with the shape and the decoder layers below `layer` of the first, and the layers from there on of the
    second (style mixing, StyleGAN, section 3.1)."""
    return Latents(first.w, torch.cat([first.w_prime[:, :layer], second.w_prime[:, layer:]], dim=1))


def render_latents(generator, latents, cameras, noise='fixed', **wanted):
    """(picture (B,3,S,S), Rendering) of Latents of one identity, or one for each of B cameras.

    The picture is the image, or the thumbnail of a field without decoder. noise: as for Generator.noise.
    """
    rendering = generator.render(latents.w.expand(len(cameras), *latents.w.shape[1:]), cameras, **wanted)
    return decoded(generator, latents, rendering, noise), rendering


def decoded(generator, latents, rendering, noise='fixed'):
    """The picture (B,3,S,S) of Latents and their Rendering; arguments as for `render_latents`."""
    if latents.w_prime is None:
        return rendering.thumbnail
    return generator.decoder(rendering.features, latents.w_prime, generator.noise(noise, len(rendering.xyz)))


def copied_decoder(generator):
    """A generator that shares all with this one but the decoder, of which it has a copy."""
    twin = copy.copy(generator)
    twin._modules = {**generator._modules, 'decoder': copy.deepcopy(generator.decoder)}
    return twin


def tuned_generator(generator, tuned):
    """A generator that shares all but the decoder with this one; its decoder's weights differ by `tuned`, a dict by
    name. The generator itself where that is None."""
    if not tuned:
        return generator
    twin = copied_decoder(generator)
    weights = dict(twin.decoder.named_parameters())
    with torch.no_grad():
        for name, difference in tuned.items():
            weights[name] += difference.to(weights[name])
    return twin


# ---------------------------------------------------------------------------------------------- files

def weights_hash(generator):
    """A hash of a generator's weights, the same for the files of full and of half precision that hold them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(generator.state_dict().items()):
        if not name.startswith('decoder.noises.') and not name.endswith('.kernel'):
            digest.update(name.encode() + tensor.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Owner(NamedTuple):
    """The model that latents belong to."""
    name: str     # of its experiment
    weights: str  # weights_hash

    @classmethod
    def of(cls, generator, opt):
        return cls(opt.experiment.expname, weights_hash(generator))

    def check(self, model, path, remedy='give that model with --expname or --model'):
        """Raise UserError where a file's entry `model` names another one. remedy: what to do then."""
        if not isinstance(model, dict) or not all(isinstance(model.get(key), str) for key in self._fields):
            raise UserError(f'{path} does not name the model that it is for, and so is of no use; make it anew.')
        if model['weights'] != self.weights:
            other = printable(model['name'])
            same = ' (another one of that name)' if other == self.name else ''
            raise UserError(f'{path} is for the model {other}{same} and of no use to {self.name}; {remedy}.')


def save_latents(path, latents, owner, viewpoints, *, camera=None, noise=None, tuned=None, source=''):
    """Write a file of Latents of one identity, atomically. viewpoints: (V,2). camera: the flags of the group of that
    name. The rest: see the head of this file."""
    def plain(tensor):
        return None if tensor is None else tensor.detach().cpu().float().contiguous().clone()

    checkpoint.save(path, {
        'format': FORMAT, 'model': owner._asdict(), 'w': plain(latents.w), 'w_prime': plain(latents.w_prime),
        'viewpoints': plain(viewpoints), 'camera': camera and camera_flags(camera, CAMERA),
        'noise': noise and [plain(one) for one in noise],
        'tuned': tuned and {name: plain(one).half() for name, one in tuned.items()}, 'source': source[:MAX_SOURCE]})


def read_latents(path, generator, owner, opt=None):
    """The SavedLatents in a file, checked to fit the generator, whose Owner is given, and moved to its device.

    opt: the options with which the latents are to be shown, if they are. Raises UserError for a file that is missing,
    damaged, no latents, of another model, that would cost more memory than it has bytes, or that was made with cameras
    of which these options know nothing.
    """
    contents = checkpoint.contents_of(path)
    if not isinstance(contents, dict) or contents.get('format') != FORMAT:
        raise UserError(f'{path} holds no latents; give a file that --save_latents or invert_photos.py wrote.')
    owner.check(contents.get('model'), path)
    decoder = generator.decoder if generator.full_pipeline else None
    device = generator.style[0].weight.device
    size = generator.style_dim

    def tensor(name, value, *shape):
        if not isinstance(value, Tensor) or not checkpoint.is_plain(value) or value.dim() != len(shape) or any(
                wanted not in (None, side) for wanted, side in zip(shape, value.shape, strict=True)):
            raise UserError(f'{path} is damaged: its {name} does not have the shape that this model needs.')
        if not value.isfinite().all():
            raise UserError(f'{path} is damaged: its {name} holds values that are not finite numbers.')
        return value.float().to(device)

    w, layers = contents.get('w'), generator.renderer.network.num_layers
    each_layer = isinstance(w, Tensor) and w.dim() == 3
    w = tensor('w', w, *((1, layers, size) if each_layer else (1, size)))
    w_prime = noise = tuned = None
    if decoder is not None:
        w_prime = tensor("w'", contents.get('w_prime'), 1, decoder.num_layers, 2 * size)
        if contents.get('noise') is not None:
            noise = _listed(contents['noise'], decoder.noise_sizes, path)
            noise = [tensor('noise', one, 1, 1, side, side) for one, side in zip(noise, decoder.noise_sizes,
                                                                                  strict=True)]
        if contents.get('tuned') is not None:
            tuned = _tuned(contents['tuned'], decoder, path, tensor) or None
    viewpoints = tensor('viewpoints', contents.get('viewpoints'), None, 2)
    if not 1 <= len(viewpoints) <= MAX_VIEWS or viewpoints.abs().max() > 2 * torch.pi:
        raise UserError(f'{path} is damaged: its viewpoints are no angles.')
    if opt:
        _check_camera(contents.get('camera'), opt, path)
    source = contents.get('source')
    return SavedLatents(name_of_file(path), Latents(w, w_prime), viewpoints, noise, tuned,
                        printable(source, MAX_SOURCE) if isinstance(source, str) else '',
                        checkpoint.file_hash(path))


def camera_flags(camera, names):
    """{name: number} of flags of the group `camera`, as files keep them."""
    return {name: float(camera[name]) for name in names}


def other_flags(saved, camera, names):
    """(name, number in the file, number now) of each of these flags that a file's entry, made by `camera_flags`, has
    with another number; older files have no such entry."""
    saved = saved if isinstance(saved, dict) else {}
    return [(name, saved[name], value) for name, value in camera_flags(camera, names).items()
            if isinstance(saved.get(name), float) and not math.isclose(saved[name], value, rel_tol=1e-6)]


def _check_camera(saved, opt, path):
    for name, own, value in other_flags(saved, opt.camera, CAMERA):
        if name not in opt.given:
            raise UserError(f'{path} was made with --{name} {own:g}; give that for the same pictures, or --{name} '
                            f'{value:g} for others.')


def _listed(noise, sides, path):
    if not isinstance(noise, list) or len(noise) != len(sides):
        raise UserError(f'{path} is damaged: it does not have the noise maps that this model needs.')
    return noise


def _tuned(tuned, decoder, path, tensor):
    weights = dict(decoder.named_parameters())
    if not isinstance(tuned, dict) or not tuned.keys() <= weights.keys():
        raise UserError(f'{path} is damaged: its tuned weights are not those of this decoder.')
    return {name: tensor('tuned weights', value, *weights[name].shape) for name, value in tuned.items()}


def name_of_file(path):
    """What an identity from this file is called in the names of its results: ASCII letters, digits and hyphens.

    Letters lose their accents. A latents.pt has the name of its folder, as those of invert_photos.py have.
    """
    path = Path(path)
    name = path.absolute().parent.name if path.name == LATENTS_FILE else path.stem
    plain = unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode()
    return re.sub(r'[^A-Za-z0-9]+', '-', plain).strip('-')[:MAX_NAME] or 'photo'


def unused_name(name, taken):
    """The name, or name-2, name-3 and so on: the first that is not in `taken`, a set to which it is added.

    Upper and lower case are the same here, as they are to some systems' files.
    """
    unused, number = name, 2
    while unused.casefold() in taken:
        unused, number = f'{name}-{number}', number + 1
    taken.add(unused.casefold())
    return unused


def files_of(paths, flag='--latents'):
    """The files that a flag names: files as they are, of folders the .pt files in them, by name, or else the latents.pt
    of the folders in them, as invert_photos.py writes them.

    Raises UserError for a folder without any.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.glob('*.pt')) or sorted(path.glob(f'*/{LATENTS_FILE}'))
            if not inside:
                raise UserError(f'{flag} {path}: this folder holds no files of latents (.pt).')
            files += inside
        else:
            files.append(path)
    return files


def read_all(paths, generator, opt):
    """The SavedLatents of all files that --latents names, each with a name of its own."""
    owner, found, taken = Owner.of(generator, opt), [], set()
    for path in files_of(paths):
        saved = read_latents(path, generator, owner, opt)
        found.append(saved._replace(name=unused_name(saved.name, taken)))
    return found

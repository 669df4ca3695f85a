"""Networks that turn images into features for FID, KID, precision and recall.

torch-fidelity's Inception (the field's standard: the weights that FID was defined with), or any TorchScript network.
"""
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoint import file_hash
from utils import UserError, shortened

IMAGES_AT_ONCE = 32
LAYER = '2048'  # of Inception: the pooled features that FID and KID are defined on
INCEPTION = 'Inception (torch-fidelity, 2048)'


class Features(NamedTuple):
    """A feature network."""
    name: str          # for results, so that nobody mistakes one network's numbers for another's
    key: str           # for files
    network: callable  # uint8 images (B,3,S,S) to features (B,D)

    @torch.no_grad()
    def __call__(self, images):
        """Features (N,D), float32 on the CPU, of uint8 images (N,3,S,S). Raises UserError for a network that fails."""
        return torch.cat([self._of(batch).cpu() for batch in images.split(IMAGES_AT_ONCE)])

    def _of(self, images):
        try:
            features = self.network(images)
        except RuntimeError as error:  # TorchScript's own, whose last line is the reason
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(f'--features: {self.name} cannot take uint8 images (B,3,{images.shape[2]},'
                            f'{images.shape[3]}) ({str(error).strip().splitlines()[-1]}); it must turn them into '
                            'features (B,D).') from None
        if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise UserError(f'--features: {self.name} gives {shape} for {len(images)} images; it must give one row of '
                            'features for each.')
        if not features.shape[1]:
            raise UserError(f'--features: {self.name} gives no features; use another network.')
        features = features.float()
        if not features.isfinite().all():
            raise UserError(f'--features: {self.name} gives features that are not finite numbers; use another network.')
        return features


def load_features(path, size, device):
    """The Features of a TorchScript file, or of Inception where path is None, tried out on images of `size` pixels.

    A TorchScript network is called with uint8 RGB images (B,3,size,size), and with return_features=True if it has such
    an argument, as NVIDIA's Inception file does. Raises UserError for one that is missing or does not work.
    """
    features = _inception(device) if path is None else _torchscript(Path(path), device)
    features(torch.zeros(2, 3, size, size, dtype=torch.uint8, device=device))
    return features


def load_torchscript(path, device):
    """(network, hash of the file) of a TorchScript file. Raises UserError for one that is missing or damaged."""
    if not path.is_file():
        raise UserError(f'--features {path}: there is no such file; give a TorchScript network.')
    try:
        with warnings.catch_warnings():  # PyTorch would rather have other formats
            warnings.simplefilter('ignore')
            network = torch.jit.load(path, map_location=device).eval()
        network.forward.schema  # noqa: B018 (which a damaged file may lack)
    except Exception:  # a damaged file can fail anywhere in PyTorch, with any exception
        raise UserError(f'--features {path} is not a TorchScript network, or a damaged one; make it with '
                        'torch.jit.save, or fetch it again.') from None
    return network, file_hash(path)


def frozen_torchscript(path, device):
    """(name, function) of a TorchScript file whose weights stay as they are, for gradients by the images. The function
    gives a list of tensors, also where the network gives one alone. Raises UserError as `load_torchscript` does."""
    network, digest = load_torchscript(path, device)
    for parameter in network.parameters():
        parameter.requires_grad_(False)

    def call(images):
        with torch.jit.optimized_execution(False):  # which on a GPU compiles for half a minute, and gains nothing here
            found = network(images)
        found = found if isinstance(found, list | tuple) else [found]
        # Half precision becomes the format that all else here computes with.
        return [one.float() if one.is_floating_point() else one for one in found]

    return f'{path.name} ({digest[:16]})', call


def check_numbers(name, maps):
    """Raise UserError where a network's feature maps are not made of finite real numbers, which have gradients."""
    if not all(one.is_floating_point() and one.isfinite().all() for one in maps):
        raise UserError(f'--features: {name} gives feature maps of integers, or of values that are not finite numbers; '
                        'use another network.')


def _torchscript(path, device):
    network, digest = load_torchscript(path, device)
    arguments = [argument.name for argument in network.forward.schema.arguments]
    options = {'return_features': True} if 'return_features' in arguments else {}
    return Features(f'{path.name} ({digest[:8]})', digest[:16], lambda images: network(images, **options))


def _inception(device):
    try:
        import torch_fidelity
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        raise UserError('fid, kid and pr need torch-fidelity: pip install -r requirements-eval.txt, or give a network '
                        'of your own with --features, or leave them out with --metrics swd,depth,view,field.') from None
    try:
        # It loads what is in PyTorch's cache without asking what that is; so this checks first.
        torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, map_location='cpu', check_hash=True, weights_only=True)
        network = torch_fidelity.FeatureExtractorInceptionV3('inception-v3-compat', [LAYER])
    except Exception as error:  # no network, a broken transfer, a damaged file, …
        raise UserError(f'the Inception weights cannot be loaded ({shortened(error)}); put '
                        f'{URL_INCEPTION_V3} into {torch.hub.get_dir()}/checkpoints, or give a network of your own '
                        'with --features.') from None
    network = network.to(device).eval()
    return Features(INCEPTION, 'inception', lambda images: network(images)[0])

"""What photos and pictures are compared with beyond pixels: a TorchScript network, torchvision's VGG-16, or the model's
own discriminator of stage 2."""
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from checkpoint import contents_of, load_state, without_projected
from discriminators import Discriminator
from metrics.features import check_numbers, frozen_torchscript
from utils import UserError, shortened

VGG = 'vgg16'
VGG_LAYERS = (3, 8, 15, 22)  # the last rectified convolution of each of its first four blocks, as LPIPS takes them
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 256                   # larger pictures are shrunk to this before the network sees them
COARSEST = 8                 # of the discriminator, maps with at least so many pixels a side are compared


class FeatureNetwork(NamedTuple):
    """A frozen network. maps: images (B,3,S,S) in [-1, 1] to a list of feature maps (B,C,h,w), differentiable."""
    name: str
    maps: callable


def load_features(opt, path, size, device):
    """The FeatureNetwork that --features names (a TorchScript file, or vgg16), else the discriminator in the model's
    checkpoint at `path`, else None. Raises UserError for one that is missing or does not work."""
    wanted = opt.evaluation.features
    if wanted == VGG:
        network = _vgg(device)
    elif wanted:
        network = FeatureNetwork(*frozen_torchscript(Path(wanted), device))
    else:
        network = _discriminator(path, opt, device)
    return network and _tried(network, size, device)


def _tried(network, size, device):
    """The network on pictures of at most SIDE pixels, tried out once."""
    def maps(images):
        if images.shape[-1] > SIDE:
            images = F.interpolate(images, size=(SIDE, SIDE), mode='bilinear', antialias=True, align_corners=False)
        return network.maps(images)

    try:
        found = maps(torch.zeros(2, 3, size, size, device=device))
        fits = all(one.dim() == 4 and len(one) == 2 for one in found)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f'--features {network.name}: it cannot take images (B,3,{size},{size}) in [-1, 1] '
                        f'({str(error).strip().splitlines()[-1]}).') from None
    if not fits:
        raise UserError(f'--features {network.name}: it must give feature maps (B,C,h,w), one or a list of them.')
    check_numbers(network.name, found)
    return FeatureNetwork(network.name, maps)


def _vgg(device):
    try:
        from torchvision.models import VGG16_Weights, vgg16
        layers = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features[:max(VGG_LAYERS) + 1]
    except Exception as error:  # no network, a broken transfer, a damaged file, …
        reason = shortened(error)
        raise UserError(f"--features vgg16: torchvision's weights cannot be loaded ({reason}); give a "
                        'TorchScript file, or leave the flag out.') from None
    layers = layers.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def maps(images):
        x, found = ((images + 1) / 2 - mean) / std, []
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in VGG_LAYERS:
                found.append(x)
        return found

    return FeatureNetwork('torchvision VGG-16', maps)


def read_discriminator(path, opt):
    """StyleGAN2's Discriminator of stage 2 in a checkpoint, which may hold a projected one beside it, or None where
    there is none that can be used."""
    state = contents_of(path).get('d')
    if not isinstance(state, dict) or 'final_linear.1.weight' not in state:
        return None
    network = Discriminator(opt.model.size, opt.model.channel_multiplier, opt.model.channel_max)
    try:
        return load_state(network, without_projected(state), path)
    except UserError:  # of another kind or size; the pixels must do
        return None


def _discriminator(path, opt, device):
    """The features of the discriminator in a checkpoint, or None where it has none that can be used."""
    network = read_discriminator(path, opt)
    if network is None:
        return None
    blocks = network.convs.eval().requires_grad_(False).to(device)

    def maps(images):
        found = []
        for block in blocks:
            images = block(images)
            if images.shape[-1] >= COARSEST:
                found.append(images)
        return found[1:]

    return FeatureNetwork("the model's discriminator", maps)

"""A field with more channels that is the same function (Chen et al. 2016, Net2Net, by new channels that nothing reads).

So a small model, trained in little time, becomes the beginning of a larger one: stage 1 with --init_ckpt and a larger
--width.
"""
import torch

from volume_renderer import SirenField

NETWORK = 'renderer.network.'  # where a generator's state dict has the field


def width_of(state):
    """Channels of the field in a generator's state dict, or None where it holds none."""
    weight = state.get(NETWORK + 'sigma_linear.weight') if isinstance(state, dict) else None
    return weight.shape[1] if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def widened(state, width, sizes, seed):
    """The state dict of a generator without decoder, with the channels of its field increased to `width`.

    sizes: depth and style_dim of the field, as keyword arguments of SirenField. The new channels have fresh weights
    drawn by `seed`, but what reads them does so with weight 0: the field is the same function at first, and training
    finds a use for them.
    """
    before = width_of(state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = SirenField(width=width, **sizes).state_dict()
    wider = dict(state)
    for name, new in fresh.items():
        old = state[NETWORK + name]
        rows = len(old)
        if old.dim() == 2 and old.shape[1] != new.shape[1]:  # it reads channels of the field
            columns = torch.arange(old.shape[1])
            columns[before:] += width - before  # the view direction comes after the channels
            new[:rows] = 0
            new[:rows, columns] = old.to(new)
        else:
            new[:rows] = old.to(new)
        wider[NETWORK + name] = new
    return wider

"""Images by number for evaluation, and the quick measurements of --eval_every."""

import numpy as np
import torch

from metrics.distances import patch_descriptors, swd
from metrics.identity import measure_identity
from training.gradients import chunks
from training.random_numbers import draw_fakes
from training.resuming import checked_chunk
from utils import (
    to_uint8,
)

EVAL_IMAGES, EVAL_IDENTITIES = 128, 4  # that --eval_every measures


@torch.no_grad()
def numbered_images(generator, opt, numbers, device, truncation=1., means=None):
    """Images (B,3,S,S), about [-1, 1], for evaluation: which ones depends on the seed and their numbers alone."""
    fakes = draw_fakes(opt, 'evaluation', 0, numbers, device)
    generated = generator(fakes.z, fakes.cameras, truncation=truncation, means=means, rng=fakes.rngs)
    return generated.rendering.thumbnail if generated.image is None else generated.image


def quick_evaluation(generator, dataset, opt, device):
    """{'swd', 'depth'} of a generator, from few images and identities: a trend for the log, no numbers to publish.

    swd: the mean over levels, against the data set's first images. depth: metrics.identity.measure_identity; left out
    where no identity has a surface. Touches no random state.
    """
    count = min(EVAL_IMAGES, len(dataset))
    descriptors = {'real': [], 'fake': []}
    for part in chunks(0, count, checked_chunk(opt)):
        numbers = range(part.start, part.stop)
        batches = {'real': torch.stack([dataset[i] for i in numbers]),
                   'fake': numbered_images(generator, opt, numbers, device)}
        for kind, images in batches.items():
            pixels = torch.from_numpy(to_uint8(images)).movedim(-1, 1)
            descriptors[kind].append(patch_descriptors(pixels, numbers))
    real, fake = ([torch.cat(level) for level in zip(*parts, strict=True)] for parts in descriptors.values())
    measures = {'swd': float(np.mean(swd(real, fake)))}
    latents = draw_fakes(opt, 'evaluation', 0, range(EVAL_IDENTITIES), device).z
    depths = [measure_identity(generator, z[None], opt, ('depth',))['depth']['depth'] for z in latents]
    found = [depth for depth in depths if not np.isnan(depth)]
    return measures | ({'depth': float(np.mean(found))} if found else {})

"""Images by number for evaluation, and the quick measurements of --eval_every."""
import numpy as np
import torch

from op.fast import few_samples
from training.gradients import checked_chunk, chunks
from training.random_numbers import draw_fakes
from utils import to_uint8

EVAL_IMAGES, EVAL_IDENTITIES = 128, 4  # how many --eval_every measures


@torch.no_grad()
def numbered_images(generator, opt, numbers, device, psi=1., means=None):
    """Images (B,3,S,S), about [-1, 1], for evaluation: which ones depends on the seed and their numbers alone."""
    fakes = draw_fakes(opt, 'evaluation', 0, numbers, device)
    generated = generator(fakes.z, fakes.cameras, psi=psi, means=means, rng=fakes.rngs)
    return generated.picture


def quick_evaluation(generator, images, opt, device):
    """{'swd', 'depth'} of a generator, from few images and identities: a trend for the log, no numbers to publish.

    swd: the mean over levels, against the first of the real images (dataset.Images); left out where these are smaller
    than a patch. depth: metrics.identity.measure_identity; left out where no identity has a surface. Touches no random
    state.
    """
    # These need SciPy and trimesh, which trainings without quick measurements need not load.
    from metrics.distances import PATCH, patch_descriptors, swd
    from metrics.identity import measure_identity

    count = min(EVAL_IMAGES, len(images)) if images[0].shape[-1] >= PATCH else 0
    descriptors = {'real': [], 'fake': []}
    for indices in chunks(0, count, checked_chunk(opt)):
        numbers = range(indices.start, indices.stop)
        batches = {'real': torch.stack([images[i] for i in numbers]),
                   'fake': numbered_images(generator, opt, numbers, device)}
        for kind, batch in batches.items():
            pixels = torch.from_numpy(to_uint8(batch)).movedim(-1, 1)
            descriptors[kind].append(patch_descriptors(pixels, numbers))
    real, fake = ([torch.cat(level) for level in zip(*batches, strict=True)] for batches in descriptors.values())
    measures = {'swd': float(np.mean(swd(real, fake)))} if count else {}
    latents = draw_fakes(opt, 'evaluation', 0, range(EVAL_IDENTITIES), device).z
    depths = [measure_identity(few_samples(generator), z[None], opt, ('depth',))['depth']['depth'] for z in latents]
    found = [depth for depth in depths if not np.isnan(depth)]
    return measures | ({'depth': float(np.mean(found))} if found else {})

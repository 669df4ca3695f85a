"""The sample grids that training writes."""
import numpy as np
import torch

from camera import azimuth_sweep, cameras_at
from training.gradients import checked_chunk, chunks
from training.random_numbers import image_rngs
from utils import to_uint8

SAMPLE_PSI = 0.7
SAMPLE_VIEWS = 8
SAMPLE_SIDE = 256   # larger images are shrunk to this in the sample grids


@torch.no_grad()
def sample_grids(generator, opt, device):
    """{'': images, '_shape': shaded surfaces} as uint8 (H,W,3): a row for each of --val_n_sample identities, which the
    cameras pass from one side to the other. Without a decoder the images are the thumbnails; with one, the surfaces,
    which stage 2 does not change, are left out."""
    identities = opt.training.val_n_sample
    rngs = image_rngs(opt.experiment.seed, 'samples', 0, range(identities + 1), device)
    means = generator.mean_latents(rng=rngs[-1])
    viewpoints = azimuth_sweep(identities, opt.camera.azim, opt.camera.elev, SAMPLE_VIEWS, rngs[-1], device)
    cameras = cameras_at(viewpoints, opt.model.renderer_spatial_output_dim, opt.camera.fov, opt.camera.dist_radius)
    grids = {'': []} if generator.full_pipeline else {'': [], '_shape': []}
    for i in range(identities):
        z = torch.randn(1, opt.model.style_dim, generator=rngs[i], device=device)
        views = {name: [] for name in grids}
        for indices in chunks(i * SAMPLE_VIEWS, (i + 1) * SAMPLE_VIEWS, checked_chunk(opt)):
            generated = generator(z, cameras[indices], psi=SAMPLE_PSI, means=means, noise='fixed')
            if generator.full_pipeline:
                image = generated.image
                if image.shape[-1] > SAMPLE_SIDE:
                    image = torch.nn.functional.adaptive_avg_pool2d(image, SAMPLE_SIDE)
                views[''].extend(to_uint8(image))
            else:
                views[''].extend(to_uint8(generated.rendering.thumbnail))
                views['_shape'].extend(to_uint8(shaded(generated.rendering, cameras[indices])))
        for name, row in views.items():
            grids[name].append(np.concatenate(row, axis=1))
    return {name: np.concatenate(rows) for name, rows in grids.items()}


def shaded(rendering, cameras):
    """The surface of a rendering lit from the camera (B,3,H,W) in [-1, 1]."""
    along, down = (torch.nn.functional.pad(rendering.xyz.diff(dim=dim), pad, mode='replicate')
                   for dim, pad in ((3, (0, 1, 0, 0)), (2, (0, 0, 0, 1))))
    normal = torch.nn.functional.normalize(torch.linalg.cross(down, along, dim=1), dim=1)
    towards = cameras.extrinsics[:, :, 2, None, None]  # (B,3,1,1)
    return ((normal * towards).sum(1, keepdim=True).clamp(0, 1) * 2 - 1).expand(-1, 3, -1, -1)

"""An analytic head, and a field fitted to it: something surface-like to measure where no trained model is at hand."""
import os
from pathlib import Path

import torch
from tqdm import tqdm

from op.folded_field import fold
from training.run import adam

# Ellipsoids in the field's own units (near and far plane at -1 and 1): center, radii. A skull, two ears, a nose.
PARTS = (((0., 0., 0.), (0.5, 0.66, 0.56)), ((-0.52, 0.05, 0.), (0.09, 0.2, 0.14)),
         ((0.52, 0.05, 0.), (0.09, 0.2, 0.14)), ((0., -0.08, 0.56), (0.1, 0.16, 0.14)))
BLEND = 0.08          # over this distance the parts melt into each other
BETA = 3e-3           # of a field whose training is over (docs/conventions.md, Density and weights)
STEPS, POINTS = 400, 4096
LEARNING_RATE = 0.06  # over the width
SLOPE_WEIGHT = 0.1    # of the error in the gradient: it keeps the field smooth between the points


def head_sdf(points):
    """About the signed distance (…,1) of points (…,3) to the head: negative inside. Smooth but at the centers.

    Each ellipsoid's distance is that of its first-order expansion; the union is a polynomial smooth minimum.
    """
    distance = None
    for center, radii in PARTS:
        offset, radii = points - points.new_tensor(center), points.new_tensor(radii)
        inside = (offset / radii).norm(dim=-1, keepdim=True)
        part = inside * (inside - 1) / (offset / radii.square()).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        if distance is None:
            distance = part
            continue
        mix = (0.5 + 0.5 * (distance - part) / BLEND).clamp(0, 1)
        distance = torch.lerp(distance, part, mix) - BLEND * mix * (1 - mix)
    return distance


def training_points(count, generator):
    """(1,count,3) points in the field's own units: half of them anywhere, half near the surface."""
    kind = {'generator': generator, 'device': generator.device}
    points = 2.2 * torch.rand(count, 3, **kind) - 1.1
    near = points[:count // 2].requires_grad_()
    distance = head_sdf(near)
    slope, = torch.autograd.grad(distance.sum(), near)
    surface = near - distance * slope / slope.square().sum(-1, keepdim=True).clamp(min=0.1)
    jitter = 0.03 * torch.randn(len(surface), 3, **kind)
    return torch.cat([surface + jitter, points[count // 2:]]).detach()[None]


def fit_head(generator, w, far_minus_near, steps=STEPS):
    """Fit the field of a generator to the head for the latent w (1,style_dim), and set beta to that of a finished one.

    far_minus_near: what a distance of 2 in the field's own units measures in the world. Returns the mean error, in the
    world, of the last steps.
    """
    network, scale = generator.renderer.network, far_minus_near / 2
    random = torch.Generator(w.device).manual_seed(0)
    rate = LEARNING_RATE / network.width
    optimizer = adam(network.parameters(), rate, (0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    errors = []
    for _ in tqdm(range(steps), desc='fitting a field to a head', unit='step'):
        points = training_points(POINTS, random).requires_grad_()
        target = head_sdf(points)
        target_slope, = torch.autograd.grad(target.sum(), points)
        sdf, _, _, slope = fold(network, w).with_slope(points.detach())
        error = (sdf / scale - target.detach()).abs().mean()
        loss = error + SLOPE_WEIGHT * (slope / scale - target_slope).norm(dim=-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        errors.append(error.detach())
    with torch.no_grad():
        generator.renderer.sigmoid_beta.fill_(BETA)
    return scale * torch.stack(errors[-20:]).mean().item()


def cache_path(folder, opt):
    """Where the fitted field of an option tree's sizes is kept; folder: None for the user's cache."""
    folder = Path(folder or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'stylesdf')
    return folder / (f'benchmark_head_depth{opt.rendering.depth}_width{opt.rendering.width}'
                     f'_style{opt.model.style_dim}_seed{opt.experiment.seed}.pt')

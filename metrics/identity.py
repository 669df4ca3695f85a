"""How good one identity's geometry is, and how well its views agree: depth consistency, images, field, surface.

Depth consistency follows the paper's section on it: surfaces are rendered from the front and from the side, mapped into
one frame, and compared by a modified Chamfer distance (lower is better). What it leaves open was chosen here:

- side views: at +-SIDE standard deviations (or ranges) of the azimuths of training, elevation 0; both are averaged.
- surface: the expected surface points of SURFACE_RESOLUTION^2 rays with as many samples, as for meshes. They are in
  world coordinates, so the common frame is the world.
- background: a pixel whose probability of background is above views.MAX_BACKGROUND shows no surface.
- seen from one view only: points outside of the other view's image do not count, nor do points that the other view
  shows as hidden behind another surface. An exception are points where the first view sees nothing of that other
  surface: there the two views contradict each other, and the point counts. (If all points whose depths disagree were
  left out, the very error that is to be measured would be left out.)
- distance: from each counted point to the nearest point of the other view's whole surface. That surface's grid of
  points is refined REFINED times, since the spacing of the pixels would otherwise be the larger part of a good model's
  distance. The result is the mean over points, the larger of the two directions, the mean over side views, and then
  over identities.
- unit: percent of the distance between the near and far planes (2 dist_radius), the only length that all models have.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from camera import cameras_of, project
from inference.latents import latents_of_w, render_latents
from metrics.distances import modified_chamfer
from metrics.views import DEPTH_TOLERANCE, MAX_BACKGROUND, View, view_difference
from surfaces.meshes import surface_mesh
from surfaces.rendering import render_surface

SIDE = 1.5          # azimuth of the side views of depth consistency, in units of the training's spread
NEAR_SIDE = 0.5     # of the views that images are compared in: further apart the shading changes in earnest
REFINED = 4         # points of a surface's grid, along each axis, for one pixel
SINGLE_SHARE = 0.99  # of a mesh's area that its largest piece has if the surface is a single one


# ---------------------------------------------------------------------------------------------- two views' depths

class Seen(NamedTuple):
    """What one view says about points of another's surface; (…) as the points."""
    inside: Tensor   # within the image
    depth: Tensor    # of the points themselves
    found: Tensor    # (…,3) the view's own surface points at their pixels
    surface: Tensor  # depth of those; infinite for background
    nearest: Tensor  # the smallest such depth among a pixel and its neighbors


def look(points, view):
    """How a View sees world points (P,3)."""
    size = view.xyz.shape[-1]
    pixels, depth = project(points, view.camera.magnified(size / view.resolution), size)
    surface = project(view.xyz[0].movedim(0, -1), view.camera, view.resolution)[1]
    surface = surface.masked_fill(view.background[0, 0] > MAX_BACKGROUND, math.inf)
    nearest = -F.max_pool2d(-surface[None], 3, stride=1, padding=1)[0]
    inside = ((pixels >= 0) & (pixels < size)).all(dim=-1)
    column, row = pixels.floor().long().clamp(0, size - 1).unbind(dim=-1)
    return Seen(inside, depth, view.xyz[0][:, row, column].T, surface[row, column], nearest[row, column])


def common_points(view, other):
    """Surface points (P,3) of a view that the other view ought to see too (see this file's head)."""
    tolerance = DEPTH_TOLERANCE * (view.camera.far - view.camera.near).item()
    points = view.xyz[0].flatten(1).T[view.background.flatten() < MAX_BACKGROUND]
    there = look(points, other)
    back = look(there.found, view)
    hidden = there.surface < there.depth - tolerance
    # Its neighbors too: where a surface is seen at a slant or ends, a pixel's own depth says little.
    contradicted = back.inside & (back.nearest > back.depth + tolerance)
    return points[there.inside & ~(hidden & ~contradicted)]


def refined_points(view):
    """(P,3) points of a view's surface on a grid REFINED times as fine as its pixels."""
    surface = (view.background < MAX_BACKGROUND).to(view.background)
    fine_surface, fine = (F.interpolate(x, scale_factor=REFINED, mode='bilinear') for x in (surface, view.xyz))
    return fine[0].flatten(1).T[fine_surface.flatten() == 1]


def depth_distance(view, other):
    """Modified Chamfer distance between the surfaces of two Views of one scene, where both see it.

    In percent of the distance between the near and far planes; nan where they have no surface in common.
    """
    distance = modified_chamfer(common_points(view, other), common_points(other, view),
                                refined_points(view), refined_points(other))
    return 100 * distance / (view.camera.far - view.camera.near).item()


# ---------------------------------------------------------------------------------------------- field and mesh

def eikonal_residual(gradients):
    """Mean of ||gradient| - 1| of a signed distance's gradients (…,3): 0 for a true distance."""
    return (gradients.norm(dim=-1) - 1).abs().mean().item()


def is_single_surface(mesh):
    """Whether a mesh (or None: no surface at all) is one connected piece, but for specks of 1% of its area."""
    if mesh is None or not len(mesh.faces):
        return False
    pieces = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    areas = np.bincount(pieces, weights=mesh.area_faces)
    return bool(areas.max() >= SINGLE_SHARE * areas.sum())


# ---------------------------------------------------------------------------------------------- one identity

def side_views(azim, spread, device):
    """(3,2) viewpoints: the front, and spread times azim to both sides."""
    return torch.tensor([[0., 0.], [-spread * azim, 0.], [spread * azim, 0.]], device=device)


def viewed(generator, w, camera, image=None, *, sdf=False):
    """(View, Rendering) of the surface of one latent w (1,style_dim). image: what the View is to show, if needed."""
    rendering = render_surface(generator.renderer, w, camera, sdf=sdf)
    return View(image, rendering.xyz, rendering.background, camera, generator.renderer.resolution), rendering


def measure_identity(generator, z, opt, kinds, means=None, psi=1.):
    """`measure_latents` of the identity of a latent z (1,style_dim)."""
    return measure_latents(generator, latents_of_w(generator, generator.map(z, psi, means), psi, means), opt, kinds)


@torch.no_grad()
def measure_latents(generator, latents, opt, kinds, noise='fixed'):
    """Measures of the identity of Latents: {kind: {name: number}}, nan where undefined. noise: as for Generator.noise.

    kinds, which of these to take:
    'depth': {'depth'}, depth_distance of front and sides.
    'view': {'view'}, mean difference between the image from the front and those a little to the side, each carried into
    the frontal one by the surface, in levels of 255.
    'field': {'eikonal', 'single'}, the eikonal_residual of the frontal rays' samples, and whether the frontal
    marching-cubes mesh is_single_surface (1 or 0). nan for a field without SDF.
    """
    renderer, w = generator.renderer, latents.w
    result = {}

    def cameras(spread):
        return cameras_of(opt, side_views(opt.camera.azim, spread, w.device))

    front, rendering = viewed(generator, w, cameras(0)[:1], sdf='field' in kinds and renderer.has_sdf)
    if 'depth' in kinds:
        sides = [viewed(generator, w, cameras(SIDE)[i:i + 1])[0] for i in (1, 2)]
        result['depth'] = {'depth': _mean([depth_distance(front, side) for side in sides])}
    if 'view' in kinds:
        near = cameras(NEAR_SIDE)
        images = [render_latents(generator, latents, near[i:i + 1], noise)[0] for i in range(len(near))]
        front = front._replace(image=images[0])
        sides = [viewed(generator, w, near[i:i + 1], images[i])[0] for i in (1, 2)]
        result['view'] = {'view': 127.5 * _mean([view_difference(side, front) for side in sides])}
    if 'field' in kinds:
        result['field'] = {'eikonal': math.nan, 'single': math.nan}
        if renderer.has_sdf:
            gradients = renderer(w, cameras(0)[:1], color=False, eikonal=True).eikonal
            mesh = surface_mesh(rendering.sdf, front.camera)
            result['field'] = {'eikonal': eikonal_residual(gradients), 'single': float(is_single_surface(mesh))}
    return result


def _mean(numbers):
    """Mean of those numbers that are not nan; nan if all are."""
    numbers = [number for number in numbers if not math.isnan(number)]
    return sum(numbers) / len(numbers) if numbers else math.nan

"""Every loss of both training stages: pure functions of tensors that average over the batch and carry no weight.

Sources: StyleSDF (Or-El et al., CVPR 2022), section on training, by the symbol of each loss; StyleGAN2 (Karras et al.
2020); R1 and R2 (Mescheder et al. 2018). The weights are flags (options.py), the schedules are the training scripts'.
"""
import math

import torch
import torch.nn.functional as F

PATH_LENGTH_DECAY = 0.01


def logistic_loss(real_logits, fake_logits):
    """The discriminator's part of L_adv: softplus(-D(real)) + softplus(D(fake)). Logits (B,1)."""
    return nonsaturating_loss(real_logits) + nonsaturating_loss(-fake_logits)


def nonsaturating_loss(fake_logits):
    """The generator's part of L_adv: softplus(-D(fake)) (Goodfellow et al. 2014, section 3). Logits (B,1)."""
    return F.softplus(-fake_logits).mean()


def relativistic_loss(logits, opponents):
    """How far images are from looking more real than their opponents: softplus(D(opponent) - D(image)).

    Not in the paper; R3GAN (Huang et al. 2024, section 2) pairs each real image with a fake in this way. For the
    discriminator the real ones are the images, for the generator the fakes are. Both logits (B,1), in the same order.
    """
    return F.softplus(opponents - logits).mean()


def hinge_loss(real_logits):
    """The discriminator's hinge loss max(0, 1 - D(real)) (Sauer et al. 2021, equation 2); of fakes with their logits
    negated. Logits of any shape."""
    return F.relu(1 - real_logits).mean()


def mean_score_loss(fake_logits):
    """The generator's side of the hinge loss: -D(fake). Logits of any shape."""
    return -fake_logits.mean()


def r1_penalty(real_logits, real_images):
    """R1 (Mescheder et al. 2018, equation 9, without gamma / 2): squared gradient of D at real images (B,…).

    real_images must require gradients and have led to real_logits (B,1). Differentiable. With generated images and
    their logits it is R2 (equation 10).
    """
    gradient, = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def viewpoint_loss(predicted, true):
    """L_view: smooth L1 between predicted and true (azimuth, elevation), both (B,2) in radians."""
    return F.smooth_l1_loss(predicted, true)


def eikonal_loss(gradient):
    """L_eik: (|grad sdf| - 1)^2, so that the field measures distance. gradient (…,3) by position."""
    return (gradient.norm(dim=-1) - 1).square().mean()


def minimal_surface_loss(sdf, beta=100.):
    """L_surf: exp(-beta |sdf|), against surfaces that nobody sees. sdf of any shape."""
    return torch.exp(-beta * sdf.abs()).mean()


FAR_SHARE = 1 / 8   # of a ray before the far plane, where `far_plane_loss` wants no surface
FAR_MARGIN = 0.005  # the distance from a surface that it asks for there, in world units


def far_plane_loss(sdf):
    """How far the last FAR_SHARE of each ray is from being empty: max(0, FAR_MARGIN - sdf).

    Not in the paper: scraps of a wall behind the head, on which a field paints its background, become pieces of their
    own in meshes. Without them the background is painted on the far plane. sdf (B,H,W,N,1), from near to far.
    """
    last = max(1, round(FAR_SHARE * sdf.shape[-2]))
    return F.relu(FAR_MARGIN - sdf[..., -last:, :]).mean()


def sphere_radius(near, far, radius=0.):
    """Radius of the sphere that training starts from: as given, or (far - near) / 4 where it is 0."""
    return radius or (far - near) / 4


def sphere_sdf(points, near, far, radius=0.):
    """Signed distance (…,1) of points (…,3) to the sphere that training starts from (see `sphere_radius`)."""
    return points.norm(dim=-1, keepdim=True) - sphere_radius(near, far, radius)


def sphere_loss(sdf, points, cameras, radius=0.):
    """Mean distance (L1) of a field's sdf (B,P,1) at world points (B,P,3) from that of a sphere (StyleSDF, training).

    Training begins from a sphere because a random field has no surface to improve on. cameras: B of them, for their
    near and far planes. radius: see `sphere_sdf`.
    """
    return F.l1_loss(sdf, sphere_sdf(points, cameras.near, cameras.far, radius))


RELIEF_DISC = 0.7  # of the sphere's radius: the part of a picture in which a face has to stand out
LEAST_RELIEF = 0.8  # of the sphere's own


def relief(points, cameras, radius=0.):
    """How far surfaces stand out toward their cameras in the middle of the picture: (B,), 1 for the sphere that
    training starts from, 0 for a flat surface, below 0 for a hollow one.

    points: (B,3,H,W) expected surface points in the world. radius: see `sphere_radius`. It is the slope of the line
    that fits the surface's height along the camera's axis to the sphere's at the same distance from that axis, by least
    squares. Only heights get gradients: points are to move toward the camera, not to the side.
    """
    axis = cameras.extrinsics[:, :, 2, None, None]
    height = (points * axis).sum(1)
    aside = (points - height[:, None] * axis).square().sum(1).detach()  # squared distance from the axis
    squared = torch.as_tensor(sphere_radius(cameras.near, cameras.far, radius)) ** 2
    inside = (aside < RELIEF_DISC ** 2 * squared).to(points.dtype)
    count = inside.sum((1, 2), keepdim=True).clamp(min=1)
    sphere = (squared - aside).clamp(min=0).sqrt()
    sphere = (sphere - (sphere * inside).sum((1, 2), keepdim=True) / count) * inside
    return (height * sphere).sum((1, 2)) / sphere.square().sum((1, 2)).clamp(min=1e-12)


def relief_loss(points, cameras, radius=0.):
    """How much of LEAST_RELIEF the `relief` of surfaces lacks: max(0, LEAST_RELIEF - relief). Arguments as there.

    Not in the paper. A hollow mask that is turned the other way gives nearly the same pictures as a face, as long as it
    is seen from near the front only. So part of the faces become hollow if nothing speaks against it.
    """
    return F.relu(LEAST_RELIEF - relief(points, cameras, radius)).mean()


def thumbnail_loss(images, thumbnails):
    """Squared difference of images (B,3,H,W), reduced by averaging, from thumbnails (B,3,h,w); h and w divide H and W.

    Not in the paper: it ties a decoder to what the renderer shows. (EG3D lets the discriminator compare the two, Chan
    et al. 2022, section 4.4.)
    """
    return F.mse_loss(F.adaptive_avg_pool2d(images, thumbnails.shape[2:]), thumbnails)


def path_lengths(images, w_prime, noise, create_graph=True):
    """Lengths (B,) of the generator's Jacobian along random directions (StyleGAN2, equation 4).

    images (B,3,H,W) made from w' (B,L,D) that require gradients; noise (B,3,H,W) from N(0, I). A length is the
    norm of the gradient of sum(images noise) / sqrt(H W) by w', squares averaged over the L layers.
    Differentiable with create_graph.
    """
    projection = (images * noise).sum() / math.sqrt(images.shape[2] * images.shape[3])
    gradient, = torch.autograd.grad(projection, w_prime, create_graph=create_graph)
    return gradient.square().sum(2).mean(1).sqrt()


def path_length_penalty(lengths, mean):
    """L_path (StyleGAN2, equation 4): squared distance of the lengths (B,) from their running mean.

    mean: the running mean before this batch. Returns (penalty, new running mean). The new mean is what lengths are
    compared with, and it passes gradients on, as in StyleGAN2.
    """
    mean = mean + PATH_LENGTH_DECAY * (lengths.mean() - mean)
    return (lengths - mean).square().mean(), mean.detach()


# ---------------------------------------------------------------------------------------------- inversion of photos

SMALLEST_PYRAMID = 4  # side of a pyramid's coarsest level


def pyramid(images):
    """Images (B,C,S,S) and their means over 2x2 pixels, again and again, down to SMALLEST_PYRAMID: a list."""
    levels = [images]
    while levels[-1].shape[-1] // 2 >= SMALLEST_PYRAMID:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def pyramid_loss(images, targets):
    """Mean squared difference of images and targets (B,C,S,S), averaged over the levels of their pyramids: (B,)."""
    differences = [(a - b).square().mean(dim=(1, 2, 3))
                   for a, b in zip(pyramid(images), pyramid(targets), strict=True)]
    return sum(differences) / len(differences)


def edge_loss(images, targets):
    """Mean absolute difference between the slopes of images and targets (B,C,S,S) along rows and columns: (B,)."""
    def slopes(x):
        return x.diff(dim=2)[..., :-1], x.diff(dim=3)[:, :, :-1]

    return sum((a - b).abs().mean(dim=(1, 2, 3))
               for a, b in zip(slopes(images), slopes(targets), strict=True)) / 2


def feature_loss(maps, targets):
    """LPIPS without its learned weights (Zhang et al. 2018, equation 1): squared differences of feature vectors of unit
    length, averaged over pixels and layers. maps, targets: lists of (B,C,h,w). (B,)."""
    differences = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean(dim=(1, 2))
                   for a, b in zip(maps, targets, strict=True)]
    return sum(differences) / len(differences)


def depth_roughness(depth, background):
    """Mean absolute second difference of depths (B,H,W) along rows and columns where three pixels in a row see the
    surface, by their weight background (B,H,W) of it: (B,). In units of the depth."""
    def bent(dim):
        size = depth.shape[dim] - 2
        before, here, after = (depth.narrow(dim, i, size) for i in range(3))
        seen = (1 - torch.stack([background.narrow(dim, i, size) for i in range(3)]).amax(0)).clamp(min=0).detach()
        return ((before - 2 * here + after).abs() * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2)).clamp(min=1)

    return (bent(1) + bent(2)) / 2


def noise_correlation(maps):
    """How much neighbors in noise maps (B,1,h,w) agree, at all scales (StyleGAN2, appendix D): (B,). 0 for noise."""
    total = 0.
    for x in maps:
        while True:
            total = total + sum((x * x.roll(1, dims=dim)).mean(dim=(1, 2, 3)).square() for dim in (2, 3))
            if x.shape[-1] <= 8:
                break
            x = F.avg_pool2d(x, 2) * 2  # of variance 1 again
    return total

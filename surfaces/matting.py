"""Pictures without background: alpha from the field's background weight, sharpened by the picture's own edges.

The field has fewer pixels than the image. Its alpha is enlarged by a guided filter (He, Sun and Tang, 2013; its fast
form, 2015): near the outline alpha is taken to be a linear function of the image's color, which is fitted among the
field's pixels and followed among the image's, so that fur and hair come out as the image shows them. Colors along the
outline have the background mixed in; the surface's own are estimated from blurred ones (Forte, 2021).
"""
import torch
import torch.nn.functional as F

RADIUS = 1            # pixels of the field that a linear function is fitted to, to each side: more make halos
SMOOTHNESS = 3e-3     # variance of the colors, in [0, 1], below which alpha does not follow them
BLURS = 0.05, 0.01    # radius of the blurs that colors are estimated from, of the picture's side
OPAQUE = 0.5          # A depth mesh without background keeps what has at least so much alpha.


def box(x, radius):
    """Means (B,C,H,W) over squares around each pixel, as far as they lie in the picture."""
    return F.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def guided(alpha, image):
    """Alpha (B,1,S,S) at the size of an image (B,3,S,S) in [0, 1], from alpha (B,1,h,w) of fewer pixels."""
    size, full = alpha.shape[-2:], image.shape[-2:]
    guide = F.interpolate(image, size=size, mode='area')
    mean, mean_alpha = box(guide, RADIUS), box(alpha, RADIUS)
    products = box((guide[:, :, None] * guide[:, None]).flatten(1, 2), RADIUS).unflatten(1, (3, 3))
    variance = (products - mean[:, :, None] * mean[:, None]).permute(0, 3, 4, 1, 2)
    covariance = (box(guide * alpha, RADIUS) - mean * mean_alpha).permute(0, 2, 3, 1)
    variance = variance + SMOOTHNESS * torch.eye(3, device=alpha.device, dtype=alpha.dtype)
    slope = torch.linalg.solve(variance, covariance).permute(0, 3, 1, 2)
    offset = mean_alpha - (slope * mean).sum(1, keepdim=True)
    slope, offset = (F.interpolate(box(x, RADIUS), size=full, mode='bilinear') for x in (slope, offset))
    # Where the field is sure, alpha stays as it is, whatever the colors.
    reach = 2 * RADIUS + 1
    highest, lowest = (sign * F.interpolate(F.max_pool2d(sign * alpha, reach, 1, RADIUS), size=full, mode='bilinear')
                       for sign in (1, -1))
    return ((slope * image).sum(1, keepdim=True) + offset).clamp(min=lowest, max=highest).clamp(0, 1)


def foreground(image, alpha):
    """The surface's own colors (B,3,S,S) in [0, 1] of an image (B,3,S,S) in which it is mixed with a background."""
    colors, behind = image, image
    for share in BLURS:
        radius = max(1, round(share * image.shape[-1]))
        weight, rest = box(alpha, radius), box(1 - alpha, radius)
        blurred = box(colors * alpha, radius) / weight.clamp(min=1e-5)
        behind = box(behind * (1 - alpha), radius) / rest.clamp(min=1e-5)
        colors = (blurred + alpha * (image - alpha * blurred - (1 - alpha) * behind)).clamp(0, 1)
    return colors


def without_background(image, background):
    """The image (B,3,S,S) as (B,4,S,S), red, green, blue, alpha, all of them in [-1, 1] as those of images are.

    background: (B,1,h,w) the field's weight of the background, of as many pixels or fewer. Colors are straight, that
    is, not multiplied by alpha.
    """
    image, alpha = (image.clamp(-1, 1).float() + 1) / 2, (1 - background).clamp(0, 1).float()
    if alpha.shape[-2:] != image.shape[-2:]:
        alpha = guided(alpha, image)
    return 2 * torch.cat([foreground(image, alpha), alpha], dim=1) - 1


def with_alpha(picture, background):
    """A picture of a surface (3,S,S) as (4,S,S), all of it in [-1, 1]. background: (1,1,h,w), which is enlarged."""
    return torch.cat([picture, 1 - 2 * F.interpolate(background, size=picture.shape[-2:], mode='bilinear')[0]])

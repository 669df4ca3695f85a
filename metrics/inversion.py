"""How well photos are inverted: differences between pictures, viewpoints and depths."""
import math

import torch
import torch.nn.functional as F

from camera import cameras_of

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, section III.C
SSIM_C1, SSIM_C2 = 0.01 ** 2, 0.03 ** 2


def psnr(pictures, targets):
    """Peak signal-to-noise ratio (B,) in dB of pictures and targets (B,3,S,S) in [-1, 1]; pictures are clamped."""
    error = ((pictures.clamp(-1, 1) - targets) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-12))


def ssim(pictures, targets):
    """Structural similarity (B,) of pictures and targets (B,3,S,S) in [-1, 1], the mean over the colors (Wang et al.
    2004, equation 13, with their Gaussian window)."""
    x, y = ((images.clamp(-1, 1) + 1) / 2 for images in (pictures, targets))
    window = min(SSIM_WINDOW, x.shape[-1] - (x.shape[-1] + 1) % 2)
    taps = torch.arange(window, device=x.device, dtype=x.dtype) - window // 2
    taps = torch.exp(-taps.square() / (2 * SSIM_SIGMA ** 2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2

    def blur(images):
        return F.conv2d(images, kernel.expand(3, 1, -1, -1), groups=3)

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x ** 2, blur(y * y) - mean_y ** 2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
                  / ((mean_x ** 2 + mean_y ** 2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2)))
    return similarity.mean(dim=(1, 2, 3))


def angle_between(viewpoints, others, opt):
    """The angle (B,) in degrees between the directions in which cameras at viewpoints (B,2) look."""
    a, b = (cameras_of(opt, views.double()).extrinsics[:, :, 2] for views in (viewpoints, others))
    return 2 * torch.rad2deg(torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1)))


def depth_of(xyz, cameras):
    """Depths (B,H,W) of surface points (B,3,H,W) from their cameras, in units of the depth range."""
    toward = -cameras.extrinsics[:, :, 2]
    from_camera = xyz - cameras.extrinsics[:, :, 3, None, None]
    return (from_camera * toward[:, :, None, None]).sum(1) / (cameras.far - cameras.near)


def depth_error(depth, other, background, other_background):
    """Mean absolute difference (B,) of depths (B,H,W), in % of the depth range, where both views see the surface.

    background, other_background: (B,1,H,W) the weights of the background. nan where they see none in common.
    """
    seen = ((background[:, 0] < 0.5) & (other_background[:, 0] < 0.5)).to(depth)
    count = seen.sum(dim=(1, 2))
    total = ((depth - other).abs() * seen).sum(dim=(1, 2))
    return torch.where(count > 0, 100 * total / count.clamp(min=1), torch.full_like(total, math.nan))

"""How like two pictures are: peak signal-to-noise ratio and structural similarity."""
import torch
import torch.nn.functional as F

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

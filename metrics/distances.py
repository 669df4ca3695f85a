"""Measures of quality as pure functions: distances between sets of features, of image patches and of points.

torch-fidelity computes its metrics from images it reads itself; the functions that would take features are no part of
its public interface. So the formulas are here, and only its Inception network is used (features.py).
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000     # Binkowski et al. 2018
NEIGHBORS = 3                               # Kynkaanniemi et al. 2019
SMALLEST_LEVEL, PATCHES, PATCH = 16, 128, 7  # Karras et al. 2018: of the pyramid, of an image's level, its side
DIRECTION_SETS, DIRECTIONS = 4, 128          # of the sliced Wasserstein distance
DISTANCES_AT_ONCE = 1 << 26                  # bounds the memory of distances between all pairs


# ---------------------------------------------------------------------------------------------- features

class Moments(NamedTuple):
    """Mean and covariance of features."""
    mean: np.ndarray        # (D,)
    covariance: np.ndarray  # (D,D)


def moments(features):
    """Moments of features (N,D), N at least 2, in double precision; the covariance is the unbiased one."""
    features = features.cpu().double().numpy()
    return Moments(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a, b):
    """Squared Frechet distance between the normal distributions with Moments a and b (FID: Heusel et al. 2017).

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2). The eigenvalues of A B are those of the symmetric A^1/2 B A^1/2, which,
    unlike a matrix root of A B, stay real where covariances are singular.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
                 - 2 * np.sqrt(product).sum())


def squared_mmd(a, b):
    """Unbiased estimate of the squared maximum mean discrepancy of features (N,D) and (M,D), with KID's polynomial
    kernel (x.y / D + 1)^3 (Binkowski et al. 2018, equation 4). Can be below zero."""
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        gram, n = kernel(x, x), len(x)
        return (gram.sum() - gram.diagonal().sum()) / (n * (n - 1))

    return (within(a) + within(b) - 2 * kernel(a, b).mean()).item()


def kernel_distance(a, b, seed=0, subsets=KID_SUBSETS, size=KID_SUBSET_SIZE):
    """(mean, standard deviation) of squared_mmd over random subsets of features (N,D) and (M,D): KID.

    Subsets are as large as both sets allow, `size` at most.
    """
    random = np.random.default_rng(seed)
    size = min(size, len(a), len(b))
    values = [squared_mmd(*(x[random.choice(len(x), size, replace=False)].double() for x in (a, b)))
              for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def precision_recall(real, fake, neighbors=NEIGHBORS):
    """(precision, recall): the share of fakes within the manifold of the real features, and of real ones within that of
    the fakes (Kynkaanniemi et al. 2019).

    real (N,D), fake (M,D). The manifold of a set is the union of the balls around its features that reach their k-th
    nearest neighbors; k below the sets' sizes.
    """
    def by_rows(a, b):
        """Distances from some rows of a at a time to all of b; in double precision, since they come from products."""
        for rows in a.split(max(1, DISTANCES_AT_ONCE // len(b))):
            yield torch.cdist(rows.double(), b.double())

    def radii(x):
        return torch.cat([distances.kthvalue(neighbors + 1, dim=1).values for distances in by_rows(x, x)])

    def share(x, of):
        reach = radii(of)
        return torch.cat([(distances <= reach).any(dim=1) for distances in by_rows(x, of)]).double().mean().item()

    return share(fake, real), share(real, fake)


# ---------------------------------------------------------------------------------------------- image patches

def _blurred(images):
    """Images (B,3,H,W) under the binomial filter [1, 4, 6, 4, 1] / 16 along both axes, mirrored at the edges."""
    taps = images.new_tensor([1., 4., 6., 4., 1.]) / 16
    kernel = taps.outer(taps).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode='reflect'), kernel, groups=images.shape[1])


def laplacian_pyramid(images):
    """Bands (B,3,H,W), each of half the size of the one before, down to SMALLEST_LEVEL (Burt & Adelson 1983).

    images: (B,3,S,S). Each band is what is left of its size when what the next size carries is taken away; the last is
    the smallest image itself.
    """
    bands = []
    while images.shape[-1] // 2 >= SMALLEST_LEVEL:
        smaller = _blurred(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = smaller
        bands.append(images - 4 * _blurred(spread))
        images = smaller
    return [*bands, images]


def patch_descriptors(images, indices):
    """Random 7x7 patches of each level of the images' Laplacian pyramid: a list of (B,128,3,7,7), float16 on the CPU.

    images: (B,3,S,S) uint8, S at least 7. indices: the images' numbers, from which alone the patches' places are drawn.
    """
    levels = []
    for level, band in enumerate(laplacian_pyramid(images.float())):
        places = band.shape[-1] - PATCH + 1
        windows = band.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (B,3,places,places,7,7), a view
        patches = []
        for window, index in zip(windows, indices, strict=True):
            row, column = np.random.default_rng([index, level]).integers(places, size=(2, PATCHES))
            patches.append(window[:, row, column].transpose(0, 1))
        levels.append(torch.stack(patches).half().cpu())
    return levels


def sliced_wasserstein(a, b, seed=0):
    """Sliced Wasserstein distance of patches (N,3,7,7) and (N,3,7,7) of one level (Karras et al. 2018, section 5).

    As there, each set is first normalized to mean 0 and standard deviation 1 in every color channel; the distance is
    the mean over random directions of the mean absolute difference between sorted projections.
    """
    random = torch.Generator(a.device).manual_seed(seed)

    def normalized(x):
        x = x.float()
        deviation, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
        return ((x - mean) / deviation.clamp(min=1e-8)).flatten(1)

    a, b = normalized(a), normalized(b)
    distances = []
    for _ in range(DIRECTION_SETS):
        directions = F.normalize(torch.randn(a.shape[1], DIRECTIONS, generator=random, device=a.device), dim=0)
        sorted_a, sorted_b = ((directions.T @ x.T).sort(dim=1).values for x in (a, b))
        distances.append((sorted_a - sorted_b).abs().mean().item())
    return float(np.mean(distances))


def swd(a, b):
    """Sliced Wasserstein distance x 1000 for each level of two lists of patch_descriptors, the finest first."""
    count = min(len(a[0]), len(b[0]))
    return [1000 * sliced_wasserstein(x[:count].flatten(0, 1), y[:count].flatten(0, 1))
            for x, y in zip(a, b, strict=True)]


# ---------------------------------------------------------------------------------------------- points

def nearest_distances(points, others):
    """(N,) distance of each of the points (N,3) to the nearest of the others (M,3)."""
    return torch.from_numpy(KDTree(others.cpu().double().numpy()).query(points.cpu().double().numpy())[0])


def modified_chamfer(a, b, a_set=None, b_set=None):
    """Modified Chamfer distance of points (N,3) and (M,3): the larger of the two mean distances to the nearest point.

    (Dubuisson & Jain 1994, who call it the modified Hausdorff distance.) a_set, b_set: the points
    among which the nearest are looked for, where a and b are only parts of them. nan where a set is empty.
    """
    a_set, b_set = a if a_set is None else a_set, b if b_set is None else b_set
    if not (len(a) and len(b) and len(a_set) and len(b_set)):
        return math.nan
    return max(nearest_distances(a, b_set).mean().item(), nearest_distances(b, a_set).mean().item())

"""Measures of quality against closed forms, other implementations and sets whose relation is known."""
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
from conftest import assert_close

from metrics import distances


def normal(n, mean, covariance, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.multivariate_normal(mean, covariance, n)).float()


def covariance(dim, seed):
    root = np.random.default_rng(seed).standard_normal((dim, dim))
    return root @ root.T / dim


# ---------------------------------------------------------------------------------------------- FID

def test_frechet_distance_of_normal_distributions():
    """Against the closed form for diagonal covariances, and a matrix root for those that do not commute."""
    mean, other = np.array([1., 2, 3]), np.array([0., 2, 5])
    sigma, rho = np.array([1., 2, 0.5]), np.array([3., 1, 0.])  # a singular one too
    distance = distances.frechet_distance(distances.Moments(mean, np.diag(sigma ** 2)),
                                        distances.Moments(other, np.diag(rho ** 2)))
    assert distance == pytest.approx(((mean - other) ** 2).sum() + ((sigma - rho) ** 2).sum(), rel=1e-12)
    a, b = covariance(3, 1), covariance(3, 2)
    root = scipy.linalg.sqrtm(a @ b).real
    assert not np.allclose(a @ b, b @ a)
    assert distances.frechet_distance(distances.Moments(mean, a), distances.Moments(other, b)) == pytest.approx(
        5 + np.trace(a + b - 2 * root), rel=1e-6)


def test_fid_of_samples_of_normal_distributions():
    mean, a, b = np.full(4, 0.5), covariance(4, 1), covariance(4, 2)
    expected = 4 * 0.25 + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    moments = [distances.moments(normal(50_000, *parameters)) for parameters in ((np.zeros(4), a, 1), (mean, b, 2))]
    assert distances.frechet_distance(*moments) == pytest.approx(expected, rel=0.02)
    assert distances.frechet_distance(moments[0], moments[0]) == pytest.approx(0, abs=1e-9)


def test_fid_of_fewer_features_than_dimensions():
    a, b = torch.randn(5, 12, generator=torch.manual_seed(0)), torch.randn(6, 12)
    expected = scipy.linalg.sqrtm(np.cov(a.double().T) @ np.cov(b.double().T) + 1e-14 * np.eye(12)).real
    moments = [distances.moments(x) for x in (a, b)]
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0).sum() + b.var(0).sum() - 2 * np.trace(expected)
    assert distances.frechet_distance(*moments) == pytest.approx(wanted.item(), rel=1e-3)


# ---------------------------------------------------------------------------------------------- KID

def test_kernel_distance_of_constant_features():
    """All features equal within a set: the estimate is exactly the kernel's values."""
    x, y = torch.tensor([1., 2]).double(), torch.tensor([0., 3]).double()
    expected = (5 / 2 + 1) ** 3 + (9 / 2 + 1) ** 3 - 2 * (6 / 2 + 1) ** 3
    assert distances.squared_mmd(x.repeat(4, 1), y.repeat(6, 1)) == pytest.approx(expected)
    assert distances.kernel_distance(x.repeat(4, 1), y.repeat(6, 1), subsets=3) == (pytest.approx(expected), 0)


def test_kid_is_unbiased():
    """Over repeats, sets of one distribution give 0 on average, far closer than the biased estimate's excess."""
    random = torch.Generator().manual_seed(0)
    values = [distances.squared_mmd(*(torch.randn(20, 3, generator=random).double() for _ in range(2)))
              for _ in range(2000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3.5 * error
    # With the diagonals the estimate would exceed it by (E k(x,x) - E k(x,y)) / n for each set.
    x = torch.randn(100_000, 3, generator=random).double()
    excess = 2 / 20 * (((x ** 2).sum(1) / 3 + 1) ** 3 - ((x * x.roll(1, 0)).sum(1) / 3 + 1) ** 3).mean().item()
    assert excess > 30 * error
    different = distances.kernel_distance(x[:500].float(), x[500:1000].float() + 1)[0]
    assert different > 0.5


# ---------------------------------------------------------------------------------------------- precision and recall

def clusters(*centers, n=50, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(n, 2, generator=random) * 0.1 + torch.tensor(center).float() for center in centers])


def test_precision_and_recall_of_clusters():
    here, there, elsewhere = (0, 0), (10, 0), (0, 10)
    same = clusters(here, there)
    assert distances.precision_recall(same, same.clone()) == (1, 1)
    assert distances.precision_recall(same, clusters(elsewhere)) == (0, 0)
    precision, recall = distances.precision_recall(same, clusters(here, seed=1))
    assert precision > 0.85 and 0.4 < recall <= 0.5
    precision, recall = distances.precision_recall(clusters(here), clusters(here, elsewhere, seed=1))
    assert 0.4 < precision <= 0.5 and recall > 0.85


def test_precision_and_recall_in_parts(monkeypatch):
    real, fake = torch.randn(40, 6, generator=torch.manual_seed(0)), 1.3 * torch.randn(50, 6)
    whole = distances.precision_recall(real, fake)
    monkeypatch.setattr(distances, 'DISTANCES_AT_ONCE', 150)
    assert distances.precision_recall(real, fake) == whole and 0 < whole[0] < 1 > whole[1] > 0


def test_the_same_numbers_as_torch_fidelity():
    """It computes them from features in functions of its own, which no command relies on."""
    pytest.importorskip('torch_fidelity')
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    real, fake = normal(300, np.zeros(6), covariance(6, 1)), normal(200, np.full(6, 0.3), covariance(6, 2), 1)
    fid = fid_statistics_to_metric(*(fid_features_to_statistics(x.double()) for x in (real, fake)), False)
    assert distances.frechet_distance(*(distances.moments(x) for x in (real, fake))) == pytest.approx(
        fid['frechet_inception_distance'], rel=1e-6)
    kid = kid_features_to_metric(fake, real, kid_subsets=1, kid_subset_size=200, verbose=False)
    mine = np.mean([distances.squared_mmd(fake.double(), real[torch.randperm(300)[:200]].double()) for _ in range(50)])
    assert kid['kernel_inception_distance_mean'] == pytest.approx(mine, rel=0.5)
    same_size = kid_features_to_metric(fake, real[:200], kid_subsets=1, kid_subset_size=200, verbose=False)
    assert same_size['kernel_inception_distance_mean'] == pytest.approx(
        distances.squared_mmd(fake.double(), real[:200].double()), rel=1e-4)
    prc = prc_features_to_metric(fake, real, save_cpu_ram=False, verbose=False)
    assert distances.precision_recall(real, fake) == (pytest.approx(prc['precision']), pytest.approx(prc['recall']))


# ---------------------------------------------------------------------------------------------- patches

def pictures(n=12, size=64):
    """uint8 images with edges and noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (n, 3, 8, 8)).repeat(size // 8, 2).repeat(size // 8, 3)
    return torch.from_numpy((coarse + random.normal(0, 12, coarse.shape)).clip(0, 255).astype(np.uint8))


def blurred(images, sigma):
    return torch.from_numpy(scipy.ndimage.gaussian_filter(images.numpy().astype(float), (0, 0, sigma, sigma))
                            .round().astype(np.uint8))


def test_the_pyramid_is_the_textbooks():
    images = pictures(2).float()
    bands = distances.laplacian_pyramid(images)
    assert [band.shape[-1] for band in bands] == [64, 32, 16]
    taps = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256

    def smooth(x):
        return scipy.ndimage.convolve(x, taps[None, None], mode='mirror')

    level = images.double().numpy()
    for band in bands[:-1]:
        smaller = smooth(level)[:, :, ::2, ::2]
        spread = np.zeros_like(level)
        spread[:, :, ::2, ::2] = smaller
        assert_close(band, torch.from_numpy(level - 4 * smooth(spread)), 1e-5)
        level = smaller
    assert_close(bands[-1], torch.from_numpy(level), 1e-5)
    flat = distances.laplacian_pyramid(torch.full((1, 3, 32, 32), 7.))
    assert flat[0].abs().max() < 1e-5 and (flat[1] - 7).abs().max() < 1e-5


def test_patches_lie_in_their_bands_and_depend_on_the_images_number_alone():
    images = pictures(3)
    levels = distances.patch_descriptors(images, range(5, 8))
    assert [tuple(level.shape) for level in levels] == [(3, 128, 3, 7, 7)] * 3
    alone = distances.patch_descriptors(images[1:2], [6])
    assert all(torch.equal(level[1], other[0]) for level, other in zip(levels, alone, strict=True))
    band = distances.laplacian_pyramid(images.float())[2][1].half()
    windows = band.unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    found = (levels[2][1][:, None] == windows).flatten(2).all(-1)
    assert found.any(1).all() and found.any(0).sum() > 50  # of 100 places


def test_sliced_wasserstein_distance_of_sorted_projections():
    """Against SciPy's one-dimensional distance in the same directions."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 3, 7, 7, generator=random), torch.rand(60, 3, 7, 7, generator=random) ** 4
    flat = [((x - x.mean((0, 2, 3), True)) / x.std((0, 2, 3), correction=0, keepdim=True)).flatten(1) for x in (a, b)]
    random.manual_seed(5)
    expected = []
    for _ in range(distances.DIRECTION_SETS):
        directions = torch.randn(147, distances.DIRECTIONS, generator=random)
        directions /= directions.norm(dim=0)
        expected += [scipy.stats.wasserstein_distance(flat[0] @ one, flat[1] @ one) for one in directions.T]
    assert distances.sliced_wasserstein(a, b, seed=5) == pytest.approx(np.mean(expected), rel=1e-5)


def test_swd_grows_with_blur():
    images = pictures()

    def distance(other):
        return distances.swd(*(distances.patch_descriptors(x, range(len(x))) for x in (images, other)))

    assert distance(images.clone()) == [0, 0, 0]
    finest = [distance(blurred(images, sigma))[0] for sigma in (0.4, 1, 2)]
    assert finest[0] > 0 and finest == sorted(finest) and finest[-1] > 3 * finest[0], finest


# ---------------------------------------------------------------------------------------------- points

def test_modified_chamfer_distance():
    a, b = torch.tensor([[0., 0, 0], [1, 0, 0]]), torch.tensor([[0., 1, 0]])
    assert distances.modified_chamfer(a, b) == distances.modified_chamfer(b, a) == pytest.approx((1 + 2 ** 0.5) / 2)
    assert distances.modified_chamfer(a, b, b_set=torch.cat([a, b])) == pytest.approx(1)  # b's own way to a is left
    assert distances.modified_chamfer(a, a) == 0
    assert np.isnan(distances.modified_chamfer(a, b[:0]))

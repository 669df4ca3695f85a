"""Measures of inversion against independent computations, and evaluate.py --metrics inversion."""
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

import evaluate
from camera import cameras_of
from inversion.inverter import Inverter
from metrics.inversion import angle_between, depth_error, depth_of, own_image
from metrics.similarity import psnr, ssim
from utils import to_uint8

TINY = ['--expname', 'tiny', '--device', 'cpu', '--truncation_mean', '100']


def test_psnr_and_ssim_are_the_usual_ones():
    rng = np.random.default_rng(0)
    a = rng.random((24, 24, 3)).astype(np.float32)
    b = np.clip(a + rng.normal(0, 0.1, a.shape), 0, 1).astype(np.float32)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None] * 2 - 1 for image in (a, b)]
    assert psnr(*tensors).item() == pytest.approx(10 * math.log10(1 / np.mean((a - b) ** 2)), abs=1e-3)
    expected = structural_similarity(a, b, channel_axis=2, data_range=1., gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False)
    assert ssim(*tensors).item() == pytest.approx(expected, abs=2e-3)
    assert ssim(tensors[0], tensors[0]).item() == pytest.approx(1)


def test_angles_are_those_between_the_cameras(loaded_tiny):
    opt = loaded_tiny.opt
    zero = torch.zeros(1, 2)
    assert angle_between(zero, torch.tensor([[0., 0.2]]), opt).item() == pytest.approx(math.degrees(0.2), abs=1e-4)
    high = torch.tensor([[0., 1.2]])  # near the pole a step of azimuth is a small angle
    turned = torch.tensor([[0.2, 1.2]])
    assert angle_between(high, turned, opt).item() < math.degrees(0.2) / 2


def test_depths_are_distances_from_the_cameras_plane(loaded_tiny):
    cameras = cameras_of(loaded_tiny.opt, torch.tensor([[0.3, -0.1]]))
    center = torch.zeros(1, 3, 1, 1)
    reach = (cameras.far - cameras.near).item()
    assert depth_of(center, cameras).item() == pytest.approx(1 / reach, rel=1e-5)
    nearer = cameras.extrinsics[:, :, 2, None, None] * 0.1
    assert depth_of(nearer, cameras).item() == pytest.approx(0.9 / reach, rel=1e-5)
    depth, background = torch.zeros(1, 2, 2), torch.tensor([[[[0., 0.], [1., 0.]]]])
    other = torch.tensor([[[0.1, 0.], [9., 0.2]]])
    assert depth_error(depth, other, background, torch.zeros_like(background)).item() == pytest.approx(10)
    assert math.isnan(depth_error(depth, other, background, torch.ones_like(background)).item())


def test_own_images_depend_on_their_number_alone(loaded_tiny):
    inverter = Inverter.of(loaded_tiny.generator, loaded_tiny.opt, loaded_tiny.means)
    first, again, other = (own_image(inverter, number)[0] for number in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_evaluation_measures_every_stage(loaded_tiny, command, tmp_path, quick_inversion):
    inverter = Inverter.of(loaded_tiny.generator, loaded_tiny.opt, loaded_tiny.means)
    (tmp_path / 'cats').mkdir()
    for number in range(3):
        Image.fromarray(to_uint8(own_image(inverter, number)[0])[0]).save(tmp_path / f'cats/{number}.png')
    arguments = [*TINY, '--metrics', 'inversion', '--num_inversions', 2, '--held_out', 'cats', '--num_held_out', 1,
                 '--steps', 2, '--starts', 2, '--tune', '--tune_steps', 2]
    code, out, error = command(evaluate, *arguments)
    assert code == 0, error
    results = json.loads((tmp_path / 'evaluations/tiny/final_model/metrics.json').read_text())
    evaluation, = results['evaluations']
    assert evaluation['settings']['inversion']['steps'] == 2
    metrics = evaluation['metrics']
    assert metrics['own fit view']['images'] == 2 and metrics['photos tuned psnr']['images'] == 1
    assert {'own guess novel', 'own tuned depth', 'own fit seconds', 'photos guess ssim'} <= metrics.keys()
    assert metrics['own fit psnr']['least'] <= metrics['own fit psnr']['median'] <= metrics['own fit psnr']['most']
    assert 'own fit view' in out and 'degrees' in out and 'worst tenth' in out

"""Every main path with --device cuda, on a pretended device (pretend_device.py): which tensors lie where, and how often
the host waits for the GPU."""
import numpy as np
import pytest
import torch
from pretend_device import PretendDevice
from tiny_model import save_tiny_model
from tiny_training import data, flags, train  # noqa: F401 (data: a fixture)

import evaluate
import generate_shapes_and_images
import render_video
from interactive import load_model

SMALL = ['--expname', 'tiny', '--device', 'cuda', '--truncation_mean', '50', '--identities', '1', '--N_samples', '4']


@pytest.fixture
def gpu():
    with PretendDevice() as device:
        yield device


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """full_models/tiny.pt in the current folder; surfaces of 32 samples along each side, which sparse.py takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('surface.SURFACE_RESOLUTION', 32)
    save_tiny_model(tmp_path)


def done(result):
    code, _, errors = result
    assert code == 0, errors


@pytest.mark.parametrize('arguments', [
    '--num_views_per_id 2 --vertex_colors', '--fixed_camera_angles --dense --precision fp16 --no_surface_renderings',
    '--seeds 3,5 --precision bf16 --truncation_ratio 1 --N_samples 24'])
def test_images_and_meshes(tiny, command, gpu, arguments):
    done(command(generate_shapes_and_images, *SMALL, *arguments.split()))
    print(gpu.waits)


@pytest.mark.parametrize('arguments', [
    '', '--project_noise --no_surface_videos', '--interpolate 1,2 --side_by_side --depth_style normals',
    '--dense --depth_style depth --format frames'])
def test_videos(tiny, command, gpu, arguments):
    done(command(render_video, *SMALL, '--frames', 3, *arguments.split()))
    print(gpu.waits)


def test_training(data, tmp_path, gpu):  # noqa: F811
    """Both stages, and each goes on from its checkpoint."""
    stage1 = '--device cuda --eval_every 2 --sphere_lambda 1 --sphere_until 5 --chunk 2'
    train('volume_renderer', tmp_path, flags(data, f'{stage1} --iter 1 --save_every 1'))
    (tmp_path / 'pretrained_renderer/debug_vol_renderer.pt').unlink()
    train('volume_renderer', tmp_path, flags(data, f'{stage1} --iter 3 --continue_training'))
    print(gpu.waits)
    stage2 = '--device cuda --eval_every 2 --thumbnail_lambda 1 --mixing 1 --precision bf16'
    train('full_pipeline', tmp_path, flags(data, f'{stage2} --iter 1 --chunk 4'))
    (tmp_path / 'full_models/debug.pt').unlink()
    gpu.waits.clear()
    train('full_pipeline', tmp_path, flags(data, f'{stage2} --iter 3 --chunk 2 --continue_training'))
    print(gpu.waits)


@pytest.mark.skipif(True, reason='')
def test_x(): pass


def test_sparse(tmp_path, gpu):
    import sparse
    model = load_model('cats_demo', device='cuda', truncation_mean=100)
    w = model.latents([3], .7)
    for r in (32, 64, 128):
        import surface, time
        surface.SURFACE_RESOLUTION = r
        t = time.time()
        gpu.waits.clear()
        model.surface(w, model.cameras([[0., 0.]]))
        print(r, time.time() - t, gpu.waits)
    gpu.waits.clear()
    model.mesh(w)
    print(gpu.waits)

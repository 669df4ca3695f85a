"""The step of stage 1: what must not change its gradient does not."""
import pytest
import torch
from tiny_training import check_same, gradients, tiny

from discriminators import VolumeDiscriminator
from model import build_generator
from training import random_numbers, stage1
from volume_renderer import TRAINING_POINTS, VolumeRenderer


@pytest.mark.parametrize('chunk', (1, 2))
def test_chunks_do_not_change_the_gradient_of_stage_1(double, chunk):
    opt = tiny('train_volume_renderer')
    torch.manual_seed(0)
    generator, discriminator = build_generator(opt, full_pipeline=False), VolumeDiscriminator(8, True, 0.02)
    real = torch.randn(4, 3, 8, 8)
    for accumulate, module in (
            (lambda fakes, size: stage1.accumulate_discriminator(discriminator, generator, real, fakes, opt, size),
             discriminator),
            (lambda fakes, size: stage1.accumulate_generator(generator, discriminator, fakes, opt, size), generator),
            (lambda fakes, size: stage1.accumulate_generator(generator, discriminator, fakes, opt, size, 0.5),
             generator)):
        found = []
        for size in (4, chunk):
            module.zero_grad()
            terms = accumulate(random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), size)
            found.append((terms, gradients(module)))
        check_same(*found)
    assert set(terms) == {'g', 'g_view', 'g_eikonal', 'g_minimal_surface', 'g_sphere'}


@pytest.mark.parametrize('more', ('', '--no_sdf'))
def test_rays_in_tiles_have_the_same_gradient(double, monkeypatch, more):
    opt = tiny('train_volume_renderer', more=more)
    generator, discriminator = build_generator(opt, full_pipeline=False), VolumeDiscriminator(8, True, 0.02)
    tile_sizes, found = [], []
    march = VolumeRenderer._march
    monkeypatch.setattr(VolumeRenderer, '_march', lambda self, *arguments: (
        tile_sizes.append(arguments[4].shape[1]), march(self, *arguments))[1])
    for points in (1 << 20, 500):
        monkeypatch.setitem(TRAINING_POINTS, 'cpu', points)
        generator.zero_grad()
        terms = stage1.accumulate_generator(generator, discriminator,
                                            random_numbers.draw_fakes(opt, 'g', 0, range(4), 'cpu'), opt, 4)
        found.append((terms, gradients(generator)))
    check_same(*found)
    assert tile_sizes[0] == 64 and max(tile_sizes[1:]) < 64

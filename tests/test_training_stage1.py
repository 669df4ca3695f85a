"""The step of stage 1: what must not change its gradient does not; the sphere to begin with."""
import pytest
import torch
from tiny_training import check_same, differences, flags, gradients, tiny, train

import checkpoint
from discriminators import VolumeDiscriminator
from model import build_generator
from training import logs, random_numbers, stage1
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
    assert set(terms) == {'g', 'g_view', 'g_eikonal', 'g_minimal_surface', 'g_sphere', 'surface', 'fog'}


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


def test_the_official_sphere_is_taken_if_it_fits(data, tmp_path, capsys):
    train('volume_renderer', tmp_path / 'a', flags(data, '--iter 1'))
    sphere = checkpoint.read(tmp_path / 'a' / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000000.pt')
    for name in 'bc':
        checkpoint.save(tmp_path / name / 'pretrained_renderer' / 'sphere_init.pt', {'g_ema': sphere['g_ema']})
    train('volume_renderer', tmp_path / 'b', flags(data, '--iter 1'))
    train('volume_renderer', tmp_path / 'c', flags(data, '--iter 1 --width 4'))
    said = capsys.readouterr().out
    assert 'Beginning with the sphere of' in said and 'has other sizes than this model' in said
    first = checkpoint.read(tmp_path / 'b' / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000000.pt')
    assert differences(first['g'], sphere['g']) == []


def test_the_sphere_is_a_sphere(data, tmp_path):
    """After enough steps the field's zero level lies at a quarter of the depth range from the origin."""
    check_sphere(data, tmp_path, 0.06, '')


def test_the_sphere_has_the_radius_that_is_asked_for(data, tmp_path):
    check_sphere(data, tmp_path, 0.09, '--sphere_radius 0.09')


def check_sphere(data, tmp_path, radius, more):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --sphere_iters 300 --width 32 --lr_g 2e-4 ' + more))
    saved = checkpoint.read(tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'models_0000000.pt')
    opt = tiny('train_volume_renderer', more='--width 32')
    generator = build_generator(opt, full_pipeline=False)
    generator.load_state_dict(saved['g_ema'])
    points = torch.nn.functional.normalize(torch.randn(200, 3), dim=1)
    field = generator.renderer.network.fold(generator.map(torch.randn(1, 8)))
    for distance in (0.02, 0.06, 0.1):
        sdf = field.sdf(field.hidden(points[None] * distance / 0.12))
        assert abs(sdf.mean() - (distance - radius)) < 0.02


def test_the_hold_of_the_sphere_fades_and_beta_begins_where_it_is_told(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 6 --no_sphere_init --sphere_lambda 2 --sphere_until 4 '
                                             '--initial_beta 0.02 --lr_g 1e-8'))
    lines = logs.read_stats(tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'stats.jsonl')
    held = [line.get('g_sphere') for line in lines]
    assert held[4:] == [None, None]
    assert held[0] > 0 and abs(held[3] / held[0] - 0.25) < 0.1  # the same field, so the weight alone changes
    assert all(abs(line['beta'] - 0.02) < 1e-6 for line in lines)

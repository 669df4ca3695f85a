"""The command of stage 1: the sphere to begin with, and where beta begins."""
import torch
from tiny_training import differences, flags, tiny, train

import checkpoint
from model import build_generator
from training import logs


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
    w = generator.map(torch.randn(1, 8))
    for distance in (0.02, 0.06, 0.1):
        sdf, _, _ = generator.renderer.network(w, points[None] * distance / 0.12)
        assert abs(sdf.mean() - (distance - radius)) < 0.02


def test_the_hold_of_the_sphere_fades_and_beta_begins_where_it_is_told(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 6 --no_sphere_init --sphere_lambda 2 --sphere_until 4 '
                                             '--initial_beta 0.02 --lr_g 1e-8'))
    lines = logs.read_stats(tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'stats.jsonl')
    held = [line.get('g_sphere') for line in lines]
    assert held[4:] == [None, None]
    assert held[0] > 0 and abs(held[3] / held[0] - 0.25) < 0.1  # the same field, so the weight alone changes
    assert all(abs(line['beta'] - 0.02) < 1e-6 for line in lines)

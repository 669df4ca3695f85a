"""The command of stage 2: what it takes from stage 1, and what it refuses."""
import numpy as np
import pytest
from tiny_training import differences, flags, newest, train

import checkpoint
import options
from inference.loading import load_generator
from training import logs
from utils import UserError


def test_stage_2_takes_stage_1_by_name_and_leaves_it_alone(data, tmp_path, capsys, monkeypatch):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --azim 0.2'))
    sizes = ('--style_dim', '--width', '--depth', '--N_samples', '--renderer_spatial_output_dim')
    arguments = flags(data, '--iter 2')
    for name in sizes:  # all read from stage 1's result
        place = arguments.index(name)
        del arguments[place:place + 2]
    train('full_pipeline', tmp_path, arguments)
    assert 'was trained with' in capsys.readouterr().out
    stage_1 = checkpoint.read(tmp_path / 'pretrained_renderer' / 'debug_vol_renderer.pt')['g_ema']
    full = checkpoint.read(tmp_path / 'full_models' / 'debug.pt')
    for key in ('g', 'g_ema'):
        assert differences({name: full[key][name] for name in stage_1}, stage_1) == []
    assert full['options']['camera']['azim'] == 0.2
    monkeypatch.chdir(tmp_path)
    generator, opt, *_ = load_generator(options.parse('generate_shapes_and_images', '', []), 'cpu')
    assert (opt.model.size, opt.model.renderer_spatial_output_dim, opt.camera.azim) == (16, 8, 0.2)
    assert differences(dict(generator.state_dict()), full['g_ema']) == []

    train('full_pipeline', tmp_path, [*arguments, '--iter', '3', '--continue_training'])  # and from its own checkpoint
    assert newest(tmp_path, 'full_pipeline')[0] == 3


def test_the_decoder_is_drawn_to_the_thumbnail(data, tmp_path):
    """One step's distance depends on its images (ratios of 0.3 to 0.9), so a mean is compared."""
    train('volume_renderer', tmp_path, flags(data, '--iter 1'))
    far = []
    for weight in ('1e-9', '100'):
        train('full_pipeline', tmp_path, flags(data, f'--iter 40 --expname by_{weight} --lr 0.01 --g_reg_every 0 '
                                               '--renderer_ckpt pretrained_renderer/debug_vol_renderer.pt '
                                               f'--d_reg_every 100 --thumbnail_lambda {weight}'))
        lines = logs.read_stats(tmp_path / 'checkpoint' / f'by_{weight}' / 'full_pipeline' / 'stats.jsonl')
        far.append(np.mean([line['g_thumbnail'] / float(weight) for line in lines[-10:]]))
    assert far[1] < far[0] / 2, far[1] / far[0]


def test_the_pull_of_the_thumbnail_ends(data, renderer, tmp_path):
    """The networks hardly change, so both runs have the same images, and the weights alone differ."""
    pull = []
    for until in (0, 4):
        train('full_pipeline', tmp_path, flags(data, f'--iter 5 --lr 1e-9 --renderer_ckpt {renderer} --expname {until} '
                                                     f'--thumbnail_lambda 1 --thumbnail_until {until}'))
        lines = logs.read_stats(tmp_path / 'checkpoint' / str(until) / 'full_pipeline' / 'stats.jsonl')
        pull.append([line.get('g_thumbnail', 0) for line in lines])
    assert np.divide(*pull[::-1]) == pytest.approx([1, 0.75, 0.5, 0.25, 0], rel=1e-3)


def test_images_are_no_smaller_than_thumbnails(data, renderer, tmp_path):
    with pytest.raises(UserError, match='--size 16 is less than .* 32.; give'):
        train('full_pipeline', tmp_path, flags(data, f'--renderer_ckpt {renderer} --renderer_spatial_output_dim 32'))
    assert not list(tmp_path.iterdir())


def test_the_projected_discriminator_has_a_loss_of_its_own(data, renderer, tmp_path):
    with pytest.raises(UserError, match='--adversarial_loss relativistic: .*--discriminator both'):
        train('full_pipeline', tmp_path, flags(data, f'--renderer_ckpt {renderer} --discriminator projected '
                                                     '--adversarial_loss relativistic'))
    assert not list(tmp_path.iterdir())


def test_stage_2_names_the_unfinished_stage_1(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 2 --no_sphere_init --max_minutes 1e-6'))
    with pytest.raises(UserError, match='newest checkpoint so far is checkpoint/debug/volume_renderer/models_'):
        train('full_pipeline', tmp_path, flags(data))

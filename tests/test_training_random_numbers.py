"""The random draws of training: they depend on seed, purpose, step and image alone."""
import torch
from conftest import assert_close
from tiny_training import tiny

import options
from training import random_numbers
from volume_renderer import draw


def test_draws_depend_on_seed_purpose_step_and_image_alone():
    opt = tiny('train_volume_renderer')
    whole = random_numbers.draw_fakes(opt, 'generator', 7, range(4), 'cpu')
    part = random_numbers.draw_fakes(opt, 'generator', 7, range(2, 4), 'cpu')
    assert torch.equal(whole.z[2:], part.z) and torch.equal(whole.second[2:], part.second)
    assert torch.equal(whole.cameras.extrinsics[2:], part.cameras.extrinsics)
    assert torch.equal(draw(torch.rand, (4, 3), whole.rngs)[2:], draw(torch.rand, (2, 3), part.rngs))
    assert not torch.equal(whole.z, whole.second)
    for other in (random_numbers.draw_fakes(opt, 'discriminator', 7, range(4), 'cpu'),
                  random_numbers.draw_fakes(opt, 'generator', 8, range(4), 'cpu'),
                  random_numbers.draw_fakes(options.replaced(opt, seed=5), 'generator', 7, range(4), 'cpu')):
        assert not (whole.z == other.z).any()


def test_draws_have_the_right_distribution():
    opt = tiny('train_volume_renderer', more='--azim 0.3 --elev 0.1')
    fakes = random_numbers.draw_fakes(opt, 'generator', 0, range(4000), 'cpu')
    assert abs(fakes.z.mean()) < 0.03 and abs(fakes.z.std() - 1) < 0.03
    assert_close(fakes.cameras.viewpoint.std(0), torch.tensor([0.3, 0.1]), 0.05)
    switches = [random_numbers.draw_mixing(opt, 'generator', step, 4) for step in range(500)]
    assert set(switches) == {None, 1, 2, 3}
    assert 0.05 < switches.count(None) / 500 < 0.15

"""What training changes: the moving average of the weights, and what else adapts."""
import math

import pytest
import torch
from conftest import assert_close
from tiny_training import tiny, tiny_generator

from discriminators import Discriminator
from training import run
from training.augmentation import Augmentation
from training.hold import Hold
from training.state import State, load_control
from utils import UserError


def test_damaged_controls_are_refused():
    opt = tiny('train_volume_renderer')
    good = {'augmentation': Augmentation(opt, geometric=False).state_dict(), 'hold': Hold(opt).state_dict()}
    for name, control in (('augmentation', Augmentation(opt, geometric=False)), ('hold', Hold(opt))):
        load_control(control, {'controls': good}, name, 'x.pt')
        load_control(control, {}, name, 'x.pt')  # a checkpoint from before there were any
        for bad in ([], {'controls': []}, {name: {}}, {name: None},
                    *({name: good[name] | {key: value}} for key in good[name] for value in ('1', math.nan, -5, [2]))):
            saved = bad if isinstance(bad, dict) and 'controls' in bad else {'controls': bad}
            with pytest.raises(UserError, match='x.pt is damaged'):
                load_control(control, saved, name, 'x.pt')


def test_ema():
    opt = tiny('train_full_pipeline')
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4)
    state = State(generator, discriminator, *(run.adam(module.parameters(), 1e-3, (0., 0.99))
                                                       for module in (generator.decoder, discriminator)))
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 1
    for _ in range(3):
        state.update_ema()
    weight = 1 - 0.5 ** (32 / 10_000 * 3)
    for name, tensor in state.g_ema.state_dict().items():
        trained = name in dict(generator.decoder.named_parameters(prefix='decoder'))
        assert_close(tensor, before[name] + (weight if trained else 0), 1e-5, name)

"""What training changes: the moving average of the weights, what else adapts, and checkpoints that it must not go on
from."""
import math
from pathlib import Path

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


def test_samples_have_no_jitter(trained):
    state, _ = trained
    assert (state.g.renderer.perturb, state.g_ema.renderer.perturb) == (1, 0)


def test_ema_of_a_short_run():
    opt = tiny('train_full_pipeline')
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4)
    state = State(generator, discriminator, *(run.adam(module.parameters(), 1e-3, (0., 0.99))
                                              for module in (generator.decoder, discriminator)), ema_rampup=0.1)
    name, parameter = next(iter(generator.decoder.named_parameters(prefix='decoder')))
    for iteration, half_life in ((20, 2.), (100_000, 10_000 / 32)):
        state.iteration, before = iteration, state.g_ema.state_dict()[name].clone()
        with torch.no_grad():
            parameter.copy_(before + 1)
        state.update_ema()
        assert_close(state.g_ema.state_dict()[name] - before, torch.full_like(before, 1 - 0.5 ** (1 / half_life)), 1e-2,
                     half_life)


@pytest.fixture(scope='module')
def trained():
    """(a state after one step, a function that makes a fresh one)."""
    opt = tiny('train_full_pipeline')

    def fresh():
        generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4)
        return State(generator, discriminator, *(run.adam(module.parameters(), 1e-3, (0., 0.99))
                                                 for module in (generator.decoder, discriminator)))

    state = fresh()
    for module, optimizer in ((state.g.decoder, state.g_optim), (state.d, state.d_optim)):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    state.iteration = 1
    return state, fresh


def change(saved, place, value):
    """A copy of a nested dict with one entry changed."""
    first, *rest = place
    return saved | {first: change(saved[first], rest, value) if rest else value}


def test_a_state_comes_back_as_it_was(trained):
    state, fresh = trained
    other = fresh()
    other.load(state.checkpoint(), Path('models_0000001.pt'))
    for a, b in ((state.g_optim, other.g_optim), (state.d_optim, other.d_optim)):
        for index, entry in a.state_dict()['state'].items():
            assert all(torch.equal(value, b.state_dict()['state'][index][name]) for name, value in entry.items())
    assert other.iteration == 1


@pytest.mark.parametrize('place, value', [
    (('g_optim', 'state', 0, 'exp_avg'), torch.zeros(3)),  # the fused optimizer would write beyond its end
    (('g_optim', 'state', 0, 'exp_avg'), torch.zeros(1).expand(10 ** 6)),
    (('d_optim', 'state', 1, 'exp_avg_sq'), None),
    (('d_optim', 'state', 1, 'step'), 'one'),
    (('g_optim', 'state'), {0: {}}),
    (('g_optim', 'state'), {10 ** 6: {}}),
    (('g_optim', 'param_groups'), []),
    (('g_optim',), []),
    (('d_optim',), {}),
    (('iteration',), '32'), (('iteration',), -5), (('images',), 1.5), (('images',), -7), (('path_mean',), 'x'),
    (('path_mean',), float('nan')), (('d',), 5), (('g',), []), (('g', 'style.1.bias'), 'text'),
])
def test_damaged_states_are_refused_by_name(trained, place, value):
    state, fresh = trained
    with pytest.raises(UserError, match='models_0000001.pt') as refused:
        fresh().load(change(state.checkpoint(), place, value), Path('models_0000001.pt'))
    assert '\n' not in str(refused.value)


def test_moments_that_are_not_finite_are_refused(trained):
    state, fresh = trained
    wrong = state.g_optim.state_dict()['state'][0]['exp_avg'].clone()
    wrong.view(-1)[0] = float('inf')
    with pytest.raises(UserError, match='g_optim does not fit parameter 0; move it away'):
        fresh().load(change(state.checkpoint(), ('g_optim', 'state', 0, 'exp_avg'), wrong), Path('models_0000001.pt'))


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'))])
@pytest.mark.parametrize('kept', ('', 'projected.'))
def test_one_of_two_discriminators_begins_with_the_files_weights(device, kept, tmp_path):
    """The other keeps its own, which on a GPU lie elsewhere than those of files."""
    def state(device):
        generator, discriminator = tiny_generator(tiny('train_full_pipeline')).to(device), torch.nn.Linear(2, 1)
        discriminator.projected = torch.nn.Linear(3, 1)
        discriminator.to(device)
        return State(generator, discriminator, *(run.adam(module.parameters(), 1e-3, (0., 0.9))
                                                 for module in (generator, discriminator)))

    there, here = state('cpu'), state(device)
    own = {name: tensor.cpu() for name, tensor in here.d.state_dict().items()}
    part = {name: tensor for name, tensor in there.d.state_dict().items()
            if name.startswith('projected.') == bool(kept)}
    here.begin_from({'g_ema': there.g_ema.state_dict(), 'd': part}, tmp_path / 'file.pt')
    for name, tensor in here.d.state_dict().items():
        assert torch.equal(tensor.cpu(), part.get(name, own[name])), name

"""A field that gets more channels: the same function, in which the new channels learn."""
import pytest
import torch
from tiny_training import flags, newest, train

from training.widening import NETWORK, widened, width_of
from utils import UserError
from volume_renderer import SirenField

SIZES = {'depth': 3, 'style_dim': 8}


def test_the_wider_field_is_the_same_function():
    torch.manual_seed(0)
    field, wider = SirenField(width=8, **SIZES), SirenField(width=12, **SIZES)
    state = {NETWORK + name: tensor for name, tensor in field.state_dict().items()} | {'style': torch.ones(2)}
    found = widened(state, 12, SIZES, seed=1)
    assert width_of(state) == 8 and width_of(found) == 12 and width_of({}) is None
    assert found.pop('style') is state['style']
    wider.load_state_dict({name.removeprefix(NETWORK): tensor for name, tensor in found.items()})
    w, points = torch.randn(2, 8), torch.rand(2, 20, 3)
    viewdirs = torch.nn.functional.normalize(torch.randn(2, 5, 3), dim=-1)
    for old, new in zip(field(w, points, viewdirs), wider(w, points, viewdirs), strict=True):
        torch.testing.assert_close(new[..., :old.shape[-1]], old, rtol=0, atol=2e-5)
    wider(w, points, viewdirs)[0].square().sum().backward()
    assert wider.sigma_linear.weight.grad[:, 8:].abs().min() > 0  # what is not read yet will be


def test_stage_1_begins_from_a_narrower_field(data, tmp_path, capsys):
    train('volume_renderer', tmp_path / 'narrow', flags(data, '--no_sphere_init --iter 1'))
    narrow = newest(tmp_path / 'narrow', 'volume_renderer')[1]
    path = tmp_path / 'narrow' / 'pretrained_renderer' / 'debug_vol_renderer.pt'
    train('volume_renderer', tmp_path / 'wide', flags(data, f'--iter 1 --lr_g 1e-9 --width 12 --init_ckpt {path}'))
    assert 'gets 4 more channels' in capsys.readouterr().out
    wide = newest(tmp_path / 'wide', 'volume_renderer')[1]
    for name, tensor in narrow['g'].items():
        rows = tuple(slice(0, size) for size in tensor.shape)
        new = wide['g'][name]
        if 'views_linears.weight' in name:  # the view direction comes last
            new = torch.cat([new[:, :8], new[:, 12:]], dim=1)
        torch.testing.assert_close(new[rows], tensor, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match='--width 4 contradicts'):
        train('volume_renderer', tmp_path / 'less', flags(data, f'--iter 1 --width 4 --init_ckpt {path}'))
    whole = torch.load(path, weights_only=True)
    for damaged, said in (({'g': whole['g_ema'], 'g_ema': {name: tensor for name, tensor in whole['g_ema'].items()
                                                           if 'views_linears.beta.bias' not in name}}, 'whole field'),
                          (whole | {'g': [1, 2]}, None)):
        torch.save(damaged, tmp_path / 'damaged.pt')
        arguments = flags(data, f'--iter 1 --width 12 --init_ckpt {tmp_path / "damaged.pt"}')
        with pytest.raises(UserError, match=said):
            train('volume_renderer', tmp_path / 'none', arguments)

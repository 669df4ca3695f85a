"""The projected discriminator: its feature network, mixing and heads, and a run with it."""
import math

import pytest
import torch
from conftest import assert_close
from tiny_training import check_same, differences, flags, gradients, newest, tiny, tiny_generator, train
from torch import nn

from discriminators import Discriminator, VolumeDiscriminator
from model import build_generator
from op.fast import fast_parts
from training import random_numbers, stage1, stage2
from training.augmentation import augment, unchanged
from training.projected import FeatureNetwork, Mixing, ProjectedDiscriminator, load_feature_network
from utils import UserError


class TinyFeatures(nn.Module):
    """Four maps, at a quarter of the images' side and halved from there on."""

    def __init__(self, maps: int = 4, from_coarse: bool = False):
        super().__init__()
        self.maps = maps
        self.from_coarse = from_coarse
        self.first = nn.Conv2d(3, 4, 4, stride=4)
        self.next = nn.Conv2d(4, 4, 2, stride=2)

    def forward(self, images: torch.Tensor):
        x = self.first(images)
        found = [x]
        for _ in range(self.maps - 1):
            x = self.next(x).sin()
            found.append(x)
        return found[::-1] if self.from_coarse else found


class Converted(nn.Module):
    """The same maps in another format of numbers, or multiplied."""

    def __init__(self, scale: float, kind: torch.dtype):
        super().__init__()
        self.network = TinyFeatures()
        self.scale = scale
        self.kind = kind

    def forward(self, images: torch.Tensor):
        return [(self.scale * x).to(self.kind) for x in self.network(images)]


@pytest.fixture(scope='module')
def features(tmp_path_factory):
    """A TorchScript file of a network with four maps."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('features') / 'features.pt'
    torch.jit.script(TinyFeatures()).save(path)
    return path


@pytest.fixture
def narrow(monkeypatch):
    """An eighth of the usual channels, in the usual proportion."""
    monkeypatch.setattr('training.projected.MIXED_CHANNELS', 8)
    monkeypatch.setattr('training.projected.MOST_CHANNELS', 64)


def test_only_the_heads_are_trained_and_saved(features):
    network = load_feature_network(features, 16, 'cpu')
    discriminator = ProjectedDiscriminator(network, 16)
    assert discriminator(torch.zeros(3, 3, 16, 16)).shape == (3, 4)
    assert {name.split('.')[0] for name in discriminator.state_dict()} == {'heads', 'spread'}
    assert {name.split('.')[0] for name, _ in discriminator.named_parameters()} == {'heads'}
    images = torch.rand(2, 3, 16, 16).requires_grad_()
    discriminator(images).sum().backward()
    assert images.grad.abs().max() > 0
    again = ProjectedDiscriminator(network, 16)
    again.load_state_dict(discriminator.state_dict())
    assert torch.equal(again(images), discriminator(images))  # the mixing is the same, though it is not saved


def test_mixing_goes_from_coarse_to_fine():
    mixing, sides = Mixing([4, 6, 8, 10]), (16, 8, 4, 2)
    maps = [torch.rand(1, channels, side, side) for channels, side in zip((4, 6, 8, 10), sides, strict=True)]
    mixed = mixing(maps)
    assert [one.shape[1:] for one in mixed] == [(64 << k, side, side) for k, side in enumerate(sides)]
    for changed in range(4):
        others = mixing([one + 1 if k == changed else one for k, one in enumerate(maps)])
        assert [not torch.equal(*pair) for pair in zip(mixed, others, strict=True)] == [k <= changed for k in range(4)]


def test_scales_count_alike_after_calibration(narrow, features):
    network, images = load_feature_network(features, 16, 'cpu'), torch.rand(4, 3, 16, 16)
    discriminator = ProjectedDiscriminator(network, 16)
    before = discriminator(images)
    discriminator.calibrate(images)
    louder = ProjectedDiscriminator(FeatureNetwork('louder', lambda x: [7 * one for one in network.maps(x)]), 16)
    louder.load_state_dict({name: tensor for name, tensor in discriminator.state_dict().items() if name != 'spread'},
                           strict=False)
    louder.calibrate(images)
    assert not torch.allclose(before, discriminator(images))
    assert_close(louder(images), discriminator(images), 1e-4)


def test_the_heads_are_held_in_check(narrow, features):
    discriminator = ProjectedDiscriminator(load_feature_network(features, 16, 'cpu'), 16)
    before = discriminator.state_dict()['heads.0.0.parametrizations.weight.0._u'].clone()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter *= 5
    discriminator(torch.zeros(1, 3, 16, 16))
    assert torch.equal(before, discriminator.state_dict()['heads.0.0.parametrizations.weight.0._u'])
    for _ in range(60):
        discriminator.renormalize()
    for head in discriminator.heads:
        for layer in head:
            if isinstance(layer, nn.Conv2d):
                assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), 2) - 1) < 0.02


@pytest.mark.parametrize('beside', (False, True))
@pytest.mark.parametrize('augmented', (False, True))
def test_chunks_do_not_change_the_gradient(narrow, double, augmented, beside):
    opt = tiny('train_full_pipeline', 4)
    generator = tiny_generator(opt)
    network = TinyFeatures().requires_grad_(False)
    discriminator = projected = ProjectedDiscriminator(FeatureNetwork('tiny', lambda images: network(images)), 16)
    if beside:
        discriminator = Discriminator(16, channel_max=4)
        discriminator.projected = projected
    real = torch.randn(4, 3, 16, 16)

    def changed(images, rngs):
        return augment(images, 0.7, rngs, geometric=True)

    for name in ('discriminator', 'generator'):
        found = []
        for chunk in (4, 2):
            generator.zero_grad()
            discriminator.zero_grad()
            rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), None)
            augmentation = changed if augmented else unchanged
            if name == 'discriminator':
                terms = stage2.accumulate_discriminator(discriminator, generator, real, rendered, opt, chunk, beside,
                                                        augmentation)
            else:
                terms = stage2.accumulate_generator(generator, discriminator, rendered, chunk, 1., augmentation, 0.5)
            assert (terms.get(f'{name[0]}_projected', 0) != 0) == beside
            found.append((terms, gradients(discriminator if name == 'discriminator' else generator)))
        check_same(*found)


@pytest.mark.parametrize('choice', ('projected', 'both'))
def test_a_run_with_it_resumes_exactly(narrow, features, data, renderer, tmp_path, choice):
    text = f'--renderer_ckpt {renderer} --discriminator {choice} --augment --features {features} --thumbnail_lambda 1'
    train('full_pipeline', tmp_path / 'whole', flags(data, f'{text} --iter 3'))
    train('full_pipeline', tmp_path / 'parts', flags(data, f'{text} --iter 1'))
    train('full_pipeline', tmp_path / 'parts', flags(data, f'{text} --iter 3 --continue_training'))
    whole, parts = (newest(tmp_path / name, 'full_pipeline')[1] for name in ('whole', 'parts'))
    assert differences(whole, parts) == []
    assert build_generator(tiny('train_full_pipeline')).state_dict().keys() == whole['g'].keys()

    renamed = tmp_path / 'renamed (1).pt'
    renamed.write_bytes(features.read_bytes())
    train('full_pipeline', tmp_path / 'parts',
          [*flags(data, f'{text} --iter 4 --continue_training'), '--features', str(renamed)])
    assert newest(tmp_path / 'parts', 'full_pipeline')[0] == 4

    torch.manual_seed(1)
    torch.jit.script(TinyFeatures()).save(tmp_path / 'other.pt')
    with pytest.raises(UserError, match=r'began with the features of renamed \(1\).pt'):
        train('full_pipeline', tmp_path / 'parts',
              [*flags(data, f'{text} --iter 5 --continue_training'), '--features', str(tmp_path / 'other.pt')])


@pytest.mark.parametrize('before, after, begins', [
    ('stylegan2', 'both', 'no projected discriminator'), ('both', 'stylegan2', None), ('both', 'both', None),
    ('projected', 'stylegan2', 'no discriminator'), ('projected', 'projected', None)])
def test_a_new_run_begins_with_what_a_checkpoint_has(narrow, features, data, renderer, tmp_path, capsys, before, after,
                                                     begins):
    text = f'--renderer_ckpt {renderer} --features {features} --iter 1 --lr 1e-9'
    train('full_pipeline', tmp_path / 'before', flags(data, f'{text} --discriminator {before}'))
    full = tmp_path / 'before' / 'full_models' / 'debug.pt'
    train('full_pipeline', tmp_path / 'after', flags(data, f'{text} --discriminator {after} --init_ckpt {full}'))
    out = capsys.readouterr().out
    assert (begins or 'begins anew') in out if begins else 'begins anew' not in out
    theirs, ours = (newest(tmp_path / name, 'full_pipeline')[1]['d'] for name in ('before', 'after'))
    shared = [name for name in ours if name in theirs and name.endswith(('weight', 'bias', 'original'))]
    assert bool(shared) == (before != 'projected' or after == 'projected')
    for name in shared:
        assert (ours[name] - theirs[name]).abs().max() < 1e-6, name


def test_chunks_do_not_change_the_gradient_of_stage_1(narrow, double):
    opt = tiny('train_volume_renderer', 4, '--discriminator projected')
    torch.manual_seed(0)
    generator = build_generator(opt, full_pipeline=False, **fast_parts(opt, sparse=False))
    discriminator = VolumeDiscriminator(8, True, 0.02)
    network = TinyFeatures().requires_grad_(False)
    discriminator.projected = ProjectedDiscriminator(FeatureNetwork('tiny', lambda images: network(images)), 8)
    discriminator.projected.renormalize = lambda: None  # each call would go on from where the last one came to
    real = torch.randn(4, 3, 8, 8)
    for name in ('discriminator', 'generator'):
        found = []
        for chunk in (4, 2):
            generator.zero_grad()
            discriminator.zero_grad()
            fakes = random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu')
            if name == 'discriminator':
                terms = stage1.accumulate_discriminator(discriminator, generator, real, fakes, opt, chunk)
            else:
                terms = stage1.accumulate_generator(generator, discriminator, fakes, opt, chunk)
            found.append((terms, gradients(discriminator if name == 'discriminator' else generator)))
        check_same(*found)
        assert terms[f'{name[0]}_projected'] != 0


def test_a_run_of_stage_1_with_it_resumes_exactly(narrow, features, data, tmp_path):
    text = f'--no_sphere_init --discriminator projected --features {features}'
    train('volume_renderer', tmp_path / 'whole', flags(data, f'{text} --iter 3'))
    train('volume_renderer', tmp_path / 'parts', flags(data, f'{text} --iter 1'))
    train('volume_renderer', tmp_path / 'parts', flags(data, f'{text} --iter 3 --continue_training'))
    whole, parts = (newest(tmp_path / name, 'volume_renderer')[1] for name in ('whole', 'parts'))
    assert differences(whole, parts) == []
    assert any(name.startswith('projected.heads') for name in whole['d'])
    train('volume_renderer', tmp_path / 'without', flags(data, '--no_sphere_init --iter 3'))
    assert differences(whole['g'], newest(tmp_path / 'without', 'volume_renderer')[1]['g'])  # it has an effect


def test_networks_that_will_not_do(tmp_path):
    torch.jit.script(TinyFeatures(3)).save(tmp_path / 'three.pt')
    torch.jit.script(nn.Conv2d(3, 3, 1)).save(tmp_path / 'no_list.pt')
    torch.jit.script(nn.Conv2d(4, 3, 1)).save(tmp_path / 'four_channels.pt')
    torch.jit.script(TinyFeatures(from_coarse=True)).save(tmp_path / 'coarse.pt')
    torch.jit.script(Converted(math.nan, torch.float32)).save(tmp_path / 'nan.pt')
    torch.jit.script(Converted(1., torch.int32)).save(tmp_path / 'integers.pt')
    (tmp_path / 'text.pt').write_text('no network')
    for name, reason in (('three', 'gives 3 maps'),
                         ('coarse', r'coarse.pt \(\w+\) gives maps of 4x4, 8x8, 16x16, 32x32 pixels, in this order'),
                         ('nan', 'feature maps of integers, or of values that are not finite'),
                         ('integers', 'feature maps of integers'), ('no_list', 'gives 1 maps'),
                         ('four_channels', 'cannot take'), ('text', 'is not a TorchScript network'),
                         ('missing', 'no such file')):
        with pytest.raises(UserError, match=reason):
            load_feature_network(tmp_path / f'{name}.pt', 16, 'cpu')


def test_half_precision_is_taken(narrow, tmp_path):
    torch.jit.script(Converted(1., torch.float16)).save(tmp_path / 'half.pt')
    discriminator = ProjectedDiscriminator(load_feature_network(tmp_path / 'half.pt', 16, 'cpu'), 16)
    images = torch.rand(2, 3, 16, 16).requires_grad_()
    discriminator(images).sum().backward()
    assert images.grad.abs().max() > 0


def test_a_network_that_loses_images(monkeypatch):
    network = FeatureNetwork('its name', lambda images: TinyFeatures()(images[:1]))
    monkeypatch.setattr('training.projected._torchvision', lambda device: network)
    with pytest.raises(UserError, match='its name gives maps of more or fewer images than it was given; the projected'):
        load_feature_network(None, 16, 'cpu')


@pytest.mark.parametrize('error, seen', [
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'), RuntimeError),
    (RuntimeError('in TorchScript:\nRuntimeError: CUDA out of memory.'), RuntimeError), (AttributeError(), UserError),
    (RuntimeError('a\nno such size'), UserError)])
def test_memory_that_runs_out_is_no_fault_of_the_network(monkeypatch, error, seen):
    def maps(images):
        raise error

    monkeypatch.setattr('training.projected._torchvision', lambda device: FeatureNetwork('its name', maps))
    with pytest.raises(seen) as caught:
        load_feature_network(None, 16, 'cpu')
    if seen is UserError:
        assert '--features: its name cannot take images' in str(caught.value) and 'a\n' not in str(caught.value)
    else:
        assert caught.value is error

"""docs/extending.md stays true: its code runs, and its parts go through training, pictures and surfaces."""
import re

import pytest
import torch
from conftest import ROOT, assert_close
from tiny_model import TINY
from tiny_training import flags, newest, train

import train_full_pipeline
import train_volume_renderer
from camera import cameras_at
from dataset import ImageDataset
from discriminators import Discriminator, VolumeDiscriminator
from model import Decoder, build_generator
from op.fast import fast_parts
from options import parse
from surfaces.meshes import surface_mesh
from surfaces.rendering import render_surface
from training import stage1, stage2
from training.random_numbers import draw_fakes
from volume_renderer import SigmoidDensity

PAGE = (ROOT / 'docs' / 'extending.md').read_text()
STAGE_1 = [*TINY, '--N_samples', '6', '--device', 'cpu']


@pytest.fixture(scope='module')
def shown():
    """What the page's code defines, {name: object}."""
    names = {'__name__': 'shown'}
    for code in re.findall(r'^```python\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL):
        exec(code, names)
    return names


def renderer_with(density, opt):
    return type('Renderer', (density, fast_parts(opt)['renderer']), {})


def surface_in_sight(generator):
    """Shift the field so that it has a surface: an untrained one has distances of one sign."""
    opaque = generator.renderer(torch.zeros(1, 8), cameras_at(torch.zeros(1, 2), 8), sdf=True).sdf
    with torch.no_grad():
        generator.renderer.network.sigma_linear.bias -= opaque.median()
    return generator


# ---------------------------------------------------------------------------------------------- a density

def test_the_densitys_members_are_those_that_something_uses(shown):
    def members(density):
        return {name for name in vars(density) if not name.startswith('_')} - set(vars(tuple))

    code = ''.join((ROOT / name).read_text() for name in ('volume_renderer.py', 'op/refine.py', 'op/sparse.py'))
    used = set(re.findall(r'\bdensity\.([a-z]\w*)', code))
    assert members(shown['LaplaceDensity']) == members(SigmoidDensity) == used == {'scale', 'value', 'support'}


def test_the_densitys_support_is_its_values(shown):
    density = shown['LaplaceDensity'](torch.tensor(0.01, dtype=torch.float64))
    assert density.value(density.support) < 1e-3 * density.value(-density.support)


def test_a_density_trains_and_gives_pictures_and_surfaces(shown):
    opt = parse('train_volume_renderer', '', STAGE_1)
    torch.manual_seed(0)
    generator = build_generator(opt, full_pipeline=False, renderer=renderer_with(shown['Laplace'], opt))
    assert isinstance(generator.renderer.density, shown['LaplaceDensity'])
    discriminator = VolumeDiscriminator(8, width=0.02)
    fakes = draw_fakes(opt, 'generator', 0, range(2), torch.device('cpu'))
    terms = stage1.accumulate_generator(generator, discriminator, fakes, opt, chunk=2)
    assert {'g', 'g_view', 'g_eikonal', 'g_minimal_surface'} <= terms.keys()
    gradients = [parameter.grad for parameter in generator.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert generator.renderer.sigmoid_beta.grad.abs() > 0

    generator = surface_in_sight(generator.requires_grad_(False))
    generator.renderer.perturb = 0.
    usual = build_generator(opt, full_pipeline=False, renderer=fast_parts(opt)['renderer'])
    usual.load_state_dict(generator.state_dict())
    usual.renderer.perturb = 0.
    z, cameras = torch.randn(1, 8), cameras_at(torch.tensor([[0.2, 0.1]]), 8)
    with torch.no_grad():
        picture, other = (one(z, cameras).picture for one in (generator, usual))
    assert picture.shape == (1, 3, 8, 8) and not torch.allclose(picture, other, atol=1e-4)

    surface = render_surface(generator.renderer, generator.map(z), cameras, sdf=True)
    assert surface_mesh(surface.sdf, cameras) is not None


# ---------------------------------------------------------------------------------------------- a decoder

def test_a_decoder_trains_and_gives_pictures(shown):
    opt = parse('train_full_pipeline', '', STAGE_1)
    torch.manual_seed(0)
    generator = build_generator(opt, decoder=shown['PlainDecoder']).requires_grad_(False)
    generator.decoder.requires_grad_(True)
    discriminator = Discriminator(16, 1, channel_max=4)
    fakes = draw_fakes(opt, 'generator', 0, range(4), torch.device('cpu'))
    rendered = stage2.render(generator, fakes, switch=1)
    stage2.accumulate_discriminator(discriminator, generator, torch.rand(4, 3, 16, 16), rendered, opt, 4,
                                    regularize=True)
    stage2.accumulate_generator(generator, discriminator, rendered, chunk=4)
    for network in (discriminator, generator.decoder):
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)
    assert generator.decoder.style.weight.grad.abs().max() > 0

    generator.renderer.perturb = 0.
    means = generator.mean_latents(50)
    z, cameras = torch.randn(2, 8), cameras_at(torch.zeros(2, 2), 8)
    with torch.no_grad():
        images = generator(z, cameras, psi=0.5, means=means).image
        mean = generator(z, cameras, psi=0., means=means).image
        whole = generator(z, cameras, noise='fixed')
        weights = generator.decoder.modulate(whole.w_prime)
    assert images.shape == (2, 3, 16, 16) and not torch.allclose(images[0], images[1])
    assert_close(mean[0], mean[1])
    assert_close(generator.decoder.synthesize(whole.rendering.features, weights, []), whole.image)


def test_decoders_of_the_page_have_all_members_of_the_protocol(shown):
    table = PAGE.split('**A decoder**')[1].split('**A data set of images**')[0]
    members = {name for row in re.findall(r'^\| (`.+?) \|', table, re.MULTILINE) for name in re.findall(r'`(\w+)', row)}
    assert members > {'style', 'map', 'num_layers', 'noise_sizes', 'modulate', 'synthesize'}
    for decoder in (shown['PlainDecoder'](16, 8, 1, 8, 8), Decoder(16, 8, 1, 8, 8)):
        assert [name for name in members - {'decoder'} if not hasattr(decoder, name)] == []


# ---------------------------------------------------------------------------------------------- a data set

@pytest.mark.parametrize('stage, command, file', [
    ('volume_renderer', train_volume_renderer, 'pretrained_renderer/debug_vol_renderer.pt'),
    ('full_pipeline', train_full_pipeline, 'full_models/debug.pt')])
def test_a_data_set_can_be_trained_on(shown, tmp_path, monkeypatch, stage, command, file):
    monkeypatch.setattr(command, 'ImageDataset', shown['Disks'])
    if stage == 'full_pipeline':
        monkeypatch.setattr(train_volume_renderer, 'ImageDataset', command.ImageDataset)
        train('volume_renderer', tmp_path, flags('nowhere', '--iter 1'))
    train(stage, tmp_path, flags('nowhere', '--iter 2'))
    assert newest(tmp_path, stage)[0] == 2 and (tmp_path / file).is_file()


def test_data_sets_of_the_page_have_all_members_of_the_protocol(shown):
    table = PAGE.split('**A data set of images**')[1].split('## Another density')[0]
    members = set(re.findall(r'^\| `(\w+)', table, re.MULTILINE)) - {'len'}
    assert members >= {'path', 'size', 'picture', 'fingerprint'}
    disks = shown['Disks']('disks', 16)
    assert [name for name in members if not hasattr(disks, name)] == []
    assert disks.picture(3).size == (16, 16) and disks[3].shape == (3, 16, 16) and len(disks.fingerprint()) == 16
    assert all(hasattr(ImageDataset, name) for name in members - {'path', 'size'})

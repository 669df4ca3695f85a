"""Networks against the original's: names, shapes, initial spreads, and what they compute."""
import pytest
import torch
from conftest import assert_close, formula, load_formula_weights

from camera import cameras_at
from discriminators import Discriminator, VolumeDiscriminator
from model import Decoder, Generator, MeanLatents, ModulatedConv2d, truncate
from op.bands import BandedDecoder
from volume_renderer import VolumeRenderer

SIZES = {'ffhq1024': (1024, 2, 256, 8, 256), 'afhq512': (512, 2, 256, 8, 256), 'size256': (256, 2, 256, 8, 256),
         'small': (256, 1, 64, 4, 64)}


def build(name):
    """The network that a manifest entry such as 'small.full.g' describes."""
    model, stage, part = name.split('.')
    size, multiplier, style_dim, depth, width = SIZES[model]
    if part == 'd':
        return Discriminator(size, multiplier) if stage == 'full' else VolumeDiscriminator()
    decoder = Decoder(size, style_dim, multiplier, 64, width) if stage == 'full' else None
    return Generator(style_dim, VolumeRenderer(style_dim, depth=depth, width=width), decoder)


def small_pipeline(manifest, decoder=Decoder, **renderer):
    settings = {'depth': 4, 'width': 64, 'perturb': 0., 'force_background': True, 'static_viewdirs': True, **renderer}
    generator = Generator(64, VolumeRenderer(64, **settings), decoder(256, 64, 1, 64, 64))
    return load_formula_weights(generator, manifest['small.full.g'], sigmoid_beta=0.02)


def light_pipeline(decoder=Decoder):
    """Images of 64x64 pixels from 16x16 rays, for what does not depend on sizes."""
    renderer = VolumeRenderer(64, 16, depth=2, width=32, perturb=0., force_background=True, static_viewdirs=True)
    return Generator(64, renderer, decoder(64, 64, 1, 16, 32, channel_max=64)).requires_grad_(False)


@pytest.mark.parametrize('name', [
    'ffhq1024.full.g', 'ffhq1024.volume_renderer.g', 'ffhq1024.volume_renderer.d', 'ffhq1024.full.d',
    'afhq512.full.g', 'afhq512.full.d', 'size256.full.g', 'size256.full.d', 'small.full.g', 'small.volume_renderer.g',
    'small.volume_renderer.d', 'small.full.d'])
def test_names_shapes_and_initial_spreads(manifest, name):
    torch.manual_seed(0)
    network, entries = build(name), manifest[name]
    parameters = {key for key, _ in network.named_parameters()}
    state = network.state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {k: e['shape'] for k, e in entries.items()}
    assert parameters == {key for key, entry in entries.items() if entry['kind'] == 'parameter'}
    for key, tensor in state.items():
        entry, n = entries[key], tensor.numel()
        if not entry['std']:  # constants
            assert tensor.mean().item() == pytest.approx(entry['mean'], abs=1e-7) or n == 1, key
            continue
        if n >= 64:  # two draws of n numbers: their spreads agree to a few standard errors
            assert tensor.std().item() == pytest.approx(entry['std'], rel=6 / n ** 0.5), key
        # a uniform distribution's bound shows in few numbers; a normal one's largest does not
        largest = max(entry['max'], -entry['min'])
        if n >= 64 and largest < 1.8 * entry['std']:
            assert tensor.abs().max().item() == pytest.approx(largest, rel=0.1), key


@pytest.mark.parametrize('decoder', [Decoder, BandedDecoder])
def test_generator(golden, manifest, decoder):
    expected = golden('generator')
    generator, cameras = small_pipeline(manifest, decoder), cameras_at(expected['poses'])
    means = MeanLatents(expected['mean_renderer'], expected['mean_decoder'])
    with torch.no_grad():
        plain = generator(expected['z'], cameras, noise='fixed')
        mixed = generator((expected['z'], expected['z2']), cameras, noise='fixed', switch=3)
    assert_close(plain.rendering.thumbnail[:, :, ::4, ::4], expected['plain_thumb_grid'])
    assert_close(plain.w_prime, expected['decoder_latent'])
    if decoder is Decoder:  # the others have its mapping, which truncates
        with torch.no_grad():
            truncated = generator(expected['z'], cameras, noise='fixed', psi=0.5, means=means)
        assert_close(truncated.image[:, :, ::8], expected['truncated_rgb_lines'], 6e-4)
    # the golden images are float16: half a unit in the last place is 2^-11 of a value
    assert_close(plain.image[:, :, ::8], expected['plain_rgb_lines'], 6e-4)
    assert_close(mixed.image[:, :, ::8], expected['mixed_rgb_lines'], 6e-4)
    lines = expected['plain_rgb_lines'].float()
    difference = (plain.image[:, :, ::8].half().float() - lines).abs()
    assert difference.mean() < 2e-5 * lines.abs().max()  # rounding, not a shift


def test_mean_latents(golden, manifest):
    expected = golden('generator')
    means = small_pipeline(manifest).mean_latents(1000, torch.Generator().manual_seed(11))
    assert_close(means.w, expected['mean_latent_seed11_n1000_renderer'])
    assert_close(means.w_prime, expected['mean_latent_seed11_n1000_decoder'])


def test_mean_latents_in_parts(manifest, monkeypatch):
    """Over more latents than are held at a time it is the mean of all of them."""
    generator = small_pipeline(manifest)
    monkeypatch.setattr('model.DRAWN_AT_ONCE', 64)
    monkeypatch.setattr('model.MAPPED_AT_ONCE', 24)
    means = generator.mean_latents(150, torch.Generator().manual_seed(5))
    z = torch.randn(150, generator.style_dim, generator=torch.Generator().manual_seed(5))
    w = generator.style(z).double()
    assert_close(means.w, w.mean(0, keepdim=True), 1e-5)
    assert_close(means.w_prime, generator.decoder.style(w.float()).double().mean(0, keepdim=True), 1e-5)


def test_latents_in_and_out():
    """W of the renderer and W' of the decoder can be taken out and put back."""
    generator, cameras, z = light_pipeline(), cameras_at(torch.tensor([[0.2, 0.1]]), 16), formula('z', (1, 64))
    whole = generator(z, cameras, noise='fixed')
    w = generator.map(z)
    rendering = generator.renderer(w, cameras)
    image = generator.decoder(rendering.features, generator.decoder.map(w), generator.decoder.fixed_noise())
    assert torch.equal(image, whole.image)


def test_views_of_one_identity_share_its_latent():
    generator = light_pipeline()
    cameras = cameras_at(torch.tensor([[0.2, 0.], [-0.1, 0.1]]), 16)
    z = formula('z', (1, 64))
    shared = generator(z, cameras, noise='fixed')
    repeated = generator(z.expand(2, -1), cameras, noise='fixed')
    assert_close(shared.image, repeated.image, 1e-5)
    assert_close(shared.rendering.thumbnail, repeated.rendering.thumbnail, 1e-5)


def test_noise_is_random_fixed_or_given():
    generator = light_pipeline()
    torch.nn.init.constant_(generator.decoder.conv1.noise.weight, 0.5)
    cameras, z = cameras_at(torch.zeros(1, 2), 16), formula('z', (1, 64))

    def image(noise, seed=0):
        return generator(z, cameras, noise=noise, rng=torch.Generator().manual_seed(seed)).image

    assert torch.equal(image('random', 1), image('random', 1)) and not torch.equal(image('random', 1), image('random'))
    maps = generator.decoder.random_noise(1, torch.Generator().manual_seed(1))
    assert [layer.shape[-1] for layer in maps] == [16, 32, 32, 64, 64]
    assert torch.equal(image(maps), image('random', 1))
    assert torch.equal(image('fixed'), image(generator.decoder.fixed_noise()))


@pytest.mark.parametrize('precision, levels', [(torch.float16, 0.5), (torch.bfloat16, 4)])
def test_half_precision_decoder_makes_the_same_picture(precision, levels):
    """To so many of 255 levels at the most, on an image of full contrast."""
    generator, cameras, z = light_pipeline(BandedDecoder), cameras_at(torch.zeros(1, 2), 16), formula('z', (1, 64))
    full = generator(z, cameras, noise='fixed').image
    generator.decoder.dtype = precision
    half = generator(z, cameras, noise='fixed').image
    assert half.dtype == torch.float32
    error = (half - full).abs().max() / full.abs().max() * 127.5
    assert 0 < error < levels


@pytest.mark.parametrize('name, options', [
    ('plain', {}), ('up', {'up': True})])
def test_modulated_convolution(golden, name, options):
    check_modulated_convolution(golden, name, 3, options)


def test_modulated_convolution_without_demodulation(golden):
    check_modulated_convolution(golden, '1x1_no_demodulation', 1, {'demodulate': False})


def check_modulated_convolution(golden, name, kernel_size, options):
    conv = ModulatedConv2d(3, 5, kernel_size, 6, **options)
    state = conv.state_dict()
    for key in ('weight', 'modulation.weight', 'modulation.bias'):
        state[key].copy_(formula(f'modconv.{key}', state[key].shape))
    x, style = formula('modconv.x', (2, 3, 8, 8)), formula('modconv.style', (2, 6))
    assert_close(conv(x, conv.modulated_weight(style)), golden('ops')[f'modconv_{name}'])
    one = conv.modulated_weight(style[:1])  # one latent for all images
    assert_close(conv(x, one), conv(x, one.expand(2, -1, -1, -1, -1)), 1e-5)


def test_truncation():
    latent, mean = torch.randn(4, 8), torch.randn(1, 8)
    assert truncate(latent, 1, None) is latent
    assert_close(truncate(latent, 0, mean), mean.expand(4, 8), 1e-6)
    assert_close(truncate(latent, 0.3, mean), mean + 0.3 * (latent - mean), 1e-6)

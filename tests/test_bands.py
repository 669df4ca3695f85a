"""op/bands.py: the same images and gradients as the definition, whatever the bands."""
import pytest
import torch
from conftest import assert_close

from model import Decoder
from op import bands
from op.bands import BandedDecoder, works_channels_last


@pytest.fixture
def both():
    """The two decoders with the same weights, and noise and biases that count."""
    torch.manual_seed(0)
    plain, banded = (kind(32, 8, 1, 8, 16, channel_max=8) for kind in (Decoder, BandedDecoder))
    for name, parameter in plain.named_parameters():
        if name.endswith(('noise.weight', 'activate.bias')) or 'to_rgb' in name and name.endswith('bias'):
            parameter.data.normal_()
    banded.load_state_dict(plain.state_dict())
    return plain, banded


def inputs(batch, latents):
    """(features, w, noise) for a number of images and of latents."""
    rng = torch.Generator().manual_seed(batch)
    noise = [torch.randn(batch, 1, size, size, generator=rng) for size in (8, 16, 16, 32, 32)]
    return torch.randn(batch, 16, 8, 8, generator=rng), torch.randn(latents, 8, generator=rng), noise


@pytest.mark.parametrize('batch, latents', [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize('values', [1, 700, 1 << 22])
@torch.no_grad()
def test_the_same_images(both, monkeypatch, batch, latents, values):
    """A row at a time, a few rows, all at once."""
    monkeypatch.setattr(bands, 'BAND_VALUES', values)
    features, w, noise = inputs(batch, latents)
    before = [tensor.clone() for tensor in (features, *noise)]
    plain, banded = (decoder(features, decoder.map(w), noise) for decoder in both)
    assert plain.shape == (batch, 3, 32, 32)
    assert_close(banded, plain)
    assert all(torch.equal(*pair) for pair in zip(before, (features, *noise), strict=True))  # nothing of the caller's


@torch.no_grad()
def test_fixed_noise_is_shared_by_all_images(both):
    features, w, _ = inputs(2, 2)
    plain, banded = (decoder(features, decoder.map(w), decoder.fixed_noise()) for decoder in both)
    assert_close(banded, plain)


def test_the_same_gradients(both):
    features, w, noise = inputs(2, 2)
    found = []
    for decoder in both:
        image = decoder(features, decoder.map(w), noise)
        image.square().mean().backward()
        found.append((image, {name: parameter.grad for name, parameter in decoder.named_parameters()}))
    (plain, gradients), (banded, banded_gradients) = found
    assert_close(banded, plain)
    used = {name for name, gradient in gradients.items() if gradient is not None}
    assert len(used) > 30
    for name in used:
        assert_close(banded_gradients[name], gradients[name], 1e-4, name)


@pytest.mark.parametrize('dtype, rtol', [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
@torch.no_grad()
def test_half_precision(both, dtype, rtol):
    features, w, noise = inputs(2, 2)
    exact = both[0](features, both[0].map(w), noise)
    for decoder in both:
        decoder.dtype = dtype
        image = decoder(features, decoder.map(w), noise)
        assert image.dtype == torch.float32
        assert_close(image, exact, rtol)


def test_when_features_are_kept_channels_last():
    shared, own = ([[torch.zeros(count, 4, 4, 3, 3)]] for count in (1, 2))
    cpu, cuda = torch.device('cpu'), torch.device('cuda')
    assert works_channels_last(cpu, torch.float32, own)
    assert works_channels_last(cuda, torch.float16, shared) and works_channels_last(cuda, torch.bfloat16, shared)
    assert not works_channels_last(cuda, torch.float32, shared) and not works_channels_last(cuda, torch.float16, own)

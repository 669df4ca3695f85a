"""op/fast.py: which classes the flags and STYLESDF_OPS choose, and that they are interchangeable."""
import copy

import pytest
import torch
from conftest import assert_close
from tiny_model import TINY

from camera import cameras_of
from model import Decoder, build_generator
from op.bands import BandedDecoder
from op.fast import fast_parts, few_samples
from op.graphs import GraphedDecoder, GraphedRenderer
from op.sparse import SparseRenderer
from op.tiles import TiledRenderer
from options import parse
from volume_renderer import VolumeRenderer

WAYS = {GraphedRenderer, SparseRenderer, TiledRenderer, GraphedDecoder, BandedDecoder}


@pytest.mark.parametrize('ops, flags, arguments, expected', [
    ('auto', '', {}, {SparseRenderer, TiledRenderer, BandedDecoder}),
    ('cuda', '', {}, {SparseRenderer, TiledRenderer, BandedDecoder}),
    ('auto', '--dense', {}, {TiledRenderer, BandedDecoder}),
    ('auto', '', {'sparse': False}, {TiledRenderer, BandedDecoder}),
    ('auto', '--cuda_graphs', {}, {SparseRenderer, TiledRenderer, BandedDecoder}),
    ('auto', '--cuda_graphs', {'graphs': True}, WAYS),
    ('auto', '', {'graphs': True}, {SparseRenderer, TiledRenderer, BandedDecoder}),
    ('plain', '--cuda_graphs', {'graphs': True}, {SparseRenderer}),
    ('plain', '--dense --cuda_graphs', {'graphs': True}, set())])
def test_choices(monkeypatch, ops, flags, arguments, expected):
    monkeypatch.setenv('STYLESDF_OPS', ops)
    parts = fast_parts(parse('render_video', '', flags.split()), **arguments)
    assert {way for way in WAYS if any(issubclass(part, way) for part in parts.values())} == expected
    assert issubclass(parts['renderer'], VolumeRenderer) and issubclass(parts['decoder'], Decoder)
    if not expected:
        assert parts == {'renderer': VolumeRenderer, 'decoder': Decoder}  # the definitions themselves


def test_all_choices_make_the_same_picture_of_the_same_weights(monkeypatch):
    generators = []
    for ops in ('auto', 'plain'):
        monkeypatch.setenv('STYLESDF_OPS', ops)
        for flags in ((), ('--dense',)):
            opt = parse('render_video', '', [*TINY, *flags])
            torch.manual_seed(0)
            generators.append(build_generator(opt, **fast_parts(opt)).requires_grad_(False))
    states = [generator.state_dict() for generator in generators]
    assert all(states[0].keys() == state.keys() for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)
    cameras, z = cameras_of(opt, torch.tensor([[0.1, 0.2], [-0.3, 0.]])), torch.randn(2, 8)
    with torch.no_grad():
        images = [generator(z, cameras, noise='fixed').image for generator in generators]
    for image in images[:-1]:
        assert_close(image, images[-1], 1e-3)


def test_few_samples_shares_the_weights():
    opt = parse('train_volume_renderer', '', TINY)
    generator = build_generator(opt, full_pipeline=False, **fast_parts(opt, sparse=False)).eval()
    twin = few_samples(generator)
    assert isinstance(twin.renderer, SparseRenderer) and isinstance(twin.renderer, TiledRenderer)
    assert not isinstance(generator.renderer, SparseRenderer) and few_samples(twin) is twin
    assert all(one is other for one, other in zip(generator.parameters(), twin.parameters(), strict=True))
    copied = copy.deepcopy(twin)
    assert type(copied.renderer) is type(twin.renderer)
    assert copied.renderer.sigmoid_beta is not twin.renderer.sigmoid_beta

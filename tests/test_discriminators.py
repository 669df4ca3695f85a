"""The discriminators against the original's, and what they compare."""
import pytest
import torch
from conftest import assert_close, formula, load_formula_weights

from discriminators import Discriminator, VolumeDiscriminator, minibatch_stddev


def test_discriminators(golden, manifest):
    expected = golden('discriminators')
    volume = load_formula_weights(VolumeDiscriminator(), manifest['small.volume_renderer.d'])
    full = load_formula_weights(Discriminator(256, 1), manifest['small.full.d'])
    images = formula('im256', (4, 3, 256, 256), 0.5)
    with torch.no_grad():
        logits, view = volume(formula('im64', (2, 3, 64, 64), 0.5))
        assert_close(logits, expected['volume_pred'])
        assert_close(view, expected['volume_view'])
        # Of four images in one group and of six in two: the convolutions see each image alone, once.
        maps = full.convs(images)
        full.convs = torch.nn.Identity()
        assert_close(full(maps), expected['full_pred'])
        assert_close(full(torch.cat([maps, maps[:2]])), expected['full_pred_batch6'])


def test_volume_discriminator_without_view_and_with_other_widths():
    logits, view = VolumeDiscriminator(32, predict_view=False, width=0.25)(torch.zeros(3, 3, 32, 32))
    assert logits.shape == (3, 1) and view is None


@pytest.mark.parametrize('batch, group', [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 3), (8, 4), (10, 2)])
def test_minibatch_stddev_groups(batch, group):
    x = torch.randn(batch, 2, 3, 3)
    y = minibatch_stddev(x)
    assert y.shape == (batch, 3, 3, 3) and torch.equal(y[:, :2], x)
    members = [x[i::batch // group] for i in range(batch // group)]
    for i, images in enumerate(members):
        expected = (images.var(0, unbiased=False) + 1e-8).sqrt().mean()
        assert_close(y[i::batch // group, 2], expected.expand(group, 3, 3), 1e-5)

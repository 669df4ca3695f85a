"""training/match_tones.py: generated pictures get the tones of photos."""
import copy
from argparse import Namespace

import pytest
import torch
from conftest import ROOT
from PIL import Image

from inference.loaded_model import load_model
from training import match_tones
from training.match_tones import Monotone, Tones, ToneTransfer
from utils import UserError


def test_values_get_the_distribution_of_others():
    normal, even = torch.randn(50_000), torch.rand(50_000)
    shares = torch.linspace(0.05, 0.95, 10)
    moved = Monotone.between(normal, even)(normal)
    assert moved.quantile(shares).sub(shares).abs().max() < 0.005
    back = Monotone.between(even, normal)(even)
    assert back.quantile(shares).sub(normal.quantile(shares)).abs().max() < 0.01


def test_it_rises_everywhere_with_slope_1_beyond_the_measured_values():
    curve = Monotone.between(torch.randn(1000), torch.rand(1000))
    x = torch.linspace(-9, 9, 5001)
    y = curve(x)
    assert (y[1:] >= y[:-1]).all()
    assert y[-1] - y[-100] == pytest.approx((x[-1] - x[-100]).item(), rel=1e-3)


def test_values_that_many_share_become_the_mean_of_their_share():
    """As black pixels do, where a third of the pixels are black and the photos have a third of dark ones."""
    clipped = torch.cat([torch.full((1000,), -1.), torch.linspace(-0.9, 1, 2000)])
    curve = Monotone.between(clipped, torch.linspace(-1, 1, 3000))
    assert curve(torch.tensor([-1.])).item() == pytest.approx(-1 + 1 / 3, abs=0.02)
    assert curve(torch.tensor([0.05])).item() == pytest.approx(1 / 3, abs=0.02)
    same = Monotone.between(torch.full((10,), 0.5), torch.linspace(-1, 1, 100))
    assert same(torch.tensor([0.5])).item() == pytest.approx(0, abs=1e-3)


def pictures(count, brightness, contrast):
    """(count,3,32,32) with random brightness and contrast: these are (mean, spread) and (least, most)."""
    shades = torch.randn(count, 1, 1, 1) * brightness[1] + brightness[0]
    spreads = torch.empty(count, 1, 1, 1).uniform_(*contrast)
    values = torch.randn(count, 3, 32, 32)
    values = (values - values.mean((1, 2, 3), keepdim=True)) / values.std((1, 2, 3), keepdim=True)
    return shades + spreads * values


def test_pictures_get_the_tones_of_photos():
    torch.manual_seed(0)
    dull, photos = pictures(300, (0.1, 0.05), (0.1, 0.15)), pictures(300, (-0.1, 0.2), (0.2, 0.4))
    photos = photos.clamp(-1, 1)
    measured = [Tones.of(some.split(64)) for some in (dull, photos)]
    toned = ToneTransfer(*measured)(dull)
    wanted = measured[1]
    shares = torch.linspace(0.1, 0.9, 9)
    found = Tones.of([toned])
    for name, bound in (('brightness', 0.03), ('contrast', 0.03), ('values', 0.03)):
        got, asked = (getattr(tones, name).flatten().quantile(shares) for tones in (found, wanted))
        assert (got - asked).abs().max() < bound, name
    # A picture that ranks higher in brightness still does, and the order of its pixels stays.
    order = dull.mean((1, 2, 3)).argsort()
    assert toned.mean((1, 2, 3))[order].diff().clamp(max=0).sum() > -0.05
    one = dull[0, 0].flatten().argsort()
    assert (toned[0, 0].flatten()[one].diff() >= -1e-5).all()


def test_tones_of_photos_change_nothing_in_photos():
    photos = pictures(300, (0., 0.2), (0.2, 0.4)).clamp(-1, 1)
    tones = Tones.of([photos])
    assert (ToneTransfer(tones, tones)(photos) - photos).abs().mean() < 2e-3


@pytest.fixture(scope='module')
def model():
    return load_model(ROOT / 'demo' / 'cats_demo.pt', device='cpu')


def lesson_of(model, folder, shades, monkeypatch):
    """A lesson whose photos are gray ramps as dark as `shades`."""
    for name, value in (('PICTURES', 16), ('FEWEST', 4), ('BATCH', 2)):
        monkeypatch.setattr(match_tones, name, value)
    for i, shade in enumerate(shades):
        Image.linear_gradient('L').point(lambda value, shade=shade: value * shade // 255).save(folder / f'{i}.png')
    lesson = match_tones.Toning(model, copy.deepcopy(model.generator.decoder),
                                Namespace(dataset_path=folder, steps=100))
    for parameter in lesson.learning():
        parameter.requires_grad_()
    return lesson


def test_the_decoder_comes_closer_to_dark_photos(model, tmp_path, monkeypatch):
    torch.manual_seed(0)
    lesson = lesson_of(model, tmp_path, (60, 70, 80, 90), monkeypatch)
    drawn = lesson.draw(2)
    target = lesson.transfer(lesson.shown(lesson.given, *drawn))
    before = lesson.shown(lesson.given, *drawn)
    assert before.mean() - target.mean() > 0.2
    optimizer = torch.optim.Adam(lesson.learning(), 5e-3)
    for step in range(10):
        loss = lesson.terms(step)['tones']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = lesson.shown(lesson.new, *drawn)
    assert (after - target).abs().mean() < 0.6 * (before - target).abs().mean()


def test_pictures_are_truncated_as_usual_each_step_by_another_psi(model, tmp_path, monkeypatch):
    lesson = lesson_of(model, tmp_path, (60, 120, 180, 240), monkeypatch)
    torch.manual_seed(0)
    features, w_prime, _ = lesson.draw(2, 0.5)
    torch.manual_seed(0)
    z = torch.randn(2, model.opt.model.style_dim)
    generator, means = model.generator, model.means
    w = generator.map(z, 0.5, means)
    assert torch.equal(w_prime, generator.decoder.map(w, 0.5, means.w_prime))
    torch.manual_seed(0)
    assert not torch.allclose(lesson.draw(2)[0], features)  # as they are at psi 1
    drawn = []
    monkeypatch.setattr(lesson, 'draw', lambda count, psi: drawn.append(psi) or (features, w_prime, 'fixed'))
    monkeypatch.setattr(lesson, 'shown', lambda decoder, *_: torch.zeros(2, 3, 8, 8))
    monkeypatch.setattr(lesson, 'new', lambda *_: torch.zeros(2, 3, 8, 8))
    for step in range(20):
        lesson.terms(step)
    low, high = match_tones.PSI
    assert low <= min(drawn) < max(drawn) <= high and len(set(drawn)) == 20


def test_few_photos_are_refused_and_say_so(model, tmp_path):
    Image.new('L', (128, 128)).save(tmp_path / 'one.png')
    with pytest.raises(UserError, match='has 1 images'):
        match_tones.Toning(model, copy.deepcopy(model.generator.decoder), Namespace(dataset_path=tmp_path, steps=1))

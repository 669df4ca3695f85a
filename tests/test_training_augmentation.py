"""Augmentation: what each change does, what it draws, that gradients pass, and how its strength adapts."""
import pytest
import torch
from conftest import assert_close

from training import augmentation
from training.augmentation import CHANGES, Strength, augment
from training.random_numbers import image_rngs


def rngs(count=4, step=0):
    return image_rngs(1234, 'augmentation', step, range(count), 'cpu')


def pictures(count=4, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def only(monkeypatch, *changes):
    """From here on, at strength 1, these changes happen to every image, and no others."""
    choose = augmentation._Draws.__init__

    def draws(self, images, strength, rngs):
        choose(self, images, strength, rngs)
        for change in CHANGES:
            self.happens[change] = torch.full((len(images),), change in changes)

    monkeypatch.setattr(augmentation._Draws, '__init__', draws)


@pytest.mark.parametrize('geometric', (False, True))
def test_strength_0_changes_nothing(geometric):
    assert_close(augment(pictures(), 0., rngs(), geometric), pictures(), 1e-5)


@pytest.mark.parametrize('geometric', (False, True))
def test_an_image_depends_on_its_own_draws_alone(geometric):
    whole = augment(pictures(), 0.7, rngs(), geometric)
    part = augment(pictures()[2:], 0.7, rngs()[2:], geometric)
    assert_close(whole[2:], part, 1e-5)
    assert not torch.allclose(whole, augment(pictures(), 0.7, rngs(step=1), geometric), atol=0.1)


def test_as_many_images_change_as_the_strength_says():
    images = torch.zeros(600, 3, 4, 4)
    changed = (augment(images, 0.3, rngs(600)) != 0).flatten(1).any(1).float().mean()
    # Of gray images brightness and noise alone show: 1 - 0.7 ** 2 = 0.51 of them, but for holes over all of an image.
    assert abs(changed - 0.51) < 0.07


@pytest.mark.parametrize('geometric', (False, True))
def test_gradients_pass(geometric):
    images = pictures(2, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, 0.8, rngs(2), geometric), images)


def test_gray_stays_gray_under_hue_and_saturation(monkeypatch):
    only(monkeypatch, 'hue', 'saturation')
    gray = pictures()[:, :1].expand(-1, 3, -1, -1)
    assert_close(augment(gray, 1., rngs()), gray, 1e-5)
    colored = augment(pictures(), 1., rngs())
    assert_close(colored.mean(1), pictures().mean(1), 1e-5)
    assert not torch.allclose(colored, pictures(), atol=0.1)


def test_a_luma_flip_inverts_the_luminance_and_keeps_the_color(monkeypatch):
    only(monkeypatch, 'luma flip')
    before, after = pictures(100), augment(pictures(100), 1., rngs(100))
    upright = (after - before).abs().flatten(1).amax(1) < 1e-5
    assert 35 < upright.sum() < 65  # half of those to which it happens, as in ADA's own code
    before, after = before[~upright], after[~upright]
    assert_close(after.mean(1), -before.mean(1), 1e-5)
    assert_close(after - after.mean(1, keepdim=True), before - before.mean(1, keepdim=True), 1e-5)


def test_a_shift_moves_whole_pixels_and_mirrors_at_the_edge(monkeypatch):
    only(monkeypatch, 'shift')
    ramp = torch.arange(16.).expand(8, 3, 16, 16)
    moved = augment(ramp, 1., rngs(8))
    offsets = moved[:, 0, 0, 8] - 8
    assert set(offsets.tolist()) <= {-2, -1, 0, 1, 2} and len(set(offsets.tolist())) > 1
    for image, offset in zip(moved, offsets, strict=True):
        places = (torch.arange(16) + offset).abs()
        assert torch.equal(image[0, 0], torch.where(places > 15, 30 - places, places))


def test_geometry_turns_about_the_center(monkeypatch):
    only(monkeypatch, 'turn')
    spot = torch.zeros(4, 3, 17, 17)
    spot[:, :, 8, 8] = 1
    assert_close(augment(spot, 1., rngs(), geometric=True)[:, :, 8, 8], spot[:, :, 8, 8], 1e-4)
    tall = torch.zeros(4, 3, 17, 17)
    tall[:, :, 2:15, 8] = 1
    turned = augment(tall, 1., rngs(), geometric=True)
    assert ((turned > 0.3).any(2).sum(2) > 3).any()  # no longer one column wide
    assert torch.equal(augment(tall, 1., rngs()), tall)  # without geometry


def test_a_hole_is_half_as_wide_as_the_image(monkeypatch):
    only(monkeypatch, 'cutout')
    holes = augment(torch.ones(50, 3, 16, 16), 1., rngs(50)) == 0
    assert holes.flatten(1).sum(1).max() == 3 * 8 * 8
    assert torch.equal(holes[:, :1].expand(-1, 3, -1, -1), holes)


def test_only_differences_count_for_a_loss_of_differences():
    real, fake = torch.tensor([1., 3., -1., 2.]), torch.tensor([0., 1., 2., -1.])
    assert augmentation.sign_of_real(real, fake, relativistic=False).mean() == 0.5
    for shift in (-100, 0, 100):
        assert augmentation.sign_of_real(real + shift, fake + shift, relativistic=True).mean() == 0.5
        assert augmentation.sign_of_real(fake + shift, real + shift, relativistic=True).mean() == -0.5


def test_the_strength_grows_while_real_images_are_known_too_well():
    strength = Strength(target=0.6, images=2560)
    for _ in range(2):
        strength.add(1., 128)
    assert strength.value == pytest.approx(0.1)
    for _ in range(4):
        strength.add(0.5, 64)
    assert strength.value == pytest.approx(0.)
    for _ in range(100):
        strength.add(1., 256)
    assert strength.value == augmentation.MOST_STRENGTH


def test_a_strength_goes_on_where_it_was_saved():
    whole, first, second = (Strength(target=0.6, images=2560) for _ in range(3))
    for strength, signs in ((whole, (1, 0.9, 0.8, 1, 1)), (first, (1, 0.9, 0.8, 1))):
        for sign in signs:
            strength.add(sign, 100)
    second.load_state_dict(first.state_dict())
    second.add(1, 100)
    assert second.state_dict() == whole.state_dict() and whole.value > 0

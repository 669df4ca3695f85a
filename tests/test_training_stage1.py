"""The step of stage 1: what must not change its gradient does not."""
import pytest
import torch
from conftest import assert_close
from tiny_training import check_same, gradients, tiny

from discriminators import VolumeDiscriminator
from model import build_generator
from op.fast import fast_parts
from training import random_numbers, stage1


@pytest.mark.parametrize('more', ('', '--adversarial_loss relativistic'))
@pytest.mark.parametrize('chunk', (1, 2))
def test_chunks_do_not_change_the_gradient_of_stage_1(double, chunk, more):
    opt = tiny('train_volume_renderer', more=more)
    torch.manual_seed(0)
    generator = build_generator(opt, full_pipeline=False, **fast_parts(opt, sparse=False))
    discriminator = VolumeDiscriminator(8, True, 0.02)
    real = torch.randn(4, 3, 8, 8)
    opponents = real if more else None
    for accumulate, module in (
            (lambda fakes, size: stage1.accumulate_discriminator(discriminator, generator, real, fakes, opt, size),
             discriminator),
            (lambda fakes, size: stage1.accumulate_generator(generator, discriminator, fakes, opt, size,
                                                             real=opponents), generator),
            (lambda fakes, size: stage1.accumulate_generator(generator, discriminator, fakes, opt, size, 0.5,
                                                             real=opponents), generator)):
        found = []
        for size in (4, chunk):
            module.zero_grad()
            terms = accumulate(random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), size)
            found.append((terms, gradients(module)))
        check_same(*found)
    assert set(terms) == {'g', 'g_view', 'g_eikonal', 'g_minimal_surface', 'g_sphere', 'surface', 'fog'}


def test_the_surface_is_watched_without_losses_of_its_own():
    """The hold needs it for --sphere_fade and its warning."""
    opt = tiny('train_volume_renderer', more='--min_surf_lambda 0 --eikonal_lambda 0')
    terms = stage1.accumulate_generator(build_generator(opt, full_pipeline=False), VolumeDiscriminator(8, True, 0.02),
                                        random_numbers.draw_fakes(opt, 'g', 0, range(4), 'cpu'), opt, 4)
    assert set(terms) == {'g', 'g_view', 'surface', 'fog'}


def test_the_relativistic_loss_compares_each_fake_with_a_photo(double):
    """R3GAN's loss and both penalties, against the formulas on whole batches."""
    opt = tiny('train_volume_renderer', more='--adversarial_loss relativistic --r1 3 --view_lambda 0')
    torch.manual_seed(0)
    generator, discriminator = build_generator(opt, full_pipeline=False), VolumeDiscriminator(8, False, 0.02)
    torch.nn.init.constant_(discriminator.final_conv.conv.bias, 5.)  # all scores are positive, which says nothing
    real = torch.randn(4, 3, 8, 8)

    def fakes():
        return random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu')

    terms = stage1.accumulate_discriminator(discriminator, generator, real, fakes(), opt, 2)
    inputs = fakes()
    thumbnails = generator(inputs.z, inputs.cameras, rng=inputs.rngs).rendering.thumbnail.detach().requires_grad_()
    (real_logits, _), (fake_logits, _) = discriminator(real.requires_grad_()), discriminator(thumbnails)
    penalties = [1.5 * torch.autograd.grad(logits.sum(), images, retain_graph=True)[0].square().sum() / 4
                 for logits, images in ((real_logits, real), (fake_logits, thumbnails))]
    assert_close(terms['d'], (1 + (fake_logits - real_logits).exp()).log().mean())
    assert_close(torch.stack([terms['r1'], terms['r2']]), torch.stack(penalties))
    assert_close(terms['real_sign'], (real_logits - fake_logits).sign().mean())
    terms = stage1.accumulate_generator(generator, discriminator, fakes(), opt, 2, real=real)
    assert_close(terms['g'], (1 + (real_logits - fake_logits).exp()).log().mean())


def test_a_flat_surface_comes_to_stand_out():
    opt = tiny('train_volume_renderer', more='--relief_lambda 1 --sphere_radius 0.09')
    torch.manual_seed(0)
    generator = build_generator(opt, full_pipeline=False)
    discriminator = VolumeDiscriminator(8, True, 0.02)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    found = []
    for step in range(30):
        fakes = random_numbers.draw_fakes(opt, 'g', step, range(4), 'cpu')
        terms = stage1.accumulate_generator(generator, discriminator, fakes, opt, 4)
        found.append(terms['g_relief'].item())
        optimizer.step()
        optimizer.zero_grad()
    assert found[0] > 0.6 and found[-1] < 0.7 * found[0], found


def test_a_surface_on_the_far_plane_is_pushed_off_it():
    opt = tiny('train_volume_renderer', more='--far_lambda 100 --min_surf_lambda 0')
    torch.manual_seed(0)
    generator = build_generator(opt, full_pipeline=False)
    discriminator = VolumeDiscriminator(8, True, 0.02)
    with torch.no_grad():
        generator.renderer.network.sigma_linear.bias.fill_(-0.02)
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
    found = []
    for step in range(12):
        fakes = random_numbers.draw_fakes(opt, 'g', step, range(4), 'cpu')
        terms = stage1.accumulate_generator(generator, discriminator, fakes, opt, 4)
        assert 'g_minimal_surface' not in terms
        found.append(terms['g_far'].item())
        optimizer.step()
        optimizer.zero_grad()
    assert found[0] > 0 and found[-1] < 0.5 * found[0]

"""The step of stage 2: what must not change its gradient does not."""
import pytest
import torch
from conftest import assert_close
from tiny_training import check_same, gradients, tiny, tiny_generator

import losses
from discriminators import Discriminator, minibatch_stddev
from training import processes, random_numbers, stage2


@pytest.mark.parametrize('more', ('', '--adversarial_loss relativistic'))
@pytest.mark.parametrize(('batch', 'chunk'), ((4, 1), (4, 2), (8, 2), (8, 4), (6, 3)))
def test_chunks_do_not_change_the_gradient_of_stage_2(double, batch, chunk, more):
    opt = tiny('train_full_pipeline', batch, more)
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4, torch.get_default_dtype())
    real, directions = torch.randn(batch, 3, 16, 16), torch.randn(batch, 3, 16, 16)
    rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'd', 0, range(batch), 'cpu'), switch=2)
    alone = processes.Processes('cpu')
    for accumulate, module in (
            (lambda size: stage2.accumulate_discriminator(discriminator, generator, real, rendered, opt, size, True),
             discriminator),
            (lambda size: stage2.accumulate_generator(generator, discriminator, rendered, size,
                                                      real=real if more else None), generator),
            (lambda size: stage2.accumulate_path_length(generator, rendered, directions, torch.tensor(0.3), opt, size,
                                                        alone)[0], generator)):
        found = []
        for size in (batch, chunk):
            module.zero_grad()
            found.append((accumulate(size), gradients(module)))
        check_same(*found)
    assert all(parameter.grad is None for name, parameter in generator.named_parameters()
               if not name.startswith('decoder.'))


def test_the_relativistic_loss_compares_each_fake_with_a_photo(double):
    """R3GAN's loss and both penalties, against the formulas on whole batches."""
    opt = tiny('train_full_pipeline', 4, '--adversarial_loss relativistic --r1 3 --d_reg_every 1')
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 4, torch.get_default_dtype())
    real = torch.randn(4, 3, 16, 16)
    rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), switch=2)
    terms = stage2.accumulate_discriminator(discriminator, generator, real, rendered, opt, 4, True)
    fakes = stage2.decode(generator, rendered)[0].detach().requires_grad_()
    real_logits, fake_logits = stage2.judge(discriminator, real.requires_grad_()), stage2.judge(discriminator, fakes)
    penalties = [1.5 * torch.autograd.grad(logits.sum(), images, retain_graph=True)[0].square().sum() / 4
                 for logits, images in ((real_logits, real), (fake_logits, fakes))]
    assert_close(terms['d'], (1 + (fake_logits - real_logits).exp()).log().mean())
    assert_close(torch.stack([terms['r1'], terms['r2']]), torch.stack(penalties))
    assert_close(terms['real_sign'], (real_logits - fake_logits).sign().mean())
    terms = stage2.accumulate_generator(generator, discriminator, rendered, 4, real=real)
    assert_close(terms['g'], (1 + (real_logits - fake_logits).exp()).log().mean())


def test_half_precision_learns_the_same():
    opt, found = tiny('train_full_pipeline'), []
    generator, discriminator = tiny_generator(opt), Discriminator(16, 1, 8)
    real = torch.randn(4, 3, 16, 16)
    for precision in (torch.float32, torch.bfloat16):
        generator.decoder.dtype = discriminator.dtype = precision
        rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'd', 0, range(4), 'cpu'), switch=2)
        for module in (generator, discriminator):
            module.zero_grad()
        stage2.accumulate_discriminator(discriminator, generator, real, rendered, opt, 4, True)
        stage2.accumulate_generator(generator, discriminator, rendered, 4)
        found.append([torch.cat([gradient.flatten() for gradient in gradients(module).values()])
                      for module in (generator, discriminator)])
    for full, half in zip(*found, strict=True):
        assert half.isfinite().all() and not torch.equal(full, half)
        assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.99


def test_the_chunked_path_penalty_is_the_plain_one(double):
    opt = tiny('train_full_pipeline')
    generator = tiny_generator(opt)
    rendered = stage2.render(generator, random_numbers.draw_fakes(opt, 'path', 0, range(4), 'cpu'), None)
    directions = torch.randn(4, 3, 16, 16)
    mean = torch.tensor(0.3)
    stage2.accumulate_path_length(generator, rendered, directions, mean, opt, 2, processes.Processes('cpu'))
    accumulated = gradients(generator)
    generator.zero_grad()
    images, latents = stage2.decode(generator, rendered)
    penalty, _ = losses.path_length_penalty(losses.path_lengths(images, latents, directions), mean)
    (opt.training.path_regularize * opt.training.g_reg_every * penalty).backward()
    for name, gradient in gradients(generator).items():
        if name in accumulated or gradient.abs().max() > 0:
            assert_close(accumulated[name], gradient, 1e-9, name)


def test_the_discriminator_compares_consecutive_images(double):
    torch.manual_seed(0)
    discriminator, images = Discriminator(16, 1, 4), torch.randn(8, 3, 16, 16)
    separately = torch.cat([discriminator(images[:4]), discriminator(images[4:])])
    assert_close(stage2.judge(discriminator, images).flatten().sort()[0], separately.flatten().sort()[0], 1e-12)
    features = torch.randn(6, 2, 4, 4)
    assert minibatch_stddev(features)[:, -1].unique().numel() == 2  # groups of three


def test_lazy_regularization_corrects_rate_and_decay():
    lr, betas = stage2.lazy(4, 0.002)
    assert (lr, betas) == (0.002 * 0.8, (0., 0.99 ** 0.8))
    assert stage2.lazy(0, 0.002) == (0.002, (0., 0.99))

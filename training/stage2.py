"""A step of stage 2: the gradients of the images' discriminator and of the decoder above a frozen renderer.

The losses are those of StyleGAN2, as StyleSDF uses them for its decoder; losses.py has their formulas.
"""
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
import losses
from discriminators import stddev_group
from options import replaced
from training.augmentation import sign_of_real, unchanged
from training.gradients import Terms, backward_in_chunks, chunks, frozen
from training.projected import ProjectedDiscriminator, beside
from training.resuming import OWN_FLAGS, check_size
from utils import UserError

BETAS = (0., 0.99)


class Rendered(NamedTuple):
    """What the decoder makes a batch of images from: all of it without gradients."""
    w: list             # (B,style_dim), or two of them for style mixing
    switch: int         # the layer from which on the second w counts, or None
    features: Tensor    # (B,C,h,w)
    thumbnails: Tensor  # (B,3,h,w)
    noise: list         # (B,1,h,w) for each layer
    rngs: list          # B random generators, for augmentation

    def select(self, indices):
        """The same for a slice of the batch."""
        return Rendered(w=[w[indices] for w in self.w], switch=self.switch, features=self.features[indices],
                        thumbnails=self.thumbnails[indices], noise=[noise[indices] for noise in self.noise],
                        rngs=self.rngs[indices])


@torch.no_grad()
def render(generator, fakes, switch):
    """The frozen half of the generator, for a whole batch: its memory does not grow with the rays."""
    w = [generator.map(z) for z in ((fakes.z,) if switch is None else (fakes.z, fakes.second))]
    rendering = generator.render(w[0], fakes.cameras, rng=fakes.rngs)
    noise = generator.decoder.random_noise(len(fakes.z), fakes.rngs)
    return Rendered(w=w, switch=switch, features=rendering.features, thumbnails=rendering.thumbnail, noise=noise,
                    rngs=fakes.rngs)


def decode(generator, rendered):
    """Images (B,3,size,size) and the decoder's w' (B,L,2*style_dim)."""
    w_prime = generator.decoder.map(rendered.w, switch=rendered.switch)
    return generator.decoder(rendered.features, w_prime, rendered.noise), w_prime


# The discriminator compares images with each other (minibatch_stddev), so how they are grouped changes its gradient.
# Here a group is always consecutive images of the batch, and the discriminator sees whole groups: then --chunk changes
# nothing, nor does the number of processes where each holds whole groups of the same size (--batch a multiple of 4).

def group_chunks(batch, chunk):
    """Slices of a batch for the discriminator. Each holds whole groups of images that are compared with each other, and
    at most `chunk` images (or one group, if that is larger)."""
    group = stddev_group(batch)
    size = max(size for size in range(group, batch + 1, group) if batch % size == 0 and size <= max(chunk, group))
    return chunks(0, batch, size)


def judge(discriminator, images):
    """Logits (B,1), in another order, of images compared in groups of consecutive ones.

    A projected discriminator compares no images, and gives several logits an image.
    """
    if isinstance(discriminator, ProjectedDiscriminator):
        return discriminator(images)
    return discriminator(images.unflatten(0, (-1, stddev_group(len(images)))).transpose(0, 1).flatten(0, 1))


def adversarial_losses(discriminator):
    """(the discriminator's loss of real images, or of fakes with their logits negated; the generator's loss)."""
    if isinstance(discriminator, ProjectedDiscriminator):
        return losses.hinge_loss, losses.mean_score_loss
    return losses.nonsaturating_loss, losses.nonsaturating_loss


def accumulate_discriminator(discriminator, generator, real, rendered, opt, chunk, regularize,
                             augmentation=unchanged):
    """Add the gradient of the discriminator's loss, with R1 where `regularize`, to its parameters.

    real: images (B,3,size,size); rendered: what B fakes are decoded from; augmentation: of both. With the relativistic
    loss R2 comes beside R1. A projected discriminator (see `beside`) learns too. Returns the weighted terms of the loss
    and the mean scores.
    """
    terms, (loss_of, _), projected = Terms(), adversarial_losses(discriminator), beside(discriminator)
    relativistic = opt.training.adversarial_loss == 'relativistic'
    r1 = opt.training.r1 / 2 * opt.training.d_reg_every

    def accumulate(scale, *parts, **scores):
        (scale * sum(term for part in parts for term in part.values())).backward()
        for part in (*parts, scores):
            terms.add(scale, **part)

    for indices in group_chunks(len(real), chunk):
        scale = (indices.stop - indices.start) / len(real)
        images = augmentation(real[indices], rendered.rngs[indices]).requires_grad_(regularize)
        logits = judge(discriminator, images)
        of_real = {} if relativistic else {'d': loss_of(logits)}
        if regularize:
            of_real['r1'] = r1 * losses.r1_penalty(logits, images)
        if projected:
            of_real['d_projected'] = losses.hinge_loss(projected(images.detach()))
        if not relativistic:  # the graph of one half of logistic_loss is gone before the other's is made
            accumulate(scale, of_real)

        with torch.no_grad():
            fakes = torch.cat([decode(generator, rendered.select(chunk_indices))[0]
                               for chunk_indices in chunks(indices.start, indices.stop, chunk)])
        fakes = augmentation(fakes, rendered.rngs[indices]).requires_grad_(regularize and relativistic)
        fake_logits = judge(discriminator, fakes)
        of_fakes = {'d': losses.relativistic_loss(logits, fake_logits) if relativistic else loss_of(-fake_logits)}
        if regularize and relativistic:
            of_fakes['r2'] = r1 * losses.r1_penalty(fake_logits, fakes)
        if projected:
            of_fakes['d_projected'] = losses.hinge_loss(-projected(fakes.detach()))
        accumulate(scale, *[of_real] * relativistic, of_fakes, real_score=logits, fake_score=fake_logits,
                   real_sign=sign_of_real(logits, fake_logits, relativistic))
    return terms


def accumulate_generator(generator, discriminator, rendered, chunk, thumbnail_lambda=0., augmentation=unchanged,
                         projected_lambda=0., real=None):
    """Add the gradient of the generator's loss to the decoder's parameters. Returns the weighted terms of the loss.

    projected_lambda: the weight of a projected discriminator beside the other. real: images (B,3,size,size) with which
    the relativistic loss compares the fakes; without them the loss is the non-saturating one.
    """
    batch, terms, (_, adversarial_loss) = len(rendered.features), Terms(), adversarial_losses(discriminator)
    projected = beside(discriminator)

    def images_of(indices):
        return decode(generator, rendered.select(indices))[0]

    with frozen(discriminator):
        for indices in group_chunks(batch, chunk):
            scale, inputs = (indices.stop - indices.start) / batch, rendered.select(indices)
            opponents = None if real is None else real[indices]

            def loss_of(fakes, scale=scale, inputs=inputs, opponents=opponents):
                seen = augmentation(fakes, inputs.rngs)
                logits = judge(discriminator, seen)
                if opponents is None:
                    loss = {'g': adversarial_loss(logits)}
                else:
                    with torch.no_grad():
                        opposed = judge(discriminator, augmentation(opponents, inputs.rngs))
                    loss = {'g': losses.relativistic_loss(logits, opposed)}
                if projected:
                    loss['g_projected'] = projected_lambda * losses.mean_score_loss(projected(seen))
                if thumbnail_lambda > 0:
                    loss['g_thumbnail'] = thumbnail_lambda * losses.thumbnail_loss(fakes, inputs.thumbnails)
                return scale * sum(loss.values()), loss

            terms.add(scale, **backward_in_chunks(images_of, chunks(indices.start, indices.stop, chunk), loss_of))
    return terms


def accumulate_path_length(generator, rendered, directions, mean, opt, chunk, processes):
    """Add the gradient of the path length penalty, averaged over all processes' images, to the decoder's parameters.

    directions: (B,3,size,size) from N(0, I); mean: the running mean of lengths. Returns the weighted penalty and the
    mean length, and the new running mean.
    """
    weight = opt.training.path_regularize * opt.training.g_reg_every

    def lengths_of(indices):
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            images, w_prime = decode(generator, rendered.select(indices))
            return losses.path_lengths(images, w_prime, directions[indices], create_graph=differentiable)

    def loss_of(own_lengths):
        all_lengths = processes.gather(own_lengths)
        penalty, new_mean = losses.path_length_penalty(all_lengths, mean)
        loss = processes.size * weight * penalty  # the update averages over the processes what is a sum here
        return loss, ({'path': loss.detach() / processes.size, 'path_length': all_lengths.detach().mean()}, new_mean)

    return backward_in_chunks(lengths_of, chunks(0, len(directions), chunk), loss_of)


def find_renderer(opt, processes):
    """Stage 1's result, which --renderer_ckpt or else --expname names: (path, state dict, option tree that fits it).

    The first process reads it for all.
    """
    path, state, found = processes.share(lambda: _read_renderer(opt))
    own = {name: checkpoint.flags_of(opt)[name] for name in OWN_FLAGS}
    return path, state, replaced(found, **own)


def _read_renderer(opt):
    path = opt.training.renderer_ckpt or checkpoint.renderer_path(opt.experiment.expname)
    if not opt.training.renderer_ckpt and not Path(path).is_file():
        newest = next(iter(checkpoint.iteration_paths(opt, 'volume_renderer').values()), None)
        raise UserError(f'no stage-1 result {path}; train it with train_volume_renderer.py, or name one with '
                        f'--renderer_ckpt' + (f' (its newest checkpoint so far is {newest}).' if newest else '.'))
    saved = checkpoint.read(path)
    state = checkpoint.without_decoder(saved['g_ema'])
    opt = checkpoint.reconcile(opt, saved | {'g_ema': state}, path)
    check_size(opt)
    return path, state, opt


def lazy(every, lr):
    """(lr, betas) of an optimizer that also takes a regularizer's step every so often (StyleGAN2, appendix B)."""
    ratio = every / (every + 1) if every else 1
    return lr * ratio, tuple(beta ** ratio for beta in BETAS)

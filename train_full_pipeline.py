"""Stage 2: train the decoder on the frozen renderer's features (StyleSDF, section on training; StyleGAN2).

    python train_full_pipeline.py --expname cats --dataset_path datasets/cats --size 256
    torchrun --nproc_per_node 4 train_full_pipeline.py …

Starts from stage 1's pretrained_renderer/EXPNAME_vol_renderer.pt (or --renderer_ckpt). Writes checkpoints, samples and
logs under CHECKPOINTS_DIR/EXPNAME/full_pipeline, and at the end full_models/EXPNAME.pt, which generation takes.
"""
import interrupts  # noqa: F401

from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
import losses
import options
from model import PRECISIONS, Discriminator, build_generator, stddev_group
from training.augmentation import Augmentation, unchanged
from training.gradients import Terms, backward_in_chunks, chunks, frozen
from training.processes import Processes
from training.random_numbers import image_rngs
from training.resuming import find_start
from training.run import Run, adam
from training.state import State
from utils import UserError, run_command
from volume_renderer import draw

STAGE = 'full_pipeline'
BETAS = (0., 0.99)


class Rendered(NamedTuple):
    """What the decoder makes a batch of images from: all of it without gradients."""
    w: list             # (B,style_dim), or two of them for style mixing
    switch: int         # the layer from which on the second counts, or None
    features: Tensor    # (B,C,h,w)
    thumbnails: Tensor  # (B,3,h,w)
    noise: list         # (B,1,h,w) for each layer
    rngs: list          # B random generators, for augmentation

    def part(self, index):
        """The same of a slice of the batch."""
        return Rendered([w[index] for w in self.w], self.switch, self.features[index],
                        self.thumbnails[index], [noise[index] for noise in self.noise], self.rngs[index])


@torch.no_grad()
def render(generator, fakes, switch, dense=False):
    """The frozen half of the generator, for a whole batch: its memory does not grow with the rays.

    dense: see Generator.render.
    """
    w = [generator.map(z) for z in ((fakes.z,) if switch is None else (fakes.z, fakes.second))]
    view = generator.render(w[0], fakes.cameras, dense=dense, rng=fakes.rngs)
    noise = generator.decoder.random_noise(len(fakes.z), fakes.rngs)
    return Rendered(w, switch, view.features, view.thumbnail, noise, fakes.rngs)


def decode(generator, rendered):
    """Images (B,3,size,size) and the decoder's latents (B,L,2*style_dim)."""
    latents = generator.decoder.latents(rendered.w, switch=rendered.switch)
    return generator.decoder(rendered.features, latents, rendered.noise), latents


def mixing(opt, purpose, step, layers):
    """Style mixing (probability --mixing): the layer, 1 .. layers - 1, where the second latent takes over, or None."""
    random, = image_rngs(opt.experiment.seed, f'{purpose} mixing', step, [0], 'cpu')
    mixed = torch.rand((), generator=random) < opt.training.mixing
    return int(torch.randint(1, layers, (), generator=random)) if mixed else None


# The discriminator compares images with each other (minibatch_stddev), so how they are grouped changes its gradient.
# Here a group is always consecutive images of the batch, and the discriminator sees whole groups: then --chunk changes
# nothing, nor does the number of processes where each holds whole groups of the same size (--batch a multiple of 4).

def discriminator_parts(batch, chunk):
    """Slices of a batch for the discriminator: whole groups, no more than --chunk unless a group is."""
    group = stddev_group(batch)
    size = max(size for size in range(group, batch + 1, group) if batch % size == 0 and size <= max(chunk, group))
    return chunks(0, batch, size)


def judge(discriminator, images):
    """Logits (B,1), in another order, of images compared in groups of consecutive ones."""
    return discriminator(images.unflatten(0, (-1, stddev_group(len(images)))).transpose(0, 1).flatten(0, 1))


def accumulate_discriminator(discriminator, generator, real, rendered, opt, chunk, regularize,
                             augmentation=unchanged):
    """Add the gradient of the discriminator's loss, with R1 where `regularize`, to its parameters.

    real: images (B,3,size,size); rendered: B fakes; augmentation: of both. Returns the weighted terms of the loss and
    the mean scores.
    """
    terms = Terms()

    def accumulate(scale, loss, **scores):
        (scale * sum(loss.values())).backward()
        terms.add(scale, **loss, **scores)

    # The two halves of logistic_loss one after the other: the graph of one is gone before the other's is made.
    for part in discriminator_parts(len(real), chunk):
        images = augmentation(real[part], rendered.rngs[part]).requires_grad_(regularize)
        scale = len(images) / len(real)
        logits = judge(discriminator, images)
        loss = {'d': losses.nonsaturating_loss(logits)}
        if regularize:
            loss['r1'] = opt.training.r1 / 2 * opt.training.d_reg_every * losses.r1_penalty(logits, images)
        accumulate(scale, loss, real_score=logits, real_sign=logits.sign())

        with torch.no_grad():
            fakes = torch.cat([decode(generator, rendered.part(piece))[0]
                               for piece in chunks(part.start, part.stop, chunk)])
        logits = judge(discriminator, augmentation(fakes, rendered.rngs[part]))
        accumulate(scale, {'d': losses.nonsaturating_loss(-logits)}, fake_score=logits)
    return terms


def accumulate_generator(generator, discriminator, rendered, chunk, thumbnail_lambda=0., augmentation=unchanged):
    """Add the gradient of the generator's loss to the decoder's parameters. Returns the weighted terms of the loss."""
    batch, terms = len(rendered.features), Terms()

    def images(part):
        return decode(generator, rendered.part(part))[0]

    with frozen(discriminator):
        for part in discriminator_parts(batch, chunk):
            def loss(fakes, part=part):
                seen = augmentation(fakes, rendered.rngs[part])
                loss = {'g': losses.nonsaturating_loss(judge(discriminator, seen))}
                if thumbnail_lambda > 0:
                    loss['g_thumbnail'] = thumbnail_lambda * losses.thumbnail_loss(fakes, rendered.thumbnails[part])
                terms.add(len(fakes) / batch, **loss)
                return len(fakes) / batch * sum(loss.values())

            backward_in_chunks(images, chunks(part.start, part.stop, chunk), loss)
    return terms


def accumulate_path_length(generator, rendered, directions, mean, opt, chunk, processes):
    """Add the gradient of the path length penalty, averaged over all processes' images, to the decoder's parameters.

    directions: (B,3,size,size) from N(0, I); mean: the running mean of lengths. Returns the weighted penalty and the
    mean length, and the new running mean.
    """
    weight = opt.training.path_regularize * opt.training.g_reg_every
    means = []

    def lengths(part):
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            images, latents = decode(generator, rendered.part(part))
            return losses.path_lengths(images, latents, directions[part], create_graph=differentiable)

    def loss(own_lengths):
        everyones = processes.gather(own_lengths)
        penalty, new_mean = losses.path_length_penalty(everyones, mean)
        means.extend([new_mean, everyones.detach().mean()])
        return processes.size * weight * penalty  # the update averages over the processes what is a sum here

    penalty = backward_in_chunks(lengths, chunks(0, len(directions), chunk), loss)
    new_mean, length = means
    return {'path': penalty / processes.size, 'path_length': length}, new_mean


def renderer_flags(opt):
    """The flags that stage 1 settled: its result says what they are."""
    return *opt.camera, *opt.rendering, 'renderer_spatial_output_dim'


def find_renderer(opt):
    """(path, state dict, option tree with its settings) of stage 1's result: --renderer_ckpt, else by --expname."""
    path = opt.training.renderer_ckpt or checkpoint.renderer_path(opt.experiment.expname)
    if not opt.training.renderer_ckpt and not path.is_file():
        begun = next(iter(checkpoint.iteration_paths(opt, 'volume_renderer').values()), None)
        raise UserError(f'no stage-1 result {path}; train it with train_volume_renderer.py, or name one with '
                        f'--renderer_ckpt' + (f' (its newest checkpoint so far is {begun}).' if begun else '.'))
    saved = checkpoint.read(path)
    state = {name: tensor for name, tensor in saved['g_ema'].items() if not name.startswith('decoder.')}
    opt = checkpoint.adopt_options(opt, saved, path, renderer_flags(opt))
    opt = checkpoint.fit_options(opt, state, path)
    if opt.model.size < opt.model.renderer_spatial_output_dim:
        raise UserError(f"--size {opt.model.size} is less than the side of the renderer's thumbnails "
                        f'(--renderer_spatial_output_dim {opt.model.renderer_spatial_output_dim}); give a larger one.')
    return path, state, opt


def lazy(every, lr):
    """(lr, betas) of an optimizer that also takes a regularizer's step every so often (StyleGAN2, appendix B)."""
    ratio = every / (every + 1) if every else 1
    return lr * ratio, tuple(beta ** ratio for beta in BETAS)


def main():
    opt = options.parse('train_full_pipeline', __doc__)
    with Processes(opt.machine.device) as processes:
        start, opt = find_start(opt, STAGE, renderer_flags(opt))
        if not start.path:
            renderer_path, renderer_state, opt = find_renderer(opt)
        run = Run(opt, STAGE, processes, checkpoint.final_model_path(opt.experiment.expname))
        generator = build_generator(opt)
        if not start.path:
            checkpoint.load_state(generator, {**generator.state_dict(), **renderer_state}, renderer_path)
        generator = generator.to(run.device).requires_grad_(False)
        generator.decoder.requires_grad_(True)
        discriminator = Discriminator(opt.model.size, opt.model.channel_multiplier, opt.model.channel_max,
                                      PRECISIONS[opt.machine.precision]).to(run.device)
        g_optim = adam(generator.decoder.parameters(), *lazy(opt.training.g_reg_every, opt.training.lr))
        d_optim = adam(discriminator.parameters(), *lazy(opt.training.d_reg_every, opt.training.lr))
        augmentation = Augmentation(opt, geometric=True)
        state = State(generator, discriminator, g_optim, d_optim, augmentation=augmentation)
        layers, dense = generator.decoder.num_latents, opt.inference.dense
        path_batch = max(1, opt.training.batch // opt.training.path_batch_shrink)

        with run.begin(state, start):
            for real in run.steps():
                step = state.iteration
                switch = mixing(opt, 'discriminator', step, layers)
                rendered = render(generator, run.draw('discriminator'), switch, dense)
                terms = accumulate_discriminator(discriminator, generator, real, rendered, opt, run.chunk,
                                                 step % opt.training.d_reg_every == 0, augmentation)
                run.update('d', d_optim, terms)
                augmentation.learn(run)

                switch = mixing(opt, 'generator', step, layers)
                rendered = render(generator, run.draw('generator'), switch, dense)
                run.update('g', g_optim, accumulate_generator(generator, discriminator, rendered, run.chunk,
                                                              opt.training.thumbnail_lambda, augmentation))

                if opt.training.g_reg_every and step % opt.training.g_reg_every == 0:
                    fakes = run.draw('path', path_batch)
                    rendered = render(generator, fakes, mixing(opt, 'path', step, layers), dense)
                    directions = draw(torch.randn, real[:path_batch].shape, fakes.rngs, device=run.device)
                    terms, state.path_mean = accumulate_path_length(generator, rendered, directions, state.path_mean,
                                                                    opt, run.chunk, processes)
                    run.update('path', g_optim, terms)


if __name__ == '__main__':
    run_command(main)

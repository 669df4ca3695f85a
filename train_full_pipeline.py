"""Stage 2: train the decoder on the frozen renderer's features (StyleSDF, section on training; StyleGAN2).

    python train_full_pipeline.py --expname cats --dataset_path datasets/cats --size 256
    torchrun --standalone --nproc_per_node 4 train_full_pipeline.py …

Starts from stage 1's pretrained_renderer/EXPNAME_vol_renderer.pt (or --renderer_ckpt). Writes checkpoints, samples and
logs under CHECKPOINTS_DIR/EXPNAME/full_pipeline, and at the end full_models/EXPNAME.pt, which generation takes.
"""
import options

if __name__ == '__main__':
    options.run('train_full_pipeline', __doc__)  # reads the flags, imports this file as a module, calls main(opt)

import torch

import checkpoint
from dataset import ImageDataset
from discriminators import Discriminator
from model import PRECISIONS, build_generator
from op.fast import fast_parts
from training.augmentation import Augmentation
from training.gradients import opponents
from training.processes import Processes
from training.projected import projected_discriminator
from training.random_numbers import draw_directions
from training.resuming import find_start, path_batch
from training.run import Run, adam
from training.stage2 import (
    accumulate_discriminator,
    accumulate_generator,
    accumulate_path_length,
    find_renderer,
    lazy,
    render,
)
from training.state import State
from utils import UserError

STAGE = 'full_pipeline'


def main(opt):
    with Processes(opt.machine.device) as processes:
        start, opt = find_start(opt, STAGE, processes)
        if not start.path:
            renderer_path, renderer_state, opt = find_renderer(opt, processes)
        size, training, alone = opt.model.size, opt.training, opt.training.discriminator == 'projected'
        if alone and training.adversarial_loss == 'relativistic':
            raise UserError('--adversarial_loss relativistic: the projected discriminator has a loss of its own; leave '
                            'this flag out, or take --discriminator both.')
        images = ImageDataset(opt.dataset.dataset_path, size)

        torch.manual_seed(opt.experiment.seed)
        generator = build_generator(opt, **fast_parts(opt))
        if not start.path:
            checkpoint.load_state(generator, {**generator.state_dict(), **renderer_state}, renderer_path)
        generator = generator.to(processes.device).requires_grad_(False)
        generator.decoder.requires_grad_(True)
        augmentation = Augmentation(opt, geometric=True)
        controls = {'augmentation': augmentation}
        projected = None
        if training.discriminator != 'stylegan2':
            projected, controls['features'] = projected_discriminator(opt, images, size, processes.device)
        if alone:
            discriminator = projected
        else:
            discriminator = Discriminator(size, opt.model.channel_multiplier, opt.model.channel_max,
                                          PRECISIONS[opt.machine.precision]).to(processes.device)
            discriminator.projected = projected
        g_optim = adam(generator.decoder.parameters(), *lazy(training.g_reg_every, training.lr))
        d_optim = adam(discriminator.parameters(), *lazy(0 if alone else training.d_reg_every, training.lr))
        state = State(generator, discriminator, g_optim, d_optim, ema_rampup=training.ema_rampup, **controls)
        final = checkpoint.final_model_path(opt.experiment.expname)

        with Run(opt, STAGE, processes, images, state, start, final) as run:
            for real in run.steps():
                step = state.iteration
                rendered = render(generator, run.draw('discriminator'), run.draw_mixing('discriminator'))
                if projected:
                    projected.renormalize()
                regularize = not alone and step % training.d_reg_every == 0
                terms = accumulate_discriminator(discriminator, generator, real, rendered, opt, run.chunk, regularize,
                                                 augmentation)
                augmentation.learn(run, run.update('d', d_optim, terms))

                rendered = render(generator, run.draw('generator'), run.draw_mixing('generator'))
                fade = max(0., 1 - step / training.thumbnail_until) if training.thumbnail_until else 1.
                terms = accumulate_generator(generator, discriminator, rendered, run.chunk,
                                             training.thumbnail_lambda * fade, augmentation,
                                             training.projected_lambda, opponents(opt, real))
                run.update('g', g_optim, terms)

                if training.g_reg_every and step % training.g_reg_every == 0:
                    fakes = run.draw('path', path_batch(opt))
                    rendered = render(generator, fakes, run.draw_mixing('path'))
                    directions = draw_directions(fakes, size, run.device)
                    terms, state.path_mean = accumulate_path_length(generator, rendered, directions, state.path_mean,
                                                                    opt, run.chunk, processes)
                    run.update('path', g_optim, terms)

                state.update_ema()

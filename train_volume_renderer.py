"""Stage 1: train the mapping and the volume renderer on thumbnails (StyleSDF, section on training).

    python train_volume_renderer.py --expname cats --dataset_path datasets/cats --size 256 --azim 0.15
    torchrun --standalone --nproc_per_node 4 train_volume_renderer.py …

Writes checkpoints, samples and logs under CHECKPOINTS_DIR/EXPNAME/volume_renderer, and at the end
pretrained_renderer/EXPNAME_vol_renderer.pt, from which stage 2 (train_full_pipeline.py) starts.
"""
import options

if __name__ == '__main__':
    options.run('train_volume_renderer', __doc__)  # reads the flags, imports this file as a module, calls main(opt)

import torch

import checkpoint
from dataset import ImageDataset
from discriminators import VolumeDiscriminator
from model import build_generator
from op.fast import fast_parts
from training.augmentation import Augmentation
from training.gradients import opponents
from training.hold import Hold
from training.processes import Processes
from training.projected import projected_discriminator
from training.resuming import find_start
from training.run import Run, adam
from training.stage1 import (
    BETAS,
    accumulate_discriminator,
    accumulate_generator,
    initialize_beta,
    initialize_sphere,
)
from training.state import State

STAGE = 'volume_renderer'


def main(opt):
    with Processes(opt.machine.device) as processes:
        start, opt = find_start(opt, STAGE, processes)
        rays, training = opt.model.renderer_spatial_output_dim, opt.training
        images = ImageDataset(opt.dataset.dataset_path, opt.model.size, thumbnail_size=rays)

        torch.manual_seed(opt.experiment.seed)
        generator = build_generator(opt, full_pipeline=False, **fast_parts(opt, sparse=False)).to(processes.device)
        discriminator = VolumeDiscriminator(rays, training.view_lambda > 0,
                                            opt.model.discriminator_width).to(processes.device)
        augmentation, hold = Augmentation(opt, geometric=False), Hold(opt)
        controls = {'augmentation': augmentation, 'hold': hold}
        if training.discriminator != 'stylegan2':
            discriminator.projected, controls['features'] = projected_discriminator(opt, images, rays, processes.device)
        g_optim = adam(generator.parameters(), training.lr_g, BETAS)
        d_optim = adam(discriminator.parameters(), training.lr_d, BETAS)
        state = State(generator, discriminator, g_optim, d_optim, ema_rampup=training.ema_rampup, **controls)
        final = checkpoint.renderer_path(opt.experiment.expname)

        with Run(opt, STAGE, processes, images, state, start, final) as run:
            has_sdf, begins = not opt.rendering.no_sdf, not start.path
            if has_sdf and (begins or ('initial_beta' in opt.given and not start.resumed)):
                initialize_beta(state, training.initial_beta)
            if has_sdf and begins and not training.no_sphere_init:
                initialize_sphere(run, opt)

            for real in run.steps():
                fakes = run.draw('discriminator')
                terms = accumulate_discriminator(discriminator, generator, real, fakes, opt, run.chunk, augmentation,
                                                 regularize=state.iteration % training.r1_every == 0)
                augmentation.learn(run, run.update('d', d_optim, terms))

                fakes = run.draw('generator')
                terms = accumulate_generator(generator, discriminator, fakes, opt, run.chunk,
                                             hold.weight(state.iteration), augmentation, opponents(opt, real))
                hold.learn(run, run.update('g', g_optim, terms))

                state.update_ema()

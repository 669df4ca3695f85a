"""Stage 1: train the mapping and the volume renderer on thumbnails (StyleSDF, section on training).

    python train_volume_renderer.py --expname cats --dataset_path datasets/cats --size 256 --azim 0.15
    torchrun --nproc_per_node 4 train_volume_renderer.py …

Writes checkpoints, samples and logs under CHECKPOINTS_DIR/EXPNAME/volume_renderer, and at the end
pretrained_renderer/EXPNAME_vol_renderer.pt, from which stage 2 (train_full_pipeline.py) starts.
"""
import interrupts  # noqa: F401

import torch

import checkpoint
import losses
import options
from model import VolumeDiscriminator, build_generator
from training.augmentation import Augmentation, unchanged
from training.gradients import Terms, chunks, frozen
from training.hold import Hold, silhouette
from training.processes import Processes
from training.random_numbers import draw_fakes
from training.resuming import check_options, find_start
from training.run import Run, adam
from training.state import State
from utils import run_command

STAGE = 'volume_renderer'
BETAS = (0., 0.9)
SPHERE_BATCH = 3


def accumulate_discriminator(discriminator, generator, real, fakes, opt, chunk, augmentation=unchanged):
    """Add the gradient of the discriminator's loss to its parameters.

    real: thumbnails (B,3,H,H); fakes: B Fakes; augmentation: of both. Returns the weighted terms of the loss and the
    mean scores.
    """
    terms = Terms()
    for part in chunks(0, len(real), chunk):
        own = fakes.part(part)
        with torch.no_grad():
            thumbnails = augmentation(generator(own.z, own.cameras, rng=own.rngs).rendering.thumbnail, own.rngs)
        images = augmentation(real[part], own.rngs).requires_grad_()
        scale = len(images) / len(real)
        real_logits, _ = discriminator(images)
        fake_logits, viewpoints = discriminator(thumbnails)
        loss = {'d': losses.logistic_loss(real_logits, fake_logits)}
        if opt.training.r1:
            loss['r1'] = opt.training.r1 / 2 * losses.r1_penalty(real_logits, images)
        if discriminator.predict_view:
            loss['d_view'] = opt.training.view_lambda * losses.viewpoint_loss(viewpoints, own.cameras.viewpoint)
        (scale * sum(loss.values())).backward()
        terms.add(scale, **loss, real_score=real_logits, fake_score=fake_logits, real_sign=real_logits.sign())
    return terms


def accumulate_generator(generator, discriminator, fakes, opt, chunk, sphere_lambda=0., augmentation=unchanged):
    """Add the gradient of the generator's loss to its parameters. Returns the weighted terms of the loss,
    and how much of a surface the pictures show (training/hold.py).

    sphere_lambda: the weight, at this step, of the distance to the sphere that training started from.
    """
    terms = Terms()
    with frozen(discriminator):
        for part in chunks(0, len(fakes.z), chunk):
            own = fakes.part(part)
            scale = len(own.z) / len(fakes.z)
            has_sdf = generator.renderer.has_sdf
            rendering = generator(own.z, own.cameras, rng=own.rngs,
                                  sdf=has_sdf and opt.training.min_surf_lambda > 0,
                                  eikonal=has_sdf and opt.training.eikonal_lambda > 0).rendering
            logits, viewpoints = discriminator(augmentation(rendering.thumbnail, own.rngs))
            loss = {'g': losses.nonsaturating_loss(logits)}
            if discriminator.predict_view:
                loss['g_view'] = opt.training.view_lambda * losses.viewpoint_loss(viewpoints, own.cameras.viewpoint)
            if rendering.eikonal is not None:
                loss['g_eikonal'] = opt.training.eikonal_lambda * losses.eikonal_loss(rendering.eikonal)
            if rendering.sdf is not None:
                loss['g_minimal_surface'] = opt.training.min_surf_lambda * losses.minimal_surface_loss(
                    rendering.sdf, opt.training.min_surf_beta)
            if has_sdf and sphere_lambda > 0:
                # A quarter of the rays says enough.
                loss['g_sphere'] = sphere_lambda * generator.renderer.sphere_loss(
                    generator.map(own.z), own.cameras.magnified(0.5), own.rngs, radius=opt.training.sphere_radius,
                    resolution=generator.renderer.resolution // 2)
            (scale * sum(loss.values())).backward()
            terms.add(scale, **loss)
            if rendering.sdf is not None:
                surface = silhouette(rendering)
                terms.add(scale, surface=surface.meets, fog=surface.fog)
    return terms


def initialize_sphere(run, opt):
    """Fit the field to a sphere, whatever the latent, for a surface to begin with (spec: start of stage 1).

    Takes the official sphere_init.pt instead where it is there and fits. Interrupted, it goes on where it was.
    """
    state, steps, own = run.state, opt.training.sphere_iters, run.folder / 'sphere_init.pt'
    optimizer = adam(state.g.parameters(), opt.training.lr_g, BETAS)
    first = load_sphere(run, opt, optimizer, own)
    for step in run.progress(first, steps, 'sphere'):
        fakes = draw_fakes(opt, 'sphere', step, range(SPHERE_BATCH), run.device)  # the same in every process
        terms = Terms()
        for part in chunks(0, SPHERE_BATCH, run.chunk):
            images = fakes.part(part)
            scale = len(images.z) / SPHERE_BATCH
            loss = state.g.renderer.sphere_loss(state.g.map(images.z), images.cameras, images.rngs,
                                                radius=opt.training.sphere_radius)
            (scale * loss).backward()
            terms.add(scale, sphere=loss)
        run.update('sphere', optimizer, terms)
        run.bar.set_postfix_str(f'error {run.values["sphere"]:.4f}', refresh=False)
        if step + 1 < steps and (run.stopping or (step + 1) % opt.training.save_every == 0):
            run.write(own, {'g': state.g.state_dict(), 'optimizer': optimizer.state_dict(), 'step': step + 1})
            if run.stopping:
                run.end_early()
    state.g_ema.load_state_dict(state.g.state_dict())
    run.save()
    if run.main:
        own.unlink(missing_ok=True)
    if run.stopping:
        run.end_early()


def load_sphere(run, opt, optimizer, own):
    """Load a sphere that was begun by this experiment, or the official one. Returns how many steps it has had."""
    if own.exists() and opt.experiment.continue_training:
        saved = checkpoint.read(own, key='g')
        check_options(opt, saved, own)
        checkpoint.load_state(run.state.g, saved['g'], own)
        optimizer.load_state_dict(saved['optimizer'])
        return saved['step']
    official = checkpoint.RENDERERS / 'sphere_init.pt'
    if official.exists() and not opt.training.sphere_radius:
        state = checkpoint.read(official)['g_ema']
        sizes = {**opt.model, **opt.rendering}
        if all(sizes[name] == value for name, value in checkpoint.model_sizes(state, official).items()):
            checkpoint.load_state(run.state.g, state, official)
            print(f'Beginning with the sphere of {official}.')
            return opt.training.sphere_iters
        print(f'{official} has other sizes than this model: making a sphere of its own.')
    return 0


def main():
    opt = options.parse('train_volume_renderer', __doc__)
    with Processes(opt.machine.device) as processes:
        start, opt = find_start(opt, STAGE)
        run = Run(opt, STAGE, processes, checkpoint.renderer_path(opt.experiment.expname), thumbnails=True)
        generator = build_generator(opt, full_pipeline=False).to(run.device)
        discriminator = VolumeDiscriminator(opt.model.renderer_spatial_output_dim, opt.training.view_lambda > 0,
                                            opt.model.discriminator_width).to(run.device)
        g_optim = adam(generator.parameters(), opt.training.lr_g, BETAS)
        d_optim = adam(discriminator.parameters(), opt.training.lr_d, BETAS)
        augmentation, hold = Augmentation(opt, geometric=False), Hold(opt)
        state = State(generator, discriminator, g_optim, d_optim, augmentation=augmentation, hold=hold)
        with run.begin(state, start):
            if not (opt.rendering.no_sdf or start.resumed) and (not start.path or 'initial_beta' in opt.given):
                for model in (run.state.g, run.state.g_ema):
                    torch.nn.init.constant_(model.renderer.sigmoid_beta, opt.training.initial_beta)
            if not (start.path or opt.training.no_sphere_init or opt.rendering.no_sdf):
                initialize_sphere(run, opt)
            for real in run.steps():
                fakes = run.draw('discriminator')
                terms = accumulate_discriminator(discriminator, generator, real, fakes, opt, run.chunk, augmentation)
                run.update('d', d_optim, terms)
                augmentation.learn(run)

                fakes = run.draw('generator')
                terms = accumulate_generator(generator, discriminator, fakes, opt, run.chunk, hold.weight(run.step),
                                             augmentation)
                run.update('g', g_optim, terms)
                hold.learn(run)


if __name__ == '__main__':
    run_command(main)

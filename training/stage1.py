"""A step of stage 1: the gradients of the thumbnails' discriminator and of the field, and the sphere to begin with.

The losses are those of StyleSDF, section 4 (the volume renderer's part); losses.py has their formulas.
"""
import torch

import checkpoint
import losses
from training.augmentation import sign_of_real, unchanged
from training.gradients import Terms, chunks, frozen
from training.hold import silhouette
from training.projected import beside
from training.random_numbers import draw_fakes
from training.run import adam
from training.state import damaged, load_optimizer
from utils import UserError

BETAS = (0., 0.9)
SPHERE_BATCH = 3


def accumulate_discriminator(discriminator, generator, real, fakes, opt, chunk, augmentation=unchanged,
                             regularize=True):
    """Add the gradient of the discriminator's loss to its parameters.

    real: thumbnails (B,3,H,H); fakes: B Fakes; augmentation: of both. regularize: with R1, and R2 if the loss is the
    relativistic one. A projected discriminator (see `beside`) learns too. Returns the weighted terms of the loss and
    the mean scores.
    """
    terms, projected, relativistic = Terms(), beside(discriminator), opt.training.adversarial_loss == 'relativistic'
    r1 = opt.training.r1 / 2 * opt.training.r1_every if regularize else 0
    if projected:
        projected.renormalize()
    for indices in chunks(0, len(real), chunk):
        inputs = fakes.select(indices)
        with torch.no_grad():
            thumbnails = generator(inputs.z, inputs.cameras, rng=inputs.rngs).rendering.thumbnail
            thumbnails = augmentation(thumbnails, inputs.rngs)
        thumbnails.requires_grad_(relativistic and r1 > 0)
        images = augmentation(real[indices], inputs.rngs).requires_grad_()
        scale = len(images) / len(real)
        real_logits, _ = discriminator(images)
        fake_logits, viewpoints = discriminator(thumbnails)
        loss = {'d': (losses.relativistic_loss if relativistic else losses.logistic_loss)(real_logits, fake_logits)}
        if r1:
            loss['r1'] = r1 * losses.r1_penalty(real_logits, images)
        if r1 and relativistic:
            loss['r2'] = r1 * losses.r1_penalty(fake_logits, thumbnails)
        if discriminator.predict_view:
            loss['d_view'] = opt.training.view_lambda * losses.viewpoint_loss(viewpoints, inputs.cameras.viewpoint)
        if projected:
            loss['d_projected'] = (losses.hinge_loss(projected(images.detach()))
                                   + losses.hinge_loss(-projected(thumbnails.detach())))
        (scale * sum(loss.values())).backward()
        terms.add(scale, **loss, real_score=real_logits, fake_score=fake_logits,
                  real_sign=sign_of_real(real_logits, fake_logits, relativistic))
    return terms


def accumulate_generator(generator, discriminator, fakes, opt, chunk, sphere_lambda=0., augmentation=unchanged,
                         real=None):
    """Add the gradient of the generator's loss to its parameters. Returns the weighted terms of the loss,
    and how much of a surface the pictures show (training/hold.py).

    sphere_lambda: the weight, at this step, of the sphere regularization: the distance to the sphere that training
    started from. real: thumbnails (B,3,H,H) with which the relativistic loss compares the fakes; without them the loss
    is the non-saturating one.
    """
    terms, projected = Terms(), beside(discriminator)
    has_sdf = generator.renderer.has_sdf
    with frozen(discriminator):
        for indices in chunks(0, len(fakes.z), chunk):
            inputs = fakes.select(indices)
            scale = len(inputs.z) / len(fakes.z)
            rendering = generator(inputs.z, inputs.cameras, rng=inputs.rngs,
                                  sdf=has_sdf, eikonal=has_sdf and opt.training.eikonal_lambda > 0).rendering
            thumbnails = augmentation(rendering.thumbnail, inputs.rngs)
            logits, viewpoints = discriminator(thumbnails)
            if real is None:
                loss = {'g': losses.nonsaturating_loss(logits)}
            else:
                with torch.no_grad():
                    real_logits, _ = discriminator(augmentation(real[indices], inputs.rngs))
                loss = {'g': losses.relativistic_loss(logits, real_logits)}
            if projected:
                loss['g_projected'] = opt.training.projected_lambda * losses.mean_score_loss(projected(thumbnails))
            if discriminator.predict_view:
                loss['g_view'] = opt.training.view_lambda * losses.viewpoint_loss(viewpoints, inputs.cameras.viewpoint)
            if rendering.eikonal is not None:
                loss['g_eikonal'] = opt.training.eikonal_lambda * losses.eikonal_loss(rendering.eikonal)
            if has_sdf and opt.training.min_surf_lambda > 0:
                loss['g_minimal_surface'] = opt.training.min_surf_lambda * losses.minimal_surface_loss(
                    rendering.sdf, opt.training.min_surf_beta)
            if has_sdf and opt.training.far_lambda > 0:
                loss['g_far'] = opt.training.far_lambda * losses.far_plane_loss(rendering.sdf)
            if opt.training.relief_lambda > 0:
                loss['g_relief'] = opt.training.relief_lambda * losses.relief_loss(rendering.xyz, inputs.cameras,
                                                                                   opt.training.sphere_radius)
            if has_sdf and sphere_lambda > 0:
                # A quarter of the rays is enough for this term.
                sdf, points = generator.renderer.stratified_sdf(
                    generator.map(inputs.z), inputs.cameras.magnified(0.5), inputs.rngs,
                    resolution=generator.renderer.resolution // 2)
                loss['g_sphere'] = sphere_lambda * losses.sphere_loss(sdf, points, inputs.cameras,
                                                                      opt.training.sphere_radius)
            (scale * sum(loss.values())).backward()
            terms.add(scale, **loss)
            if rendering.sdf is not None:
                shown = silhouette(rendering)
                terms.add(scale, surface=shown.meets, fog=shown.fog)
    return terms


def initialize_beta(state, beta):
    """Set the beta of the density that training begins with."""
    for generator in (state.g, state.g_ema):
        torch.nn.init.constant_(generator.renderer.sigmoid_beta, beta)


def initialize_sphere(run, opt):
    """Fit the field to a sphere, whatever the latent, so that training begins with a surface (StyleSDF, section 4).

    Takes the official sphere_init.pt instead where it is there and fits. Interrupted, it goes on where it was.
    """
    state, steps, path = run.state, opt.training.sphere_iters, run.folder / checkpoint.SPHERE
    optimizer = adam(state.g.parameters(), opt.training.lr_g, BETAS)
    first = _load_sphere(run, opt, optimizer, path)
    if first < steps and run.is_first:
        print(f'Before the training, {steps - first} steps fit the field to a sphere (--sphere_iters).')
    for step in run.progress(first, steps, 'sphere', 'a smaller --sphere_iters takes less time '
                             '(scripts/train_cats_small.sh has 500)'):
        fakes = draw_fakes(opt, 'sphere', step, range(SPHERE_BATCH), run.device)  # the same in every process
        terms = Terms()
        for indices in chunks(0, SPHERE_BATCH, run.chunk):
            inputs = fakes.select(indices)
            scale = len(inputs.z) / SPHERE_BATCH
            sdf, points = state.g.renderer.stratified_sdf(state.g.map(inputs.z), inputs.cameras, inputs.rngs)
            loss = losses.sphere_loss(sdf, points, inputs.cameras, opt.training.sphere_radius)
            (scale * loss).backward()
            terms.add(scale, sphere=loss)
        error = run.update('sphere', optimizer, terms)['sphere']
        run.show(f'error {error:.4f}')
        if step + 1 < steps and (run.stopping or (step + 1) % opt.training.save_every == 0):
            run.keep(path, {'g': state.g.state_dict(), 'optimizer': optimizer.state_dict(), 'step': step + 1},
                     final=run.stopping)
            if run.stopping:
                run.end_early()
    state.g_ema.load_state_dict(state.g.state_dict())
    run.save(final=run.stopping)
    if run.stopping:
        run.end_early()


def _load_sphere(run, opt, optimizer, path):
    """Load a sphere that this experiment began, or the official one. Returns how many steps it has had."""
    found, saved, said = run.processes.share(lambda: _find_sphere(opt, path))
    if said:
        print(said)
    if not saved:
        return 0
    checkpoint.load_state(run.state.g, saved['g'], found)
    if found != path:
        return opt.training.sphere_iters
    run.last_saved = path
    load_optimizer(optimizer, saved.get('optimizer'), 'optimizer', path)
    step = saved.get('step')
    if not isinstance(step, int) or step < 0:
        raise damaged(path, 'step', 'is not a whole number')
    return min(step, opt.training.sphere_iters)  # which may be smaller than when the sphere was begun


def _find_sphere(opt, path):
    """(path, contents or None, a line to say) of the sphere that this experiment began or of the official one."""
    if path.exists() and opt.experiment.continue_training:
        try:
            saved = checkpoint.read(path, key='g')
        except checkpoint.Unreadable:
            raise
        except UserError as error:
            return path, None, f'Making the sphere anew: {error}'
        checkpoint.reconcile(opt, saved | {'g_ema': saved['g']}, path, resumed=True)
        return path, saved, ''
    official = checkpoint.RENDERERS / checkpoint.SPHERE
    if official.exists() and not opt.training.sphere_radius:
        weights = checkpoint.read(official)['g_ema']
        flags = checkpoint.flags_of(opt)
        if all(flags[name] == value for name, value in checkpoint.sizes(weights, official).items()):
            return official, {'g': weights}, f'Beginning with the sphere of {official}.'
        return official, None, f'{official} has other sizes than this model: making a sphere of its own.'
    return path, None, ''

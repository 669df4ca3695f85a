"""Measure a trained model: FID, KID, precision and recall, patch distance, depth and view consistency, the field.

    python evaluate.py --expname cats --dataset_path datasets/cats --num_images 5000
    python evaluate.py --expname cats --dataset_path datasets/cats --metrics swd,depth,view,field
    torchrun --standalone --nproc_per_node 4 evaluate.py --expname cats --dataset_path datasets/cats

Prints a table and writes RESULTS_DIR/EXPNAME/MODEL/metrics.json. What each number means: docs/evaluation.md. Images go
from the generator straight into the measurement. What is measured is saved every few images; the same command goes on
from there, also with more images or another number of processes (which share the folder).
"""
import options

if __name__ == '__main__':
    options.run('evaluate', __doc__)

import shutil

import torch

from checkpoint import file_hash
from dataset import open_images
from inference.identities import seeded
from inference.latents import Owner, read_all
from inference.loading import load_generator
from inference.results import model_folder
from inversion.encoder import encoder_path, read_encoder
from inversion.inverter import Inverter
from inversion.inverting import Guesser, Settings
from metrics.distances import PATCH
from metrics.features import load_features
from metrics.inversion import measure_inversions, summarize_inversions
from metrics.measuring import (
    FEATURE_METRICS,
    FEWEST_IMAGES,
    SURFACE_METRICS,
    check_broken,
    compare_images,
    measure_generated_images,
    measure_real_images,
    measure_surfaces,
    short_hash,
    summarize_surfaces,
)
from metrics.results import add_results, read_results, settings_of, table
from options import INVERSION_METRIC
from training.processes import Processes
from utils import UserError, writable_folder

USUAL_IMAGES = 10_000  # FID and recall of fewer are far from those of many


def check(opt, real, size):
    """Raise UserError for too few images, too small ones, or for --save_images without any.

    real: Images, or None if not needed. size: pixels along a side of those that are compared.
    """
    if real is None:
        if opt.evaluation.save_images:
            raise UserError('--save_images: none of the --metrics needs images; add swd, for instance.')
        return
    if 'swd' in opt.evaluation.metrics and size < PATCH:
        raise UserError(f'--metrics: swd compares patches of {PATCH} x {PATCH} pixels, and this model has images '
                        f'of only {size} x {size}; leave swd out.')
    count, flag = min((opt.evaluation.num_images, '--num_images'), (len(real), f'--dataset_path {real.path}'))
    if count < FEWEST_IMAGES:
        raise UserError(f'{flag}: {count} images are too few to compare; use at least {FEWEST_IMAGES}.')
    if count < USUAL_IMAGES and {'fid', 'pr'} & set(opt.evaluation.metrics):
        print(f'{flag}: {count} images. FID, precision and recall depend on how many there are: compare them at equal '
              'numbers only.')


def chosen_metrics(opt):
    """The names of --metrics; of those that need no images where --latents are measured. Raises UserError."""
    metrics = set(opt.evaluation.metrics)
    if not opt.inference.latents:
        return metrics
    if 'metrics' in opt.given and metrics - SURFACE_METRICS:
        raise UserError(f'--latents: {", ".join(sorted(metrics - SURFACE_METRICS))} compare many random images, not '
                        f'the latents of a few identities; use {", ".join(sorted(SURFACE_METRICS))}.')
    return metrics & SURFACE_METRICS


def inversion_settings(opt, path):
    """What determines the numbers of inversion, in plain values."""
    flags = {name: value for name, value in opt.inversion.items() if name not in ('photos', 'train_encoder', 'video')}
    encoder = encoder_path(path)
    return flags | {'held_out': opt.evaluation.held_out, 'features': opt.evaluation.features,
                    'encoder': file_hash(encoder) if encoder.exists() else None}


def inversions(generator, opt, path, folder, processes):
    """Measure the inversion of the model's own images, and of photos of --held_out; returns a function that gives the
    entries of metrics.json, once all processes are done."""
    wanted = opt.inversion
    means = generator.mean_latents(opt.inference.truncation_mean, seeded(opt.experiment.seed, processes.device))
    inverter = Inverter.with_features(generator, opt, means, path)
    photos = None
    if opt.evaluation.held_out:
        photos = open_images(opt.evaluation.held_out, inverter.size)
        photos = torch.utils.data.Subset(photos, range(min(len(photos), opt.evaluation.num_held_out)))
    encoder = read_encoder(encoder_path(path), inverter, Owner.of(generator, opt))
    print('inversion begins with', 'the encoder.' if encoder else 'a search among random identities (no encoder).')
    settings = Settings(wanted.steps, wanted.seconds, wanted.tune_steps if wanted.tune else 0, wanted.starts,
                        wanted.fit_noise)
    blocks = measure_inversions(inverter, Guesser(inverter, encoder, wanted.starts), settings,
                                opt.evaluation.num_inversions, photos, folder, processes)
    return lambda: summarize_inversions(blocks, bool(settings.tune_steps))


def means_for_truncation(generator, opt, device):
    """The mean latents, or None where nothing is truncated."""
    if opt.inference.truncation_ratio == 1:
        return None
    return generator.mean_latents(opt.inference.truncation_mean, seeded(opt.experiment.seed, device))


def main(opt):
    metrics = chosen_metrics(opt)
    of_surfaces, of_images = metrics & SURFACE_METRICS, metrics - SURFACE_METRICS - {INVERSION_METRIC}
    with Processes(opt.machine.device) as processes:
        device = processes.device
        generator, opt, path, model_name = load_generator(opt, device)
        size = min(generator.decoder.size if generator.full_pipeline else generator.renderer.resolution,
                   opt.evaluation.eval_size)
        folder = writable_folder(model_folder(opt, model_name), '--results_dir')
        read_results(folder / 'metrics.json')  # an unusable one is noticed before the work
        saved = read_all(opt.inference.latents, generator, opt)
        settings = settings_of(opt, path, size, device, saved)
        if INVERSION_METRIC in metrics:
            settings['inversion'] = inversion_settings(opt, path)
        unfinished = folder / f'unfinished-{short_hash([settings, sorted(metrics)])}'
        images = open_images(opt.dataset.dataset_path, size) if of_images else None
        check(opt, images, size)
        features = load_features(opt.evaluation.features, size, device) if metrics & FEATURE_METRICS else None
        means = means_for_truncation(generator, opt, device)

        if of_images:
            data = {'path': str(opt.dataset.dataset_path), 'hash': images.fingerprint()}
            real = measure_real_images(images, data['hash'], features, opt, processes)
            fake = measure_generated_images(generator, features, opt, means, size, unfinished, processes)
        if of_surfaces:
            surfaces = measure_surfaces(generator, of_surfaces, opt, means, unfinished, processes, saved)
        if INVERSION_METRIC in metrics:
            summarize = inversions(generator, opt, path, unfinished, processes)
        processes.average_(torch.zeros(1, device=device))  # all wait here for each other's results
        if processes.rank:
            return

        results = {}
        if of_images:
            check_broken(real, images)
            comparing = torch.device('cpu') if device.type == 'mps' else device  # Metal has no double precision
            results = {name: entry | {'data': data}
                       for name, entry in compare_images(real, fake, features, opt, comparing).items()}
        if of_surfaces:
            results |= summarize_surfaces(surfaces, generator)
        if INVERSION_METRIC in metrics:
            results |= summarize()
        add_results(folder / 'metrics.json', settings, results)
        shutil.rmtree(unfinished, ignore_errors=True)
        print(table(results))
        print(f'{folder / "metrics.json"}: size {size}, psi {opt.inference.truncation_ratio:g}')

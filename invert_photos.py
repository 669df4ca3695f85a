"""Invert photos: find the viewpoint and latents from which a model makes them, so that they can be turned and edited.

    python invert_photos.py --expname cats_demo photo.jpg more_photos/ --tune --page --video
    python invert_photos.py --expname mine --train_encoder        once for each model of your own, some minutes
    python render_video.py --expname cats_demo --latents evaluations/cats_demo/final_model/inversions/photo/latents.pt

Photos are files, folders or zips. Without an encoder the search begins with the best of many random identities, which
takes longer. For each photo it writes under RESULTS_DIR/EXPNAME/MODEL/inversions/NAME/: the square that was used, the
reconstruction, views from five angles, depth, mesh, and latents.pt, which --latents of the other commands takes.
inversions/index.json lists what was found. Ctrl-C ends the command: of the photo at hand the best so far is written,
and the remaining ones are not begun. What it can do and how well: docs/inversion.md.
"""
import options

if __name__ == '__main__':
    options.run('invert_photos', __doc__)

import itertools
import time

import torch
from tqdm import tqdm

from imaging.alignment import Aligner
from imaging.photos import BrokenPhoto, named_lines
from inference import results
from inference.identities import seeded
from inference.latents import Owner
from inference.loading import load_generator
from inversion.encoder import encoder_path, read_encoder, save_encoder, train_encoder
from inversion.inverter import Inverter
from inversion.inverting import Guesser, Inversion, Settings, batch_of
from inversion.photos import as_tensor, cropped, sources
from inversion.writing import outcome_of, write_photo
from utils import UserError, printable, select_device, writable_folder
from web.results_page import write_page


def check(opt, generator, path):
    """Raise UserError for flags that contradict each other, or that this model cannot follow."""
    if not opt.inversion.photos and not opt.inversion.train_encoder:
        raise UserError('name the photos to invert: files, folders or zips of them.')
    if opt.inversion.landmarks and not opt.inversion.align:
        raise UserError('--landmarks say where faces are that --align cuts out; give both, or neither.')
    if opt.inversion.tune and not generator.full_pipeline:
        raise UserError(f'--tune: {path} has no decoder, which could be tuned; leave the flag out.')


def batches(found, size, count, broken, aligner):
    """Yield lists of up to `count` Crops of the Sources that can be read; the others come into `broken`, {where: why}.
    """
    crops = []
    for source in found:
        try:
            crops.append(cropped(source, size, aligner))
        except BrokenPhoto as error:
            broken[source.where] = str(error)
        if len(crops) == count:
            yield crops
            crops = []
    if crops:
        yield crops


def first_batch(batch, broken):
    """The first batch, so that a wrong path is noticed before the work. Raises UserError where nothing can be read."""
    crops = next(batch, None)
    if crops is None:
        where, reason = next(iter(broken.items()))
        more = f' (and {len(broken) - 1} more)' if len(broken) > 1 else ''
        raise UserError(f'{where} cannot be used: {reason}{more}; mend it, or give other photos.')
    return crops


def the_encoder(opt, inverter, owner, model_path):
    """The encoder beside the checkpoint, trained now if asked for; None where there is none."""
    path = encoder_path(model_path)
    if not opt.inversion.train_encoder:
        return read_encoder(path, inverter, owner)
    writable_folder(path.parent, '--train_encoder')
    if path.exists():
        print(f'{path} stays as it is until the new encoder is finished, and is then replaced.')
    encoder = train_encoder(inverter, opt.inversion.encoder_steps)
    save_encoder(path, encoder, owner)
    print(f'The encoder is in {path}, where it is found from now on.')
    return encoder


def prepare(guesser):
    """Make what all photos share, with a progress bar."""
    with tqdm(desc='preparing', unit='step') as bar:
        guesser.prepare(lambda count: bar.update())


def invert(inverter, crops, guesser, settings):
    """The Inversion of some Crops, with a progress bar. Interrupted, it is returned as far as it came, with the
    KeyboardInterrupt: (Inversion, KeyboardInterrupt or None)."""
    images = torch.cat([as_tensor(crop.image, inverter.device) for crop in crops])
    inversion = Inversion(inverter, images, guesser, settings)
    name = crops[0].source.name + (f' and {len(crops) - 1} more' if len(crops) > 1 else '')
    with tqdm(total=100, desc=name, unit='%', bar_format='{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}') as bar:
        try:
            for progress in inversion.run():
                bar.n = int(100 * progress.done)
                bar.set_postfix_str(progress.text)
        except KeyboardInterrupt as stop:
            return inversion, stop
    return inversion, None


def write(inversion, crops, owner, folder, path, seconds, opt):
    """Write what was found of some Crops; prints a line for each."""
    earlier = results.read_index(folder)
    for i, crop in enumerate(crops):
        before = str(earlier.get(crop.source.name, {}).get('photo', crop.source.where))
        if before != crop.source.where:
            print(f'{crop.source.name}: this takes the place of what was found of {printable(before, 300)}.')
        outcome = outcome_of(inversion, i, crop.source.name, f'photo {crop.source.where}')
        facts = {'seconds': round(seconds / len(crops), 1), 'checkpoint': {'file': str(path), 'weights': owner.weights}}
        write_photo(inversion.inverter, folder, crop, outcome, owner, path, facts, opt.inversion.video)
        print(f'{crop.source.name}: {outcome.line}{"; " if crop.note else ""}{crop.note}')


def main(opt):
    device = select_device(opt.machine.device)
    generator, opt, path, model_name = load_generator(opt, device)
    check(opt, generator, path)
    wanted, broken, written = opt.inversion, {}, 0
    found, left_out = sources(wanted.photos) if wanted.photos else ([], [])
    aligner = Aligner(wanted.landmarks) if wanted.align else None
    folder = writable_folder(results.inversion_folder(opt, model_name), '--results_dir')
    results.read_index(folder)  # an unusable one is noticed before the work
    means = generator.mean_latents(opt.inference.truncation_mean, seeded(opt.experiment.seed, device))
    inverter, owner = Inverter.with_features(generator, opt, means, path), Owner.of(generator, opt)
    batch = batches(found, inverter.size, batch_of(inverter), broken, aligner)
    first = [first_batch(batch, broken)] if found else []
    encoder = the_encoder(opt, inverter, owner, path)
    if not found:
        return
    guesser = Guesser(inverter, encoder, wanted.starts)
    if encoder is None:
        print(f'No encoder beside {path}: searching among random identities (--train_encoder makes one).')
        prepare(guesser)
    settings = Settings(wanted.steps, wanted.seconds, wanted.tune_steps if wanted.tune else 0, wanted.starts,
                        wanted.fit_noise)
    try:
        for crops in itertools.chain(first, batch):
            began = time.perf_counter()
            inversion, stop = invert(inverter, crops, guesser, settings)
            if inversion.found is not None:
                write(inversion, crops, owner, folder, path, time.perf_counter() - began, opt)
                written += len(crops)
            if stop:
                raise stop
    finally:
        print('\n'.join([f'{written} {"photo" if written == 1 else "photos"} in {folder}',
                         *named_lines('not readable, skipped', broken), *left_out]))
        if opt.inference.page and written:
            print(f'Page: {write_page(folder.parent)}')

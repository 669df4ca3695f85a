"""What an evaluation measures: features and patches of real and generated images, and surfaces, block by block."""
import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from dataset import Pixels
from imaging.fit import RESAMPLE, resize_and_crop
from imaging.photos import named_lines
from imaging.workers import load_in_workers
from inference.latents import tuned_generator
from metrics import distances
from metrics.blocks import Blocks
from metrics.identity import measure_identity, measure_latents
from options import METRICS
from training.gradients import chunks
from training.quality import numbered_images
from training.random_numbers import draw_fakes
from utils import UserError, save_image_row, to_uint8, writable_folder

FEATURE_METRICS, SURFACE_METRICS = {'fid', 'kid', 'pr'}, {'depth', 'view', 'field'}
FEWEST_IMAGES = 10
SWD_IMAGES = 2048  # so many images' patches are kept, 400 MB at 256 pixels
# Items whose results are one file, which is what an interruption can cost.
REAL_BLOCK, FAKE_BLOCK, SURFACE_BLOCK = 128, 32, 2


def short_hash(values):
    """16 hexadecimal digits that stand for plain values, in names of files."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- images

def image_counts(metrics, features, count):
    """{kind of result: number of images} that the metrics need of `count` images, for Blocks."""
    counts = {features.key: count} if features else {}
    return counts | ({'patches': min(count, SWD_IMAGES)} if 'swd' in metrics else {})


def image_results(images, block, kinds, features):
    """Features and patches of uint8 images (B,3,S,S), whose numbers are `block`, as far as the kinds ask for them."""
    found = {}
    if 'patches' in kinds:
        found['patches'] = distances.patch_descriptors(images, block)
    if features and features.key in kinds:
        found[features.key] = [features(images)]
    return found


def measure_real_images(images, data_hash, features, opt, processes):
    """The filled Blocks of real images, which stay in RESULTS_DIR for other models. images: dataset.Images."""
    def results(todo):
        batches = load_in_workers(Pixels(images), min(opt.training.num_workers, len(todo)),
                                  collate_fn=Pixels.batch, batch_sampler=[list(block) for block, _ in todo])
        for (block, kinds), (batch, reasons) in zip(todo, batches, strict=True):
            numbers = [number for number, reason in zip(block, reasons, strict=True) if reason is None]
            found = (image_results(batch.to(processes.device), numbers, kinds, features) if numbers
                     else dict.fromkeys(kinds, []))
            yield found | {'unreadable': [torch.tensor([float(reason is not None) for reason in reasons])]}

    counts = image_counts(opt.evaluation.metrics, features, len(images))
    blocks = Blocks(Path(opt.inference.results_dir) / 'real_images' / data_hash,
                    counts | {'unreadable': max(counts.values())}, REAL_BLOCK)
    blocks.fill('real images', results, processes)
    return blocks


def check_broken(real, images):
    """Say which real images were skipped, and why, and have `real` know. Raises UserError where too few are left."""
    broken = real.load('unreadable')[0].nonzero().flatten().tolist()
    real.left_out = set(broken)
    if broken:
        reasons = {images.names[number]: Pixels(images)[number] for number in broken}
        print('\n'.join(named_lines('broken images skipped', reasons)))
    if (left := real.counts['unreadable'] - len(broken)) < FEWEST_IMAGES:
        raise UserError(f'--dataset_path {images.path}: only {left} of its images can be read, too few to compare; use '
                        f'at least {FEWEST_IMAGES}.')


def measure_generated_images(generator, features, opt, means, size, folder, processes):
    """The filled Blocks of generated images, kept in a folder; they are also written to --save_images."""
    save_images = opt.evaluation.save_images
    counts, pictures = image_counts(opt.evaluation.metrics, features, opt.evaluation.num_images), {}
    if save_images:
        saved = writable_folder(save_images, '--save_images').resolve()
        kind = f'saved-{short_hash(str(saved))}'
        counts[kind], pictures[kind] = opt.evaluation.num_images, lambda number: saved / f'{number:07d}.png'

    def results(todo):
        for block, kinds in todo:
            images = generated_images(generator, block, opt, means, size, processes.device)
            found = image_results(images, block, kinds, features)
            if save_images:
                for number, image in zip(block, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                    save_image_row(pictures[kind](number), [image])
                found |= {kind: []}  # the note that they were written
            yield found

    blocks = Blocks(folder, counts, FAKE_BLOCK, pictures)
    blocks.fill('generated images', results, processes)
    return blocks


def generated_images(generator, block, opt, means, size, device):
    """Generated images uint8 (B,3,size,size) of the numbers in `block`; larger ones are shrunk as prepare_data.py does.
    """
    pixels = []
    for chunk in chunks(block.start, block.stop, opt.evaluation.eval_batch):
        images = numbered_images(generator, opt, range(chunk.start, chunk.stop), device,
                                 opt.inference.truncation_ratio, means)
        if images.shape[-1] == size:
            pixels.append(torch.from_numpy(to_uint8(images)))
        else:
            pixels.append(torch.stack([to_pixels(resize_and_crop(Image.fromarray(image), size, RESAMPLE['lanczos']))
                                       for image in to_uint8(images)]))
    return torch.cat(pixels).permute(0, 3, 1, 2).contiguous().to(device)


def to_pixels(image):
    """A Pillow image as uint8 (H,W,3)."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def compare_images(real, fake, features, opt, device):
    """The entries of metrics.json for FID, KID, precision and recall, and patch distance, from filled Blocks."""
    results = {}
    if features:
        of_real, of_fake = (blocks.load(features.key)[0].to(device) for blocks in (real, fake))
        facts = {'features': features.name, 'images': len(of_fake), 'real_images': len(of_real)}
    metrics = [metric for metric in METRICS if metric in opt.evaluation.metrics and metric not in SURFACE_METRICS]
    for metric in tqdm(metrics, desc='comparing', unit=' metrics'):
        if metric == 'fid':
            value = distances.frechet_distance(distances.moments(of_real), distances.moments(of_fake))
            results['fid'] = {'value': value, **facts}
        elif metric == 'kid':
            mean, deviation = distances.kernel_distance(of_real, of_fake)
            results['kid'] = {'value': mean, 'deviation_of_subsets': deviation, **facts}
        elif metric == 'pr':
            precision, recall = distances.precision_recall(of_real, of_fake)
            results |= {'precision': {'value': precision, **facts}, 'recall': {'value': recall, **facts}}
        else:
            patches = [[level.to(device) for level in blocks.load('patches')] for blocks in (real, fake)]
            levels = distances.swd(*patches)
            results['swd'] = {'value': sum(levels) / len(levels), 'levels': levels,
                              'images': min(len(levels_of_one[0]) for levels_of_one in patches)}
    return results


# ---------------------------------------------------------------------------------------------- surfaces

def measure_surfaces(generator, metrics, opt, means, folder, processes, saved=()):
    """The filled Blocks of the surface metrics' measures of identities, kept in a folder.

    saved: SavedLatents of the identities to measure instead of random ones.
    """
    def results(todo):
        for block, kinds in todo:
            found = {kind: {} for kind in kinds}
            for measures in measured(block, kinds):
                for kind, values in measures.items():
                    for name, value in values.items():
                        found[kind].setdefault(name, []).append(value)
            yield {kind: [torch.tensor(values, dtype=torch.float64) for values in names.values()]
                   for kind, names in found.items()}

    def measured(block, kinds):
        if saved:
            for one in saved[block.start:block.stop]:
                tuned = tuned_generator(generator, one.tuned)
                yield measure_latents(tuned, one.latents, opt, kinds, one.decoder_noise)
            return
        for z in draw_fakes(opt, 'evaluation', 0, block, processes.device).z:
            yield measure_identity(generator, z[None], opt, kinds, means, opt.inference.truncation_ratio)

    count = len(saved) or opt.evaluation.num_surfaces
    blocks = Blocks(folder, dict.fromkeys(sorted(metrics), count), SURFACE_BLOCK)
    blocks.fill('identities', results, processes)
    return blocks


def summarize_surfaces(blocks, generator):
    """The entries of metrics.json for depth and view consistency, and the field, from filled Blocks."""
    results = {}

    def add(name, kind, values):
        values = values[~values.isnan()]
        results[name] = {'value': values.mean().item() if len(values) else None, 'identities': len(values),
                         'of': blocks.counts[kind]}

    for kind in ('depth', 'view'):
        if kind in blocks.counts:
            add(kind, kind, *blocks.load(kind))
    if 'field' in blocks.counts:
        eikonal, single = blocks.load('field')
        add('eikonal', 'field', eikonal)
        add('single_surface', 'field', single)
        beta = generator.renderer.sigmoid_beta.item() if generator.renderer.has_sdf else None
        results['beta'] = {'value': beta}
    return results

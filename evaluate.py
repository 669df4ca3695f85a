"""Measure a trained model: FID, KID, precision and recall, patch distance, depth and view consistency, the field.

    python evaluate.py --expname cats --dataset_path datasets/cats --num_images 5000
    python evaluate.py --expname cats --dataset_path datasets/cats --metrics swd,depth,view,field
    torchrun --nproc_per_node 4 evaluate.py …

Prints a table and writes RESULTS_DIR/EXPNAME/MODEL/metrics.json. What each number means: docs/evaluation.md. Images go
from the generator straight into the measurement. What is measured is saved every few images; the same command goes on
from there, also with more images or another number of processes (which share the folder).
"""
import interrupts  # noqa: F401

import hashlib
import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import checkpoint
import options
from dataset import Pixels, open_images
from imaging.pixels import RESAMPLE, resize_and_crop
from imaging.workers import load_in_workers
from metrics import distances
from metrics.features import load_features
from metrics.identity import measure_identity
from training.gradients import chunks
from training.processes import Processes
from training.quality import numbered_images
from training.random_numbers import draw_fakes
from utils import UserError, atomic_path, run_command, save_image_row, to_uint8, writable_folder

FEATURE_METRICS, SURFACE_METRICS = {'fid', 'kid', 'pr'}, {'depth', 'view', 'field'}
FEWEST_IMAGES = 10
USUAL_IMAGES = 10_000  # FID and recall of fewer are far from those of many
SWD_IMAGES = 2048      # whose patches are kept, 400 MB at 256 pixels
# Items whose results are one file, which is what an interruption can cost.
REAL_BLOCK, FAKE_BLOCK, SURFACE_BLOCK = 128, 32, 2


# ---------------------------------------------------------------------------------------------- work that is kept

class Blocks:
    """Results of numbered items, kept in a file for every block of them and kind of result, until they are all there.

    kinds: {kind: how many items, from 0, it is wanted of}. A result is a list of tensors, each with a row for every
    item of the block.
    """

    def __init__(self, folder, kinds, size):
        self.folder, self.kinds, self.size = Path(folder), kinds, size

    def _parts(self, kind):
        return [range(part.start, part.stop) for part in chunks(0, self.kinds[kind], self.size)]

    def _path(self, kind, part):
        return self.folder / f'{kind}-{part.start:07d}-{part.stop:07d}.pt'

    def missing(self, processes):
        """[(items, kinds)] that are not there yet of this process's share."""
        wanted = {}
        for kind in self.kinds:
            for number, part in enumerate(self._parts(kind)):
                if number % processes.size == processes.rank and not self._path(kind, part).exists():
                    wanted.setdefault(part, []).append(kind)
        return sorted(wanted.items(), key=lambda item: (item[0].start, item[0].stop))

    def save(self, kind, part, tensors):
        checkpoint.save(self._path(kind, part), {'tensors': tensors})

    def load(self, kind):
        """The result of all items: a list of tensors. Raises UserError for a file that is damaged or gone."""
        parts = []
        for part in self._parts(kind):
            path = self._path(kind, part)
            try:
                parts.append(torch.load(path, weights_only=True)['tensors'])
            except Exception:  # a damaged file can fail anywhere in the unpickler, with any exception
                raise UserError(f'{path} is damaged or gone; remove it and give the same command again.') from None
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def fill(self, description, results, processes):
        """Compute and save what is missing. results: from a list of (items, kinds) to {kind: result} for each."""
        todo = self.missing(processes)
        count = sum(len(part) for part, _ in todo)
        with tqdm(total=count, desc=description, unit='', disable=not count or processes.rank > 0) as bar:
            for (part, _), found in zip(todo, results(todo), strict=True):
                for kind, tensors in found.items():
                    self.save(kind, part, tensors)
                bar.update(len(part))


# ---------------------------------------------------------------------------------------------- images

def image_results(images, part, kinds, features):
    """Features and patches of uint8 images (B,3,S,S), whose numbers are `part`, as far as the kinds ask for them."""
    found = {}
    if 'patches' in kinds:
        found['patches'] = distances.patch_descriptors(images, part)
    if features and features.key in kinds:
        found[features.key] = [features(images)]
    return found


def image_kinds(wanted, features, count):
    """The kinds of results that the metrics need of `count` images, for Blocks."""
    kinds = {features.key: count} if features else {}
    return kinds | ({'patches': min(count, SWD_IMAGES)} if 'swd' in wanted else {})


def real_results(todo, images, features, opt, device):
    """Yield the results of real images."""
    batches = load_in_workers(Pixels(images), min(opt.training.num_workers, len(todo)),
                              batch_sampler=[list(part) for part, _ in todo])
    for (part, kinds), batch in zip(todo, batches, strict=True):
        yield image_results(batch.to(device), part, kinds, features)


def fake_images(generator, part, opt, means, size, device):
    """Generated images uint8 (B,3,size,size) of the numbers `part`; larger ones are shrunk as prepare_data.py does."""
    pixels = []
    for piece in chunks(part.start, part.stop, opt.evaluation.eval_batch):
        made = numbered_images(generator, opt, range(piece.start, piece.stop), device,
                               opt.inference.truncation_ratio, means)
        if made.shape[-1] == size:
            made = torch.from_numpy(to_uint8(made))
        else:
            made = torch.stack([to_pixels(resize_and_crop(Image.fromarray(image), size, RESAMPLE['lanczos']))
                                for image in to_uint8(made)])
        pixels.append(made)
    return torch.cat(pixels).permute(0, 3, 1, 2).contiguous().to(device)


def to_pixels(image):
    """A Pillow image as uint8 (H,W,3)."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def fake_results(todo, generator, features, opt, means, size, device):
    """Yield the results of generated images, and write these to --save_images."""
    folder = opt.evaluation.save_images
    for part, kinds in todo:
        images = fake_images(generator, part, opt, means, size, device)
        found = image_results(images, part, kinds, features)
        if folder:
            for number, image in zip(part, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                save_image_row(Path(folder) / f'{number:07d}.png', [image])
            found |= {kind: [] for kind in kinds if kind not in found}  # that they were written
        yield found


def surface_results(todo, generator, opt, means, device):
    """Yield the results of identities."""
    for part, kinds in todo:
        found = {kind: {} for kind in kinds}
        for z in draw_fakes(opt, 'evaluation', 0, part, device).z:
            measured = measure_identity(generator, z[None], opt, kinds, means, opt.inference.truncation_ratio,
                                        dense=opt.inference.dense)
            for kind, values in measured.items():
                for name, value in values.items():
                    found[kind].setdefault(name, []).append(value)
        yield {kind: [torch.tensor(values, dtype=torch.float64) for values in names.values()]
               for kind, names in found.items()}


# ---------------------------------------------------------------------------------------------- results

def image_metrics(wanted, real, fake, features, device):
    """The entries of distances.json for FID, KID, precision and recall, and patch distance."""
    results = {}
    if features:
        facts = {'features': features.name, 'images': fake.kinds[features.key],
                 'real_images': real.kinds[features.key]}
        of_real, of_fake = (blocks.load(features.key)[0].to(device) for blocks in (real, fake))
    for metric in tqdm([metric for metric in options.METRICS if metric in wanted], desc='comparing', unit=' metrics'):
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
            levels = distances.swd(*([level.to(device) for level in blocks.load('patches')] for blocks in (real, fake)))
            results['swd'] = {'value': sum(levels) / len(levels), 'levels': levels,
                              'images': min(blocks.kinds['patches'] for blocks in (real, fake))}
    return results


UNITS = {'depth': '% of the depth range', 'view': 'levels of 255', 'single_surface': 'share of identities',
         'swd': 'x 1000'}


def surface_metrics(wanted, surfaces, generator):
    """The entries of distances.json for depth and view consistency, and the field."""
    results = {}

    def add(name, values):
        values = values[~values.isnan()]
        results[name] = {'value': values.mean().item() if len(values) else None, 'identities': len(values),
                         'of': surfaces.kinds[next(iter(wanted))]}

    for name in sorted(wanted & {'depth', 'view'}):
        add(name, *surfaces.load(name))
    if 'field' in wanted:
        eikonal, single = surfaces.load('field')
        add('eikonal', eikonal)
        add('single_surface', single)
        beta = generator.renderer.sigmoid_beta.item() if generator.renderer.has_sdf else None
        results['beta'] = {'value': beta}
    return results


def table(results):
    """The results as lines of text."""
    lines = []
    for name, entry in results.items():
        value = '-' if entry['value'] is None else f'{entry["value"]:.4g}'
        facts = []
        if 'real_images' in entry:
            facts.append(f'{entry["images"]} images, {entry["real_images"]} real; {entry["features"]}')
        elif 'images' in entry:
            facts.append(f'{entry["images"]} images')
        elif 'of' in entry:
            facts.append(f'{entry["identities"]} of {entry["of"]} identities')
        lines.append(f'{name:15} {value:>9}  {UNITS.get(name, ""):21} {"".join(facts)}'.rstrip())
    return '\n'.join(lines)


def read_results(path):
    """The list of evaluations in a distances.json, or an empty one."""
    try:
        evaluations = json.loads(path.read_text())['evaluations']
        for one in evaluations:
            one['settings'].items(), one['metrics'].items()
        return evaluations
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f'{path} was not written by this command; move it away.') from None


def add_results(path, settings, results):
    """Put results into distances.json: into the evaluation with the same settings, or a new one."""
    evaluations = read_results(path)
    same = next((one for one in evaluations if one['settings'] == settings), None)
    if same is None:
        evaluations.append({'settings': settings, 'metrics': results})
    else:
        same['metrics'] |= results
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({'evaluations': evaluations}, indent=1) + '\n')


# ---------------------------------------------------------------------------------------------- the command

def check(opt, real):
    """Raise UserError for too few images, or for --save_images without any. real: Images, or None if not needed."""
    if real is None:
        if opt.evaluation.save_images:
            raise UserError('--save_images: none of the --metrics needs images; add swd, for instance.')
        return
    count, flag = min((opt.evaluation.num_images, '--num_images'), (len(real), f'--dataset_path {real.path}'))
    if count < FEWEST_IMAGES:
        raise UserError(f'{flag}: {count} images are too few to compare; use at least {FEWEST_IMAGES}.')
    if count < USUAL_IMAGES and {'fid', 'pr'} & set(opt.evaluation.metrics):
        print(f'{flag}: {count} images. FID, precision and recall depend on how many there are: compare them at equal '
              'numbers only.')


def settings_of(opt, model_path, size, device):
    """What determines the generated images and surfaces, in plain values."""
    return {'checkpoint': {'file': str(model_path), 'sha256': checkpoint.file_hash(model_path)}, 'size': size,
            'seed': opt.experiment.seed, 'truncation_ratio': opt.inference.truncation_ratio,
            'truncation_mean': opt.inference.truncation_mean, 'dense': opt.inference.dense,
            'precision': opt.machine.precision, 'device': device.type, 'camera': dict(opt.camera),
            'rendering': dict(opt.rendering)}


def short_hash(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def main():
    opt = options.parse('evaluate', __doc__)
    wanted = set(opt.evaluation.metrics)
    surface_wanted, image_wanted = wanted & SURFACE_METRICS, wanted - SURFACE_METRICS
    with Processes(opt.machine.device) as processes:
        device, results_dir = processes.device, Path(opt.inference.results_dir)
        generator, opt, model_path, model_name = checkpoint.load_generator(opt, device)
        made = generator.decoder.size if generator.full_pipeline else generator.renderer.resolution
        size = min(made, opt.evaluation.eval_size)
        folder = writable_folder(results_dir / opt.experiment.expname / model_name, '--results_dir')
        read_results(folder / 'metrics.json')  # an unusable one is noticed before the work
        settings = settings_of(opt, model_path, size, device)
        work = folder / f'unfinished-{short_hash(settings)}'
        images = open_images(opt.dataset.dataset_path, size) if image_wanted else None
        check(opt, images)
        features = load_features(opt.evaluation.features, size, device) if wanted & FEATURE_METRICS else None
        means = None
        if opt.inference.truncation_ratio != 1:
            random = torch.Generator(device).manual_seed(opt.experiment.seed)
            means = generator.mean_latents(opt.inference.truncation_mean, random)

        if image_wanted:
            data_hash = images.fingerprint()
            real = Blocks(results_dir / 'real_images' / data_hash, image_kinds(image_wanted, features, len(images)),
                          REAL_BLOCK)
            real.fill('real images', lambda todo: real_results(todo, images, features, opt, device), processes)
            kinds = image_kinds(image_wanted, features, opt.evaluation.num_images)
            if opt.evaluation.save_images:
                saved = writable_folder(opt.evaluation.save_images, '--save_images').resolve()
                kinds[f'saved-{short_hash(str(saved))}'] = opt.evaluation.num_images
            fake = Blocks(work, kinds, FAKE_BLOCK)
            fake.fill('generated images', lambda todo: fake_results(todo, generator, features, opt, means, size,
                                                                    device), processes)
        if surface_wanted:
            surfaces = Blocks(work, dict.fromkeys(sorted(surface_wanted), opt.evaluation.num_surfaces), SURFACE_BLOCK)
            surfaces.fill('identities', lambda todo: surface_results(todo, generator, opt, means, device), processes)

        processes.average_(torch.zeros(1, device=device))  # all wait here for each other's results
        if processes.rank:
            return
        results = {}
        if image_wanted:
            found = image_metrics(image_wanted, real, fake, features,
                                  torch.device('cpu') if device.type == 'mps' else device)  # which has no doubles
            data = {'path': str(opt.dataset.dataset_path), 'hash': data_hash}
            results |= {name: entry | {'data': data} for name, entry in found.items()}
        if surface_wanted:
            results |= surface_metrics(surface_wanted, surfaces, generator)
        add_results(folder / 'metrics.json', settings, results)
        shutil.rmtree(work, ignore_errors=True)
        print(table(results))
        print(f'{folder / "metrics.json"}: size {size}, psi {opt.inference.truncation_ratio:g}')


if __name__ == '__main__':
    run_command(main)

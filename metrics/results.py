"""The results of evaluations: metrics.json, and the table that is printed."""
import json

from checkpoint import file_hash
from inference.results import alone
from utils import UserError, atomic_path

UNITS = {'depth': '% of the depth range', 'view': 'levels of 255', 'single_surface': 'share of identities',
         'swd': 'x 1000'}
# Of the measures of inversion, whose entries are called by kind, stage and measure.
INVERSION_UNITS = {'psnr': 'dB', 'novel': 'dB, +-15 degrees', 'view': 'degrees', 'depth': UNITS['depth']}


def settings_of(opt, path, size, device, saved=()):
    """What determines the generated images and surfaces, in plain values. path: of the checkpoint. saved: the
    SavedLatents of --latents."""
    latents = {'latents': [one.hash for one in saved]} if saved else {}
    return latents | {'checkpoint': {'file': str(path), 'sha256': file_hash(path)}, 'size': size,
            'seed': opt.experiment.seed, 'truncation_ratio': opt.inference.truncation_ratio,
            'truncation_mean': opt.inference.truncation_mean, 'dense': opt.inference.dense,
            'precision': opt.machine.precision, 'device': device.type, 'camera': dict(opt.camera),
            'rendering': dict(opt.rendering)}


def read_results(path):
    """The list of evaluations in a metrics.json, or an empty one. Raises UserError for a file that is none."""
    try:
        evaluations = json.loads(path.read_text(encoding='utf-8'))['evaluations']
        if not isinstance(evaluations, list):
            raise TypeError
        for one in evaluations:
            one['settings'].items(), one['metrics'].items()
        return evaluations
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        raise UserError(f'{path} was not written by this command; move it away.') from None


def add_results(path, settings, results):
    """Put results into a metrics.json: into the evaluation with the same settings, or a new one."""
    with alone(path.parent):
        evaluations = read_results(path)
        same = next((one for one in evaluations if one['settings'] == settings), None)
        if same is None:
            evaluations.append({'settings': settings, 'metrics': results})
        else:
            same['metrics'] |= results
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({'evaluations': evaluations}, indent=1) + '\n', encoding='utf-8')


def table(results):
    """The results as lines of text."""
    lines, width = [], max(15, *map(len, results))
    for name, entry in results.items():
        value = '-' if entry['value'] is None else f'{entry["value"]:.4g}'
        facts = []
        if 'real_images' in entry:
            facts.append(f'{entry["images"]} images, {entry["real_images"]} real; {entry["features"]}')
        elif 'images' in entry:
            facts.append(f'{entry["images"]} images')
        elif 'of' in entry:
            facts.append(f'{entry["identities"]} of {entry["of"]} identities')
        unit = UNITS.get(name, '')
        if 'worst_tenth' in entry:
            unit = INVERSION_UNITS.get(name.rpartition(' ')[2], '')
            facts.append(f', median {entry["median"]:.4g}, worst tenth {entry["worst_tenth"]:.4g}')
        lines.append(f'{name:{width}} {value:>9}  {unit:21} {"".join(facts)}'.rstrip())
    return '\n'.join(lines)

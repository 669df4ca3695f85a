"""Cuts the golden numbers in this folder from the originals, which are kept beside the checkout (../shared/golden).

    python tests/golden/make.py ../shared/golden ../shared/spec.md [FOLDER]

Nothing is computed here: arrays are copied, and large ones lose rows. A test makes them again where the originals are
and compares every file.
"""
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
from golden_head import GOLDEN, MESH_STEP, ROWS, VIDEO_FRAMES  # noqa: E402

WHOLE = ('cameras', 'discriminators', 'ops', 'surfaces', 'training')
GRID = re.compile(r'.*_(rgb|xyz|mask|thumb)')  # of volume_renderer and generator: images of 64x64 pixels in float32
RUNS = ('random', 'fixed', 'uniform')


def cut_arrays(name, arrays):
    """{name: array} of one file, the large arrays cut and named for it."""
    cut = {}
    for key, array in arrays.items():
        if name == 'generator' and key.endswith('_rgb'):
            cut[f'{key}_lines'] = array[:, :, ::8]       # whole rows: neighbors meet in a decoder
        elif name in ('generator', 'volume_renderer') and GRID.fullmatch(key):
            cut[f'{key}_grid'] = array[:, :, ::4, ::4]   # a renderer's pixels know nothing of each other
        else:
            cut[key] = array
    return cut


def read(path):
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}


def write_numbers(source, out):
    for name in WHOLE:
        np.savez_compressed(out / f'{name}.npz', **read(source / f'{name}.npz'))
    for name in ('generator', 'volume_renderer'):
        np.savez_compressed(out / f'{name}.npz', **cut_arrays(name, read(source / f'{name}.npz')))


def rounded(value):
    return float(f'{value:.6g}') if isinstance(value, float) else value


def write_manifest(source, out):
    """manifest.json with numbers of six digits and a line for each tensor."""
    models = json.loads((source / 'manifest.json').read_text())
    texts = []
    for model, entries in models.items():
        lines = [f'"{key}": {json.dumps({k: rounded(value) for k, value in entry.items()})}'
                 for key, entry in entries.items()]
        texts.append(f'"{model}": {{\n' + ',\n'.join(lines) + '\n}')
    (out / 'manifest.json').write_text('{\n' + ',\n'.join(texts) + '\n}\n')


def write_head(source, out):
    """The field of shape.pt, and the mean of each tensor of its decoder, which is drawn again instead of stored."""
    state = torch.load(source / 'shape.pt', weights_only=True)['g_ema']
    field = {key: tensor.numpy() for key, tensor in state.items() if not key.startswith('decoder.')}
    means = {f'mean:{key}': tensor.double().mean().numpy() for key, tensor in state.items()
             if key.startswith('decoder.')}
    np.savez_compressed(out / 'head.npz', **field, **means)


def write_shape(source, out):
    """What the original's commands wrote from shape.pt."""
    out.mkdir(exist_ok=True)
    frames = [f'video_{kind}_{i}.png' for kind in ('rgb', 'depth') for i in VIDEO_FRAMES]
    for path in [*sorted(path for run in RUNS for path in source.glob(f'{run}_*.png')), *map(source.joinpath, frames)]:
        picture = np.asarray(Image.open(path))[ROWS.get(path.name, slice(None))]
        Image.fromarray(picture).save(out / path.name, optimize=True)
    for run in RUNS:
        arrays = {key: array if key.endswith(':count') else array[::MESH_STEP]
                  for key, array in read(source / f'{run}_meshes.npz').items()}
        np.savez_compressed(out / f'{run}_meshes.npz', **arrays)


def write_tables(specification, out):
    """original.json: the original's flags with their defaults, and the official files, from the description of both."""
    text = specification.read_text()
    section = text.split('## 5 Commands')[1].split('Generation and video always run')[0]
    section = re.sub(r'\([^)]*\)', '', section[section.index('dataset: '):].replace('\n', ' ')).rstrip(' .')
    flags = {}
    for item in re.sub(r'\w+: ', '', section.replace(' · ', ', ')).split(', '):
        name, _, value = item.strip().partition('=')
        flags[name] = value or 'off'  # a list of switches ends in the one with "=off"
    del flags['config']
    rows = re.findall(r'(\w+) ([\w-]{33}) (\d+) ([0-9a-f]{32}) -> (\S+\.pt)',
                      ' '.join(text.split('**Official downloads**')[1].split()))
    models = {name: {'drive_id': drive_id, 'size': int(size), 'md5': md5, 'path': path}
              for name, drive_id, size, md5, path in rows}
    (out / 'original.json').write_text(json.dumps({'flags': flags, 'models': models}, indent=1) + '\n')


def make(source, specification, out=GOLDEN):
    """Cut everything from the folder `source` and the file `specification` into the folder `out`."""
    write_numbers(source, out)
    write_manifest(source, out)
    write_head(source, out)
    write_shape(source / 'shape', out / 'shape')
    write_tables(specification, out)


if __name__ == '__main__':
    make(*map(Path, sys.argv[1:]))

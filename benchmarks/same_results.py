"""SHA-256 sums of everything that the commands of a checkout make, so that two checkouts can be compared bit for bit.

    python benchmarks/same_results.py --checkout ../before --out before.json
    python benchmarks/same_results.py --checkout . --out after.json --against before.json

It runs generation, videos, the bundled demo model, and tiny trainings with their data set, evaluation and export, all
on the CPU with one thread. It knows a checkout by its command lines and files alone, so old and new layouts of the code
can be compared. Every command runs in a temporary folder (or in --work FOLDER, which stays). With --against, differing,
missing and additional entries are listed, and the exit code is 1 if there is any, as it is where a command fails.
Compare only on one machine with the same installed packages.

An entry is named GROUP/FILE, or GROUP/FILE#PART where a file is not hashed as it is:

    .pt       one entry for each part of a checkpoint (g, d, g_ema, g_optim, ...): names, types, shapes, bytes
    data.mdb  the keys and values of an LMDB
    .json     its values, without the sum of the checkpoint, whose file also holds the options
    .jsonl    its lines, without seconds, images a second and memory
    .mp4      besides the bytes, the decoded frames

Not compared are a checkpoint's options, which name every flag that there is, and progress.png, which draws stats.jsonl
under titles in prose. The path of the checkout itself counts as the same in every checkout.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import lmdb
import numpy as np
import torch
from PIL import Image

SHAPE = Path(__file__).resolve().parents[2] / 'shared' / 'golden' / 'shape.pt'

GENERATE = {  # the name of the results' folder: flags
    'random': '--identities 2 --num_views_per_id 2',
    'fixed': '--identities 1 --fixed_camera_angles',
    'seeds': '--seeds 3,8',
    'colors_obj': '--seeds 3 --vertex_colors --mesh_format obj',
    'colors_ply': '--seeds 3 --vertex_colors --mesh_format ply',
    'colors_glb': '--seeds 8 --vertex_colors --mesh_format glb',
    'dense': '--seeds 3 --vertex_colors --dense',
    'other': '--identities 2 --uniform --precision bf16 --truncation_ratio 0.8 --truncation_mean 99 '
             '--no_surface_renderings',
}
VIDEO = {
    'frames': '--identities 1 --format frames',
    'noise_frames': '--identities 1 --format frames --project_noise',
    'mp4': '--seeds 3 --side_by_side',
    'noise_mp4': '--seeds 3 --side_by_side --project_noise --azim_video --depth_style normals',
    'walk': '--interpolate 3,8 --depth_style depth --format gif',
    'dense': '--seeds 3 --format frames --project_noise --dense',
}
TINY = ('--device cpu --dataset_path lmdb --size 16 --renderer_spatial_output_dim 8 --style_dim 8 --width 8 --depth 2 '
        '--N_samples 4 --channel_max 4 --discriminator_width 0.02 --batch 4 --num_workers 0 --iter 6 --lr_g 1e-3 '
        '--sphere_iters 3 --d_reg_every 2 --g_reg_every 2 --val_n_sample 1 --log_every 1 --save_every 3')
TRAININGS = (  # TINY comes before these flags, which so win
    'train_volume_renderer.py --expname one',
    'train_full_pipeline.py --expname one',
    'torchrun train_volume_renderer.py --expname two --sphere_lambda 1 --sphere_until 4',
    'torchrun train_full_pipeline.py --expname two',
    'train_volume_renderer.py --expname resumed --chunk 2 --iter 3',
    'train_volume_renderer.py --expname resumed --chunk 2 --continue_training --num_workers 1',
    'train_full_pipeline.py --expname resumed --chunk 2 --iter 3',
    'train_full_pipeline.py --expname resumed --chunk 2 --continue_training --num_workers 1',
    'train_volume_renderer.py --expname density --no_sdf --raw_noise_std 1 --no_offset_sampling',
    'train_full_pipeline.py --expname other --renderer_ckpt pretrained_renderer/one_vol_renderer.pt --mixing 1 '
    '--thumbnail_lambda 1 --dense --eval_every 6',
)
DEMO = '--expname cats_demo --device cpu'  # the commands of scripts/demo.sh, with fewer frames
COMMANDS = {
    'generation': [f'generate_shapes_and_images.py --expname shape --device cpu --results_dir {name} {flags}'
                   for name, flags in GENERATE.items()],
    'video': [f'render_video.py --expname shape --device cpu --frames 4 --results_dir {name} {flags}'
              for name, flags in VIDEO.items()],
    'training': ['prepare_data.py photos --out_path lmdb --size 8,16 --n_worker 2',
                 *(command.replace('.py', f'.py {TINY}') for command in TRAININGS),
                 'generate_shapes_and_images.py --expname density --device cpu --identities 1 --num_views_per_id 2',
                 'evaluate.py --expname one --device cpu --dataset_path lmdb --num_workers 0 --eval_batch 4 '
                 '--metrics swd,depth,view,field --num_images 12 --num_surfaces 2',
                 'export_model.py --expname one --out exported.pt'],
    'demo': [f'generate_shapes_and_images.py {DEMO} --seeds 0,2,4,10,13,15,18,19',
             f'render_video.py {DEMO} --seeds 13 --frames 4 --fps 20 --page'],
}
VOLATILE = {'sha256', 'seconds_per_step', 'images_per_second', 'peak_memory_gib'}


def make_photos(folder):
    """Write eleven small random PNGs, most of which are not square."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(11):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((16 + i, 16 + 3 * i % 5), Image.Resampling.BICUBIC).save(folder / f'{i:02d}.png')


def run(command, checkout, folder):
    """Run one command in `folder`. Returns whether it succeeded; its last lines go to stderr where it did not."""
    script, *arguments = command.removeprefix('torchrun ').split()
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'] * command.startswith('torchrun')
    started = time.perf_counter()
    result = subprocess.run([sys.executable, *launcher, str(checkout / script), *arguments], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env=os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive'})
    print(f'{time.perf_counter() - started:6.1f} s  {command.replace(TINY, "...")}', file=sys.stderr, flush=True)
    if result.returncode:
        print(f'exit code {result.returncode}: {result.stdout[-2000:]}', file=sys.stderr, flush=True)
    return result.returncode == 0


# ---------------------------------------------------------------------------------------------- hashes

def sha256(data):
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def flat(value):
    """Any part of a checkpoint as bytes: tensors with their type and shape, containers with their keys."""
    if isinstance(value, torch.Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f'{value.dtype} {tuple(value.shape)} '.encode() + data
    if isinstance(value, dict):
        return b''.join(f'{key!r}: '.encode() + flat(value[key]) + b'\n' for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)))
    return repr(value).encode()


def cleaned(value):
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: cleaned(inner) for key, inner in value.items() if key not in VOLATILE}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value


def entries(path, checkout):
    """{ending of the entry's name: SHA-256} of one file."""
    if path.name in ('progress.png', 'lock.mdb'):
        return {}
    if path.suffix == '.pt':
        contents = torch.load(path, weights_only=True)
        return {f'#{part}': sha256(flat(value)) for part, value in contents.items() if part != 'options'}
    if path.name == 'data.mdb':
        with lmdb.open(str(path.parent), readonly=True, lock=False) as environment, environment.begin() as transaction:
            return {'#pairs': sha256(b''.join(b'%d %d %b %b' % (len(key), len(value), key, value)
                                              for key, value in transaction.cursor()))}
    data = path.read_bytes()
    if path.suffix in ('.json', '.html'):
        data = data.replace(str(checkout).encode(), b'CHECKOUT')
    if path.suffix in ('.json', '.jsonl'):
        values = [json.loads(data)] if path.suffix == '.json' else [json.loads(line) for line in data.splitlines()]
        return {'#values': sha256(json.dumps(cleaned(values), sort_keys=True).encode())}
    found = {'': sha256(data)}
    if path.suffix == '.mp4':
        with av.open(str(path)) as video:
            found['#frames'] = sha256(b''.join(frame.to_ndarray().tobytes() for frame in video.decode(video=0)))
    return found


def results(checkout, group, folder, model):
    """Run a group's commands in `folder`; returns ({name: SHA-256} of all that is there then, number of failures)."""
    (folder / 'full_models').mkdir(parents=True)
    if group in ('generation', 'video'):
        shutil.copy(model, folder / 'full_models' / 'shape.pt')
    if group == 'training':
        make_photos(folder / 'photos')
    failures = sum(not run(command, checkout, folder) for command in COMMANDS[group])
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    return {f'{group}/{path.relative_to(folder).as_posix()}{part}': value
            for path in files for part, value in entries(path, checkout).items()}, failures


def differences(hashes, before):
    """Lines that say which entries of two dicts {name: SHA-256} differ."""
    return [f'{"missing" if name not in hashes else "additional" if name not in before else "differs"}: {name}'
            for name in sorted(hashes.keys() | before.keys()) if hashes.get(name) != before.get(name)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkout', type=Path, required=True, metavar='DIR', help='the checkout to run')
    parser.add_argument('--model', type=Path, default=SHAPE, metavar='FILE',
                        help='the checkpoint for generation and videos (default: ../shared/golden/shape.pt)')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the sums into this JSON file')
    parser.add_argument('--against', type=Path, metavar='FILE', help='compare with this file of an earlier --out')
    parser.add_argument('--groups', nargs='+', choices=COMMANDS, default=list(COMMANDS), metavar='NAME',
                        help=f'run and compare only some of {", ".join(COMMANDS)}')
    parser.add_argument('--jobs', type=int, default=2, metavar='N', help='groups that run at a time (default: 2)')
    parser.add_argument('--work', type=Path, metavar='FOLDER', help='run in this new folder, and keep what is made')
    args = parser.parse_args()
    before = json.loads(args.against.read_text()) if args.against else None
    hashes, failures = {}, 0
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(args.jobs) as threads:
        work = (args.work or Path(temporary)).resolve()
        for found, failed in threads.map(lambda group: results(args.checkout.resolve(), group, work / group,
                                                               args.model), args.groups):
            hashes, failures = hashes | found, failures + failed
    text = json.dumps(hashes, indent=1, sort_keys=True) + '\n'
    if args.out:
        args.out.write_text(text)
    elif before is None:
        print(text, end='')
    lines = [] if before is None else differences(
        hashes, {name: value for name, value in before.items() if name.split('/')[0] in args.groups})
    print(*lines, f'{len(hashes)} entries, {len(lines)} differences, {failures} failed commands', sep='\n')
    return int(bool(lines or failures))


if __name__ == '__main__':
    sys.exit(main())

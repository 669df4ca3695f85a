"""SHA-256 sums of everything that the commands of a checkout make, so that two checkouts can be compared bit for bit.

    python benchmarks/same_results.py --checkout ../before --out before.json
    python benchmarks/same_results.py --checkout . --out after.json --against before.json

It runs generation, videos, the bundled demo model, and tiny trainings with their data set, evaluation and export, on
the CPU with one thread. It knows a checkout by its command lines and files alone. Every command runs in a process that
is forked from this one, where PyTorch and the like are imported already; with --fresh as `python COMMAND`, which takes
twice as long. Compare only sums of one machine with the same installed packages. The exit code is 1 where something
differs or a command failed. An entry is named GROUP/FILE, or GROUP/FILE#PART where a file is not hashed as it is:

    .pt       a part of a checkpoint (g, d, g_ema, g_optim, ...): names, types, shapes and bytes; not the options
    data.mdb  the keys and values of an LMDB
    .json(l)  the values, without times, memory, the checkout's path, and the sum of a checkpoint with its options
    .mp4      the decoded frames, besides the bytes
"""
import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'

import av
import lmdb
import numpy as np
import torch
from PIL import Image

SHAPE = Path(__file__).resolve().parents[2] / 'shared' / 'golden' / 'shape.pt'
IMPORTED = ('configargparse', 'jinja2', 'matplotlib.figure', 'scipy.interpolate', 'scipy.spatial', 'skimage.measure',
            'torch.utils.data', 'torch.distributed', 'tqdm', 'trimesh')  # before forking

GENERATE = {  # the name of the results' folder: flags
    'random': '--identities 2 --num_views_per_id 2',
    'fixed': '--identities 1 --fixed_camera_angles',
    'seeds': '--seeds 3,8',
    'colors_obj': '--seeds 3 --vertex_colors --mesh_format obj',
    'colors_ply': '--seeds 3 --vertex_colors --mesh_format ply',
    'colors_glb': '--seeds 8 --vertex_colors --mesh_format glb',
    'dense': '--seeds 3 --vertex_colors --dense',
    'other': '--seeds 4 --uniform --truncation_ratio 0.8 --truncation_mean 99 --no_surface_renderings',
}
VIDEO = {
    'frames': '--identities 1 --format frames',
    'noise_frames': '--identities 1 --format frames --project_noise',
    'mp4': '--seeds 3 --side_by_side',
    'noise_mp4': '--seeds 3 --frames 2 --side_by_side --project_noise --azim_video --depth_style normals',
    'walk': '--interpolate 3,8 --frames 3 --depth_style depth --format gif',
    'dense': '--seeds 3 --frames 1 --format frames --project_noise --dense',
}
TINY = ('--device cpu --dataset_path lmdb --size 16 --renderer_spatial_output_dim 8 --style_dim 8 --width 8 --depth 2 '
        '--N_samples 4 --channel_max 4 --discriminator_width 0.02 --batch 4 --num_workers 0 --iter 6 --lr_g 1e-3 '
        '--sphere_iters 3 --d_reg_every 2 --g_reg_every 2 --val_n_sample 1 --log_every 1 --save_every 3')
TRAININGS = (  # TINY comes before these flags: the later ones count
    'train_volume_renderer.py --expname one',
    'train_full_pipeline.py --expname one',
    'torchrun train_volume_renderer.py --expname two --sphere_lambda 1 --sphere_until 4',
    'torchrun train_full_pipeline.py --expname two',
    *(f'{stage}.py --expname resumed --chunk 2 {flags}' for stage in ('train_volume_renderer', 'train_full_pipeline')
      for flags in ('--iter 3', '--continue_training --num_workers 1')),
    'train_volume_renderer.py --expname density --no_sdf --raw_noise_std 1 --no_offset_sampling',
    'train_full_pipeline.py --expname other --renderer_ckpt pretrained_renderer/one_vol_renderer.pt --mixing 1 '
    '--thumbnail_lambda 1 --precision bf16 --dense --eval_every 6',
)
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
    'demo': ['generate_shapes_and_images.py --expname cats_demo --device cpu --seeds 0,2,4,10,13,15,18,19',
             'render_video.py --expname cats_demo --device cpu --seeds 13 --frames 4 --fps 20 --page'],  # demo.sh: 40
}
NOT_COMPARED = ('progress.png', 'lock.mdb')  # the first draws stats.jsonl, under titles in prose
VOLATILE = {'sha256', 'seconds_per_step', 'images_per_second', 'peak_memory_gib'}


def become(argv, folder, log, environment, fresh):
    """Run a command in this process as `python ARGV` would, or where it is to be `fresh` do just that."""
    os.chdir(folder)
    os.environ.update(environment)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if fresh:
        os.execv(sys.executable, [sys.executable, *argv])
    sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
    runpy.run_path(argv[0], run_name='__main__')


def run(command, checkout, folder, fresh):
    """Run one command in `folder`, where it says torchrun in two processes. Returns whether it succeeded."""
    argv = command.removeprefix('torchrun ').split()
    argv[0] = os.path.join(checkout, argv[0])
    environments, started = [{}], time.perf_counter()
    if command.startswith('torchrun'):
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = str(free.getsockname()[1])
        environments = [{'WORLD_SIZE': '2', 'RANK': rank, 'LOCAL_RANK': rank, 'MASTER_ADDR': '127.0.0.1',
                         'MASTER_PORT': port} for rank in ('0', '1')]
    with tempfile.TemporaryFile() as log:
        processes = [multiprocessing.get_context('fork').Process(
            target=become, args=(argv, folder, log.fileno(), environment, fresh)) for environment in environments]
        for process in processes:
            process.start()
        failed = any([process.join() or process.exitcode for process in processes])
        log.seek(0)
        print(f'{time.perf_counter() - started:6.1f} s  {command.replace(TINY, "...")}',
              f'failed: {log.read().decode()[-2000:]}' if failed else '', flush=True)
    return not failed


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


def parts(path, checkout):
    """{ending of the entry's name: bytes to hash} of one file."""
    if path.suffix == '.pt':
        contents = torch.load(path, weights_only=True)
        return {f'#{part}': flat(value) for part, value in contents.items() if part != 'options'}
    if path.name == 'data.mdb':
        with lmdb.open(str(path.parent), readonly=True, lock=False) as environment, environment.begin() as transaction:
            return {'#pairs': flat(dict(transaction.cursor()))}
    data = path.read_bytes()
    if path.suffix in ('.json', '.jsonl'):
        values = [json.loads(text, object_hook=lambda found: {key: found[key] for key in found.keys() - VOLATILE})
                  for text in ([data] if path.suffix == '.json' else data.splitlines())]
        return {'#values': json.dumps(values, sort_keys=True).replace(checkout, 'CHECKOUT').encode()}
    if path.suffix == '.mp4':
        with av.open(str(path)) as video:
            return {'': data, '#frames': b''.join(frame.to_ndarray().tobytes() for frame in video.decode(video=0))}
    return {'': data}


def results(group, folder, args):
    """Run a group's commands in `folder`. Returns {name: SHA-256} of all files there; failed commands have 'failed'."""
    (folder / 'full_models').mkdir(parents=True)
    (folder / 'full_models' / 'shape.pt').write_bytes(args.model.read_bytes())
    (folder / 'photos').mkdir()
    rng = np.random.default_rng(0)
    for i in range(11):
        pixels = rng.integers(0, 256, (16 + 3 * i % 5, 16 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / 'photos' / f'{i}.png')
    failed = {f'{group}/{command}': 'failed' for command in COMMANDS[group]
              if not run(command, args.checkout, folder, args.fresh)}
    files = [path for path in folder.rglob('*') if path.is_file() and path.name not in NOT_COMPARED]
    return failed | {f'{group}/{path.relative_to(folder).as_posix()}{part}': hashlib.sha256(data).hexdigest()
                     for path in files for part, data in parts(path, args.checkout).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkout', type=os.path.realpath, required=True, metavar='DIR', help='the checkout to run')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='write the sums into this JSON file')
    parser.add_argument('--against', type=Path, metavar='FILE', help='list what differs from the sums in this file')
    parser.add_argument('--model', type=Path, default=SHAPE, metavar='FILE', help='checkpoint of generation and videos')
    parser.add_argument('--groups', nargs='+', choices=COMMANDS, default=list(COMMANDS), metavar='NAME',
                        help=f'run and compare only some of {", ".join(COMMANDS)}')
    parser.add_argument('--work', type=Path, metavar='FOLDER', help='run in this new folder, and keep what is made')
    parser.add_argument('--fresh', action='store_true', help='start every command anew')
    args, hashes = parser.parse_args(), {}
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        for group in args.groups:
            hashes |= results(group, (args.work or Path(temporary)).resolve() / group, args)
    args.out.write_text(json.dumps(hashes, indent=1, sort_keys=True))
    before = json.loads(args.against.read_text()) if args.against else hashes
    different = [name for name in sorted(hashes.keys() | before.keys())
                 if name.split('/')[0] in args.groups and hashes.get(name) != before.get(name)]
    for name in different:
        print(f'{"missing" if name not in hashes else "differs" if name in before else "additional"}: {name}')
    print(f'{len(hashes)} entries, {len(different)} differences')
    return int(bool(different) or 'failed' in hashes.values())


if __name__ == '__main__':
    sys.exit(main())

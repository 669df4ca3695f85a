"""How training scales from one process to several on this machine: images per second, and what the exchange costs.

    python benchmarks/scaling.py                      small widths, two processes of one thread, some minutes
    python benchmarks/scaling.py --default_widths     the default model: an hour

Each stage runs alone in one process, in N processes that have nothing to do with each other, and in N processes that
train together. The second shares cores, caches and memory like the third, and differs from it by the exchange alone.
Other work on the machine falsifies all three, so the runs take turns, and the medians of all steps are compared.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import options
from utils import run_command


def read_flags():
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    at_least_one = options.explained(options.at_least(1))
    parser.add_argument('--processes', type=at_least_one, default=2, help='how many train together (default: 2)')
    parser.add_argument('--batch', type=at_least_one, default=4, help='images of one process in a step (default: 4)')
    parser.add_argument('--steps', type=at_least_one, default=20, help='steps of each run that count (default: 20)')
    parser.add_argument('--turns', type=at_least_one, default=3, help='how often all runs are made (default: 3)')
    parser.add_argument('--default_widths', action='store_true', help='the default model instead of a small one')
    return parser.parse_args()


if __name__ == '__main__':
    run_command('scaling', read_flags)

import numpy as np
from PIL import Image

STAGES = {'stage 1': ('train_volume_renderer.py', 'volume_renderer'),
          'stage 2': ('train_full_pipeline.py', 'full_pipeline')}
SMALL = ['--size', '64', '--renderer_spatial_output_dim', '16', '--width', '64', '--depth', '3', '--style_dim', '64',
         '--N_samples', '12', '--discriminator_width', '0.25', '--channel_max', '64', '--channel_multiplier', '1']
DEFAULT = ['--size', '256']


def make_data(folder, size):
    """An LMDB of a few smooth random photos of size x size pixels."""
    rng = np.random.default_rng(0)
    (folder / 'photos').mkdir()
    for i in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / 'photos' / f'{i}.png')
    subprocess.run([sys.executable, ROOT / 'prepare_data.py', '--out_path', 'data', '--size', str(size), 'photos'],
                   cwd=folder, check=True, capture_output=True)


def start(folder, script, arguments, processes=1):
    """Start a training in a folder of its own, in so many processes that train together."""
    folder.mkdir(parents=True)
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    with open(folder / 'log.txt', 'w') as log:
        return subprocess.Popen(
            [sys.executable, *(launcher if processes > 1 else ()), ROOT / script, *arguments], cwd=folder, stdout=log,
            stderr=log, stdin=subprocess.DEVNULL,
            env=os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive'})


def seconds_of(folder, process, stage):
    """Seconds of each step but the first, once the training has ended."""
    if process.wait():
        sys.exit(f'a training failed:\n{(folder / "log.txt").read_text()[-3000:]}')
    lines = (folder / 'checkpoint' / 'scaling' / stage / 'stats.jsonl').read_text().splitlines()
    return [json.loads(line)['seconds_per_step'] for line in lines][1:]


def measure(flags, work, name, renderer, turn):
    """{way: seconds of the steps} of one turn of a stage."""
    script, stage = STAGES[name]
    arguments = ['--expname', 'scaling', '--dataset_path', str(work / 'data'), '--iter', str(flags.steps + 1),
                 '--batch', str(flags.batch), '--chunk', str(flags.batch), '--log_every', '1', '--num_workers', '0',
                 '--save_every', '1000000', '--sample_every', '1000000', '--val_n_sample', '1', '--device', 'cpu',
                 *(DEFAULT if flags.default_widths else SMALL),
                 *(['--no_sphere_init'] if stage == 'volume_renderer' else ['--renderer_ckpt', str(renderer)])]
    found = {}
    for way, runs, processes in (('alone', 1, 1), ('apart', flags.processes, 1), ('together', 1, flags.processes)):
        folders = [work / f'{stage}_{turn}_{way}_{i}' for i in range(runs)]
        started = [start(folder, script, arguments, processes) for folder in folders]
        found[way] = [seconds for folder, process in zip(folders, started, strict=True)
                      for seconds in seconds_of(folder, process, stage)]
    return found


def main(flags):
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        make_data(work, 256 if flags.default_widths else 64)
        print(f'{"":8}  {"images/s":>8}  {"apart":>8}  {"together":>8}  {"scaling":>8}  {"exchange":>8}')
        for name in STAGES:
            renderer = work / 'volume_renderer_0_alone_0' / 'pretrained_renderer' / 'scaling_vol_renderer.pt'
            turns = [measure(flags, work, name, renderer, turn) for turn in range(flags.turns)]
            alone, apart, together = (statistics.median(value for turn in turns for value in turn[way])
                                      for way in ('alone', 'apart', 'together'))
            images = flags.batch
            print(f'{name:8}  {images / alone:8.2f}  {flags.processes * images / apart:8.2f}  '
                  f'{flags.processes * images / together:8.2f}  {flags.processes * alone / together:7.2f}x  '
                  f'{max(0, 1 - apart / together):8.1%}', flush=True)

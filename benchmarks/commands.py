"""What one run of speed.py's rows of whole commands is: each from the start of its process to its end.

`plain` is the command with --dense and STYLESDF_OPS=plain. It is not the original's.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import checkpoint
import options
from utils import UserError

HOUSE = Path(__file__).resolve().parent.parent
DEMO = HOUSE / 'demo' / 'cats_demo.pt'
DEMO_SEEDS, VIDEO_SEED = '3,5,8,13,17,18,19,20', '18'  # of scripts/demo.sh
GENERATE, VIDEO = 'generate_shapes_and_images.py', 'render_video.py'
COMMANDS = {  # row: (what it is, whether the model is the bundled one, command lines)
    'help': ('--help', True, [(GENERATE, '--help')]),
    'generation': ('six images, no surfaces', False, [(GENERATE, '--identities', '6', '--no_surface_renderings')]),
    'generation_surfaces': ('two images with their surfaces', False, [(GENERATE, '--identities', '2')]),
    'video_command': ('four frames of a video, with the surface', False, [(VIDEO, '--seeds', '0', '--frames', '4')]),
    'demo': ("demo.sh's two commands", True, [
        (GENERATE, '--seeds', DEMO_SEEDS), (VIDEO, '--seeds', VIDEO_SEED, '--frames', '40', '--fps', '20', '--page')]),
}


def command_seconds(lines, model, variant, flags=(), threads=0):
    """Run command lines with a model's file, one after the other, and return the seconds that they took in all.

    Raises UserError with the last line that a command printed if it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    if variant == 'plain':
        environment['STYLESDF_OPS'] = 'plain'
    if threads:
        environment['OMP_NUM_THREADS'] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for command, *own in lines:
            whole = [sys.executable, str(HOUSE / command), *own]
            if '--help' not in own:
                whole += ['--model', str(model), '--results_dir', folder, *['--dense'] * (variant != 'ours'), *flags]
            done = subprocess.run(whole, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise UserError(f'{command} failed: {(done.stdout.strip().splitlines() or ["it said nothing"])[-1]}')
        return time.perf_counter() - started


def command_row(name, load, settings, variant):
    """Prepare a row of COMMANDS. load: speed.load, whose generator is written to a file for the command."""
    _, bundled, lines = COMMANDS[name]
    model, kept = DEMO, None
    device = options.parse(GENERATE.removesuffix('.py'), __doc__, list(settings.flags)).machine.device
    if not bundled:
        generator, opt = load(settings, 'generate_shapes_and_images', variant)
        kept = tempfile.TemporaryDirectory()
        model = Path(kept.name) / 'benchmark.pt'
        torch.save({'g_ema': generator.state_dict(), 'options': checkpoint.saved_options(opt)}, model)

    def run():
        flags = ['--device', device]
        return command_seconds(lines, model, variant, flags, settings.threads)
    run.kept = kept  # the folder lives as long as the function
    return run

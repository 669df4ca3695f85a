"""Every flag once: its default, help and check; one option tree for all commands.

`parse(command)` gives a tree of groups (`opt.model.size`, `opt.camera.fov`, …). A command's --help shows the groups it
uses; it accepts the others' flags too, so that one --config file serves all commands. Nobody edits the tree:
`replaced` makes a changed copy, and what follows from a choice of command is set here.
"""
import argparse
import re
from dataclasses import dataclass
from typing import Any

import configargparse
from munch import Munch

from utils import UserError

MAX_SEED = 2 ** 63 - 1
LARGEST = 10 ** 9  # of any number: more is a slip of the finger
MEAN_LATENT_DRAWS = 10_000
MOST_MEAN_DRAWS = 10 ** 7  # more take minutes and change nothing


# ---------------------------------------------------------------------------------------------- checks

def at_least(low, kind=int, most=LARGEST):
    """A flag type: a number from `low` to `most`."""
    def check(text):
        try:
            value = kind(text)
        except ValueError:
            raise ValueError('must be a whole number' if kind is int else 'must be a number') from None
        if not low <= value <= most:
            raise ValueError(f'must lie between {low} and {most:.0e}' if most == LARGEST else
                             f'must lie between {low} and {most}')
        return value
    return check


def not_empty(text):
    """A flag type: a name or path."""
    if not text.strip():
        raise ValueError('must be a name or path')
    return text


def above(low):
    """A flag type: a number greater than `low`."""
    def check(text):
        value = float(text)
        if not low < value <= LARGEST:
            raise ValueError(f'must be a number above {low}, up to {LARGEST:.0e}')
        return value
    return check


def half_angle(text):
    """A field of view, which is half the opening angle: between 0 and 90 degrees."""
    value = float(text)
    if not 0 < value < 90:
        raise ValueError('must lie between 0 and 90 degrees (it is half the opening angle)')
    return value


def radius(text):
    """A distance from the origin that stays clear of the camera, which is 1 away."""
    value = float(text)
    if not 1e-3 <= value < 1:
        raise ValueError('must lie between 0.001 and 1 (the cameras are 1 away from the origin)')
    return value


def power_of_two(low):
    """A flag type: a power of two no smaller than `low`."""
    def check(text):
        value = int(text)
        if value < low or value & (value - 1):
            raise ValueError(f'must be a power of two, {low} or more')
        return value
    return check


def seed(text):
    """A seed of PyTorch's random generators."""
    value = int(text)
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f'must lie between 0 and {MAX_SEED}')
    return value


def seed_list(text):
    """'0-7,42' to (0, 1, …, 7, 42), without repetitions."""
    seeds = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > MAX_SEED or last - first >= 10_000_000:
            raise ValueError('must be numbers and ranges such as 0-7,42')
        seeds.extend(range(first, last + 1))
    return tuple(dict.fromkeys(seeds))


METRICS = ('fid', 'kid', 'pr', 'swd', 'depth', 'view', 'field')


def metric_list(text):
    """'fid,depth' to ('fid', 'depth')."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(',')))
    if not set(names) <= set(METRICS):
        raise ValueError(f'must be some of {",".join(METRICS)}')
    return names


def device_name(text):
    """auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r'auto|cpu|mps|cuda(:\d{1,3})?', text):
        raise ValueError('must be auto, cpu, cuda, cuda:N or mps')
    return text


# ---------------------------------------------------------------------------------------------- the flags

@dataclass(frozen=True)
class Flag:
    """One flag. type: text to value, raising ValueError with a reason; bool for a switch that is off by default."""
    name: str
    default: Any
    help: str
    type: Any = not_empty
    choices: tuple = None


GROUPS = {
    'dataset': (
        Flag('dataset_path', './datasets/FFHQ', 'LMDB made by prepare_data.py (evaluate.py also takes photos)'),
    ),
    'experiment': (
        Flag('expname', 'debug', 'name of the experiment: the folder of its checkpoints and results'),
        Flag('ckpt', 300000, 'iteration of the checkpoint to use where there is no final model', at_least(0)),
        Flag('continue_training', False, 'resume from the newest checkpoint', bool),
        Flag('seed', 1234, 'seed of all random numbers', seed),
    ),
    'training': (
        Flag('checkpoints_dir', './checkpoint', 'where checkpoints are kept'),
        Flag('iter', 300000, 'training steps', at_least(1)),
        Flag('batch', 4, 'images per step and process, at least 2', at_least(1)),
        Flag('chunk', 4, 'images at a time: a batch is split to save memory, the gradient stays the same', at_least(1)),
        Flag('num_workers', 2, 'processes that load images (0: the training process itself)', at_least(0)),
        Flag('save_every', 10000, 'steps between checkpoints', at_least(1)),
        Flag('keep_checkpoints', 0, 'keep only so many checkpoints, the newest (0: all)', at_least(0)),
        Flag('sample_every', 1000, 'steps between sample grids', at_least(1)),
        Flag('eval_every', 0, 'steps between quick measurements of quality for the log (0: never)', at_least(0)),
        Flag('log_every', 10, 'steps that a line of stats.jsonl averages over', at_least(1)),
        Flag('max_minutes', 0., 'save and stop after so many minutes (0: never)', at_least(0, float)),
        Flag('init_ckpt', None, 'begin with the weights of this checkpoint, ours or official'),
        Flag('renderer_ckpt', None, "stage 2: stage 1's result (default: pretrained_renderer/EXPNAME_vol_renderer.pt)"),
        Flag('val_n_sample', 8, 'identities in the sample grids', at_least(1)),
        Flag('d_reg_every', 16, 'stage 2: steps between R1 regularizations', at_least(1)),
        Flag('g_reg_every', 4, 'stage 2: steps between path length regularizations (0: never)', at_least(0)),
        Flag('local_rank', 0, 'set by distributed launchers', int),
        Flag('mixing', 0.9, 'stage 2: probability of style mixing', at_least(0, float, most=1)),
        Flag('lr', 0.002, 'stage 2: learning rate', above(0)),
        Flag('lr_g', 2e-5, "stage 1: the generator's learning rate", above(0)),
        Flag('lr_d', 2e-4, "stage 1: the discriminator's learning rate", above(0)),
        Flag('r1', 10., 'weight of the R1 penalty', at_least(0, float)),
        Flag('view_lambda', 15., 'stage 1: weight of the viewpoint loss', at_least(0, float)),
        Flag('eikonal_lambda', 0.1, 'stage 1: weight of the eikonal loss', at_least(0, float)),
        Flag('min_surf_lambda', 0.05, 'stage 1: weight of the minimal surface loss', at_least(0, float)),
        Flag('min_surf_beta', 100., 'stage 1: how closely the minimal surface loss hugs the surface', above(0)),
        Flag('path_regularize', 2., 'stage 2: weight of the path length penalty', at_least(0, float)),
        Flag('path_batch_shrink', 2, 'stage 2: the path length batch is this much smaller', at_least(1)),
        Flag('thumbnail_lambda', 0., "stage 2: weight of the image's distance, reduced, from the renderer's thumbnail, "
             'which brings short trainings to the subject (0: as the paper)', at_least(0, float)),
        Flag('wandb', False, 'log to Weights & Biases too', bool),
        Flag('no_sphere_init', False, 'stage 1: do not begin with a sphere', bool),
        Flag('sphere_iters', 10000, 'stage 1: steps that make the sphere to begin with', at_least(1)),
        Flag('sphere_radius', 0., 'stage 1: radius of that sphere (0: half of dist_radius, as the paper)',
             at_least(0, float)),
        Flag('sphere_lambda', 0., 'stage 1: weight of the distance to that sphere, which holds the surface in the '
             'picture at first, for short trainings (0: as the paper)', at_least(0, float)),
        Flag('sphere_until', 2000, 'stage 1: step by which that weight has fallen to nothing', at_least(1)),
        Flag('sphere_fade', False, 'stage 1: let that weight fade, and come back, as beta and the silhouettes need it, '
             'instead of by --sphere_until', bool),
        Flag('no_mirror', False, 'do not mirror a random half of the photos, for subjects with a left and a right',
             bool),
        Flag('augment', False, 'change what the discriminator sees at random, as strongly as it needs (ADA), for small '
             'data sets', bool),
        Flag('augment_target', 0.6, "mean sign of the discriminator's score for real images above which --augment "
             'grows stronger', at_least(0, float, most=1)),
        Flag('augment_images', 100000, 'real images in which the strength of --augment could go from 0 to 1',
             at_least(1)),
        Flag('initial_beta', 0.1, 'stage 1: beta to begin with (with --init_ckpt: if given)', above(0)),
    ),
    'inference': (
        Flag('results_dir', './evaluations', 'where results go'),
        Flag('truncation_ratio', 0.5, 'truncation psi: 1 is the full variety, 0 the mean', at_least(0, float)),
        Flag('truncation_mean', MEAN_LATENT_DRAWS, 'latents that the mean for truncation is taken over',
             at_least(1, most=MOST_MEAN_DRAWS)),
        Flag('identities', 16, 'how many identities to generate', at_least(1)),
        Flag('num_views_per_id', 1, 'random views of each identity', at_least(1)),
        Flag('no_surface_renderings', False, 'images only, no meshes', bool),
        Flag('no_surface_videos', False, 'no depth videos', bool),
        Flag('fixed_camera_angles', False, 'the 13 fixed views instead of random ones', bool),
        Flag('azim_video', False, 'the camera moves from side to side instead of on an ellipse', bool),
        Flag('seeds', None, 'one identity for each of these seeds, such as 0-7,42, instead of --identities', seed_list),
        Flag('mesh_format', 'obj', 'file format of the meshes', choices=('obj', 'ply', 'glb')),
        Flag('dense', False, 'evaluate the field at all samples of images and surfaces, also where a part of them '
             'gives the same', bool),
        Flag('cuda_graphs', False, 'launch the kernels of a picture as one (not tried on any GPU yet; elsewhere it has '
             'no effect)', bool),
        Flag('vertex_colors', False, 'color the vertices of the meshes', bool),
        Flag('page', False, "write index.html, a page with all of this model's results to open in a browser", bool),
    ),
    'video': (
        Flag('frames', 250, 'frames of a video', at_least(1)),
        Flag('fps', 30, 'frames a second', at_least(1, most=1000)),
        Flag('format', 'mp4', 'file format of the videos; frames: a folder of PNGs',
             choices=('mp4', 'gif', 'webp', 'frames')),
        Flag('side_by_side', False, 'one more video, with image and surface beside each other', bool),
        Flag('depth_style', 'phong', 'how the surface is drawn', choices=('phong', 'normals', 'depth')),
        Flag('interpolate', None, 'one video that walks through the identities of these seeds and back to the first, '
             'such as 3,7,9', seed_list),
    ),
    'evaluation': (
        Flag('metrics', METRICS, 'what to measure', metric_list),
        Flag('num_images', 50000, 'images to generate for fid, kid, pr and swd', at_least(1)),
        Flag('num_surfaces', 1000, 'identities for depth, view and field', at_least(1)),
        Flag('eval_size', 256, 'images are compared at this size, or at their own if that is smaller',
             power_of_two(16)),
        Flag('eval_batch', 8, 'images to generate at a time', at_least(1)),
        Flag('features', None, "TorchScript network for fid, kid and pr instead of torch-fidelity's Inception"),
        Flag('save_images', None, 'also write the generated images into this folder'),
    ),
    'export': (
        Flag('out', None, 'file to write'),
    ),
    'app': (
        Flag('port', 7860, 'port of the page that app.py serves', at_least(1, most=65535)),
        Flag('share', False, "also serve it at a public address, through Gradio's servers, for three days", bool),
    ),
    'model': (
        Flag('size', 256, 'side of the generated images', power_of_two(8)),
        Flag('style_dim', 256, 'size of the latents w', at_least(1)),
        Flag('channel_multiplier', 2, "multiplies the decoder's channels", at_least(1)),
        Flag('channel_max', 0, 'no more channels than this in decoder and stage-2 discriminator, for small machines '
             '(0: as many as the paper)', at_least(0)),
        Flag('discriminator_width', 1., "stage 1: scales the discriminator's channels, for small machines", above(0)),
        Flag('n_mlp', 8, 'accepted for the sake of old command lines; the mapping has three layers', at_least(1)),
        Flag('lr_mapping', 0.01, "learning rate multiplier of the decoder's mapping", above(0)),
        Flag('renderer_spatial_output_dim', 64, 'rays along a side of the thumbnail', power_of_two(4)),
        Flag('project_noise', False, 'video: noise that sticks to the surface', bool),
    ),
    'camera': (
        Flag('uniform', False, 'viewpoints uniform in +-range instead of Gaussian', bool),
        Flag('azim', 0.3, 'standard deviation or range of the azimuth, radians', at_least(0, float, most=10)),
        Flag('elev', 0.15, 'standard deviation or range of the elevation, radians', at_least(0, float, most=10)),
        Flag('fov', 6., 'half the field of view, degrees', half_angle),
        Flag('dist_radius', 0.12, 'near and far planes lie this far before and behind the origin', radius),
    ),
    'rendering': (
        Flag('depth', 8, 'hidden layers of the field', at_least(1)),
        Flag('width', 256, 'channels of the field', at_least(1)),
        Flag('no_sdf', False, 'a raw density instead of a signed distance', bool),
        Flag('no_z_normalize', False, 'do not scale points to [-1, 1] before the field', bool),
        Flag('static_viewdirs', False, 'view directions of the camera frame, whatever the viewpoint', bool),
        Flag('N_samples', 24, 'samples along a ray', at_least(2, most=4096)),
        Flag('no_offset_sampling', False, 'stratified sampling instead of one offset a ray', bool),
        Flag('perturb', 1., 'training: jitter the samples along the rays (0: do not)', at_least(0, float)),
        Flag('raw_noise_std', 0., 'noise added to the raw density (with --no_sdf)', at_least(0, float)),
        Flag('force_background', False, 'the last sample takes all the weight that is left', bool),
        Flag('return_xyz', False, 'accepted for the sake of old command lines; surface points are always there', bool),
        Flag('return_sdf', False, 'accepted for the sake of old command lines; the SDF is there when needed', bool),
    ),
    'machine': (
        Flag('device', 'auto', 'auto (CUDA if there is one), cpu, cuda, cuda:N or mps', device_name),
        Flag('precision', 'fp32', "number format of the decoder's convolutions, and in stage 2 of the discriminator's",
             choices=('fp32', 'fp16', 'bf16')),
    ),
}

# The groups (or single flags) that a command uses, and so shows in --help.
COMMANDS = {
    'train_volume_renderer': ('dataset', 'experiment', 'training', 'model', 'camera', 'rendering', 'machine'),
    'train_full_pipeline': ('dataset', 'experiment', 'training', 'dense', 'model', 'camera', 'rendering', 'machine'),
    'generate_shapes_and_images': ('experiment', 'checkpoints_dir', 'inference', 'model', 'camera', 'rendering',
                                   'machine'),
    'render_video': ('experiment', 'checkpoints_dir', 'inference', 'video', 'model', 'camera', 'rendering', 'machine'),
    'evaluate': ('dataset', 'experiment', 'checkpoints_dir', 'num_workers', 'results_dir', 'truncation_ratio',
                 'truncation_mean', 'dense', 'evaluation', 'model', 'camera', 'rendering', 'machine'),
    'export_model': ('experiment', 'checkpoints_dir', 'export', 'model', 'camera', 'rendering'),
    'app': ('expname', 'ckpt', 'seed', 'checkpoints_dir', 'truncation_ratio', 'truncation_mean', 'dense', 'app',
            'model', 'camera', 'rendering', 'machine'),
}

# Values that a command always runs with (spec section 5).
_INFERENCE = {'perturb': 0., 'force_background': True, 'static_viewdirs': True, 'raw_noise_std': 0.}
FORCED = {
    'generate_shapes_and_images': _INFERENCE,
    'render_video': _INFERENCE | {'N_samples': 64},
    'evaluate': _INFERENCE,
    'export_model': _INFERENCE,
    'app': _INFERENCE,
}

# Defaults of a command that differ from the others'.
DEFAULTS = {
    'train_volume_renderer': {'iter': 200000},
    'evaluate': {'truncation_ratio': 1.},
    'app': {'expname': 'cats_demo', 'truncation_ratio': 0.7},
}


# ---------------------------------------------------------------------------------------------- parsing

class Parser(configargparse.ArgumentParser):
    """An argument parser whose errors are one sentence (UserError) and that never guesses at abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        raise UserError(f'{message}; see --help.')


def parse(command, description, argv=None):
    """The option tree of a command (a Munch of Munches, by group), from argv (default: the process's own).

    Besides the groups it holds `given`, the names of the flags that the user set. Raises UserError for anything that
    is not a known flag with a sensible value. One line says which flags the command does not follow (FORCED); it is no
    error, since one --config file serves all commands.
    """
    parser = Parser(description=description, usage='%(prog)s [--help] [flags]', default_config_files=[],
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', is_config_file=True, metavar='FILE',
                        help='read flags from this file, lines of the form: name = value')
    for group, flags in GROUPS.items():
        target = parser.add_argument_group(group)
        for flag in flags:
            _add_flag(target, flag, shown=group in COMMANDS[command] or flag.name in COMMANDS[command],
                      default=DEFAULTS.get(command, {}).get(flag.name, flag.default))
    try:
        values = vars(parser.parse_args(argv))
    except (configargparse.ConfigFileParserException, UnicodeDecodeError) as error:
        raise UserError(f'--config: {" ".join(str(error).split())}') from None
    values.pop('config')
    forced = FORCED.get(command, {})
    if unused := [name for name, value in values.items() if value != forced.get(name, value)]:
        print(f'{command} always runs with',
              ', '.join(f'{name} {forced[name]} (not {values[name]})' for name in unused))
    return _tree(command, values)


def _add_flag(target, flag, shown, default):
    names = [f'--{flag.name}']
    if flag.name == 'local_rank':
        names.append('--local-rank')  # as today's launchers write it
    value = ','.join(default) if isinstance(default, tuple) else default
    text = flag.help + ('' if default in (None, False) else f' (default: {value})')
    text = text.replace('%', '%%') if shown else configargparse.SUPPRESS
    if flag.type is bool:
        target.add_argument(*names, dest=flag.name, action='store_true', default=configargparse.SUPPRESS, help=text)
    else:
        target.add_argument(*names, dest=flag.name, type=explained(flag.type), choices=flag.choices,
                            default=configargparse.SUPPRESS, help=text,
                            metavar=None if flag.choices else 'N' if isinstance(flag.default, int | float) else 'VALUE')


def checked(name, value):
    """A flag's value from a file, checked like one that is typed. Raises ValueError with the reason."""
    flag = next(flag for flags in GROUPS.values() for flag in flags if flag.name == name)
    if flag.type is bool:
        if not isinstance(value, bool):
            raise ValueError('must be true or false')
        return value
    return flag.type(str(value))


def explained(convert):
    """Wrap a flag type so that argparse shows the reason, with the value, instead of the function's name."""
    def convert_or_explain(text):
        try:
            return convert(text)
        except ValueError as error:
            reason = str(error) if str(error).startswith('must') else 'must be a number'
            raise configargparse.ArgumentTypeError(f'{reason}, not {text!r}') from None
    return convert_or_explain


def _tree(command, given):
    """Defaults, then what the user set, then what the command forces."""
    fixed = DEFAULTS.get(command, {}) | dict(given) | FORCED.get(command, {})
    tree = Munch(given=frozenset(given))
    for group, flags in GROUPS.items():
        tree[group] = Munch((flag.name, fixed.get(flag.name, flag.default)) for flag in flags)
    return tree


def replaced(tree, **values):
    """A copy of the tree with some flags changed, by name."""
    copy = Munch((name, Munch(group) if isinstance(group, Munch) else group) for name, group in tree.items())
    for name, value in values.items():
        group = next(group for group, flags in GROUPS.items() if any(flag.name == name for flag in flags))
        copy[group][name] = value
    return copy

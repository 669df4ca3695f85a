"""Every flag once: its default, help, check and scope; one option tree for all commands.

`parse(command)` gives a tree of groups (`opt.model.size`, `opt.camera.fov`, …). A flag's scope says which commands use
it and what a checkpoint has to say about it; whatever asks such a question asks the scope, so a new flag is one line of
GROUPS. A command's --help explains the flags that most people use, and --help_all explains all that have an effect in
this command. It accepts the others' flags too, so that one --config file serves all commands. Nobody edits the tree:
`replaced` makes a changed copy.

This file imports nothing slow, so that --help is quick.
"""
import argparse
import difflib
import re
import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any

import configargparse
from munch import Munch

from utils import UserError, printable, run_command

MAX_SEED = 2 ** 63 - 1
MAX_VIEWS = 1000
MAX_NAME = 200  # bytes; file systems allow 255, and endings are added to an experiment's name
MAX_SENTENCE = 1000  # characters about a wrong flag
LARGEST = 10 ** 9  # no number may be larger: that would be a slip of the finger
MOST_PICTURES = 10 ** 6  # of one command, which holds something about each in memory
DIRECTION_NAME = '[A-Za-z][A-Za-z0-9]{0,29}'
MAX_EDIT = 100
MEAN_LATENT_DRAWS = 10_000  # model.py has the same default
MAX_MEAN_DRAWS = 10 ** 7  # more take minutes and change nothing


# ---------------------------------------------------------------------------------------------- checks

def at_least(low, kind=int, most=LARGEST):
    """A flag type: a number of this kind (int or float) from `low` to `most`."""
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


def experiment_name(text):
    """A flag type: the name of an experiment, of which folders and files are named; a/b is one inside another."""
    folders = not_empty(text).replace('\\', '/').split('/')
    if not all(folders) or {'.', '..'} & set(folders) or ':' in folders[0]:
        raise ValueError('must be a name, or several with / between them, that stays inside the folders of the project')
    if not text.isprintable():
        raise ValueError('must consist of printable characters')
    if max(len(folder.encode()) for folder in folders) > MAX_NAME:
        raise ValueError(f'must be a name of at most {MAX_NAME} bytes')
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
    """A field of view, which is half the opening angle: from 0.1 to below 90 degrees.

    At smaller ones focal lengths and the sheets of textures would grow without limit.
    """
    value = float(text)
    if not 0.1 <= value < 90:
        raise ValueError('must lie between 0.1 and 90 degrees (it is half the opening angle)')
    return value


def radius(text):
    """A distance from the origin that stays clear of the camera, which is 1 away."""
    value = float(text)
    if not 1e-3 <= value < 1:
        raise ValueError('must lie between 0.001 and 1 (the cameras are 1 away from the origin)')
    return value


def spread(text):
    """How far viewpoints spread, in radians: from 0 to 10."""
    value = float(text)
    if not 0 <= value <= 10:
        raise ValueError('must lie between 0 and 10 radians (views in degrees are given by --views)')
    return value


def power_of_two(low, most):
    """A flag type: a power of two from `low` to `most`."""
    def check(text):
        value = int(text)
        if not low <= value <= most or value & (value - 1):
            raise ValueError(f'must be a power of two from {low} to {most}')
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


INVERSION_METRIC = 'inversion'  # only where it is asked for: it takes minutes an image
METRICS = ('fid', 'kid', 'pr', 'swd', 'depth', 'view', 'field')


def metric_list(text):
    """'fid,depth' to ('fid', 'depth')."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(',')))
    if not set(names) <= {*METRICS, INVERSION_METRIC}:
        raise ValueError(f'must be some of {",".join(METRICS)},{INVERSION_METRIC}')
    return names


MAPS = ('depth', 'normal', 'mask', 'position')  # what surfaces/maps.py makes


def map_list(text):
    """'depth,mask' to ('depth', 'mask')."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(',')))
    if not set(names) <= set(MAPS):
        raise ValueError(f'must be some of {",".join(MAPS)}')
    return names


def view_list(text):
    """'20,0 -20:20:3,10' to ((20., 0.), (-20., 10.), (0., 10.), (20., 10.)): azimuth and elevation in degrees.

    FROM:TO:COUNT stands for angles at equal distances; of two such ranges all combinations are taken.
    """
    views = []
    for pair in text.split():
        angles = [_angles(part, low) for part, low in zip(pair.split(','), (-360, -89), strict=False)]
        if len(angles) != 2 or pair.count(',') != 1 or not all(angles):
            raise ValueError('must be views such as "20,0 -20,0" or "-30:30:5,0", azimuth and elevation in degrees, '
                             'the elevation from -89 to 89')
        views.extend((azimuth, elevation) for elevation in angles[1] for azimuth in angles[0])
    if not 1 <= len(views) <= MAX_VIEWS:
        raise ValueError(f'must be 1 to {MAX_VIEWS} views')
    return tuple(views)


def _angles(text, low):
    """The angles of one part of view_list, or none if there is something wrong with it."""
    match = re.fullmatch(r'(-?\d{1,3}(?:\.\d{1,6})?)(?::(-?\d{1,3}(?:\.\d{1,6})?):(\d{1,4}))?', text, re.ASCII)
    if not match:
        return []
    first, last, count = float(match[1]), float(match[2] or match[1]), int(match[3] or 1)
    if max(abs(first), abs(last)) > -low or count < (2 if match[2] else 1):
        return []
    return [first + (last - first) * i / max(1, count - 1) for i in range(count)]


def mix_list(text):
    """'3,8@4 5,9@2' to ((3, 8, 4), (5, 9, 2)): shape of the first seed, decoder layers from a number on of the second.
    """
    mixes = []
    for part in text.split():
        match = re.fullmatch(r'(\d{1,19}),(\d{1,19})@(\d{1,3})', part, re.ASCII)
        if not match or max(int(match[1]), int(match[2])) > MAX_SEED or int(match[3]) < 1:
            raise ValueError('must be two seeds and a layer from 1 on, such as 3,8@2 (several: "3,8@2 5,9@1")')
        mixes.append(tuple(map(int, match.groups())))
    if not mixes:
        raise ValueError('must be two seeds and a layer, such as 3,8@2')
    return tuple(dict.fromkeys(mixes))


def edit_list(text):
    """'shape2=+1.5,color1=-2' to (('shape2', 1.5), ('color1', -2.)): directions of --directions and how far to go."""
    edits = {}
    for part in text.split(','):
        name, equals, value = (piece.strip() for piece in part.partition('='))
        if not equals or not re.fullmatch(DIRECTION_NAME, name) or name in edits:
            raise ValueError('must be directions with a number each, such as shape2=+1.5,color1=-2')
        try:
            edits[name] = float(value)
        except ValueError:
            raise ValueError('must be directions with a number each, such as shape2=+1.5,color1=-2') from None
        if not abs(edits[name]) <= MAX_EDIT:
            raise ValueError(f'must have numbers from -{MAX_EDIT} to {MAX_EDIT} (in standard deviations)')
    return tuple(edits.items())


def direction_name(text):
    """The name of a direction: a letter, then letters and digits."""
    if not re.fullmatch(DIRECTION_NAME, text):
        raise ValueError('must be a name of letters and digits that begins with a letter, at most 30 long')
    return text


def joined_views(argv):
    """argv with the values of --views as one, since -20,0 in `--views 20,0 -20,0` would look like a flag."""
    joined, values = [], None
    for text in argv:
        if values is not None and re.match(r'-?\d', text):
            values.append(text)
            continue
        if values is not None:
            joined.append('--views=' + ' '.join(values))
            values = None
        if text == '--views':
            values = []
        else:
            joined.append(text)
    return joined if values is None else [*joined, '--views=' + ' '.join(values)]


def device_name(text):
    """auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r'auto|cpu|mps|cuda(:\d{1,3})?', text):
        raise ValueError('must be auto, cpu, cuda, cuda:N or mps')
    return text


# ---------------------------------------------------------------------------------------------- commands and scopes

STAGE_1, STAGE_2 = TRAINING = 'train_volume_renderer', 'train_full_pipeline'
GENERATE, VIDEO, EVALUATE, EXPORT, APP, INVERT, DIRECTIONS = INFERENCE = (
    'generate_shapes_and_images', 'render_video', 'evaluate', 'export_model', 'app', 'invert_photos',
    'find_directions')
COMMANDS = TRAINING + INFERENCE
VIDEO_FORMATS, MODEL_FORMATS = ('mp4', 'gif', 'webp', 'webm', 'frames'), ('pt', 'onnx')


@dataclass(frozen=True)
class Scope:
    """Where a flag counts, and what a checkpoint has to say about it.

    commands: those that use the flag.
    fixed: a training that goes on from a checkpoint must have the value that it began with.
    settled: 'weights' where the value can be read off a checkpoint's weights. 'options' where it cannot, but a model is
        of no use without it: then whoever loads a checkpoint takes the value from the options that it holds.
    inherited: stage 2 takes the value from the options of stage 1's result.
    """
    commands: tuple
    fixed: bool = False
    settled: str = ''
    inherited: bool = False


# How a training runs. Such a flag may change when the training goes on.
RUN, RUN_1, RUN_2 = (Scope(commands) for commands in (TRAINING, (STAGE_1,), (STAGE_2,)))
# What a training learns.
LEARNING, LEARNING_1, LEARNING_2 = (Scope(commands, fixed=True) for commands in (TRAINING, (STAGE_1,), (STAGE_2,)))
# The networks' sizes.
FIELD_SIZE = Scope(COMMANDS, fixed=True, settled='weights', inherited=True)
IMAGE_SIZE = Scope(COMMANDS, fixed=True, settled='weights')
DECODER_SIZE = Scope((STAGE_2, *INFERENCE), fixed=True, settled='weights')
DECODER = Scope((STAGE_2, *INFERENCE), fixed=True, settled='options')
# The cameras and the samples along their rays that a field was trained with.
SCENE = Scope(COMMANDS, fixed=True, settled='options', inherited=True)
SAMPLES = Scope(COMMANDS, fixed=True, inherited=True)
# What only generation and its relatives use.
PICTURES = Scope((GENERATE, VIDEO, EVALUATE, EXPORT, APP, INVERT, DIRECTIONS))
GENERATION, GENERATION_AND_VIDEO, VIDEOS, EVALUATION = (
    Scope(commands) for commands in ((GENERATE,), (GENERATE, VIDEO), (VIDEO,), (EVALUATE,)))
FINDING, INVERTING, INVERSION = Scope((DIRECTIONS,)), Scope((INVERT,)), Scope((INVERT, EVALUATE))
EVERYWHERE, OBSOLETE = Scope(COMMANDS), Scope(())


# ---------------------------------------------------------------------------------------------- the flags

@dataclass(frozen=True)
class Flag:
    """One flag.

    type: text to value, raising ValueError with a reason; bool for a switch that is off by default. choices: the values
    that it may have. own_choices: {command: its choices}, where those differ. defaults: {command: its default}, where
    that differs. forced: {command: the value that it always runs with}. many: it takes several values, as a tuple.
    positional: the command of its scope takes them without a name before them. frequent: the commands whose users give
    it often, so that --help explains it.
    """
    name: str
    default: Any
    scope: Scope
    help: str
    type: Any = not_empty
    choices: tuple = None
    defaults: dict = field(default_factory=dict)
    forced: dict = field(default_factory=dict)
    many: bool = False
    positional: bool = False
    frequent: tuple = ()
    own_choices: dict = field(default_factory=dict)

    def choices_for(self, command):
        return self.own_choices.get(command, self.choices)

    def default_for(self, command):
        return self.forced.get(command, self.defaults.get(command, self.default))

    def shown_by(self, command):
        """Whether a command's --help_all shows the flag: it uses it, and no checkpoint knows the value better."""
        return (command in self.scope.commands and command not in self.forced
                and not (command in INFERENCE and self.scope.settled == 'weights'))


def always(commands, value):
    """What `Flag.forced` is where some commands always run with one value."""
    return dict.fromkeys(commands, value)


GROUPS = {
    'dataset': (
        Flag('dataset_path', './datasets/FFHQ', Scope((*TRAINING, EVALUATE)),
             'the LMDB that prepare_data.py made (evaluate.py also takes a folder or zip of photos)',
             frequent=(*TRAINING, EVALUATE)),
    ),
    'experiment': (
        Flag('expname', 'debug', EVERYWHERE,
             'name of the experiment: the folder of its checkpoints and results', experiment_name,
             defaults={APP: 'cats_demo'}, frequent=COMMANDS),
        Flag('model', None, Scope(INFERENCE),
             'checkpoint to use, wherever the file lies, instead of the one that --expname names', frequent=INFERENCE),
        Flag('ckpt', 300000, Scope(INFERENCE),
             'iteration of the checkpoint to use where there is no finished model', at_least(0)),
        Flag('continue_training', False, RUN, 'go on from the newest checkpoint of this experiment', bool,
             frequent=TRAINING),
        Flag('seed', 1234, Scope(COMMANDS, fixed=True), 'seed of all random numbers', seed),
    ),
    'training': (
        Flag('checkpoints_dir', './checkpoint', EVERYWHERE, 'folder where checkpoints are kept'),
        Flag('iter', 300000, RUN, 'number of training steps', at_least(1), defaults={STAGE_1: 200000},
             frequent=TRAINING),
        Flag('batch', 4, RUN,
             'images per step and process, at least 2; a training that goes on keeps its images per step', at_least(1),
             frequent=TRAINING),
        Flag('new_batch', False, RUN, 'let a training go on with another number of images per step', bool),
        Flag('new_data', False, RUN, 'let a training go on with other images, such as a data set that has grown', bool),
        Flag('chunk', 4, RUN,
             'images that are computed at a time; a smaller chunk needs less memory, and the gradient stays '
             'the same', at_least(1), frequent=TRAINING),
        Flag('num_workers', 2, Scope((*TRAINING, EVALUATE)),
             'number of processes that load images (0: the command loads them itself)', at_least(0)),
        Flag('save_every', 10000, RUN, 'number of steps between checkpoints', at_least(1)),
        Flag('keep_checkpoints', 0, RUN, 'how many of the newest checkpoints to keep (0: all)', at_least(0)),
        Flag('sample_every', 1000, RUN, 'number of steps between sample grids', at_least(1)),
        Flag('eval_every', 0, RUN,
             'number of steps between quick measurements of quality for the log (0: never)', at_least(0)),
        Flag('log_every', 10, RUN, 'number of steps that one line of stats.jsonl averages', at_least(1)),
        Flag('max_minutes', 0., RUN, 'save and stop after this many minutes (0: never)', at_least(0, float),
             frequent=TRAINING),
        Flag('init_ckpt', None, RUN,
             'begin a new training with the weights of this checkpoint, which may be an official one',
             frequent=(STAGE_1,)),
        Flag('renderer_ckpt', None, RUN_2,
             "stage 1's result to start from (default: pretrained_renderer/EXPNAME_vol_renderer.pt, or with "
             '--init_ckpt the renderer of that file)'),
        Flag('val_n_sample', 8, RUN, 'number of identities in the sample grids', at_least(1)),
        Flag('d_reg_every', 16, LEARNING_2, 'number of steps between R1 regularizations', at_least(1)),
        Flag('g_reg_every', 4, LEARNING_2,
             'number of steps between path length regularizations (0: never)', at_least(0)),
        Flag('local_rank', 0, Scope((*TRAINING, EVALUATE)), 'set by distributed launchers', int),
        Flag('mixing', 0.9, LEARNING_2, 'probability of style mixing', at_least(0, float, most=1)),
        Flag('lr', 0.002, LEARNING_2, 'learning rate', above(0)),
        Flag('lr_g', 2e-5, LEARNING_1, 'learning rate of the generator', above(0)),
        Flag('lr_d', 2e-4, LEARNING_1, 'learning rate of the discriminator', above(0)),
        Flag('r1', 10., LEARNING, 'weight of the R1 penalty', at_least(0, float), frequent=TRAINING),
        Flag('adversarial_loss', 'nonsaturating', LEARNING,
             'relativistic: compare each generated image with a photo, and penalize the gradients at both (R1 and R2), '
             'as R3GAN does (nonsaturating: as in the paper)',
             choices=('nonsaturating', 'relativistic')),
        Flag('view_lambda', 15., LEARNING_1, 'weight of the viewpoint loss', at_least(0, float)),
        Flag('eikonal_lambda', 0.1, LEARNING_1, 'weight of the eikonal loss', at_least(0, float)),
        Flag('min_surf_lambda', 0.05, LEARNING_1, 'weight of the minimal surface loss', at_least(0, float)),
        Flag('min_surf_beta', 100., LEARNING_1,
             'how quickly the minimal surface loss falls off with the distance from the surface', above(0)),
        Flag('path_regularize', 2., LEARNING_2, 'weight of the path length penalty', at_least(0, float)),
        Flag('path_batch_shrink', 2, LEARNING_2, 'the batch for path lengths is this many times smaller', at_least(1)),
        Flag('thumbnail_lambda', 0., LEARNING_2,
             'weight of the L2 loss between the downsampled image and the thumbnail, which helps short runs '
             '(0: as in the paper)', at_least(0, float), frequent=(STAGE_2,)),
        Flag('wandb', False, RUN, 'also log to Weights & Biases', bool),
        Flag('no_sphere_init', False, RUN_1, 'do not fit the field to a sphere before training', bool),
        Flag('sphere_iters', 10000, RUN_1,
             'number of steps that fit the field to a sphere before training', at_least(1)),
        Flag('sphere_radius', 0., LEARNING_1,
             'radius of that sphere (0: half of dist_radius, as in the paper)', at_least(0, float)),
        Flag('sphere_lambda', 0., LEARNING_1,
             'weight of the sphere regularization, which keeps the surface near the sphere of the beginning '
             'and helps short runs (0: as in the paper)', at_least(0, float), frequent=(STAGE_1,)),
        Flag('sphere_until', 2000, LEARNING_1,
             'the weight of the sphere regularization falls linearly to 0 at this step', at_least(1)),
        Flag('far_lambda', 0., LEARNING_1,
             'weight of a loss that keeps surfaces off the far plane, where pieces of their own come from '
             '(0: as in the paper)', at_least(0, float)),
        Flag('relief_lambda', 0., LEARNING_1,
             'weight of a loss that makes the middle of a picture stand out toward the camera, against hollow faces '
             '(0: as in the paper)', at_least(0, float)),
        Flag('sphere_fade', False, LEARNING_1,
             'let the weight of the sphere regularization follow beta and the silhouettes, and fade as the surface '
             'becomes sharp, instead of --sphere_until', bool),
        Flag('r1_every', 1, LEARNING_1, 'number of steps between R1 regularizations, which are as much stronger',
             at_least(1)),
        Flag('no_mirror', False, LEARNING,
             'do not mirror a random half of the photos, for subjects that have a left and a right', bool),
        Flag('augment', False, LEARNING,
             'change what the discriminator sees at random, as strongly as it needs (ADA), for small data sets', bool),
        Flag('augment_target', 0.6, LEARNING,
             "mean sign of the discriminator's scores of real images above which --augment becomes stronger",
             at_least(0, float, most=1)),
        Flag('augment_images', 100000, LEARNING,
             'number of real images in which the strength of --augment can go from 0 to 1', at_least(1)),
        Flag('discriminator', 'stylegan2', LEARNING,
             'projected: judge images by the features of a pretrained network (--features), which learns sooner; both: '
             'that and the discriminator of the paper, as stage 1 has them in either case',
             choices=('stylegan2', 'projected', 'both')),
        Flag('projected_lambda', 0.1, LEARNING,
             'weight, in the loss of the generator, of the projected discriminator beside that of the paper',
             at_least(0, float)),
        Flag('ema_rampup', 0., LEARNING,
             'let the half-life of the moving average of the weights be at most this share of the steps done so far, '
             'for short runs; StyleGAN2-ADA has 0.05 (0: always 312 steps, as in the paper)', at_least(0, float)),
        Flag('thumbnail_until', 0, LEARNING_2,
             'the weight of the thumbnail loss falls linearly to 0 at this step (0: it stays)', at_least(0)),
        Flag('initial_beta', 0.1, LEARNING_1,
             'value of beta that training begins with (with --init_ckpt only if this flag is given)', above(0)),
    ),
    'inference': (
        Flag('results_dir', './evaluations', Scope((GENERATE, VIDEO, EVALUATE, INVERT, DIRECTIONS)),
             'folder where results go'),
        Flag('truncation_ratio', 0.5, PICTURES,
             'truncation psi: 1 gives the full variety, 0 the average',
             at_least(0, float), defaults={EVALUATE: 1., EXPORT: 0.7, APP: 0.7, INVERT: 0.7, DIRECTIONS: 0.7},
             frequent=(GENERATE, VIDEO)),
        Flag('truncation_mean', MEAN_LATENT_DRAWS, PICTURES,
             'number of latents that the mean for truncation is taken over', at_least(1, most=MAX_MEAN_DRAWS)),
        Flag('identities', 16, GENERATION_AND_VIDEO, 'number of identities to generate', at_least(1),
             frequent=(GENERATE,)),
        Flag('num_views_per_id', 1, GENERATION, 'number of random views of each identity', at_least(1),
             frequent=(GENERATE,)),
        Flag('no_surface_renderings', False, Scope((GENERATE, DIRECTIONS)), 'make images only, no meshes', bool,
             frequent=(GENERATE,)),
        Flag('no_surface_videos', False, VIDEOS, 'make no videos of the surface', bool, frequent=(VIDEO,)),
        Flag('fixed_camera_angles', False, GENERATION, 'render the 13 fixed views instead of random ones', bool),
        Flag('azim_video', False, VIDEOS, 'move the camera from side to side instead of on an ellipse', bool),
        Flag('views', None, GENERATION,
             'render these views instead of random ones: azimuth and elevation in degrees, such as 20,0 -20,0, or '
             'ranges FROM:TO:COUNT such as -30:30:5,0', view_list, frequent=(GENERATE,)),
        Flag('seeds', None, GENERATION_AND_VIDEO,
             'make one identity for each of these seeds, such as 0-7,42, instead of --identities', seed_list,
             frequent=(GENERATE, VIDEO)),
        Flag('latents', (), Scope((GENERATE, VIDEO, EVALUATE, APP)),
             'show what these files of latents hold (of --save_latents or invert_photos.py), or folders of them, '
             'instead of seeds', many=True, frequent=(GENERATE,)),
        Flag('save_latents', False, GENERATION, 'also write the latents of each identity, a file that --latents takes',
             bool),
        Flag('mix', None, GENERATION_AND_VIDEO,
             'mix two seeds: 3,8@2 has the shape of seed 3, and the decoder layers from 2 on are of seed 8', mix_list),
        Flag('edit', None, GENERATION_AND_VIDEO,
             'move all identities along directions of --directions, such as shape2=+1.5,color1=-2, in standard '
             'deviations', edit_list),
        Flag('directions', None, Scope((GENERATE, VIDEO, EXPORT, APP)),
             'file of find_directions.py (default: directions.pt among the results of the model)'),
        Flag('mesh_format', 'obj', Scope((GENERATE, VIDEO, INVERT)), 'file format of the meshes',
             choices=('obj', 'ply', 'glb'), frequent=(GENERATE,)),
        Flag('dense', False, Scope((STAGE_2, GENERATE, VIDEO, EVALUATE, APP)),
             'evaluate the field at every sample instead of skipping those without influence (same result, '
             'slower)', bool),
        Flag('cuda_graphs', False, GENERATION_AND_VIDEO,
             'use CUDA graphs (experimental; they help most with --precision fp16 or bf16)', bool),
        Flag('vertex_colors', False, GENERATION, 'color the vertices of the meshes', bool),
        Flag('transparent', False, GENERATION_AND_VIDEO,
             'leave out the background: images with alpha, depth meshes without the sheet behind them, and videos with '
             'alpha (--format webm, webp or frames)', bool),
        Flag('proportions_of', None, GENERATION_AND_VIDEO,
             'give pictures and videos the proportions of the photos of this data set, which prepare_data.py --fit pad '
             'or squeeze made square'),
        Flag('maps', (), GENERATION,
             f'also write maps of each view, some of {",".join(MAPS)}', map_list),
        Flag('map_size', 'surface', GENERATION,
             'size of the maps: that of the thumbnail, of --surface_resolution, or of the image',
             choices=('thumbnail', 'surface', 'image')),
        Flag('map_format', 'png', GENERATION,
             'file format of the maps: png has 16 bits, exr and npy have floats', choices=('png', 'exr', 'npy')),
        Flag('surface_resolution', 128, GENERATION,
             'rays along a side of surfaces, and samples a ray: more give finer meshes, and take longer',
             at_least(64, most=512)),
        Flag('single_surface', False, GENERATION,
             'keep only the largest piece of marching-cubes meshes and textured ones', bool),
        Flag('decimate', 0, GENERATION,
             'reduce marching-cubes meshes and textured ones to about so many triangles (0: do not)',
             at_least(100)),
        Flag('texture', False, GENERATION,
             'also write the whole surface with the image as its texture, as GLB and as OBJ with MTL and PNG, and the '
             'cameras of the views (needs requirements-texture.txt)', bool, frequent=(GENERATE,)),
        Flag('texture_views', 1, GENERATION,
             "number of views that --texture is painted from: the identity's own, and where these are fewer, more "
             'around the front', at_least(1, most=64)),
        Flag('page', False, Scope((GENERATE, VIDEO, INVERT)),
             'write index.html, a page that shows all results of this model in a browser', bool,
             frequent=(GENERATE, INVERT)),
    ),
    'video': (
        Flag('frames', 250, VIDEOS, 'number of frames of a video', at_least(1, most=MOST_PICTURES),
             frequent=(VIDEO,)),
        Flag('fps', 30, VIDEOS, 'frames per second', at_least(1, most=1000)),
        Flag('format', 'mp4', Scope((VIDEO, EXPORT)),
             'file format: of videos mp4, gif, webp, webm, or frames (a folder of PNG files); of an exported model pt '
             '(for this project) or onnx (for other programs)', choices=(*VIDEO_FORMATS, *MODEL_FORMATS),
             own_choices={VIDEO: VIDEO_FORMATS, EXPORT: MODEL_FORMATS}, defaults={EXPORT: 'pt'},
             frequent=(VIDEO, EXPORT)),
        Flag('path', 'ellipse', VIDEOS,
             'path of the camera: ellipse, azimuth (from side to side), orbit (once around), dolly (a dolly zoom), or '
             'a file of key frames (docs/video.md)', frequent=(VIDEO,)),
        Flag('side_by_side', False, VIDEOS, 'make one more video, with image and surface side by side', bool,
             frequent=(VIDEO,)),
        Flag('depth_style', 'phong', VIDEOS, 'how the surface is drawn', choices=('phong', 'normals', 'depth')),
        Flag('interpolate', None, VIDEOS,
             'make one video that walks through the identities of these seeds, such as 3,7,9, and back to the '
             'first', seed_list, frequent=(VIDEO,)),
    ),
    'evaluation': (
        Flag('metrics', METRICS, EVALUATION, 'what to measure', metric_list, frequent=(EVALUATE,)),
        Flag('num_images', 50000, EVALUATION, 'number of images to generate for fid, kid, pr and swd',
             at_least(1, most=MOST_PICTURES), frequent=(EVALUATE,)),
        Flag('num_surfaces', 1000, EVALUATION, 'number of identities for depth, view and field',
             at_least(1, most=MOST_PICTURES), frequent=(EVALUATE,)),
        Flag('num_inversions', 40, EVALUATION, "number of the model's own images for inversion",
             at_least(1, most=MOST_PICTURES)),
        Flag('held_out', None, EVALUATION,
             'folder, zip or LMDB of photos for inversion, which the training has not seen'),
        Flag('num_held_out', 40, EVALUATION, 'number of these photos, the first ones', at_least(1)),
        Flag('eval_size', 256, EVALUATION,
             'side of the images that are compared; smaller images are compared at their own size',
             power_of_two(16, most=8192), frequent=(EVALUATE,)),
        Flag('eval_batch', 8, EVALUATION, 'images that are generated at a time', at_least(1)),
        Flag('features', None, Scope((EVALUATE, *TRAINING, INVERT)),
             "TorchScript network to use for fid, kid and pr instead of torch-fidelity's Inception, for "
             "--discriminator projected instead of torchvision's EfficientNet-B0, or for comparing photos "
             "(also vgg16: torchvision's)", frequent=(EVALUATE,)),
        Flag('save_images', None, EVALUATION, 'folder to write the generated images to as well'),
    ),
    'export': (
        Flag('out', None, Scope((EXPORT, DIRECTIONS)), 'file to write', frequent=(EXPORT, DIRECTIONS)),
        Flag('keep_discriminator', False, Scope((EXPORT,)),
             'keep the discriminator of stage 2 in the file of --format pt too; with its features invert_photos.py '
             'finds photos better', bool, frequent=(EXPORT,)),
        Flag('browser', None, Scope((EXPORT,)),
             'folder to write a web page to that runs the model in the browser of whoever opens it (docs/hosting.md)',
             frequent=(EXPORT,)),
        Flag('onnxruntime_web', None, Scope((EXPORT,)),
             "for --browser: folder of the npm package onnxruntime-web (default: npm fetches it)", frequent=(EXPORT,)),
    ),
    'inversion': (
        Flag('photos', (), INVERTING, 'photos to invert: files, folders or zips of them', many=True, positional=True),
        Flag('train_encoder', False, INVERTING,
             "first train the encoder of this model, which gives quick first guesses; it is kept beside the model's "
             'checkpoint', bool, frequent=(INVERT,)),
        Flag('encoder_steps', 1500, INVERTING, 'number of training steps of --train_encoder', at_least(1)),
        Flag('steps', 120, INVERSION,
             'most steps in which all latents are optimized, after viewpoint and w (0: the first guess alone)',
             at_least(0), frequent=(INVERT,)),
        Flag('seconds', 0., INVERSION, 'most seconds for the optimization of one photo (0: no limit)',
             at_least(0, float), frequent=(INVERT,)),
        Flag('tune', False, INVERSION, 'then tune the decoder to each photo, which reproduces it better', bool,
             frequent=(INVERT,)),
        Flag('tune_steps', 300, INVERSION, 'number of steps of --tune', at_least(1)),
        Flag('fit_noise', False, INVERSION,
             "also fit the decoder's noise, which reproduces the photo better but does not turn with the head", bool),
        Flag('starts', 4, INVERSION, 'without an encoder: number of first guesses that are looked at closely',
             at_least(1, most=8)),
        Flag('align', False, INVERTING,
             'cut out faces as FFHQ was aligned, by eyes and mouth (needs facenet-pytorch, or --landmarks)', bool,
             frequent=(INVERT,)),
        Flag('landmarks', None, INVERTING,
             'with --align: CSV file with eyes and mouth of each photo, instead of a detector'),
        Flag('video', False, INVERTING, 'also write a video of the head turning', bool, frequent=(INVERT,)),
    ),
    'directions': (
        Flag('method', 'pca', FINDING,
             'what is taken for directions: pca, those in which random identities differ most, or factorization, '
             'those that change the modulation of the layers most', choices=('pca', 'factorization'),
             frequent=(DIRECTIONS,)),
        Flag('count', 10, FINDING, 'number of directions of shape, and of color', at_least(1, most=200),
             frequent=(DIRECTIONS,)),
        Flag('name', None, FINDING, 'name of the direction from --without_latents to --with_latents', direction_name),
        Flag('with_latents', (), FINDING,
             'files of latents, or folders of them, of identities that have what --name says', many=True),
        Flag('without_latents', (), FINDING,
             'files of latents, or folders of them, of identities that lack it', many=True),
    ),
    'app': (
        Flag('port', 7860, Scope((APP,)), 'port of the page that app.py serves', at_least(1, most=65535),
             frequent=(APP,)),
        Flag('share', False, Scope((APP,)),
             "also serve the page at a public address, through Gradio's servers, for three days", bool,
             frequent=(APP,)),
    ),
    'model': (
        Flag('size', 256, IMAGE_SIZE, 'side of the generated images', power_of_two(8, most=8192), frequent=TRAINING),
        Flag('style_dim', 256, FIELD_SIZE, 'size of the latents w', at_least(1)),
        Flag('channel_multiplier', 2, DECODER_SIZE, "multiplies the decoder's channels", at_least(1)),
        Flag('channel_max', 0, DECODER_SIZE,
             'upper bound on the channels of decoder and discriminator, for small machines (0: as many as in '
             'the paper)', at_least(0)),
        Flag('discriminator_width', 1., LEARNING_1,
             "multiplies the discriminator's channels; less than 1 is for small machines", above(0)),
        Flag('n_mlp', 8, OBSOLETE,
             'accepted because old command lines have it; the mapping has three layers', at_least(1)),
        Flag('lr_mapping', 0.01, DECODER, "learning rate multiplier of the decoder's mapping", above(0)),
        Flag('renderer_spatial_output_dim', 64, SCENE,
             'number of rays along a side of the thumbnail', power_of_two(4, most=1024)),
        Flag('project_noise', False, VIDEOS, 'attach the noise to the surface instead of to the image plane', bool,
             frequent=(VIDEO,)),
    ),
    'camera': (
        Flag('uniform', False, SCENE, 'draw viewpoints uniformly from the range instead of from a Gaussian', bool),
        Flag('azim', 0.3, SCENE,
             'standard deviation (or range) of the azimuth in radians', spread, frequent=TRAINING),
        Flag('elev', 0.15, SCENE,
             'standard deviation (or range) of the elevation in radians', spread),
        Flag('fov', 6., SCENE, 'half the field of view in degrees', half_angle),
        Flag('dist_radius', 0.12, SCENE, 'the near and far planes lie this far before and behind the origin', radius),
    ),
    'rendering': (
        Flag('depth', 8, FIELD_SIZE, 'number of hidden layers of the field', at_least(1)),
        Flag('width', 256, FIELD_SIZE, 'number of channels of the field', at_least(1)),
        Flag('no_sdf', False, FIELD_SIZE, 'use a raw density instead of a signed distance function', bool),
        Flag('no_z_normalize', False, SCENE, 'do not scale points to [-1, 1] before the field', bool),
        Flag('static_viewdirs', False, SAMPLES,
             "use the view directions of the camera's frame, whatever the viewpoint",
             bool, forced=always(INFERENCE, True)),
        Flag('N_samples', 24, SAMPLES, 'number of samples along a ray', at_least(2, most=4096), forced={VIDEO: 64}),
        Flag('no_offset_sampling', False, SCENE, 'use stratified sampling instead of one offset for each ray', bool),
        Flag('perturb', 1., SAMPLES,
             'jitter the samples along the rays (0: do not)', at_least(0, float), forced=always(INFERENCE, 0.)),
        Flag('raw_noise_std', 0., SAMPLES,
             'standard deviation of the noise added to the raw density (with --no_sdf)',
             at_least(0, float), forced=always(INFERENCE, 0.)),
        Flag('force_background', False, SAMPLES,
             'give the last sample all the weight that is left', bool, forced=always(INFERENCE, True)),
        Flag('return_xyz', False, OBSOLETE,
             'accepted because old command lines have it; surface points are always there', bool),
        Flag('return_sdf', False, OBSOLETE,
             'accepted because old command lines have it; the SDF is there when it is needed', bool),
    ),
    'machine': (
        Flag('device', 'auto', EVERYWHERE, 'auto (CUDA if there is one), cpu, cuda, cuda:N or mps', device_name,
             frequent=(*TRAINING, GENERATE, VIDEO, EVALUATE, APP, INVERT, DIRECTIONS)),
        Flag('precision', 'fp32', Scope((*TRAINING, GENERATE, VIDEO, EVALUATE, APP)),
             "number format of the decoder's convolutions, and in stage 2 of the discriminator's",
             choices=('fp32', 'fp16', 'bf16')),
    ),
}
FLAGS = {flag.name: flag for flags in GROUPS.values() for flag in flags}
GROUP_OF = {flag.name: group for group, flags in GROUPS.items() for flag in flags}


# ---------------------------------------------------------------------------------------------- questions to the flags

def adopted_flags(command, decoder=True):
    """Names of the flags that a command takes from a checkpoint's options where the user did not give them.

    Stage 1 takes none: a new training has its own, and one that goes on must be given the same. Stage 2 takes those of
    the field, and with a checkpoint's decoder also those of that. decoder: whether the checkpoint has one.
    """
    scopes = {flag.name: flag.scope for flag in FLAGS.values() if command != STAGE_1}
    return [name for name, scope in scopes.items() if (command == STAGE_2 and scope.inherited)
            or (scope.settled == 'options' and (command != STAGE_2 or decoder))]


def fixed_flags(command):
    """Names of the flags that must stay the same when a training goes on."""
    return [flag.name for flag in FLAGS.values() if flag.scope.fixed and command in flag.scope.commands]


# ---------------------------------------------------------------------------------------------- parsing

class Parser(configargparse.ArgumentParser):
    """An argument parser whose errors are one sentence (UserError) and that never guesses at abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        unknown = re.findall(r'--[\w-]+', message.partition('unrecognized arguments:')[2])
        close = [flag for name in unknown for flag in difflib.get_close_matches(name, self._option_string_actions, 1)]
        meant = f' (did you mean {" and ".join(dict.fromkeys(close))}?)' if close else ''
        raise UserError(f'{printable(message, MAX_SENTENCE)}{meant}; see --help.')


def run(command, description):
    """Run the command of this name: read its flags, import its file (which imports PyTorch), and call its main(opt)."""
    run_command(command, lambda: parse(command, description))


def parse(command, description, argv=None):
    """The option tree of a command (a Munch of Munches, by group), from argv (default: the process's own).

    Besides the groups it holds `command` and `given`, the names of the flags that the user set. Raises UserError for
    anything that is not a known flag with a sensible value. One line says which flags the command does not follow; it
    is no error, since one --config file serves all commands.
    """
    argv = joined_views(sys.argv[1:] if argv is None else argv)
    try:
        given = vars(_parser(command, description, '--help_all' in argv).parse_args(argv))
    except (configargparse.ConfigFileParserException, UnicodeDecodeError) as error:
        raise UserError(f'--config: {printable(" ".join(str(error).split()), MAX_SENTENCE)}') from None
    given.pop('config')
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
             if not (FLAGS[name].positional and not value)}
    forced = {name: FLAGS[name].forced[command] for name in given if command in FLAGS[name].forced}
    if unused := [name for name, value in forced.items() if given[name] != value]:
        print(f'{command} always runs with',
              ', '.join(f'{name} {forced[name]} (not {given[name]})' for name in unused))
    tree = Munch(command=command, given=frozenset(given))
    for group, flags in GROUPS.items():
        tree[group] = Munch((flag.name, flag.default_for(command)) for flag in flags)
    return replaced(tree, **given | forced)


def _parser(command, description, show_all):
    """The parser of a command. Its help explains the flags that most people use, or all that have an effect in it."""
    parser = Parser(description=description, usage='%(prog)s [--help] [flags]', default_config_files=[],
                    add_config_file_help=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog='' if show_all else _further_flags(command))
    parser.add_argument('--help_all', action='help', help='explain all flags of this command, and exit')
    parser.add_argument('--config', is_config_file=True, metavar='FILE',
                        help='read flags from this file, lines of the form: name = value')
    frequent = parser.add_argument_group('flags that most people use')
    for group, flags in GROUPS.items():
        target = parser.add_argument_group(group) if show_all else frequent
        for flag in flags:
            if flag.positional and command in flag.scope.commands:
                parser.add_argument(flag.name, nargs='*', type=explained(flag.type), help=flag.help,
                                    default=configargparse.SUPPRESS)
            else:
                shown = flag.shown_by(command) if show_all else command in flag.frequent
                _add_flag(target, flag, command, shown)
    return parser


def _further_flags(command):
    """The names, by group, of the flags that a command's --help does not explain."""
    lines = ['further flags, which --help_all explains:']
    for group, flags in GROUPS.items():
        names = [f'--{flag.name}' for flag in flags
                 if flag.shown_by(command) and command not in flag.frequent and not flag.positional]
        if names:
            lines += textwrap.wrap(f'{group}: {" ".join(names)}', 79, initial_indent='  ', subsequent_indent='    ',
                                   break_on_hyphens=False)
    return '\n'.join(lines)


def _add_flag(target, flag, command, shown):
    default, choices = flag.default_for(command), flag.choices_for(command)
    names = [f'--{flag.name}']
    if flag.name == 'local_rank':
        names.append('--local-rank')  # as today's launchers write it
    value = ','.join(default) if isinstance(default, tuple) else default
    text = flag.help + ('' if default in (None, False, ()) else f' (default: {value})')
    text = text.replace('%', '%%') if shown else configargparse.SUPPRESS
    if flag.type is bool:
        target.add_argument(*names, dest=flag.name, action='store_true', default=configargparse.SUPPRESS, help=text)
    else:
        target.add_argument(*names, dest=flag.name, type=explained(flag.type), choices=choices,
                            default=configargparse.SUPPRESS, help=text, nargs='+' if flag.many else None,
                            metavar=None if choices else 'N' if isinstance(flag.default, int | float) else 'VALUE')


def checked(name, value):
    """A flag's value from a file, checked like one that is typed. Raises ValueError with the reason."""
    flag = FLAGS[name]
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
            reason = str(error)
            if not reason.startswith('must'):  # of int() and float()
                reason = 'must be a whole number' if 'int()' in reason else 'must be a number'
            raise configargparse.ArgumentTypeError(f'{reason}, not {printable(repr(text))}') from None
    return convert_or_explain


def replaced(tree, **values):
    """A copy of the tree with some flags changed, by name."""
    copy = Munch((name, Munch(group) if isinstance(group, Munch) else group) for name, group in tree.items())
    for name, value in values.items():
        copy[GROUP_OF[name]][name] = value
    return copy

"""Where a run begins: a checkpoint of its own, the weights of another, or nothing; and whether what it finds fits."""
import os
import socket
from pathlib import Path
from typing import NamedTuple

import checkpoint
from discriminators import stddev_group
from options import adopted_flags, replaced
from training.gradients import checked_chunk
from training.widening import widened, width_of
from utils import UserError, printable, shortened

OWN_FLAGS = 'dataset_path', 'num_workers', 'device', 'local_rank'  # each process keeps its own value of these


class Start(NamedTuple):
    """What a run begins with."""
    path: Path = None      # a checkpoint, or None to begin with fresh weights
    saved: dict = None     # its contents
    resumed: bool = False  # go on from it, or take only its weights


def find_start(opt, stage, processes):
    """(Start, option tree that fits its checkpoint) from --continue_training and --init_ckpt.

    The first process looks and decides, and the others get what it found. Called first: raises UserError where the new
    run would overwrite another, or the old run had other options.
    """
    start, found = processes.share(lambda: _look_for_start(opt, stage, processes.size))
    own = {name: checkpoint.flags_of(opt)[name] for name in OWN_FLAGS}
    return start, replaced(found, **own)


def _look_for_start(opt, stage, processes):
    start, folder = Start(), checkpoint.stage_folder(opt, stage)
    if opt.experiment.continue_training or int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):  # torchrun restarts it
        newest = checkpoint.newest_whole(opt, stage)
        # Of several machines it is the first one's folder.
        where = f'{folder} on {socket.gethostname()}' if processes > 1 else folder
        if newest is not None:
            path, saved = newest
            start = Start(path, saved, resumed=True)
        elif checkpoint.iteration_paths(opt, stage):
            raise UserError(f'none of the checkpoints in {where} can be used, and a new training could replace them; '
                            'get whole ones from a backup, move them away to begin anew, or choose another --expname.')
        elif (folder / checkpoint.SPHERE).exists():
            print(f'No checkpoint to continue from in {where} yet: going on with its unfinished {checkpoint.SPHERE}.')
        else:
            print(f'No checkpoint to continue from in {where}: starting anew.')
    elif checkpoint.iteration_paths(opt, stage):
        raise UserError(f'{folder} holds checkpoints already; add --continue_training to go on from the newest, or '
                        'choose another --expname.')
    if not start.resumed and opt.training.init_ckpt:
        path = Path(opt.training.init_ckpt)
        start = Start(path, checkpoint.read(path))
        if stage == 'full_pipeline' and opt.training.renderer_ckpt:
            start = _with_renderer(start, Path(opt.training.renderer_ckpt), adopted_flags(opt.command, decoder=False))
    if start.path:
        weights = start.saved['g_ema']
        if stage == 'volume_renderer':  # of a full model, stage 1 takes the field alone
            weights = checkpoint.without_decoder(weights)
            if not start.resumed:
                start, weights = _widen(start, weights, opt)
        opt = checkpoint.reconcile(opt, start.saved | {'g_ema': weights}, start.path, start.resumed)
    if start.resumed:
        opt = same_batch(opt, stage, start, processes)
        _tell_precision(opt, stage, start)
    elif stage == 'volume_renderer':  # stage 2 asks when it knows its renderer
        check_size(opt)
    checked_chunk(opt)
    return start, opt


def check_size(opt):
    """Raise UserError where thumbnails are larger than images."""
    if opt.model.size < opt.model.renderer_spatial_output_dim:
        raise UserError(f"--size {opt.model.size} is less than the side of the renderer's thumbnails "
                        f'(--renderer_spatial_output_dim {opt.model.renderer_spatial_output_dim}); give a larger one.')


def _tell_precision(opt, stage, start):
    """Say so where a training goes on with another --precision, which only stage 2 has a use for."""
    before = checkpoint.flags_of(start.saved.get('options')).get('precision', opt.machine.precision)
    if stage == 'full_pipeline' and before != opt.machine.precision:
        print(f'{start.path} was trained with --precision {printable(before)}, and goes on with '
              f'{opt.machine.precision}.')


def _with_renderer(start, path, learned_with):
    """The Start with the field and mapping of another checkpoint: its decoder goes on above a renderer that has learned
    more, with the cameras and samples that it learned with, which the flags `learned_with` tell."""
    saved = checkpoint.read(path)
    renderer = checkpoint.without_decoder(saved['g_ema'])

    def above_it(state):
        replaced_by_it = checkpoint.without_decoder(state)
        return renderer | {name: tensor for name, tensor in state.items() if name not in replaced_by_it}

    merged = {key: above_it(start.saved[key]) for key in ('g', 'g_ema') if isinstance(start.saved.get(key), dict)}
    own, theirs = (checkpoint.flags_of(contents.get('options')) for contents in (start.saved, saved))
    options = own | {name: theirs[name] for name in learned_with if name in theirs}
    return start._replace(saved=start.saved | merged | {'options': {'of both': options}})


def _widen(start, weights, opt):
    """(Start, weights of its EMA) with the field as wide as a --width asks for that is larger than the file's."""
    width = width_of(weights)
    if width is None or 'width' not in opt.given or opt.rendering.width <= width:
        return start, weights
    sizes = checkpoint.sizes(weights, start.path, opt.model.renderer_spatial_output_dim)
    field = {name: sizes[name] for name in ('depth', 'style_dim')}
    try:
        wider = {name: widened(checkpoint.without_decoder(start.saved[name]), opt.rendering.width, field,
                               opt.experiment.seed)
                 for name in ('g', 'g_ema') if isinstance(start.saved.get(name), dict)}
    except (KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(f'{start.path} holds no whole field that could be made wider ({shortened(error)}); use another '
                        'file.') from None
    print(f'{start.path} has width {width}: the field gets {opt.rendering.width - width} more channels, without use at '
          'first.')
    return start._replace(saved=start.saved | wider), wider['g_ema']


# ---------------------------------------------------------------------------------------------- the batch

def images_of_step(opt, stage, processes):
    """What the images of a step are, as far as it matters to what is learnt, as a dict for the checkpoint.

    images: real ones, of all processes together. Stage 2 also: group, the images that its discriminator compares with
    each other; path, the images whose path lengths are regularized.
    """
    batch = opt.training.batch
    if stage == 'volume_renderer':
        return {'images': batch * processes}
    return {'images': batch * processes, 'group': stddev_group(batch),
            'path': processes * path_batch(opt)}


def path_batch(opt):
    """The images of one process whose path lengths are regularized."""
    return max(1, opt.training.batch // opt.training.path_batch_shrink)


def same_batch(opt, stage, start, processes):
    """The option tree with the --batch at which this number of processes goes on with the images of a step as before.

    --chunk is lowered where it does not divide that. Raises UserError where these processes cannot do it and the user
    did not allow another batch with --new_batch.
    """
    before = _saved_step(start.saved, stage)
    if before is None or images_of_step(opt, stage, processes) == before:
        return opt
    if opt.training.new_batch:
        now = images_of_step(opt, stage, processes)
        print(f'{start.path} was trained with {before["images"]} images a step, and goes on with {now["images"]}.')
        return opt
    batch, rest = divmod(before['images'], processes)
    changed = replaced(opt, batch=batch) if batch else opt
    if rest or batch < 2 or images_of_step(changed, stage, processes) != before:
        grouped = f', compared in groups of {before["group"]},' if 'group' in before else ''
        raise UserError(f'{start.path} was trained with {before["images"]} images a step{grouped} which {processes} '
                        'processes cannot share as before; start a number of processes that can (the one of the '
                        'beginning, for instance), or add --new_batch to go on with --batch images in each.')
    chunk = max(size for size in range(1, batch + 1) if batch % size == 0 and size <= max(1, opt.training.chunk))
    print(f'{start.path} was trained with {before["images"]} images a step: now --batch is {batch} and --chunk {chunk} '
          f'({processes} {"process" if processes == 1 else "processes"}).')
    return replaced(changed, chunk=chunk)


def _saved_step(saved, stage):
    """images_of_step of a checkpoint; None where it does not say (official ones, and ours from before any step)."""
    step, names = saved.get('step_images'), {'images'} if stage == 'volume_renderer' else {'images', 'group', 'path'}
    if isinstance(step, dict) and step.keys() == names and all(map(_is_count, step.values())):
        return step
    images, iteration = saved.get('images'), saved.get('iteration')
    flags = checkpoint.flags_of(saved.get('options'))
    if not all(map(_is_count, (images, iteration, flags.get('batch'), flags.get('path_batch_shrink')))):
        return None
    step = {'images': images // iteration}  # older ones of ours count the images of all steps
    if stage != 'volume_renderer':
        batch = flags['batch']
        step |= {'group': stddev_group(batch),
                 'path': step['images'] // batch * max(1, batch // flags['path_batch_shrink'])}
    return step


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2 ** 53


# ---------------------------------------------------------------------------------------------- the data set

def describe_images(images):
    """What a checkpoint remembers of its data set."""
    return {'length': len(images), 'fingerprint': images.fingerprint()}


def check_images(opt, images, described, start):
    """Raise UserError where a training would go on with other images than it began with and --new_data is not given.

    described: describe_images(images).
    """
    before = start.saved.get('dataset')
    if not isinstance(before, dict):
        before = {'length': start.saved.get('dataset_length', len(images))}  # older checkpoints of ours
    length, fingerprint = before.get('length'), before.get('fingerprint')
    if not _is_count(length) or not isinstance(fingerprint, str | None):
        raise UserError(f'{start.path} is damaged: it does not say which images it was trained on; use an earlier one.')
    if length == len(images) and fingerprint in (None, described['fingerprint']):
        return
    if length == len(images):
        how = f'was trained on other images than those of {images.path}, though on as many'
    else:
        grown = isinstance(length, int) and length < len(images) and fingerprint == images.fingerprint(length)
        how = (f'was trained on {length} images, and {images.path} has {len(images)}'
               + (', the first of which are the same' if grown else ''))
    if not opt.training.new_data:
        raise UserError(f'{start.path} {how}; give the same data set, add --new_data to go on with this one, or begin '
                        'a new --expname.')
    print(f'{start.path} {how}: going on with these. From here on their order is the one that a training on them alone '
          'would have after as many images.')

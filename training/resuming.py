"""Where a run begins: a checkpoint of its own, the weights of another, or nothing; and whether its flags fit."""
from pathlib import Path
from typing import NamedTuple

import checkpoint
from utils import (
    UserError,
)

# Flags that a resumed run may change: they do not change what is learnt.
FREE_FLAGS = {'expname', 'ckpt', 'continue_training', 'checkpoints_dir', 'iter', 'chunk', 'num_workers', 'save_every',
              'keep_checkpoints', 'sample_every', 'eval_every', 'log_every', 'max_minutes', 'init_ckpt',
              'renderer_ckpt', 'val_n_sample', 'local_rank', 'wandb', 'no_sphere_init', 'sphere_iters', 'n_mlp',
              'project_noise'}
COMPARED_GROUPS = ('experiment', 'training', 'model', 'camera', 'rendering')


def saved_options(opt):
    """The option tree as plain containers, for a checkpoint."""
    return {name: dict(group) for name, group in opt.items() if isinstance(group, dict)}


def differing_flags(opt, saved, groups=COMPARED_GROUPS):
    """['--flag value there, not value here', …] of the flags that matter and differ from a checkpoint's options."""
    return [f'--{name} {there[name]} there, {value} here' for group in groups
            for there in [saved.get(group, {})] for name, value in opt[group].items()
            if name in there and name not in FREE_FLAGS and there[name] != value]


class Start(NamedTuple):
    """What a run begins with."""
    path: Path = None      # a checkpoint, or None to begin with fresh weights
    saved: dict = None     # its contents
    resumed: bool = False  # go on from it, or take only its weights


def find_start(opt, stage, inherited=()):
    """(Start, option tree with the sizes that its checkpoint has) from --continue_training and --init_ckpt.

    inherited: flags that the checkpoint's options set where the user did not. Called first: raises UserError where the
    new run would overwrite another, or the old run had other options.
    """
    checked_chunk(opt)
    existing = checkpoint.iteration_paths(opt, stage)
    start = Start()
    if opt.experiment.continue_training:
        newest = checkpoint.newest_whole(opt, stage)
        if newest is None:
            print(f'No checkpoint to continue from in {checkpoint.stage_folder(opt, stage)}: starting anew.')
        else:
            start = Start(*newest, resumed=True)
    elif existing:
        raise UserError(f'{checkpoint.stage_folder(opt, stage)} holds checkpoints already; add --continue_training to '
                        'go on from the newest, or choose another --expname.')
    if not start.resumed and opt.training.init_ckpt:
        path = Path(opt.training.init_ckpt)
        start = Start(path, checkpoint.read(path))
    if start.path:
        opt = checkpoint.adopt_options(opt, start.saved, start.path, inherited)
        state = start.saved['g_ema']
        if stage == 'volume_renderer' and not start.resumed:  # of a full model, stage 1 takes the field alone
            state = checkpoint.without_decoder(state)
        opt = checkpoint.fit_options(opt, state, start.path)
    if start.resumed:
        check_options(opt, start.saved, start.path)
    return start, opt


def check_options(opt, saved, path):
    """Raise UserError where a checkpoint to go on from was trained with other options."""
    differing = differing_flags(opt, saved.get('options', {}))
    if differing:
        raise UserError(f'{path} was trained with other options ({"; ".join(differing)}); give the same ones, or begin '
                        'a new --expname.')


def checked_chunk(opt):
    """--chunk, no larger than the batch. Raises UserError for batches that cannot be trained on."""
    batch, chunk = opt.training.batch, min(opt.training.chunk, opt.training.batch)
    if batch < 2:
        raise UserError(f'--batch {batch} is too small; use at least 2 images a step.')
    if batch % chunk:
        raise UserError(f'--batch {batch} is not divisible by --chunk {chunk}; use a chunk that divides it.')
    return chunk

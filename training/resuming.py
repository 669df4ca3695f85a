"""Where a run begins: a checkpoint of its own, the weights of another, or nothing; and whether its flags fit."""
from pathlib import Path
from typing import NamedTuple

import checkpoint
from training.gradients import checked_chunk
from utils import UserError


class Start(NamedTuple):
    """What a run begins with."""
    path: Path = None      # a checkpoint, or None to begin with fresh weights
    saved: dict = None     # its contents
    resumed: bool = False  # go on from it, or take only its weights


def find_start(opt, stage):
    """(Start, option tree that fits its checkpoint) from --continue_training and --init_ckpt.

    Called first: raises UserError where the new run would overwrite another, or the old run had other options.
    """
    checked_chunk(opt)
    start, folder = Start(), checkpoint.stage_folder(opt, stage)
    if opt.experiment.continue_training:
        newest = checkpoint.newest_whole(opt, stage)
        if newest is None:
            print(f'No checkpoint to continue from in {folder}: starting anew.')
        else:
            path, saved = newest
            start = Start(path, saved, resumed=True)
    elif checkpoint.iteration_paths(opt, stage):
        raise UserError(f'{folder} holds checkpoints already; add --continue_training to go on from the newest, or '
                        'choose another --expname.')
    if not start.resumed and opt.training.init_ckpt:
        path = Path(opt.training.init_ckpt)
        start = Start(path, checkpoint.read(path))
    if start.path:
        weights = start.saved['g_ema']
        if stage == 'volume_renderer':  # of a full model, stage 1 takes the field alone
            weights = checkpoint.without_decoder(weights)
        opt = checkpoint.reconcile(opt, start.saved | {'g_ema': weights}, start.path, start.resumed)
    return start, opt

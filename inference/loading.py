"""Loading a trained generator, as every command that uses a finished model begins."""
import re
from pathlib import Path
from typing import NamedTuple

import torch
from munch import Munch

from checkpoint import find_model, has_decoder, load_state, read, reconcile
from model import Generator, build_generator
from op.fast import fast_parts
from options import MAX_NAME, replaced


def name_of_file(path):
    """An experiment's name for a checkpoint that is given as a file: that of the file, as far as it can be one."""
    name = re.sub(r'[^\w.-]', '_', path.stem).strip('.')[:MAX_NAME // 4]
    return name or 'model'


class Loaded(NamedTuple):
    """A generator for inference, and where it came from."""
    generator: Generator
    opt: Munch   # the option tree with the sizes that the checkpoint has
    path: Path   # the checkpoint
    name: str    # of the folder of its results: final_model, vol_renderer or iter_0300000


def load_generator(opt, device, graphs=False):
    """The generator that --model or --expname names, on `device`, for inference: a Loaded.

    Results of a --model go under the name of its file, unless --expname is given too.

    --dense and STYLESDF_OPS say how it computes (op/fast.py). graphs: whether --cuda_graphs is obeyed, for which all
    calls must come from one thread. Raises UserError where there is no such checkpoint, where it is damaged, or where
    it contradicts the flags that the user typed.
    """
    path, name = find_model(opt)
    if opt.experiment.model and 'expname' not in opt.given:
        opt = replaced(opt, expname=name_of_file(path))
    saved = read(path)
    state = saved['g_ema']
    opt = reconcile(opt, saved, path)
    torch.manual_seed(opt.experiment.seed)  # for noise maps that the file may lack
    generator = build_generator(opt, full_pipeline=has_decoder(state), **fast_parts(opt, graphs=graphs))
    load_state(generator, state, path).to(device).eval().requires_grad_(False)
    return Loaded(generator, opt, path, name)

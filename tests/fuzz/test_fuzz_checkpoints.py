"""The readers of checkpoints on damaged and hostile files: a model or one UserError, in bounded time and memory.

Three kinds of input: bytes of a file that are damaged, archives whose entries are (their checksums right again, so that
the damage reaches the unpickler), and sound archives of the wrong contents. Both ways of reading are tried: generation,
and a training that goes on from the file and takes an optimizer's step.

See running.py for the development mode.
"""
import contextlib
import copy
import io
import os
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running
import torch
from hypothesis import strategies as st
from test_fuzz_photos import edited, edits

import checkpoint
import options
from discriminators import VolumeDiscriminator
from inference.loading import load_generator
from model import build_generator
from training.resuming import check_images, describe_images, find_start
from training.run import adam
from training.stage1 import BETAS
from training.state import State
from utils import UserError

SECONDS = 20  # that one file of some kilobytes may take, on a loaded machine
MEGABYTES = 200  # that the process may grow by at one file
SIZES = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
         '--renderer_spatial_output_dim', '8', '--channel_max', '4', '--device', 'cpu']
TRAINING = ['--dataset_path', 'none', '--batch', '2', '--chunk', '2', '--discriminator_width', '0.02',
            '--continue_training']


class NineImages:
    """The part of a data set that check_images uses."""
    path = 'datasets/nine'

    def __len__(self):
        return 9

    def fingerprint(self, count=None):
        return '0' * 16


class OneProcess:
    """The part of training.processes.Processes that find_start uses."""
    size = 1

    @staticmethod
    def share(compute):
        return compute()


def new_state(opt):
    """What stage 1 trains."""
    generator = build_generator(opt, full_pipeline=False)
    discriminator = VolumeDiscriminator(opt.model.renderer_spatial_output_dim, True, opt.model.discriminator_width)
    return State(generator, discriminator, adam(generator.parameters(), 1e-3, BETAS),
                 adam(discriminator.parameters(), 1e-3, BETAS))


def take_steps(state):
    """A step of both optimizers: it reads and writes all of their moments."""
    for module, optimizer in ((state.g, state.g_optim), (state.d, state.d_optim)):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@cache
def sound_contents():
    """What the files hold before anything is changed: {stage: contents}."""
    torch.manual_seed(0)
    full = build_generator(options.parse('render_video', '', SIZES)).state_dict()
    opt = options.parse('train_volume_renderer', '', [*SIZES, *TRAINING])
    state = new_state(opt)
    take_steps(state)
    state.iteration, state.images = 3, 6
    whole = state.checkpoint() | {'dataset': {'length': 9, 'fingerprint': '0' * 16}, 'step_images': {'images': 2},
                                  'options': checkpoint.saved_options(opt)}
    return {'full_pipeline': {'g_ema': full, 'options': checkpoint.saved_options(opt), 'iteration': 7},
            'volume_renderer': whole}


@cache
def sound_file(stage):
    return saved(sound_contents()[stage])


@contextlib.contextmanager
def bounded(folder):
    """Checks what the block cost and that it left no file; what it prints is kept back."""
    started, before = time.monotonic(), sorted(os.listdir(folder))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown < MEGABYTES << 10
    assert sorted(os.listdir(folder)) == before
    assert '\x1b' not in said.getvalue() and '\r' not in said.getvalue()


def check_sentence(error, path):
    """One sentence that names the file or a flag, without control characters."""
    sentence = str(error)
    assert str(path) in sentence or '--' in sentence, sentence
    assert sentence.isprintable() and len(sentence) < 3000, repr(sentence)[:4000]


def model_options(path):
    return options.parse('render_video', '', ['--model', str(path), '--device', 'cpu'])


def check_file(stage, data):
    """Read a file of these bytes in both ways."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = folder / 'models_0000003.pt'
        path.write_bytes(data)
        with bounded(folder):
            try:
                loaded = load_generator(model_options(path), 'cpu')
                assert all(parameter.isfinite().all() for parameter in loaded.generator.parameters())
            except UserError as error:
                check_sentence(error, path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'debug', 'volume_renderer', 'models_0000003.pt')
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        with bounded(folder), bounded(path.parent):
            try:
                opt = options.parse('train_volume_renderer', '', [*SIZES, *TRAINING, '--checkpoints_dir', folder])
                start, opt = find_start(opt, 'volume_renderer', OneProcess)
                if start.resumed:
                    check_images(opt, NineImages(), describe_images(NineImages()), start)
                    state = new_state(opt)
                    state.load(start.saved, start.path)
                    take_steps(state)
            except UserError as error:
                check_sentence(error, path)


# ---- three kinds of damage -----------------------------------------------------------------------

STAGES = st.sampled_from(['full_pipeline', 'volume_renderer'])


def check_bytes(stage, changes):
    check_file(stage, edited(sound_file(stage), changes))


def damaged_archive(sound, number, changes, method, drop, pickle_only):
    """The bytes of an archive of which one entry is damaged, and perhaps another dropped; the archive itself is sound.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound)) as old, zipfile.ZipFile(buffer, 'w') as new:
        names = old.namelist()
        damaged = next(name for name in names if name.endswith('data.pkl')) if pickle_only else names[
            number % len(names)]
        for i, name in enumerate(names):
            if drop is None or i != drop % len(names) or name == damaged:
                data = old.read(name)
                new.writestr(name, edited(data, changes) if name == damaged else data, method)
    return buffer.getvalue()


ENTRY_DAMAGE = {'number': st.integers(0, 1000), 'changes': edits(), 'pickle_only': st.booleans(),
                'drop': st.none() | st.integers(0, 1000),
                'method': st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])}


def check_entries(stage, **damage):
    check_file(stage, damaged_archive(sound_file(stage), **damage))


def quantized(sides):
    """A tensor of a kind that PyTorch is about to drop, as old files may hold it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.quantize_per_tensor(torch.zeros(sides), 1., 0, torch.qint8)


def odd_tensors():
    """Strategies of tensors as a stranger's file may hold them."""
    shape = st.lists(st.sampled_from([0, 1, 2, 3, 8, 9, 16, 64]), max_size=5).filter(
        lambda sides: torch.Size(sides).numel() <= 2 ** 16)
    dtype = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
                             torch.bool, torch.complex64, torch.float8_e4m3fn])
    fill = st.sampled_from([0., 1., -1., 1e30, float('nan'), float('inf'), -1e-30])
    plain = st.builds(lambda sides, kind, value: torch.full(sides, value).to(kind), shape, dtype, fill)
    huge = st.sampled_from([(2 ** 40,), (2 ** 20, 2 ** 20), (1, 2 ** 31), (8, 2 ** 33), (2 ** 15, 8), (3, 2 ** 17)])
    return st.one_of(plain, huge.map(lambda sides: torch.zeros(1).expand(*sides)),
                     shape.map(lambda sides: torch.zeros(sides).to_sparse() if sides else torch.zeros(())),
                     shape.map(lambda sides: torch.empty(sides, device='meta')),
                     shape.map(quantized),
                     shape.map(lambda sides: torch.zeros(sides).flatten()[::2]),
                     shape.map(lambda sides: torch.nn.Parameter(torch.zeros(sides))))


WORDS = st.one_of(st.text(max_size=8), st.sampled_from(
    ['\x1b[31m', '\n', '\r', 'a' * 5000, 'module.', 'g', 'g_ema', 'style.0.weight', 'decoder.', 'decoder.to_rgbs.7.x',
     'decoder.noises.noise_0', 'renderer.sigmoid_beta', 'renderer.network.pts_linears.99.weight', 'total_ops', '.',
     '']))
LEAVES = st.one_of(odd_tensors(), st.none(), st.booleans(), st.integers(), st.floats(), WORDS,
                   st.sampled_from([-1, 0, 2 ** 63, -2 ** 70, 10 ** 400, float('nan')]))
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.tuples(inner, inner),
    st.dictionaries(st.one_of(WORDS, st.integers(-2, 40)), inner, max_size=3)), max_leaves=4)
CHANGES = st.lists(st.tuples(st.sampled_from(['replace', 'drop', 'add', 'rename', 'swap', 'scale']),
                             st.lists(st.integers(0, 10 ** 6), min_size=1, max_size=5), WORDS, VALUES),
                   min_size=1, max_size=4)


def place_in(contents, turns):
    """(a dict or list inside, one of its keys or positions): at each turn one step deeper, as far as it goes."""
    place = contents
    for turn in turns:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[turn % len(keys)]
        deeper = place[key]
        if turn == turns[-1] or not isinstance(deeper, dict | list) or not deeper:
            return place, key
        place = deeper
    return place, key


def changed(contents, changes):
    contents = copy.deepcopy(contents)
    for what, turns, word, value in changes:
        if not contents:
            break
        place, key = place_in(contents, turns)
        if what == 'replace':
            place[key] = value
        elif what == 'drop':
            del place[key]
        elif isinstance(place, list):
            place.append(value)
        elif what == 'add':
            place[word] = value
        elif what == 'rename':
            place[word] = place.pop(key)
        elif what == 'swap':
            other = list(place)[turns[0] % len(place)]
            place[key], place[other] = place[other], place[key]
        elif (isinstance(place[key], torch.Tensor) and checkpoint.is_plain(place[key]) and place[key].dim()
              and place[key].numel() <= 2 ** 20):
            place[key] = torch.cat([place[key]] * 2, dim=turns[0] % place[key].dim())
    return contents


def saved(contents):
    """The bytes of a file of torch.save, or as many of them as PyTorch writes of some odd tensors."""
    buffer = io.BytesIO()
    with contextlib.suppress(RuntimeError, TypeError, AttributeError, NotImplementedError):
        torch.save(contents, buffer)
    return buffer.getvalue()


def check_contents(stage, changes):
    check_file(stage, saved(changed(sound_contents()[stage], changes)))


def check_top(value):
    """A file that holds something else altogether."""
    check_file('full_pipeline', saved(value))


CHECKS = {
    'damaged bytes': (check_bytes, {'stage': STAGES, 'changes': edits()}),
    'damaged entries': (check_entries, {'stage': STAGES, **ENTRY_DAMAGE}),
    'wrong contents': (check_contents, {'stage': STAGES, 'changes': CHANGES}),
    'other contents': (check_top, {'value': VALUES}),
}


def test_the_sound_files_load():
    for stage in 'full_pipeline', 'volume_renderer':
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model.pt')
            path.write_bytes(sound_file(stage))
            load_generator(model_options(path), 'cpu')


test_damaged_bytes = running.fixed(20, **CHECKS['damaged bytes'][1])(check_bytes)
test_damaged_entries = running.fixed(30, **CHECKS['damaged entries'][1])(check_entries)
test_wrong_contents = running.fixed(60, **CHECKS['wrong contents'][1])(check_contents)
test_other_contents = running.fixed(20, **CHECKS['other contents'][1])(check_top)

if __name__ == '__main__':
    running.main(CHECKS)

"""The readers of latents, directions and encoders on damaged and hostile files: what they hold, or one UserError.

A file has its bytes damaged, or entries of its archive, or it is sound and its contents are not. What is read is used:
latents and directions for a picture, an encoder for a guess. Tables of key frames, the other file that a video is made
from, are any text.

See running.py for the development mode.
"""
import sys
import tempfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running
import torch
from hypothesis import strategies as st
from test_fuzz_checkpoints import (
    CHANGES,
    ENTRY_DAMAGE,
    SIZES,
    VALUES,
    bounded,
    changed,
    check_sentence,
    damaged_archive,
    saved,
)
from test_fuzz_photos import edited, edits

import options
from camera import cameras_at
from inference import directions, latents
from inference.camera_paths import path_cameras
from inversion.encoder import Encoder, guess_of, read_encoder, save_encoder, side_for
from inversion.inverter import Inverter
from inversion.preview import Preview
from model import build_generator
from utils import UserError

RAYS = 4  # along each side of a picture
FRAMES = 3


@cache
def model(full):
    """(generator, its Owner, option tree) of a full model or of a field alone."""
    torch.manual_seed(0)
    opt = options.parse('render_video', '', SIZES)
    generator = build_generator(opt, full_pipeline=full).requires_grad_(False)
    return generator, latents.Owner.of(generator, opt), opt


@cache
def inverter(full):
    """What an encoder of a model belongs to."""
    generator, _, opt = model(full)
    return Inverter.of(generator, opt, generator.mean_latents(100))


@cache
def sound_contents(kind, full):
    """What a file of this kind holds before anything is changed, with all that it can."""
    generator, owner, _ = model(full)
    w = generator.style(torch.ones(1, generator.style_dim))
    one = latents.latents_of_w(generator, w)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'a.pt')
        if kind == 'directions':
            directions.save_directions(path, {'shape1': directions.Direction(w, None),
                                              'color1': directions.Direction(None, one.w_prime)}, owner)
        elif kind == 'encoder':
            own = inverter(full)
            save_encoder(path, Encoder(generator.style_dim, side_for(own), Preview.fitted(own)), owner)
        else:
            noise = tuned = None
            if full:  # as of an inverted photo
                decoder, layers = generator.decoder, generator.renderer.network.num_layers
                one = one._replace(w=w[:, None].repeat(1, layers, 1))
                noise = [torch.zeros(1, 1, side, side) for side in decoder.noise_sizes]
                tuned = {'conv1.conv.weight': torch.ones_like(decoder.conv1.conv.weight)}
            latents.save_latents(path, one, owner, torch.zeros(2, 2), noise=noise, tuned=tuned, source='seed 3')
        return torch.load(path, weights_only=True)


@cache
def sound_file(kind, full):
    return saved(sound_contents(kind, full))


def use_latents(path, full):
    """Read a file of latents and draw what it holds."""
    generator, owner, _ = model(full)
    one = latents.read_latents(path, generator, owner)
    assert one.name and one.source.isprintable() and 1 <= len(one.viewpoints) <= latents.MAX_VIEWS
    tuned = latents.tuned_generator(generator, one.tuned)
    picture, _ = latents.render_latents(tuned, one.latents, cameras_at(one.viewpoints[:1], RAYS), one.decoder_noise)
    assert picture.shape[:2] == (1, 3)


def use_directions(path, full):
    """Read a file of directions and move along all of them."""
    generator, owner, _ = model(full)
    found = directions.read_directions(path, generator, owner)
    start = latents.Latents(torch.zeros(1, generator.style_dim),
                            torch.zeros(1, generator.decoder.num_layers, 2 * generator.style_dim) if full else None)
    moved = directions.edited(start, [(name, 2.) for name in found], found)
    assert moved.w.shape == start.w.shape and all(name.isprintable() for name in found)
    assert not full or moved.w_prime.shape == start.w_prime.shape


def use_encoder(path, full):
    """Read an encoder and let it guess."""
    encoder = read_encoder(path, inverter(full), model(full)[1])
    guess = guess_of(encoder, inverter(full), torch.zeros(1, 3, 16, 16))
    assert guess.viewpoint.shape == (1, 2) and guess.u.shape == (1, model(full)[0].style_dim)


USES = {'latents': use_latents, 'directions': use_directions, 'encoder': use_encoder}


def check_file(kind, full, data):
    """Read a file of these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'a.pt')
        path.write_bytes(data)
        with bounded(folder):
            try:
                USES[kind](path, full)
            except UserError as error:
                check_sentence(error, path)


def check_bytes(kind, full, changes):
    check_file(kind, full, edited(sound_file(kind, full), changes))


def check_entries(kind, full, **damage):
    check_file(kind, full, damaged_archive(sound_file(kind, full), **damage))


def check_contents(kind, full, changes):
    check_file(kind, full, saved(changed(sound_contents(kind, full), changes)))


def check_top(kind, value):
    check_file(kind, True, saved(value))


def check_key_frames(text, changes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'a.csv')
        path.write_bytes(edited(text.encode('utf-8', 'surrogatepass'), changes))
        with bounded(folder):
            try:
                cameras = path_cameras(model(True)[2], str(path), FRAMES, 'cpu')
                assert len(cameras) == FRAMES and cameras.extrinsics.isfinite().all() and cameras.near.isfinite().all()
            except UserError as error:
                check_sentence(error, path)


KIND = {'kind': st.sampled_from(sorted(USES)), 'full': st.booleans()}
CELLS = st.one_of(st.floats().map(str), st.integers(-5, 5).map(str), st.text(max_size=6), st.sampled_from(
    ['time', 'azimuth', 'elevation', 'zoom', 'distance', ' Zoom ', '', 'nan', '-inf', '1e400', '1_0', '٣', '"', '\0',
     '\x1b[31m', '9' * 5000, '-3600', '3600', '0.1', '20', '89', '1e-300', '5e-324']))
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=5).map(','.join), max_size=6).map('\n'.join)
SOUND_TABLES = st.lists(st.tuples(st.floats(-3600, 3600), st.floats(-89, 89), st.floats(0.1, 20), st.floats(0.3, 20)),
                        min_size=1, max_size=6).map(lambda rows: 'azimuth,elevation,zoom,distance\n' + '\n'.join(
                            ','.join(map(repr, row)) for row in rows))
CHECKS = {
    'damaged bytes': (check_bytes, {**KIND, 'changes': edits()}),
    'damaged entries': (check_entries, {**KIND, **ENTRY_DAMAGE}),
    'wrong contents': (check_contents, {**KIND, 'changes': CHANGES}),
    'other contents': (check_top, {'kind': KIND['kind'], 'value': VALUES}),
    'key frames': (check_key_frames, {'text': TABLES | SOUND_TABLES, 'changes': st.one_of(st.just([]), edits())}),
}


def test_the_sound_files_are_used():
    for kind, use in USES.items():
        for full in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, 'a.pt')
                path.write_bytes(sound_file(kind, full))
                use(path, full)


test_damaged_bytes = running.fixed(40, **CHECKS['damaged bytes'][1])(check_bytes)
test_damaged_entries = running.fixed(60, **CHECKS['damaged entries'][1])(check_entries)
test_wrong_contents = running.fixed(120, **CHECKS['wrong contents'][1])(check_contents)
test_other_contents = running.fixed(30, **CHECKS['other contents'][1])(check_top)
test_key_frames = running.fixed(150, **CHECKS['key frames'][1])(check_key_frames)

if __name__ == '__main__':
    running.main(CHECKS)

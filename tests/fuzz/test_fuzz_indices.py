"""The readers of data sets and of index.json on wrong contents: a result or one UserError, in bounded time and memory.

A data set's LMDB is sound here and its keys and values are not, or its file is cut short or begins wrong. (LMDB reads
pages by pointers, so a damaged page in the middle can end the process: docs/robustness.md.) index.json is any text.

See running.py for the development mode.
"""
import contextlib
import copy
import io
import json
import sys
import tempfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lmdb
import running
from hypothesis import strategies as st
from PIL import Image
from test_fuzz_checkpoints import bounded, check_sentence
from test_fuzz_photos import edited, edits

from dataset import ImageDataset, open_images
from imaging.lmdb_files import read_fit
from imaging.photos import Photos
from inference.results import add_to_index, read_generated
from prepare_data import Shards, prepare
from utils import UserError
from web.results_page import write_page

SIZE, COUNT = 8, 3
ENTRY = {'seed': 3, 'checkpoint': 'full_models/x.pt', 'truncation_ratio': 0.5, 'truncation_mean': 10, 'fov': 6.,
         'dist_radius': 0.12, 'views': [{'azim': 0., 'elev': 0.1}, {'azim': 0.3, 'elev': 0.}],
         'files': ['images/0000000.png', 'depth_map_meshes/sample_0_depth_mesh_azim0_elev5.obj']}


# ---- data sets -----------------------------------------------------------------------------------

@cache
def photos():
    """A folder of photos that stays."""
    folder = Path(tempfile.mkdtemp())
    for i in range(COUNT):
        Image.radial_gradient('L').resize((9 + i, 9)).save(folder / f'{i}.png')
    return folder


@cache
def sound_set(shard):
    """({key: value}, bytes of data.mdb) of a data set of a few images."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Photos(photos(), (1, 1) if shard else None), folder, [SIZE])
        with lmdb.open(folder, readonly=True, lock=False) as environment, environment.begin() as transaction:
            entries = {bytes(key): bytes(value) for key, value in transaction.cursor()}
        return entries, Path(folder, 'data.mdb').read_bytes()


KEYS = st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from(
    [b'length', b'resample', b'fit', b'shard', b'source-00000', b'shape-00000', b'8-00000', b'8-00003', b'-', b'8-',
     b'-1', b'8--1', b'0-00000', b'-8-00000', b'99999999999999999999-0', b'8-99999999999999999999', b'source-99999999',
     b'source-x', b'shape-', b'shape-zz', '٣-00000'.encode(), b'8_0-0', b' 8-0', b'a' * 500]))
VALUES = st.one_of(st.binary(max_size=20), st.integers().map(lambda number: str(number).encode()), st.sampled_from(
    [b'', b'0', b'3', b'-1', b'4', b'3.0', b'9' * 5000, b'1000000000000', ' ٣'.encode(), b'lanczos', b'bilinear',
     b'pad', b'crop 0.3', b'crop nan', b'squeeze', b'1/1', b'1/2', b'0/0', b'x/1', b'1/1/1', b'9x9', b'0x0', b'9x0',
     b'9', b'x', b'-9x9', b'1e3x2', b'120 0.png', b'120', b' 0.png', b'120 ../0.png', b'\xff\xfe', b'120 \x1b[31m']))
CHANGES = st.lists(st.one_of(
    st.tuples(st.just('put'), KEYS, VALUES), st.tuples(st.just('replace'), st.integers(0, 99), VALUES),
    st.tuples(st.just('drop'), st.integers(0, 99), st.none()), st.tuples(st.just('rename'), st.integers(0, 99), KEYS),
    st.tuples(st.just('damage'), st.integers(0, 99), edits())), min_size=1, max_size=4)


def changed_set(entries, changes):
    entries = dict(entries)
    for what, place, value in changes:
        if what == 'put':
            entries[place] = value
        elif entries:
            key = sorted(entries)[place % len(entries)]
            if what == 'drop':
                del entries[key]
            elif what == 'rename':
                entries[value] = entries.pop(key)
            else:
                entries[key] = value if what == 'replace' else edited(entries[key], value)
    return entries


def try_all(folder):
    """Everything that reads a data set, each with a result or one sentence."""
    def images(dataset):
        dataset.fingerprint()
        for i in range(min(len(dataset), 2 * COUNT)):
            assert dataset[i, True].shape == (3, SIZE, SIZE)

    def again(where):
        if prepare(Photos(photos()), where, [SIZE]).count:
            images(ImageDataset(where, SIZE))

    def merged(where):
        with tempfile.TemporaryDirectory() as other:
            prepare(Shards([str(where)]), other, [])

    (folder / 'lock.mdb').touch()  # LMDB's own, which writing makes
    for read in (lambda: images(ImageDataset(folder, SIZE)), lambda: images(open_images(folder, SIZE)),
                 lambda: read_fit(folder), lambda: merged(folder), lambda: again(folder)):
        with bounded(folder), contextlib.redirect_stderr(io.StringIO()):
            try:
                read()
            except UserError as error:
                check_sentence(error, folder)


def check_set(shard, changes):
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(folder, map_size=2 ** 22) as environment, environment.begin(write=True) as transaction:
            for key, value in changed_set(sound_set(shard)[0], changes).items():
                transaction.put(key, value)
        try_all(Path(folder))


def check_cut(shard, length, head):
    """The file ends early, or its first page is damaged."""
    data = bytearray(sound_set(shard)[1])
    for place, value in head:
        data[place] = value
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, 'data.mdb').write_bytes(data[:length])
        try_all(Path(folder))


# ---- index.json ----------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10 ** 400, -1, 0, True]))
LEAVES = st.one_of(st.none(), NUMBERS, st.text(max_size=8), st.sampled_from(
    ['../../etc/passwd', '/etc/passwd', 'images/\x00.png', '\ud800', 'a' * 5000, '\x1b[31m', 'images']))
JSON = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
    st.one_of(st.text(max_size=8), st.sampled_from([*ENTRY, '0000000', 'seed0000003', '٣000000', 'azim'])), inner,
    max_size=3)), max_leaves=6)


def check_index(key, value, name, deep, changes):
    """One entry beside a sound one; perhaps the text is damaged too."""
    entry = copy.deepcopy(ENTRY)
    (entry['views'][0] if deep else entry)[key] = value
    text = json.dumps({'results': {'0000000': ENTRY, name: entry}}).encode('utf-8', 'surrogatepass')
    check_index_text(edited(text, changes))


def check_other_index(value):
    check_index_text(json.dumps(value).encode('utf-8', 'surrogatepass'))


def check_index_text(text):
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, 'random_angles')
        (folder / 'images').mkdir(parents=True)
        Image.new('RGB', (16, 8)).save(folder / 'images' / '0000000.png')
        (folder / 'index.json').write_bytes(text)
        with bounded(folder):
            for read in (lambda: read_generated(folder), lambda: write_page(Path(top)),
                         lambda: add_to_index(folder, '0000007', ENTRY), lambda: read_generated(folder)):
                try:
                    read()
                except UserError as error:
                    check_sentence(error, top)


CHECKS = {
    'data sets': (check_set, {'shard': st.booleans(), 'changes': CHANGES}),
    'cut data sets': (check_cut, {'shard': st.booleans(), 'length': st.integers(0, 70000), 'head': st.lists(
        st.tuples(st.integers(0, 95), st.integers(0, 255)), max_size=3)}),
    'index entries': (check_index, {
        'key': st.one_of(st.sampled_from([*ENTRY, 'earlier_files', 'azim', 'elev']), st.text(max_size=4)),
        'value': JSON,
        'name': st.one_of(st.text(max_size=9), st.sampled_from(['0000001', 'seed0000003', '\ud800'])),
        'deep': st.booleans(), 'changes': st.one_of(st.just([]), edits())}),
    'other indices': (check_other_index, {'value': JSON}),
}

test_data_sets = running.fixed(25, **CHECKS['data sets'][1])(check_set)
test_cut_data_sets = running.fixed(25, **CHECKS['cut data sets'][1])(check_cut)
test_index_entries = running.fixed(50, **CHECKS['index entries'][1])(check_index)
test_other_indices = running.fixed(40, **CHECKS['other indices'][1])(check_other_index)

if __name__ == '__main__':
    running.main(CHECKS)

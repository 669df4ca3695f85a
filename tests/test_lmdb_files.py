"""imaging/lmdb_files.py: what an LMDB of images holds, sharing it, reading while it grows, and damage."""
import lmdb
import pytest

from imaging.lmdb_files import (
    Contents,
    begin_reading,
    image_key,
    open_lmdb,
    read_contents,
    read_fit,
    shape_key,
    shared_lmdb,
    source_key,
)
from utils import UserError


@pytest.fixture
def write(tmp_path):
    """write(values, **more) adds keys and values to an LMDB, which it makes if need be, and returns its folder."""
    def add(values):
        with lmdb.open(str(tmp_path / 'data'), map_size=1 << 22) as environment, environment.begin(write=True) as begun:
            for key, value in values.items():
                begun.put(key if isinstance(key, bytes) else key.encode(), value)
        return tmp_path / 'data'
    return add


def test_keys_have_five_digits_or_more():
    assert image_key(64, 7) == b'64-00007' and image_key(1024, 123456) == b'1024-123456'
    assert (source_key(12), shape_key(3)) == (b'source-00012', b'shape-00003')


def test_contents(write):
    values = {image_key(64, i): b'png' for i in range(4)} | {image_key(16, i): b'png' for i in (0, 2, 9)}
    values |= {source_key(i): b'%d a.png' % i for i in range(4)}
    folder = write(values | {b'length': b'4', b'resample': b'bilinear'})
    contents = read_contents(open_lmdb(folder))
    assert (contents.length, contents.resample, contents.sources) == (4, 'bilinear', [f'{i} a.png' for i in range(4)])
    assert contents.complete_sizes() == [64] and contents.count(16) == 2 and contents.count(32) == 0
    assert contents.lacking(16, 4).tolist() == [False, True, False, True]


def test_an_unfinished_and_a_foreign_data_set(write):
    assert read_contents(open_lmdb(write({image_key(8, 0): b'png'}))) == Contents(None, {8: [0]})
    with pytest.raises(UserError, match='damaged or an LMDB of something else'):
        read_contents(open_lmdb(write({b'users': b'x'})))


def test_one_opening_in_a_process(write):
    folder = write({b'length': b'1'})
    environment = shared_lmdb(folder)
    assert shared_lmdb(folder) is environment
    with begin_reading(environment) as transaction:
        assert transaction.get(b'length') == b'1'


def test_a_file_cut_short_is_noticed(write):
    folder = write({image_key(64, i): bytes(4000) for i in range(50)})
    data = folder / 'data.mdb'
    data.write_bytes(data.read_bytes()[:100_000])
    with pytest.raises(UserError, match='cut short'):
        open_lmdb(folder)


def test_how_photos_were_fitted(write):
    folder = write({b'length': b'3'} | {shape_key(i): shape for i, shape in enumerate((b'20x10', b'30x10', b'10x10'))})
    assert read_fit(folder).aspect == 2 and read_fit(folder).fit.mode == 'crop'

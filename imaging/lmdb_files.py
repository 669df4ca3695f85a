"""The LMDB that `prepare_data.py` writes (its head describes the keys): opened for reading, and what it contains."""
import array
import collections
import errno
import os
import weakref
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np

from imaging.fit import RESAMPLE, Fit
from utils import UserError

MAKE_AGAIN = 'remove the folder and make the data set again with prepare_data.py'
LARGEST_SIZE = 4096  # that prepare_data.py makes
LONGEST_SIDE = 10 ** 6  # of a photo, in pixels
TEXTS = 'length', 'resample', 'fit', 'shard'  # keys of one value each
# What LMDB says where a file system lacks what it needs, and where another process is in the way.
NO_LOCKS = errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.ESTALE
NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
NOT_ALLOWED = errno.EACCES, errno.EPERM, errno.EROFS

_environments = weakref.WeakValueDictionary()  # by path: LMDB allows one opening in a process, so it is shared


def image_key(size, index):
    """The key of image `index` at `size` pixels."""
    return f'{size}-{index:05d}'.encode()


def source_key(index):
    """The key of the photo that image `index` was made from."""
    return f'source-{index:05d}'.encode()


def shape_key(index):
    """The key of that photo's width and height, where the data set remembers them."""
    return f'shape-{index:05d}'.encode()


def remedy(error):
    """What to do about an lmdb.Error, as a clause; None for damage and for what nothing is known of."""
    def says(*numbers):
        return any(os.strerror(number) in str(error) for number in numbers)

    if says(*NO_LOCKS):
        return 'its disk lacks the locks or memory maps that LMDB needs, as many network disks do: make the data set ' \
               'on a local disk, then copy the folder'
    if says(errno.ENOMEM):
        return 'this process may not map that much memory: raise its limit (ulimit -v unlimited)'
    if says(*NO_ROOM):
        return 'free some space'
    if says(*NOT_ALLOWED):
        return 'check the permissions of the folder, or choose another'
    if says(errno.EMFILE, errno.ENFILE):
        return 'too many files are open: raise the limit (ulimit -n)'
    if isinstance(error, (lmdb.MapResizedError, lmdb.ReadersFullError, lmdb.LockError)):
        return 'another process is writing to it: wait for that to end'
    return None


def open_lmdb(path):
    """The LMDB at a folder, opened for reading only: no lock file, safe in any number of processes, forked ones too.

    Raises UserError where it is damaged. A file cut short is noticed here, for reading past its end would be a SIGBUS.
    """
    data = Path(path, 'data.mdb')
    try:
        environment = lmdb.open(os.fsencode(path), readonly=True, lock=False, readahead=False, meminit=False,
                                create=False)
    except lmdb.Error as error:
        raise UserError(f'{data} cannot be opened ({error}); {remedy(error) or f"mend that, or {MAKE_AGAIN}"}.'
                        ) from None
    wanted = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    if (there := data.stat().st_size) < wanted:
        environment.close()
        raise UserError(f'{data} is cut short ({there} of {wanted} bytes); copy it again, or {MAKE_AGAIN}.')
    return environment


def shared_lmdb(path):
    """The LMDB at `path`, the same for all in this process; it closes when nobody holds it any more."""
    path = os.path.realpath(path)
    environment = _environments.get(path) or open_lmdb(path)
    _environments[path] = environment
    return environment


def begin_reading(environment, **options):
    """A transaction that sees what is in the LMDB now, also when another process has enlarged it meanwhile."""
    try:
        return environment.begin(**options)
    except lmdb.MapResizedError:
        environment.set_mapsize(0)
        return environment.begin(**options)


class Contents(NamedTuple):
    """What an LMDB holds; prepare_data.py describes the keys."""
    length: int | None = None  # None: the run that makes the data set was cut short
    sizes: dict = {}  # {size: ascending array of the indices that are there}
    sources: list = []  # 'bytes name' by index; empty for a data set that another program made, and where not wanted
    resample: str | None = None
    fit: Fit = Fit()
    shard: str | None = None

    def count(self, size):
        """How many of the images 0 .. length - 1 there are at a size."""
        indices = self.sizes.get(size, np.empty(0, np.int64))
        return int(((indices >= 0) & (indices < (self.length or 0))).sum())

    def complete_sizes(self):
        """The sizes that have every image, ascending."""
        return sorted(size for size in self.sizes if self.count(size) == (self.length or 0))

    def lacking(self, size, count):
        """Which of the images 0 .. count - 1 are not there at a size, as booleans (count)."""
        return ~np.isin(np.arange(count), self.sizes.get(size, ()))


def read_contents(environment, with_sources=True):
    """The Contents of an open LMDB. Raises UserError where it is damaged, naming a key that tells what else it is."""
    sizes, sources, texts = collections.defaultdict(lambda: array.array('q')), {}, {}
    key = b''
    try:
        with begin_reading(environment) as transaction:
            for key in transaction.cursor().iternext(values=False):
                head, _, index = key.decode().partition('-')
                if head == 'source':
                    if with_sources:
                        sources[_index(key, index, source_key)] = _checked_source(_value(transaction, key))
                elif head in TEXTS and not index:
                    texts[head] = _value(transaction, key).decode()
                elif head != 'shape':
                    size = int(head)
                    if not 1 <= size <= LARGEST_SIZE:
                        raise ValueError('an impossible size')
                    sizes[size].append(_index(key, index, lambda number, size=size: image_key(size, number)))
        for name, value in texts.items():
            key = name.encode()
            _check_text(name, value)
        key = b'source-'
        return Contents(int(texts['length']) if texts.get('length') else None,
                        {size: np.unique(indices) for size, indices in sizes.items()},
                        [sources[index] for index in range(len(sources))], texts.get('resample'),
                        Fit.of(texts.get('fit', 'crop')), texts.get('shard'))
    except (lmdb.Error, ValueError, KeyError, OverflowError):
        raise _damaged(environment, key) from None


def _damaged(environment, key):
    return UserError(f'{environment.path()} is damaged or an LMDB of something else (at the key {ascii(key[:40])}); '
                     f'{MAKE_AGAIN}.')


def _value(transaction, key):
    """The value of a key that was just read. In a damaged file it may be missing all the same."""
    value = transaction.get(key)
    if value is None:
        raise ValueError('a key without a value')
    return value


def _index(key, text, key_of):
    """The index that a key tells. Raises ValueError where it is not written as we write it."""
    index = int(text)
    if index < 0 or key_of(index) != key:
        raise ValueError('another key than ours')
    return index


def _checked_source(value):
    size, _, name = value.decode(errors='surrogateescape').partition(' ')
    if not name or str(int(size)) != size:
        raise ValueError('no source')
    return f'{size} {name}'


def _check_text(name, value):
    """Raise ValueError where the value of one of TEXTS is not one that we write."""
    if name == 'shard':
        share, count = map(int, value.split('/'))
        sound = 1 <= share <= count and value == f'{share}/{count}'
    elif name == 'length':
        sound = not value or (int(value) >= 0 and str(int(value)) == value)
    else:
        sound = value in RESAMPLE if name == 'resample' else str(Fit.of(value)) == value
    if not sound:
        raise ValueError(f'{value!r} is no {name}')


def read_shape(environment, transaction, index):
    """(width, height) of the photo that image `index` was made from, or None. Raises UserError for a damaged one."""
    value = transaction.get(shape_key(index))
    try:
        return value and _shape(value)
    except ValueError:
        raise _damaged(environment, shape_key(index)) from None


def _shape(value):
    width, height = map(int, value.split(b'x'))
    if not (0 < width < LONGEST_SIDE and 0 < height < LONGEST_SIDE):
        raise ValueError('no size of a photo')
    return width, height


class Remembered(NamedTuple):
    """How the photos of a data set were fitted into squares."""
    fit: Fit
    aspect: float  # the median of their width / height; 1 where the data set does not remember it


def read_fit(path):
    """The Remembered fit of the data set at `path`: `fit.undone(picture, aspect)` undoes it in results.

    Raises UserError where it is damaged.
    """
    environment, key, aspects = shared_lmdb(path), b'fit', []
    try:
        with begin_reading(environment) as transaction:
            fit = Fit.of((transaction.get(b'fit') or b'crop').decode())
            cursor = transaction.cursor()
            if cursor.set_range(b'shape-'):
                for key, value in cursor:
                    if not key.startswith(b'shape-'):
                        break
                    width, height = _shape(value)
                    aspects.append(width / height)
    except (lmdb.Error, ValueError):
        raise _damaged(environment, key) from None
    return Remembered(fit, float(np.median(aspects)) if aspects else 1.)

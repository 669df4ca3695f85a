"""The LMDB that `prepare_data.py` writes (its head describes the keys): opened for reading, and what it contains."""
import collections
import os
import weakref
from pathlib import Path
from typing import NamedTuple

import lmdb

from utils import UserError

MAKE_AGAIN = 'remove the folder and make the data set again with prepare_data.py'

_environments = weakref.WeakValueDictionary()  # by path: LMDB allows one opening in a process, so it is shared


def image_key(size, index):
    """The key of image `index` at `size` pixels."""
    return f'{size}-{index:05d}'.encode()


def source_key(index):
    """The key of the photo that image `index` was made from."""
    return f'source-{index:05d}'.encode()


def open_lmdb(path):
    """The LMDB at a folder, opened for reading only: no lock file, safe in any number of processes, forked ones too.

    Raises UserError where it is damaged. A file cut short is noticed here, for reading past its end would be a SIGBUS.
    """
    data = Path(path, 'data.mdb')
    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False, create=False)
    except lmdb.Error as error:
        raise UserError(f'{data} cannot be opened ({error}); mend that, or {MAKE_AGAIN}.') from None
    wanted = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    if (there := data.stat().st_size) < wanted:
        environment.close()
        raise UserError(f'{data} is cut short ({there} of {wanted} bytes); copy it again, or {MAKE_AGAIN}.')
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
    sizes: dict = {}  # {size: set of indices}
    sources: list = []  # 'bytes name' by index; empty for a data set that another program made
    resample: str | None = None

    def complete_sizes(self):
        """The sizes that have every image, ascending."""
        return sorted(size for size, indices in self.sizes.items() if indices.issuperset(range(self.length or 0)))


def read_contents(environment):
    """The Contents of an open LMDB. Raises UserError where it is damaged."""
    sizes, sources = collections.defaultdict(set), {}
    try:
        with begin_reading(environment) as transaction:
            for key in transaction.cursor().iternext(values=False):
                head, _, index = key.decode().partition('-')
                if head == 'source':
                    sources[int(index)] = transaction.get(key).decode(errors='surrogateescape')
                elif head not in ('length', 'resample'):
                    sizes[int(head)].add(int(index))
            length, resample = transaction.get(b'length'), transaction.get(b'resample')
        return Contents(length and int(length), dict(sizes), [sources[index] for index in range(len(sources))],
                        resample and resample.decode())
    except (lmdb.Error, ValueError, KeyError):
        raise UserError(f'{environment.path()} is damaged or an LMDB of something else; {MAKE_AGAIN}.') from None


def shared_lmdb(path):
    """The LMDB at `path`, the same for all in this process; it closes when nobody holds it any more."""
    path = os.path.realpath(path)
    environment = _environments.get(path) or open_lmdb(path)
    _environments[path] = environment
    return environment

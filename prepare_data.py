"""Photos to LMDB: every image of a folder or zip, at every wanted size, as `dataset.py` reads it.

    python prepare_data.py --out_path datasets/FFHQ --size 64,512,1024 photos.zip

The data set is an LMDB folder with these keys:

    {size}-{index:05d}   PNG of image `index`, size x size, 8-bit RGB
    length               how many images there are, in ASCII; every complete size has the indices 0 .. length - 1
    source-{index:05d}   '{bytes} {name}' of the photo that became image `index`: its file size, its path inside IN
    resample             the filter that made it: lanczos or bilinear

An index belongs to one photo for good. Photos get indices in the order of their paths, broken ones get none, and an
image is stored at all of its sizes in one transaction with its `source`. So a later run knows what is there and adds
only what is missing: after an interruption, with more photos in IN (they go to the end, at every size that the data set
has, so that one `length` is right for all) or with another --size (same indices). `length` changes only when a run has
finished: a first run that was cut short leaves none, and a later one leaves the data set as it was until it is done.
"""
import interrupts  # noqa: F401

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lmdb
from PIL import UnidentifiedImageError
from torch.utils.data import Dataset
from tqdm import tqdm

from imaging.lmdb_files import Contents, image_key, open_lmdb, read_contents, source_key
from imaging.photos import Photos, hidden
from imaging.pixels import RESAMPLE, load_image, resize_and_crop
from imaging.workers import load_in_workers
from options import Parser, explained, not_empty
from utils import UserError, run_command, writable_folder

MAX_SIZE = 4096
PNG_LEVEL = 3  # two to three times as fast as Pillow's 6, for files that differ by a few percent
COMMIT_SECONDS, COMMIT_BYTES = 1.0, 2**26  # a transaction's extent: what a kill can cost, and the memory that it holds
GROWTH_BYTES = 2**30  # the map doubles until it grows by this much at a time
SPARE_BYTES = 2**24  # LMDB's lock file lies in mapped memory: on a full disk it would end the process with SIGBUS


# ---- the LMDB ------------------------------------------------------------------------------------

class Writer:
    """Gathers keys and stores them a transaction at a time. The LMDB is made at the first one; its map grows as needed.

    A failed or killed transaction leaves the LMDB as it was before it. flush() and put() raise UserError where the disk
    is full or cannot be written to.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._environment = None
        self._start([])

    def _start(self, batch):
        self._batch, self._bytes, self._since = batch, 0, time.monotonic()

    def put(self, entries):
        """Add {key: value}, which stay together in one transaction."""
        self._batch += entries.items()
        self._bytes += sum(map(len, entries.values()))
        if self._bytes >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self.flush()

    def flush(self):
        """Store what is gathered. What fails is dropped: a second flush does not try again."""
        batch, size = self._batch, self._bytes
        self._start([])
        try:
            while batch and not self.commit(batch):
                old = self._environment.info()['map_size']
                grown = old + max(2 * size, min(old, GROWTH_BYTES))
                self._environment.set_mapsize((grown >> 20) + 1 << 20)  # whole MiB: a multiple of any page size
        except lmdb.Error as error:
            full = shutil.disk_usage(self.path).free < SPARE_BYTES  # LMDB may call that an input/output error
            why = 'its disk is full' if full else error
            raise UserError(f'cannot write to {self.path} ({why}); what was finished is kept: free some space or mend '
                            'the folder, then give the same command again to go on.') from None

    def commit(self, batch):
        """Whether the transaction fitted into the map."""
        self._environment = self._environment or self._open()
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in batch:
                    if not transaction.put(key, value, overwrite=not key.startswith(b'source-')):
                        raise UserError(f'another prepare_data.py is writing to {self.path}; wait for it to end.')
            return True
        except lmdb.MapFullError:
            return False

    def _open(self):
        writable_folder(self.path, '--out_path')
        if shutil.disk_usage(self.path).free < SPARE_BYTES:
            raise UserError(f'cannot write to {self.path} (less than {SPARE_BYTES >> 20} MiB are free on its disk); '
                            'free some space or choose another --out_path.')
        return lmdb.open(str(self.path), map_size=SPARE_BYTES)

    def close(self):
        if self._environment is not None:
            self._environment.close()


# ---- the run -------------------------------------------------------------------------------------

class Job(NamedTuple):
    """One photo and the sizes that it lacks. index None: not in the data set yet; gets the next if it can be read."""
    index: int | None
    name: str
    sizes: list


class Shrinker(Dataset):
    """Job i -> {size: PNG bytes}, or a str: the reason why the photo cannot be read. Runs in the workers."""

    def __init__(self, photos, jobs, resample):
        self.photos, self.jobs, self.resample = photos, jobs, RESAMPLE[resample]

    def __len__(self):
        return len(self.jobs)

    def __getitem__(self, i):
        job = self.jobs[i]
        try:
            image = load_image(self.photos.read(job.name))
        except UnidentifiedImageError:
            return 'it is not an image, or of a kind that Pillow cannot read'
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            return ' '.join(str(error).split()) or type(error).__name__
        return {size: _png(resize_and_crop(image, size, self.resample)) for size in job.sizes}


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, 'PNG', compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _as_is(item):
    return item


def existing_contents(out_path):
    """The Contents of the data set to go on with, empty where there is none yet. Raises UserError for other folders."""
    out_path = Path(out_path)
    if out_path.exists() and not out_path.is_dir():
        raise UserError(f'--out_path {out_path} is a file; choose a folder.')
    names = {path.name for path in out_path.iterdir() if not hidden(path.name)} if out_path.exists() else set()
    if not names - {'lock.mdb'}:
        return Contents()
    if names - {'lock.mdb'} != {'data.mdb'}:
        raise UserError(f'--out_path {out_path} holds other files and is not a data set; choose a new or empty folder.')
    if not (out_path / 'data.mdb').stat().st_size:  # killed before the first transaction
        return Contents()
    with contextlib.closing(open_lmdb(out_path)) as environment:
        contents = read_contents(environment)
    if not contents.sources and contents.sizes:
        raise UserError(f'--out_path {out_path} was made by another program and does not say which photo is which; '
                        'choose another folder.')
    return contents


def plan_jobs(photos, contents, sizes):
    """The Jobs that bring every image to `sizes`: those in the data set first, then new ones in order of their names.

    Raises UserError where the data set was made from other photos than these.
    """
    known = [source.partition(' ')[::2] for source in contents.sources]
    changed = [name for size, name in known if str(photos.files.get(name)) != size]
    if changed:
        raise UserError(f'--out_path was made from other photos: {len(changed)} of its {len(known)} are not in '
                        f'{photos.path}, or have changed ({changed[0]} for one); choose another --out_path.')
    have = [contents.sizes.get(size, ()) for size in sizes]
    jobs = []
    for index, (_, name) in enumerate(known):
        if missing := [size for size, indices in zip(sizes, have, strict=True) if index not in indices]:
            jobs.append(Job(index, name, missing))
    names = {name for _, name in known}
    return jobs + [Job(None, name, list(sizes)) for name in photos.files if name not in names]


def prepare(photos, out_path, sizes, *, n_worker=1, resample='lanczos', strict=False):
    """Bring the data set at `out_path` to all of `photos` at `sizes` (pixels), and at the sizes that it has already.

    Returns (number of images in it, number written now, {name: reason} of the broken photos, sizes). Raises UserError
    for what the user can mend, and with `strict` at the first broken photo; what was finished by then is kept.
    """
    contents = existing_contents(out_path)
    if contents.resample not in (None, resample):
        raise UserError(f'--resample {resample}: {out_path} was made with {contents.resample}; pass '
                        f'--resample {contents.resample} or choose another --out_path.')
    if contents.length is not None:
        sizes = sorted({*sizes, *contents.complete_sizes()})
    jobs = plan_jobs(photos, contents, sizes)
    count, done, broken = len(contents.sources), 0, {}
    workers = min(n_worker, len(jobs))
    results = load_in_workers(Shrinker(photos, jobs, resample), workers, batch_size=None, collate_fn=_as_is,
                              prefetch_factor=4 if workers else None)
    with contextlib.closing(Writer(out_path)) as writer:
        bar = tqdm(zip(jobs, results, strict=True), total=len(jobs), unit=' images', desc=f'{count} there, adding',
                   disable=not jobs)
        try:
            for job, result in bar:
                if isinstance(result, str):
                    _refuse(job, result, strict, out_path)
                    broken[job.name] = result
                    bar.set_postfix(broken=len(broken))
                    continue
                entries = {image_key(size, job.index if job.index is not None else count): png
                           for size, png in result.items()}
                if job.index is None:
                    source = f'{photos.files[job.name]} {job.name}'
                    entries[source_key(count)] = source.encode(errors='surrogateescape')
                    if not count:
                        entries[b'resample'] = resample.encode()
                    count += 1
                writer.put(entries)
                done += 1
        finally:
            bar.close()
            writer.flush()  # after Ctrl-C or a broken photo too
        if not count:
            name, reason = next(iter(broken.items()))
            raise UserError(f'{photos.path}: no image of {len(broken)} can be read; {name} for one ({reason}).')
        if count != contents.length:
            writer.put({b'length': str(count).encode()})
            writer.flush()
    return count, done, broken, sizes


def _refuse(job, reason, strict, out_path):
    """Stop at a broken photo where it may not be left out."""
    if job.index is not None:  # leaving it out would leave a hole at this size
        raise UserError(f'{job.name} is image {job.index:05d} of {out_path} and can no longer be read ({reason}); '
                        'put it back and give the same command again.')
    if strict:
        raise UserError(f'--strict: {job.name} cannot be read ({reason}); mend or remove it and give the same command '
                        'again to go on.')


# ---- the command ---------------------------------------------------------------------------------

def _sizes(text):
    sizes = [int(part) for part in text.split(',') if part.strip().isdecimal()]
    if len(sizes) != text.count(',') + 1 or not all(1 <= size <= MAX_SIZE for size in sizes):
        raise argparse.ArgumentTypeError(f'{text!r} is no list of whole numbers from 1 to {MAX_SIZE} like 64,512,1024')
    return sorted(set(sizes))


def _workers(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number from 1')
    return int(text)


def parse_arguments(arguments=None):
    """The command line as a namespace. Raises UserError."""
    parser = Parser(description='Make the LMDB data set that training reads from photos. Giving the same command again '
                    'adds only what is missing.')
    parser.add_argument('path', metavar='IN', type=explained(not_empty),
                        help='folder of images, folder of class folders, or zip of either')
    parser.add_argument('--out_path', required=True, metavar='OUT', type=explained(not_empty),
                        help='folder of the LMDB')
    parser.add_argument('--size', required=True, type=_sizes, metavar='64,512,1024', help='sizes to store, in pixels')
    parser.add_argument('--n_worker', default=os.cpu_count(), type=_workers, metavar='N',
                        help='worker processes (default: one per CPU core)')
    parser.add_argument('--resample', default='lanczos', choices=sorted(RESAMPLE), help='filter (default: lanczos)')
    parser.add_argument('--strict', action='store_true', help='stop at the first broken image instead of skipping it')
    return parser.parse_args(arguments)


def main():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # photos may have names that the terminal cannot show
    args = parse_arguments()
    photos, start = Photos(args.path), time.monotonic()
    count, done, broken, sizes = prepare(photos, args.out_path, args.size, n_worker=args.n_worker,
                                         resample=args.resample, strict=args.strict)
    seconds = time.monotonic() - start
    print(f'{args.out_path}: {count} images at {", ".join(map(str, sizes))}; {done} of them written now, in '
          f'{seconds:.1f} s ({done / seconds:.0f} images/s)')
    if photos.ignored:
        print(f'other files ignored: {photos.ignored.total()} ({", ".join(sorted(photos.ignored))})')
    if broken:
        print(f'broken images skipped: {len(broken)}')
        for name, reason in broken.items():
            print(f'  {name}: {reason}')


if __name__ == '__main__':
    run_command(main)

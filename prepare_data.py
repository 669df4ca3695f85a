"""Photos to LMDB: every image of a folder or zip, at every wanted size, as `dataset.py` reads it.

    python prepare_data.py --out_path datasets/FFHQ --size 64,512,1024 photos.zip
    python prepare_data.py --out_path parts/1 --size 64,512 --shard 1/8 photos     (and 2/8 … 8/8 on other machines)
    python prepare_data.py --out_path datasets/FFHQ --merge parts/*

The data set is an LMDB folder with these keys:

    {size}-{index:05d}   PNG of image `index`, size x size, 8-bit RGB
    length               how many images there are, in ASCII; every complete size has the indices 0 .. length - 1
    source-{index:05d}   '{bytes} {name}' of the photo that became image `index`: its file size, its path inside IN
    resample             the filter that made it: lanczos or bilinear
    fit                  where photos were not fitted as usual (see imaging/fit.py): how they were, such as 'pad', and
    shape-{index:05d}    '{width}x{height}' of the photo that became image `index`
    shard                where these are a share of the photos only: which, such as '3/8'

An index belongs to one photo for good. Photos get indices in the order of their paths, broken ones get none, and an
image is stored at all of its sizes in one transaction with its `source`. So a later run knows what is there and adds
only what is missing: after an interruption, with more photos in IN (they go to the end, at every size that the data set
has, so that one `length` is right for all) or with another --size (same indices). `length` changes only when a run has
finished: a first run that was cut short leaves none, and a later one leaves the data set as it was until it is done.
"""
import argparse
import os
import re

from options import Parser, explained, not_empty
from utils import UserError, held_lock, printable, run_command, writable_folder

MAX_SIZE = 4096
SMALLEST_SIZE = 8  # that a model has


def _sizes(text):
    sizes = [int(size) for size in text.split(',') if size.strip().isdecimal() and len(size) < 10]
    if len(sizes) != text.count(',') + 1 or not all(1 <= size <= MAX_SIZE for size in sizes):
        raise argparse.ArgumentTypeError(f'{text!r} is no list of whole numbers from 1 to {MAX_SIZE} like 64,512,1024')
    return sorted(set(sizes))


def _workers(text):
    if not text.isdecimal() or not 1 <= len(text) < 10 or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number from 1')
    return int(text)


def _shard(text):
    match = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text, re.ASCII)
    share, count = map(int, match.groups()) if match else (0, 0)
    if not 0 <= share <= count or not count:
        raise argparse.ArgumentTypeError(f'{text!r} is no share like 1/8 (the first of eight; 0/8 is the eighth)')
    return share or count, count


def _height(text):
    try:
        height = float(text)
    except ValueError:
        height = -1
    if not 0 <= height <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 0 (the top) to 1 (the bottom)')
    return height


def read_flags(arguments=None):
    """The command line as a namespace. Raises UserError."""
    parser = Parser(description='Make the LMDB data set that training reads from photos. Giving the same command again '
                    'adds only what is missing.')
    parser.add_argument('path', metavar='IN', nargs='+', type=explained(not_empty),
                        help='folder of images, folder of class folders, or zip of either; with --merge: data sets')
    parser.add_argument('--out_path', required=True, metavar='OUT', type=explained(not_empty),
                        help='folder of the LMDB')
    parser.add_argument('--size', type=_sizes, metavar='64,512,1024', help='sizes to store, in pixels')
    parser.add_argument('--n_worker', default=os.cpu_count(), type=_workers, metavar='N',
                        help='worker processes (default: one per CPU core)')
    parser.add_argument('--resample', default='lanczos', choices=('bilinear', 'lanczos'),
                        help='filter (default: lanczos)')
    parser.add_argument('--fit', default='crop', choices=('crop', 'pad', 'squeeze'),
                        help='what to do with photos that are not square: cut out a square, add white bars, or change '
                        'their proportions (default: crop); the data set remembers it')
    parser.add_argument('--crop_y', default=0.5, type=_height, metavar='0..1',
                        help='where --fit crop cuts a portrait photo: 0 at its top, 1 at its bottom (default: 0.5)')
    parser.add_argument('--align', action='store_true', help='cut out faces as FFHQ was aligned, by eyes and mouth '
                        '(needs facenet-pytorch, or --landmarks); photos without a face are left out')
    parser.add_argument('--landmarks', metavar='FILE', type=explained(not_empty),
                        help='with --align: CSV file with eyes and mouth of each photo, instead of a detector')
    parser.add_argument('--no_upscale', action='store_true', help='leave out photos that are smaller than the largest '
                        'size (default: enlarge them; the report counts them)')
    parser.add_argument('--strict', action='store_true', help='stop at the first broken image instead of skipping it')
    parser.add_argument('--shard', type=_shard, metavar='I/N', help='take only share I of N of the photos, so that N '
                        'machines share the work; each needs an --out_path of its own')
    parser.add_argument('--merge', action='store_true', help='join the data sets of all shards into OUT')
    flags = parser.parse_args(arguments)
    if flags.landmarks and not flags.align:
        parser.error('--landmarks is for --align only')
    if flags.align and (flags.fit != 'crop' or flags.crop_y != 0.5 or flags.merge):
        parser.error('--align cuts out faces, so that --fit, --crop_y and --merge have nothing to do')
    if flags.crop_y != 0.5 and flags.fit != 'crop':
        parser.error(f'--crop_y is for --fit crop only, not for --fit {flags.fit}')
    if not flags.merge:
        if len(flags.path) > 1:
            parser.error(f'one IN at a time, not {len(flags.path)}: put the photos into one folder')
        if not flags.size:
            parser.error('--size is needed, such as --size 64,256')
    elif (flags.size or flags.shard or flags.fit != 'crop' or flags.crop_y != 0.5 or flags.resample != 'lanczos' or
          flags.no_upscale or flags.strict):
        parser.error('--merge takes sizes and images as the shards have them: leave out --size, --shard, --fit, '
                     '--crop_y, --resample, --no_upscale and --strict')
    return flags


if __name__ == '__main__':
    run_command('prepare_data', read_flags)  # reads the flags, imports this file as a module, calls main(flags)

import collections
import contextlib
import io
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lmdb
import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from imaging.alignment import AlignedPhotos, Aligner
from imaging.fit import CENTER_CROP, RESAMPLE, Fit
from imaging.lmdb_files import (
    Contents,
    begin_reading,
    image_key,
    open_lmdb,
    read_contents,
    read_shape,
    remedy,
    shape_key,
    shared_lmdb,
    source_key,
)
from imaging.photos import MAX_NAME, BrokenPhoto, Photos, hidden, named_lines
from imaging.workers import load_in_workers

PNG_LEVEL = 3  # two to three times as fast as Pillow's 6, for files that differ by a few percent
COMMIT_SECONDS, COMMIT_BYTES = 1.0, 2**26  # a transaction's extent: what a kill can cost, and the memory that it holds
GROWTH_BYTES = 2**30  # the map doubles until it grows by this much at a time
SPARE_BYTES = 2**24  # LMDB's lock file lies in mapped memory: on a full disk it would end the process with SIGBUS
LOCK = '.writing.lock'


# ---- the LMDB ------------------------------------------------------------------------------------

class Writer:
    """Gathers keys and stores them a transaction at a time. The LMDB is made at the first one; its map grows as needed.

    A failed or killed transaction leaves the LMDB as it was before it. One Writer at a time writes to a folder: a
    second one gets a UserError. flush() and put() raise UserError where the disk is full or cannot be written to.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._environment = self._lock = None
        self._has_stored = (self.path / 'data.mdb').exists()
        if self.path.exists():
            self._be_alone()
        self._start([])

    def _start(self, batch):
        self._batch, self._bytes, self._since = batch, 0, time.monotonic()

    def _be_alone(self):
        def refuse():
            raise UserError(f'another prepare_data.py is writing to {self.path}; wait for it to end.')

        self._lock = held_lock(self.path / LOCK, refuse)  # None where there are no locks: LMDB says more of it

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
            self._has_stored |= bool(batch)
        except lmdb.MapResizedError:
            raise UserError(f'another prepare_data.py is writing to {self.path}; wait for it to end, then give the '
                            'same command again.') from None
        except lmdb.Error as error:
            full = shutil.disk_usage(self.path).free < SPARE_BYTES  # LMDB may call that an input/output error
            why = 'its disk is full' if full else error
            what = 'free some space' if full else remedy(error) or 'free some space or mend the folder'
            kept = ' What was finished is kept.' if self._has_stored else ''
            raise UserError(f'cannot write to {self.path} ({why}); {what}, then give the same command again.{kept}'
                            ) from None

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
        if self._lock is None:
            self._be_alone()
        if shutil.disk_usage(self.path).free < SPARE_BYTES:
            raise UserError(f'cannot write to {self.path} (less than {SPARE_BYTES >> 20} MiB are free on its disk); '
                            'free some space or choose another --out_path.')
        return lmdb.open(os.fsencode(self.path), map_size=SPARE_BYTES)

    def close(self):
        if self._environment is not None:
            self._environment.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):  # Windows removes no open file
                os.unlink(self._lock.lock_file)
            self._lock.release()


# ---- one photo -----------------------------------------------------------------------------------

class Job(NamedTuple):
    """One photo and the sizes that it lacks. index None: not in the data set yet; gets the next if it can be read."""
    index: int | None
    name: str
    sizes: list


class Made(NamedTuple):
    """What became of one photo."""
    pngs: dict       # {size: PNG bytes}
    shape: tuple     # (width, height) of the photo
    notes: tuple     # clauses for the report, see imaging.pixels.Photo


class LeftOut(NamedTuple):
    """A photo that is not stored."""
    heading: str     # of the report's lines: 'broken images skipped', for instance
    reason: str


BROKEN, SMALL = 'broken images skipped', 'images smaller than the size, left out by --no_upscale'


class Shrinker(Dataset):
    """Job i -> Made or LeftOut. Runs in the workers."""

    def __init__(self, photos, jobs, resample, fit, no_upscale):
        self.photos, self.jobs, self.resample = photos, jobs, RESAMPLE[resample]
        self.fit, self.no_upscale = fit, no_upscale

    def __len__(self):
        return len(self.jobs)

    def __getitem__(self, i):
        job = self.jobs[i]
        try:
            image, notes = self.photos.load(job.name)
            if self.fit.enlarges(image.size, max(job.sizes)):
                if self.no_upscale and job.index is None:
                    return LeftOut(SMALL, f'it has {image.width}x{image.height} pixels')
                notes = (*notes, f'smaller than {max(job.sizes)} pixels, enlarged')
            pngs = {size: _png(self.fit.square(image, size, self.resample)) for size in job.sizes}
            return Made(pngs, image.size, notes)
        except BrokenPhoto as error:
            return LeftOut(BROKEN, str(error))
        except MemoryError:
            return LeftOut(BROKEN, 'the memory does not suffice for it')


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, 'PNG', compress_level=PNG_LEVEL)
    return buffer.getvalue()


class Shards:
    """The data sets of all shards, in the place of Photos and Shrinker: their photos are Made already.

    Raises UserError where one is missing or unfinished, or where they do not belong together.
    """

    def __init__(self, paths):
        self.path, self.places = ', '.join(paths), set(map(os.path.realpath, paths))
        self._environments = [shared_lmdb(path) for path in paths]
        self._contents = [read_contents(environment) for environment in self._environments]
        self._check(paths)
        first = self._contents[0]
        self.resample, self.fit = first.resample, first.fit
        self.sizes = sorted(set.intersection(*(set(contents.complete_sizes()) for contents in self._contents)))
        if not self.sizes:
            raise UserError(f'--merge: the shards ({self.path}) have no size in common; give their commands again with '
                            'the same --size.')
        self.files, self._places = {}, {}
        for number, contents in enumerate(self._contents):
            for index, source in enumerate(contents.sources[:contents.length]):
                size, _, name = source.partition(' ')
                self.files[name], self._places[name] = int(size), (number, index)
        self.files = dict(sorted(self.files.items()))

    def _check(self, paths):
        for path, contents in zip(paths, self._contents, strict=True):
            if not contents.length:
                raise UserError(f'--merge: {path} is unfinished; give the command that makes it again first.')
            if not contents.shard:
                raise UserError(f'--merge: {path} is no shard: it was made without --shard.')
            if contents.resample is None or len(contents.sources) < contents.length:
                raise UserError(f'--merge: {path} is damaged: it does not say how its images were made; '
                                'remove the folder and give the command that makes it again.')
        shards = sorted((int(share) for share, _ in (contents.shard.split('/') for contents in self._contents)))
        counts = {int(contents.shard.split('/')[1]) for contents in self._contents}
        if len(counts) > 1 or len({(contents.resample, contents.fit) for contents in self._contents}) > 1:
            raise UserError(f'--merge: these shards ({self.path}) do not belong together: they differ in the number of '
                            'shards, in --resample, --fit or --crop_y.')
        missing = sorted({*range(1, counts.pop() + 1)} - {*shards})
        if missing or len(set(shards)) < len(shards):
            what = f'shard {missing[0]} is missing' if missing else 'a shard is given twice'
            raise UserError(f'--merge: {what}; give the data set of each shard once.')

    def made(self, jobs):
        """Yield a Made for each Job."""
        with contextlib.ExitStack() as stack:
            transactions = [stack.enter_context(begin_reading(environment)) for environment in self._environments]
            for job in jobs:
                number, index = self._places[job.name]
                pngs = {size: transactions[number].get(image_key(size, index)) for size in job.sizes}
                shape = read_shape(self._environments[number], transactions[number], index)
                if not shape and self.fit != CENTER_CROP:
                    raise UserError(f'--merge: {self._environments[number].path()} is damaged: the shape of image '
                                    f'{index} is not there; remove the folder and make it again.')
                yield Made(pngs, shape or (), ())

    def left_out(self):
        return []

    def count(self):
        return len(self.files)


# ---- the run -------------------------------------------------------------------------------------

def existing_contents(out_path):
    """The Contents of the data set to go on with, empty where there is none yet. Raises UserError for other folders."""
    out_path = Path(out_path)
    if out_path.exists() and not out_path.is_dir():
        raise UserError(f'--out_path {out_path} is a file; choose a folder.')
    names = {path.name for path in out_path.iterdir() if not hidden(path.name)} if out_path.exists() else set()
    if not names - {'lock.mdb'}:
        return Contents()
    if names - {'lock.mdb'} != {'data.mdb'} or not (out_path / 'data.mdb').is_file():  # a link may lead nowhere
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
                        f'{photos.path}, or have changed ({printable(changed[0])} for one); choose another --out_path.')
    lacking = {size: contents.lacking(size, len(known)) for size in sizes}
    jobs = [Job(int(index), known[index][1], [size for size in sizes if lacking[size][index]])
            for index in np.flatnonzero(np.logical_or.reduce([*lacking.values()]))]
    names = {name for _, name in known}
    every_size = list(sizes)
    return jobs + [Job(None, name, every_size) for name in photos.files if name not in names]


def check_same_way(contents, out_path, resample, fit, shard):
    """Raise UserError where a data set to go on with was made in another way."""
    if contents.resample not in (None, resample):
        raise UserError(f'--resample {resample}: {out_path} was made with {contents.resample}; pass '
                        f'--resample {contents.resample} or choose another --out_path.')
    if contents.sources and contents.fit != fit:
        raise UserError(f'--fit {_flag(fit)}: {out_path} was made with --fit {_flag(contents.fit)}; pass that or '
                        'choose another --out_path.')
    if contents.sources and contents.shard != shard:
        there = f'--shard {contents.shard}' if contents.shard else 'no --shard'
        raise UserError(f'--shard: {out_path} was made with {there}; pass the same or choose another --out_path.')


def _flag(fit):
    if fit.mode == 'align':
        return 'crop --align'
    return fit.mode if fit.crop_y == 0.5 else f'{fit.mode} --crop_y {fit.crop_y:g}'


class Report(NamedTuple):
    """What prepare() did."""
    count: int    # images in the data set
    done: int     # written now
    sizes: list   # of the data set, in pixels
    left_out: dict  # {heading: {name: reason}} of the photos that are not stored
    notes: dict   # {clause: [names]} of the photos that were not quite as they should be

    @property
    def broken(self):
        return self.left_out.get(BROKEN, {})


def prepare(photos, out_path, sizes, *, n_worker=1, resample='lanczos', strict=False, fit=CENTER_CROP,
            no_upscale=False):
    """Bring the data set at `out_path` to all of `photos` at `sizes` (pixels), and at the sizes that it has already.

    photos: Photos, or Shards, which bring sizes, resample and fit themselves. Returns a Report. Raises UserError for
    what the user can mend, and with `strict` at the first broken photo; what was finished by then is kept.
    """
    merging = isinstance(photos, Shards)
    shard = None if merging or not photos.shard else '{}/{}'.format(*photos.shard)
    if merging:
        sizes, resample, fit = photos.sizes, photos.resample, photos.fit
        if os.path.realpath(out_path) in photos.places:
            raise UserError(f'--merge: {out_path} is one of the shards; choose another --out_path.')
    with contextlib.closing(Writer(out_path)) as writer:
        contents = existing_contents(out_path)
        check_same_way(contents, out_path, resample, fit, shard)
        if contents.length is not None:
            sizes = sorted({*sizes, *contents.complete_sizes()})
        if merging and (unknown := {*sizes} - {*photos.sizes}):
            raise UserError(f'--merge: {out_path} has the size {min(unknown)}, which the shards lack; make them at '
                            'that size too.')
        jobs = plan_jobs(photos, contents, sizes)
        workers = min(n_worker, len(jobs))
        results = photos.made(jobs) if merging else load_in_workers(
            Shrinker(photos, jobs, resample, fit, no_upscale), workers, flag='--n_worker', fewest=1, batch_size=None,
            collate_fn=_as_is, prefetch_factor=4 if workers else None)
        head = {b'resample': resample.encode()} | ({b'fit': str(fit).encode()} if fit != CENTER_CROP else {}) | (
            {b'shard': shard.encode()} if shard else {})
        return _store(zip(jobs, results, strict=True), len(jobs), writer, contents, photos, sizes, fit, head, strict)


def _as_is(item):
    return item


def _store(made, total, writer, contents, photos, sizes, fit, head, strict):
    """Store what comes of the jobs; returns the Report. head: the entries that come with the first image."""
    count, done = len(contents.sources), 0
    left_out, notes = collections.defaultdict(dict), collections.defaultdict(list)
    bar = tqdm(made, total=total, unit=' images', desc=f'{count} there, adding', disable=not total)
    try:
        for job, result in bar:
            if isinstance(result, LeftOut):
                _refuse(job, result, strict, writer.path)
                left_out[result.heading][job.name] = result.reason
                bar.set_postfix({'left out': sum(map(len, left_out.values()))})
                continue
            for note in result.notes:
                notes[note].append(job.name)
            index = count if job.index is None else job.index
            entries = {image_key(size, index): png for size, png in result.pngs.items()}
            if job.index is None:
                source = f'{photos.files[job.name]} {job.name}'
                entries[source_key(count)] = source.encode(errors='surrogateescape')
                if fit != CENTER_CROP:
                    entries[shape_key(count)] = '{}x{}'.format(*result.shape).encode()
                if not count:
                    entries |= head
                count += 1
            writer.put(entries)
            done += 1
    finally:
        bar.close()
        writer.flush()  # after Ctrl-C or a broken photo too
    if not count:
        heading, reasons = next(iter(left_out.items()))
        name, reason = next(iter(reasons.items()))
        what = 'can be read' if heading == BROKEN else 'is large enough'
        raise UserError(f'{photos.path}: no image of {total} {what}; {name} for one ({reason}).')
    if count != contents.length:
        writer.put({b'length': str(count).encode()})
        writer.flush()
    return Report(count, done, sizes, dict(left_out), dict(notes))


def _refuse(job, result, strict, out_path):
    """Stop at a broken photo where it may not be left out."""
    if job.index is not None:  # leaving it out would leave a hole at this size
        raise UserError(f'{job.name} is image {job.index:05d} of {out_path} and can no longer be read '
                        f'({result.reason}); put it back and give the same command again.')
    if strict and result.heading == BROKEN:
        raise UserError(f'--strict: {job.name} cannot be read ({result.reason}); mend or remove it and give the same '
                        'command again to go on.')


# ---- the command ---------------------------------------------------------------------------------

def report_lines(report, photos, out_path, seconds):
    """The lines that the command ends with."""
    yield (f'{out_path}: {report.count} images at {", ".join(map(str, report.sizes))}; {report.done} of them written '
           f'now, in {seconds:.1f} s ({report.done / seconds:.0f} images/s)')
    for note, names in report.notes.items():
        yield f'{note}: {len(names)} ({printable(names[0], MAX_NAME)} for one)'
    for heading, reasons in report.left_out.items():
        yield from named_lines(heading, reasons)
    yield from photos.left_out()
    left_out = sum(map(len, report.left_out.values()))
    if photos.count() != report.count:
        others = photos.count() - report.count - left_out
        yield (f'{photos.path} holds {photos.count()} files in all: {report.count} images, {left_out} that are left '
               f'out, {others} others')
    unusable = [size for size in report.sizes if size < SMALLEST_SIZE or size & (size - 1)]
    if unusable:
        yield (f'note: training takes sizes that are powers of two from {SMALLEST_SIZE}, so not '
               f'{", ".join(map(str, unusable))}; give the same command with another --size to add one')


def main(flags):
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # photos may have names that the terminal cannot show
    start = time.monotonic()
    aligner = Aligner(flags.landmarks) if flags.align else None
    photos = Shards(flags.path) if flags.merge else Photos(flags.path[0], flags.shard)
    if aligner:
        photos = AlignedPhotos(photos, aligner)
    report = prepare(photos, flags.out_path, flags.size, n_worker=flags.n_worker, resample=flags.resample,
                     strict=flags.strict, no_upscale=flags.no_upscale,
                     fit=Fit('align') if aligner else Fit(flags.fit, flags.crop_y))
    print('\n'.join(report_lines(report, photos, flags.out_path, time.monotonic() - start)))

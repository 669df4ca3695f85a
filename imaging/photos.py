"""The photos in a folder or zip file: which files are images, their bytes and pixels, and what was left out."""
import collections
import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from imaging.pixels import formats, read_photo
from utils import UserError, printable

MAX_FILE_BYTES = 2**30  # a larger file is a decompression bomb or no photo
# An entry of a zip that is larger than this many bytes and unpacks to so many times its size is no photo either.
MUCH, MOST_UNPACKED = 2**26, 100
NAMED = 20  # lines of a report that name files one by one; the rest is counted
MAX_NAME = 300  # characters of a file's name, and of the reason, in a report
# What makes files of these kinds readable.
REMEDIES = dict.fromkeys(('.heic', '.heif', '.hif'), '"pip install pillow-heif" makes these readable') | {
    '.avif': '"pip install --upgrade pillow" makes these readable (from version 11.3)',
    '.jxl': '"pip install pillow-jxl-plugin" makes these readable'} | dict.fromkeys(
    ('.dng', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2', '.raf'),
    'raw photos of a camera, which must be developed to JPEG or TIFF first') | dict.fromkeys(
    ('.zip', '.rar', '.7z', '.tar', '.gz', '.tgz'), 'an archive inside is not opened; unpack it first')
BRANDS = {b'heic': '.heic', b'heix': '.heic', b'hevc': '.heic', b'mif1': '.heic', b'msf1': '.heic', b'avif': '.avif'}


class BrokenPhoto(Exception):
    """A file that cannot be read as a photo. The message is a clause that says why."""


class Photos:
    """The images below a folder (class folders too) or inside a zip file.

    `files`: {name: bytes}, sorted by name, which is the path inside `path` with '/' on every system. All else that is
    there is counted, so that the numbers add up: `ignored`, the other files by suffix; `others`, what is no plain file,
    by what it is; `unreadable`, {name: reason} of folders and files that the system does not let us read.
    shard: (i, n) takes only the photos of share i of n, by their names. Raises UserError where there is no image.
    """

    def __init__(self, path, shard=None):
        self.path, self.shard = Path(path), shard
        self._archive = self._opened_by = None
        self.ignored, self.others, self.unreadable = collections.Counter(), collections.Counter(), {}
        if self.path.is_dir():
            found = self._walk()
        elif self.path.suffix.lower() == '.zip' or (self.path.is_file() and zipfile.is_zipfile(self.path)):
            found = self._list_zip()
        elif self.path.exists():
            raise UserError(f'{path} is neither a folder nor a zip file; give a folder of images or a zip of them.')
        else:
            raise UserError(f'{path} does not exist; give a folder of images or a zip of them.')
        self.files = self._images(found)
        if not self.files:
            raise UserError(f'{path} holds no images{self._what_else()}; give a folder of images or a zip of them.')

    @classmethod
    def single(cls, path):
        """One file by itself, whatever its name ends in; that it is no image is noticed when it is loaded."""
        photos, path = cls.__new__(cls), Path(path)
        photos.path, photos.shard, photos._archive, photos._opened_by = path.parent, None, None, None
        photos.ignored, photos.others, photos.unreadable = collections.Counter(), collections.Counter(), {}
        try:
            photos.files = {path.name: path.stat().st_size}
        except OSError as error:
            raise UserError(f'{path} cannot be read ({error.strerror}); check the path and its permissions.') from None
        return photos

    def _images(self, found):
        """{name: bytes} of the images among the (name, bytes) that were found, sorted; counts the others."""
        readable, files = readable_suffixes(), {}
        for name, size in found:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix not in readable:
                self.ignored[printable(suffix) or 'no suffix'] += 1
            elif self.shard and zlib.crc32(os.fsencode(name)) % self.shard[1] != self.shard[0] % self.shard[1]:
                self.others['photos of other shards'] += 1
            elif name in files:
                self.others['entries of the zip whose name is there twice'] += 1
            else:
                files[name] = size
        return dict(sorted(files.items()))

    def _what_else(self):
        if self.ignored:
            remedies = {REMEDIES[suffix] for suffix in self.ignored if suffix in REMEDIES}
            return f', only other files ({"; ".join([", ".join(sorted(self.ignored)), *sorted(remedies)])})'
        if self.unreadable:
            name, reason = next(iter(self.unreadable.items()))
            return f' that can be read ({name}: {reason})'
        return f', only {_listed(self.others)}' if self.others else ''

    # -- what is there

    def _walk(self):
        """Yield (name, bytes) of every regular file below the folder. Follows links to folders, each folder once."""
        def on_error(error):
            if Path(error.filename) == self.path:
                raise UserError(f'cannot read {error.filename}: {error.strerror}; check its permissions.')
            self.unreadable[Path(error.filename).relative_to(self.path).as_posix() + '/'] = error.strerror

        seen = set()
        for folder, folders, names in os.walk(self.path, followlinks=True, onerror=on_error):
            if (real := os.path.realpath(folder)) in seen:
                folders.clear()
                self.others['links to folders that were read already'] += 1
                continue
            seen.add(real)
            folders.sort()
            inside = Path(folder).relative_to(self.path)
            for name in names:
                relative = inside / name
                size = self._regular_size(relative)
                if size is None:
                    continue
                if any(map(hidden, relative.parts)):
                    self.others['hidden files'] += 1
                else:
                    yield relative.as_posix(), size

    def _regular_size(self, name):
        """The size of a regular file; None for what is none, which is counted."""
        try:
            status = os.stat(self.path / name)
        except OSError as error:
            if os.path.islink(self.path / name):
                self.others['links that lead nowhere'] += 1
            else:
                self.unreadable[name.as_posix()] = error.strerror
            return None
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        kinds = {stat.S_IFIFO: 'pipes', stat.S_IFSOCK: 'sockets'}
        self.others[kinds.get(stat.S_IFMT(status.st_mode), 'devices')] += 1
        return None

    def _list_zip(self):
        """Yield (name, bytes) of every file in the zip."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = archive.infolist()
        except FileNotFoundError:
            raise UserError(f'{self.path} does not exist; give a folder of images or a zip of them.') from None
        except OSError as error:
            raise UserError(f'cannot read {self.path}: {error.strerror or error}; check its permissions.') from None
        except Exception as error:  # damaged directories lead to errors of every kind
            raise UserError(f'{self.path} is a damaged zip file ({_in_one_line(error)}); fetch it again.') from None
        for entry in entries:
            parts = PurePosixPath(entry.filename.replace('\\', '/')).parts  # as Windows programs write them
            if entry.is_dir():
                continue
            if '..' in parts:
                self.others['entries of the zip whose name leads out of it'] += 1
            elif any(map(hidden, parts)):
                self.others['hidden files'] += 1
            elif stat.S_ISLNK(entry.external_attr >> 16):
                self.others['links in the zip'] += 1
            else:
                yield entry.filename, entry.file_size

    # -- one of them

    def read(self, name):
        """The bytes of one file."""
        if self.files[name] > MAX_FILE_BYTES:
            raise ValueError(f'the file is larger than {MAX_FILE_BYTES >> 20} MiB')
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        if self._opened_by != os.getpid():  # not a parent's: processes that share a file's position mix up their reads
            self._archive, self._opened_by = zipfile.ZipFile(self.path), os.getpid()
            self._entries = {}  # a name can be there twice: the entry that was listed is the one to read
            for entry in self._archive.infolist():
                self._entries.setdefault((entry.filename, entry.file_size), entry)
        entry = self._entries[name, self.files[name]]
        packed = min(entry.compress_size, self.path.stat().st_size)  # the former is only what the zip says
        if entry.file_size > max(MUCH, MOST_UNPACKED * packed):
            raise ValueError(f'unpacking it would take {entry.file_size >> 20} MiB, which no photo that is so small in '
                             'the zip takes')
        return self._archive.read(entry)

    def load(self, name):
        """The imaging.pixels.Photo of one file. Raises BrokenPhoto, and nothing else."""
        data = b''
        try:
            data = self.read(name)
            return read_photo(data)
        except UnidentifiedImageError:
            brand = BRANDS.get(data[8:12]) if data[4:8] == b'ftyp' else None
            raise BrokenPhoto('it is not an image, or of a kind that Pillow cannot read' if brand is None or
                              brand in readable_suffixes() else f'it is a {brand} file; {REMEDIES[brand]}') from None
        except MemoryError:
            raise BrokenPhoto('the memory does not suffice for it') from None
        except OSError as error:
            raise BrokenPhoto(error.strerror or _in_one_line(error)) from None
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            raise BrokenPhoto(_in_one_line(error)) from None

    def __getstate__(self):
        return self.__dict__ | {'_archive': None, '_opened_by': None}  # for workers that are spawned

    # -- the report

    def left_out(self):
        """Lines that say what else is there."""
        lines = []
        if self.ignored:
            lines.append(f'other files ignored: {self.ignored.total()} ({", ".join(sorted(self.ignored))})')
            lines += [f'  {suffix}: {REMEDIES[suffix]}' for suffix in sorted(self.ignored) if suffix in REMEDIES]
        if self.others:
            lines.append(f'not taken: {_listed(self.others)}')
        return lines + named_lines('not readable', self.unreadable)

    def count(self):
        """How many files there are in all: photos, other files, and all else that is counted one by one."""
        return len(self.files) + self.ignored.total() + self.others.total() + len(self.unreadable)


def named_lines(heading, reasons):
    """Lines of a report that name files with the reason for each, in a way that a terminal does not obey."""
    lines = [f'{heading}: {len(reasons)}'] if reasons else []
    lines += [f'  {printable(name, MAX_NAME)}: {printable(reason, MAX_NAME)}'
              for name, reason in list(reasons.items())[:NAMED]]
    return lines + ([f'  and {len(reasons) - NAMED} more'] if len(reasons) > NAMED else [])


def readable_suffixes():
    """The endings of the names of image files that can be read."""
    known = set(formats())
    return {suffix for suffix, name in Image.registered_extensions().items() if name in known}


def _listed(counts):
    return ', '.join(f'{what} ({count})' for what, count in sorted(counts.items()))


def _in_one_line(error):
    return ' '.join(str(error).split()) or type(error).__name__


def hidden(name):
    """Whether a file or folder name is a system's own (.DS_Store, and the shadows that macOS puts into zips)."""
    return name.startswith('.') or name == '__MACOSX'

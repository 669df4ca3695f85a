"""The photos in a folder or zip file: which files are images, and their bytes."""
import collections
import os
import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image

from utils import UserError

MAX_FILE_BYTES = 2**30  # a larger file is a decompression bomb or no photo


class Photos:
    """The images below a folder (class folders too) or inside a zip file.

    `files`: {name: bytes}, sorted by name, which is the path inside `path` with '/' on every system. `ignored`: how
    many other files there are, by suffix. Raises UserError where there is no image.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._archive = self._opened_by = None
        if self.path.is_dir():
            found = dict(_walk(self.path))
        elif self.path.suffix.lower() == '.zip' or (self.path.is_file() and zipfile.is_zipfile(self.path)):
            found = _list_zip(self.path)
        elif self.path.exists():
            raise UserError(f'{path} is neither a folder nor a zip file; give a folder of images or a zip of them.')
        else:
            raise UserError(f'{path} does not exist; give a folder of images or a zip of them.')
        readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
        self.files = {name: size for name, size in sorted(found.items()) if _suffix(name) in readable}
        self.ignored = collections.Counter(_suffix(name) or 'no suffix' for name in found if name not in self.files)
        if not self.files:
            others = f', only other files ({", ".join(sorted(self.ignored))})' if self.ignored else ''
            raise UserError(f'{path} holds no images{others}; give a folder of images or a zip of them.')

    def read(self, name):
        """The bytes of one file."""
        if self.files[name] > MAX_FILE_BYTES:
            raise ValueError(f'the file is larger than {MAX_FILE_BYTES >> 20} MiB')
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        if self._opened_by != os.getpid():  # not a parent's: processes that share a file's position mix up their reads
            self._archive, self._opened_by = zipfile.ZipFile(self.path), os.getpid()
        return self._archive.read(name)

    def __getstate__(self):
        return self.__dict__ | {'_archive': None, '_opened_by': None}  # for workers that are spawned


def _suffix(name):
    return PurePosixPath(name).suffix.lower()


def hidden(name):
    """Whether a file or folder name is a system's own (.DS_Store, and the shadows that macOS puts into zips)."""
    return name.startswith('.') or name == '__MACOSX'


def _walk(root):
    """(name, bytes) of every regular file below a folder. Follows links to folders, each folder once."""
    def on_error(error):
        raise UserError(f'cannot read {error.filename}: {error.strerror}.')

    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=on_error):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        for path in (Path(folder, name) for name in names if not hidden(name)):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size


def _list_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            return {entry.filename: entry.file_size for entry in archive.infolist()
                    if not entry.is_dir() and not any(map(hidden, PurePosixPath(entry.filename).parts))}
    except FileNotFoundError:
        raise UserError(f'{path} does not exist; give a folder of images or a zip of them.') from None
    except zipfile.BadZipFile as error:
        raise UserError(f'{path} is a damaged zip file ({error}); fetch it again.') from None

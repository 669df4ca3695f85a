"""All reading of images: data sets that training reads, photos that `evaluate.py` compares with, and their order.

`Images` says what a data set of images is. `ImageDataset` reads the LMDB that `prepare_data.py` makes, `PhotoDataset` a
folder or zip of photos. The randomness of the training images (their order and mirroring) is all in InfiniteSampler,
none in a data set: neither the number of workers nor a resumed run changes what is drawn.

The room `imaging/` has the parts: photos in folders and zips, their pixels, the LMDB, worker processes.
"""
import hashlib
import io
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from imaging.fit import RESAMPLE, resize_and_crop
from imaging.lmdb_files import begin_reading, image_key, read_contents, shared_lmdb, source_key
from imaging.photos import BrokenPhoto, Photos
from imaging.pixels import check_scans, read_photo
from imaging.workers import DeadWorker, load_in_workers
from utils import UserError

FINGERPRINT_IMAGES = 8  # images whose pixels are part of an LMDB's fingerprint
RESTARTS = 3  # times in a row that new workers take the place of dead ones
SMALLEST_SIZE = 8  # that a model has; its size is a power of two
TAIL = 4096  # bytes at the end of an image file that tell it from another of the same length


class BrokenImage(UserError):
    """One image of a data set that cannot be read, where the others still may; `reason` is a clause that says why."""

    def __init__(self, sentence, reason=''):
        super().__init__(sentence)
        self.reason = reason


# ---- data sets -----------------------------------------------------------------------------------

class Images(Dataset):
    """A data set of images: all that training and evaluation ask of one.

    Another kind of data set is one class that derives from this one and defines

        path                     where the images are, for messages
        size                     side of the images in pixels
        __len__()                how many images there are
        picture(index)           image `index` (from 0) as an 8-bit RGB Pillow image of size x size pixels; always the
                                 same; raises UserError, one sentence, for an image that cannot be read (BrokenImage
                                 where evaluate.py may go on without it)
        fingerprint(count=None)  16 hexadecimal digits that tell the first `count` images (all of them, if None) from
                                 others, computed in seconds: checkpoints and measurements remember it

    It must survive pickling, for workers that are spawned, so it opens its files in each process anew.

    Items follow from these. `images[index]`, or `images[index, True]` to have it mirrored, is a float32 tensor (3,S,S)
    in [-1, 1]: the image itself (S = size) or, with a `thumbnail_size`, its thumbnail (S = thumbnail_size), which is
    the image shrunk with a Hamming filter. `pixels(index)` is the same as uint8.
    """

    thumbnail_size = None

    def pixels(self, index, flip=False):
        """uint8 (3,S,S)."""
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        image = self.picture(index)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.thumbnail_size not in (None, self.size):
            image = image.resize((self.thumbnail_size, self.thumbnail_size), Image.Resampling.HAMMING)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def __getitem__(self, item):
        return (self.pixels(*item if isinstance(item, tuple) else (item,)) / 127.5).sub_(1)


class ImageDataset(Images):
    """The images of one size in an LMDB that `prepare_data.py` made, or their thumbnails.

    The LMDB may also be one of another program with the same keys; its images may be JPEG or WebP files. Raises
    UserError at once where the data set is missing, damaged, unfinished or without that size, and in an item whose
    image is broken.
    """

    def __init__(self, path, size, thumbnail_size=None):
        self.path, self.size, self.thumbnail_size = Path(path), size, thumbnail_size
        self._length = _checked_length(self.path, size)
        self._environment = None  # opened at the first item, so by each worker for itself

    def __len__(self):
        return self._length

    def __getstate__(self):
        return self.__dict__ | {'_environment': None}  # for workers that are spawned

    def picture(self, index):
        key = image_key(self.size, index)
        with begin_reading(self._opened()) as transaction:
            data = transaction.get(key)
        if data is None:
            raise UserError(f'{self.path}: image {key.decode()} is gone; give the prepare_data.py command again.')
        try:
            # Pillow, as it has the Hamming filter: torchvision's decoder gains at most 5 % of an item's time
            image = Image.open(io.BytesIO(data), formats=['PNG', 'JPEG', 'WEBP'])
            if image.size == (self.size, self.size):  # another one is not decoded: it could be of any size
                check_scans(image, data)
                # What another program stored as prepare_data.py never does becomes what that would have made of it.
                odd = image.has_transparency_data or image.mode[0] == 'I'
                image = read_photo(data).image if odd else image.convert('RGB')
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            raise UserError(f'{self.path}: image {key.decode()} is broken ({type(error).__name__}); make the data set '
                            'again.') from None
        if image.size != (self.size, self.size):
            raise UserError(f'{self.path}: image {key.decode()} is {image.width}x{image.height} pixels; make the data '
                            'set again.')
        return image

    def fingerprint(self, count=None):
        """Made from the sources of these images, and from the pixels of a few that are spread over them.

        An LMDB of another program names no sources: there the lengths of the images stand in for them.
        """
        count = self._length if count is None else count
        digest = hashlib.sha256(f'{self.size} {self.thumbnail_size or self.size} {count} '.encode())
        with begin_reading(self._opened(), buffers=True) as transaction:
            for index in range(count):
                source = transaction.get(source_key(index))
                if source is None:
                    source = f'{len(transaction.get(image_key(self.size, index), b""))} '.encode()
                digest.update(source)
        for index in sorted({i * count // FINGERPRINT_IMAGES for i in range(FINGERPRINT_IMAGES)} if count else ()):
            digest.update(self.picture(index).tobytes())
        return digest.hexdigest()[:16]

    def _opened(self):
        self._environment = self._environment or shared_lmdb(self.path)
        return self._environment


class PhotoDataset(Images):
    """The photos in a folder or zip file, resized as `prepare_data.py` resizes them.

    Raises UserError at once for a path that will not do, and in an item for a photo that cannot be read.
    """

    def __init__(self, path, size):
        self.path, self.size, self.photos = Path(path), size, Photos(path)
        self.names = list(self.photos.files)

    def __len__(self):
        return len(self.names)

    def picture(self, index):
        name = self.names[index]
        try:
            image = self.photos.load(name).image
        except BrokenPhoto as error:
            raise BrokenImage(f'{self.path}: {name} cannot be read as an image ({error}); mend or remove it.',
                              str(error)) from None
        return resize_and_crop(image, self.size, RESAMPLE['lanczos'])

    def fingerprint(self, count=None):
        """Made from the names, lengths and last bytes of these files."""
        names = self.names[:count]
        digest = hashlib.sha256(f'{self.size} {len(names)} '.encode())
        for name in names:
            try:
                data = self.photos.read(name)
            except Exception:  # what cannot be read is skipped, and named, where its pixels are needed
                data = b''
            digest.update(f'{name} {len(data)} '.encode(errors='surrogateescape') + data[-TAIL:])
        return digest.hexdigest()[:16]


def open_images(path, size):
    """The Images at `path`, which may be an LMDB or a folder or zip of photos, as items of `size` pixels.

    An LMDB without this size gives its next larger one, shrunk as in training. Raises UserError.
    """
    path = Path(path)
    if not (path / 'data.mdb').is_file():
        return PhotoDataset(path, size)
    sizes = read_contents(shared_lmdb(path), with_sources=False).complete_sizes()
    stored = size if size in sizes else min((larger for larger in sizes if larger > size), default=size)
    return ImageDataset(path, stored, thumbnail_size=size)


class Pixels(Dataset):
    """The uint8 pixels (3,S,S) of Images instead of floats: a quarter of the memory on the way from the workers.

    An image that raises BrokenImage gives the reason, a str, instead.
    """

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        try:
            return self.images.pixels(index)
        except BrokenImage as error:
            return error.reason

    @staticmethod
    def batch(items):
        """Items as (uint8 (B,3,S,S) of those that can be read, or None; the reason or None for each item)."""
        readable = [item for item in items if not isinstance(item, str)]
        return (torch.stack(readable) if readable else None,
                [item if isinstance(item, str) else None for item in items])


def _checked_length(path, size):
    """The number of images of an LMDB at `size`. Raises UserError where it cannot be trained on."""
    def command(source, out):
        return shlex.join(['python', 'prepare_data.py', '--out_path', str(out), '--size', str(size), str(source)])

    if not (path / 'data.mdb').is_file():
        if _holds_photos(path):
            out = f'{str(path).removesuffix(".zip")}_lmdb'
            raise UserError(f'{path} holds photos and is no data set yet; make one with "{command(path, out)}" and '
                            f'give {out} instead.')
        what = 'is no data set (it has no data.mdb)' if path.exists() else 'does not exist'
        raise UserError(f'{path} {what}; make a data set from a folder or zip of photos with '
                        f'"{command("PHOTOS", path)}".')
    contents = read_contents(shared_lmdb(path), with_sources=False)
    if not contents.length:
        raise UserError(f'{path} is unfinished: its prepare_data.py was interrupted; give that command again.')
    complete = contents.complete_sizes()
    if size not in complete:
        usable = [size for size in complete if size >= SMALLEST_SIZE and size & (size - 1) == 0]
        there = ', '.join(map(str, usable)) or 'none that a model can have'
        raise UserError(f'{path} has {contents.count(size) or "none"} of its {contents.length} images at size {size}; '
                        f'use a size that is there ({there}) or add this one with "{command("PHOTOS", path)}".')
    return contents.length


def _holds_photos(path):
    try:
        return bool(Photos(path).files)
    except UserError:
        return False


# ---- the order of training images ----------------------------------------------------------------

class InfiniteSampler:
    """An endless stream of (index, flip), shuffled anew in each epoch: a pure function of (seed, position).

    `stream[position]` is the item at any position from 0. `batches(batch)` yields one process's lists of items: at step
    s process `rank` of `world_size` takes the positions from start + (s * world_size + rank) * batch on, so that two
    processes with batch 2 see together what one sees with batch 4. `start` counts the images that all processes
    together have taken so far (steps * batch * world_size): it is all that a checkpoint must hold, and a run may go on
    with another batch or number of processes. `seed`: from 0. `flip`: mirror a random half, another in each epoch.
    """

    def __init__(self, length, *, seed, rank=0, world_size=1, start=0, flip=True):
        self.length, self.seed, self.flip = length, seed, flip
        self.rank, self.world_size, self.start = rank, world_size, start
        self._epoch = None

    def __getitem__(self, position):
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order, self._flips = rng.permutation(self.length), rng.random(self.length) < 0.5
            self._epoch = epoch
        return int(self._order[offset]), bool(self.flip and self._flips[offset])

    def batches(self, batch, done=0):
        """Yield lists of `batch` items without end, without the first `done` lists."""
        position = self.start + (self.rank + self.world_size * done) * batch
        while True:
            yield [self[position + i] for i in range(batch)]
            position += self.world_size * batch


def make_loader(images, sampler, batch, num_workers):
    """Yield batches (B,3,S,S) of Images without end.

    The batches are the same for every `num_workers`, 0 (load in this process) included, and PyTorch's global random
    state is left alone. When a worker process dies (as the system does it where memory is short), new workers go on.
    Raises UserError for a worker's error, and for deaths that do not end.
    """
    done = deaths = 0
    while True:
        try:
            for loaded in load_in_workers(images, num_workers, batch_sampler=sampler.batches(batch, done),
                                          pin_memory=torch.cuda.is_available()):
                done, deaths = done + 1, 0
                yield loaded
        except DeadWorker as error:
            deaths += 1
            if deaths > RESTARTS:
                raise
            print(f'{str(error).rstrip(".")}. New workers go on.', file=sys.stderr, flush=True)

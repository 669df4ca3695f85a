"""LMDB to (image, thumbnail): the training images, in an order that is a pure function of the seed and the position.

`prepare_data.py` makes the LMDB and says what is in it. The randomness of the real images (order and mirroring) is all
in InfiniteSampler, none in the data set: neither the number of workers nor a resumed run changes what is drawn.
"""
import io
import os
import shlex
import weakref
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from prepare_data import Photos, begin_reading, image_key, load_in_workers, open_lmdb, read_contents
from utils import UserError

_environments = weakref.WeakValueDictionary()  # by path: LMDB allows one opening in a process, so it is shared


class ImageDataset(Dataset):
    """The images of one size in a data set, each with its thumbnail.

    Item `index`, or item `(index, flip)` to have it mirrored, is a pair of float32 tensors in [-1, 1]: the image
    (3, size, size), and the thumbnail (3, thumbnail_size, thumbnail_size), which is the image shrunk with a Hamming
    filter; with `thumbnail_only` (stage 1) the thumbnail alone. Raises UserError at once where the data set is missing,
    damaged, unfinished or without that size, and in an item whose PNG is broken.
    """

    def __init__(self, path, size, *, thumbnail_size=64, thumbnail_only=False):
        self.path, self.size = Path(path), size
        self.thumbnail_size, self.thumbnail_only = thumbnail_size, thumbnail_only
        self._length = _check(self.path, size)
        self._environment = None  # opened at the first item, so by each worker for itself

    def __len__(self):
        return self._length

    def __getstate__(self):
        return self.__dict__ | {'_environment': None}  # for workers that are spawned

    def __getitem__(self, item):
        index, flip = item if isinstance(item, tuple) else (item, False)
        if not 0 <= index < self._length:
            raise IndexError(f'image {index} of {self._length}')
        image = self._decode(index)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        side = self.thumbnail_size, self.thumbnail_size
        thumbnail = _to_tensor(image if image.size == side else image.resize(side, Image.Resampling.HAMMING))
        return thumbnail if self.thumbnail_only else (_to_tensor(image), thumbnail)

    def _decode(self, index):
        """Image `index` as an RGB Pillow image of this size."""
        key = image_key(self.size, index)
        png = self._read(key)
        if png is None:
            raise UserError(f'{self.path}: image {key.decode()} is gone; give the prepare_data.py command again.')
        try:
            # Pillow, as it has the Hamming filter: torchvision's decoder gains at most 5 % of an item's time
            image = Image.open(io.BytesIO(png), formats=['PNG']).convert('RGB')
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            raise UserError(f'{self.path}: image {key.decode()} is broken ({type(error).__name__}); make the data set '
                            'again.') from None
        if image.size != (self.size, self.size):
            raise UserError(f'{self.path}: image {key.decode()} is {image.width}x{image.height} pixels; make the data '
                            'set again.')
        return image

    def _read(self, key):
        """The value of a key, or None."""
        self._environment = self._environment or shared_lmdb(self.path)
        with begin_reading(self._environment) as transaction:
            return transaction.get(key)


def shared_lmdb(path):
    """The LMDB at `path`, the same for all in this process; it closes when nobody holds it any more."""
    path = os.path.realpath(path)
    environment = _environments.get(path) or open_lmdb(path)
    _environments[path] = environment
    return environment


def _to_tensor(image):
    """An RGB Pillow image to float32 (3, H, W) in [-1, 1]."""
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() / 127.5).sub_(1)


def _check(path, size):
    """The number of images at `size`. Raises UserError where the data set cannot be trained on."""
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
    contents = read_contents(shared_lmdb(path))
    if not contents.length:
        raise UserError(f'{path} is unfinished: its prepare_data.py was interrupted; give that command again.')
    complete = contents.complete_sizes()
    if size not in complete:
        part = sum(index < contents.length for index in contents.sizes.get(size, ()))
        there = ', '.join(map(str, complete)) or 'none'
        raise UserError(f'{path} has {part or "none"} of its {contents.length} images at size {size}; use a size '
                        f'that is there ({there}) or add this one with "{command("PHOTOS", path)}".')
    return contents.length


def _holds_photos(path):
    try:
        return bool(Photos(path).files)
    except UserError:
        return False


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
            random = np.random.default_rng([self.seed, epoch])
            self._order, self._flips = random.permutation(self.length), random.random(self.length) < 0.5
            self._epoch = epoch
        return int(self._order[offset]), bool(self.flip and self._flips[offset])

    def batches(self, batch):
        """Yield lists of `batch` items without end."""
        position = self.start + self.rank * batch
        while True:
            yield [self[position + i] for i in range(batch)]
            position += self.world_size * batch


def make_loader(dataset, sampler, batch, num_workers):
    """Yield batches of an ImageDataset without end: images (B,3,S,S) and thumbnails (B,3,s,s), or thumbnails alone.

    The batches are the same for every `num_workers`, 0 (load in this process) included, and PyTorch's global random
    state is left alone. Raises UserError, also for a worker's error.
    """
    return load_in_workers(dataset, num_workers, batch_sampler=sampler.batches(batch),
                           pin_memory=torch.cuda.is_available())

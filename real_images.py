"""The real images that generated ones are compared with: of a data set, or photos as they are."""
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset import ImageDataset, shared_lmdb
from prepare_data import RESAMPLE, Photos, image_key, load_image, read_contents, resize_and_crop
from utils import UserError, to_uint8

TAIL = 4096  # bytes at the end of an image file that tell it from another of the same length


class RealImages(Dataset):
    """Images as uint8 (3,size,size), of a data set made by prepare_data.py or of a folder or zip of photos.

    A data set without this size gives its next larger one, shrunk as in training. Photos are resized as prepare_data.py
    does it. Raises UserError at once for a path that will not do, and in an item for an image that cannot be read.
    """

    def __init__(self, path, size):
        self.path, self.size, self.stored, self.photos = Path(path), size, None, None
        if (self.path / 'data.mdb').is_file():
            sizes = read_contents(shared_lmdb(self.path)).complete_sizes()
            stored = size if size in sizes else min((larger for larger in sizes if larger > size), default=size)
            self.stored = ImageDataset(self.path, stored, thumbnail_size=size, thumbnail_only=True)
        else:
            self.photos = Photos(path)
            self.names = list(self.photos.files)

    def __len__(self):
        return len(self.names if self.stored is None else self.stored)

    def __getitem__(self, index):
        pixels = self._photo(self.names[index]) if self.stored is None else to_uint8(self.stored[index])
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _photo(self, name):
        try:
            image = load_image(self.photos.read(name))
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            raise UserError(f'{self.path}: {name} cannot be read as an image ({" ".join(str(error).split())}); mend or '
                            'remove it.') from None
        return np.array(resize_and_crop(image, self.size, RESAMPLE['lanczos']))

    def hash(self):
        """16 hexadecimal digits that tell these images from others.

        Made from names, lengths and last bytes: a PNG's hold the checksum of its pixels, so a data set need not be read
        as a whole.
        """
        digest = hashlib.sha256(f'{self.size} '.encode())
        for name, length, tail in self._files():
            digest.update(f'{name} {length} '.encode(errors='surrogateescape') + tail)
        return digest.hexdigest()[:16]

    def _files(self):
        if self.stored is None:
            for name in self.names:
                data = self.photos.read(name)
                yield name, len(data), data[-TAIL:]
            return
        environment = shared_lmdb(self.path)
        with environment.begin(buffers=True) as transaction:
            for index in range(len(self.stored)):
                key = image_key(self.stored.size, index)
                data = transaction.get(key, b'')
                yield key.decode(), len(data), bytes(data[-TAIL:])

"""The photos to invert: files, folders and zips of them, one by one, as squares of the model's size."""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from imaging.fit import RESAMPLE, resize_and_crop
from imaging.photos import Photos
from inference.latents import name_of_file, unused_name
from utils import UserError


class Source(NamedTuple):
    """One photo, not read yet."""
    name: str        # of its results: ASCII letters, digits and hyphens
    where: str       # for people: the file, with the folder or zip that it is in
    listed: str      # what --landmarks may call it: the file as it was named, or its path in the folder or zip
    photos: Photos
    file: str        # its name there

    def read(self):
        """The photo as an RGB Pillow image, upright. Raises BrokenPhoto."""
        return self.photos.load(self.file).image


class Crop(NamedTuple):
    """A photo as the model's pictures are."""
    source: Source
    image: Image.Image  # size x size pixels
    note: str           # what there is to say about it


def sources(paths):
    """(Sources of all photos that are named, each with a name of its own: files, folders, and zips; lines that say what
    else there is in the folders and zips).

    Raises UserError for a path that does not exist, or a folder or zip without images.
    """
    found, taken, left_out = [], set(), []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f'{path} does not exist; name the photos to invert: files, folders or zips of them.')
        alone = path.is_file() and path.suffix.lower() != '.zip'
        photos = Photos.single(path) if alone else Photos(path)
        left_out += [f'{path}: {line}' for line in photos.left_out()]
        for file in photos.files:
            where = str(path) if alone else f'{path}: {file}'
            listed = str(path) if alone else file
            found.append(Source(unused_name(name_of_file(file), taken), where, listed, photos, file))
    if not found:
        raise UserError('name the photos to invert: files, folders or zips of them.')
    return found, left_out


def cropped(source, size, aligner=None):
    """The Crop of a Source, as prepare_data.py crops photos by default. Raises BrokenPhoto.

    aligner: an imaging.alignment.Aligner, which cuts out the face instead.
    """
    photo, about = source.read(), ''
    if aligner:
        photo, about = aligner(source.listed, photo)
    short = min(photo.size)
    if short < size:
        about = (f'only {photo.width}x{photo.height} pixels, enlarged to the {size} of the model, so what is found '
                 'is blurred')
    return Crop(source, resize_and_crop(photo, size, RESAMPLE['lanczos']), about)


def as_tensor(image, device):
    """A Pillow image as (1,3,H,W) in [-1, 1]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).to(device)
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None].contiguous()

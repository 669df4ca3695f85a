"""From the bytes of an image file to the 8-bit sRGB pixels that a viewer shows."""
import contextlib
import importlib
import io
import re
import warnings
from functools import lru_cache
from typing import NamedTuple

from PIL import Image

from imaging import color, metadata
from imaging.depth import to_8_bits

MAX_ASPECT = 16  # a narrower strip is no photo, and would need much memory when its short side is enlarged
MOST_SCANS = 100  # of a JPEG, as libtiff has it: a progressive one has about ten, and each takes the time of a picture
JPEG_MARKER = re.compile(rb'\xff[\x02-\xcf\xd9-\xfe]')  # those that may end a scan; others belong to its pixels
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
# Formats that Pillow opens, whose pixels it cannot decode by itself: it runs Ghostscript or asks for another program.
NOT_OPENED = {'EPS', 'WMF', 'MPEG', 'BUFR', 'GRIB', 'HDF5'}
# Packages that teach Pillow more formats: (module, the function to call, or None where its import is enough).
PLUGINS = ('pillow_heif', 'register_heif_opener'), ('pillow_avif', None), ('pillow_jxl', None)


@lru_cache(maxsize=1)
def formats():
    """The names of the formats that are read, with those of plugins that are installed."""
    Image.preinit()
    Image.init()
    for module, function in PLUGINS:
        with contextlib.suppress(Exception):  # most have none, and a broken one must not matter to others
            plugin = importlib.import_module(module)
            if function:
                getattr(plugin, function)()
    return [name for name in Image.ID if name in Image.OPEN and name not in NOT_OPENED]


class Photo(NamedTuple):
    """A photo that was read."""
    image: Image.Image  # 8-bit RGB
    notes: tuple        # clauses that say what of the file was not as it should be; a report may count them


def read_photo(data):
    """The Photo in the bytes of an image file, in sRGB and upright; of several frames, the first.

    Color profiles are applied, transparency is laid over white, and gray of more than 8 bits is scaled to 8. Damaged
    metadata does not matter. Raises whatever Pillow raises for pixels that cannot be decoded, and ValueError for a
    strip and for pixels whose range is unknown.
    """
    with warnings.catch_warnings():  # Pillow warns of odd metadata and of large images: neither is an error
        warnings.simplefilter('ignore')
        try:
            return _read(data)
        except (MemoryError, Image.DecompressionBombError, UnusablePixels):
            raise
        except Exception as error:  # Pillow's decoders raise errors of every kind for broken files
            bare, exif = metadata.without_metadata(data)
            if bare in (None, data):
                raise
            try:
                photo = _read(bare)
            except Exception:
                raise error from None
            image = metadata.upright(photo.image, metadata.orientation_in(exif))
            return Photo(image, (*photo.notes, 'damaged metadata, which was left out'))


class UnusablePixels(ValueError):
    """Pixels that can be decoded but are no photo."""


def _read(data):
    image = Image.open(io.BytesIO(data), formats=formats())
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise UnusablePixels(f'it is a strip of {image.width}x{image.height} pixels')
    check_scans(image, data)
    orientation = _load(image, data)
    notes = []
    convert, damaged = color.conversion(image, data)
    if damaged:
        notes.append('a color profile that cannot be used, which was left out')
    alpha = None
    if image.mode[0] in 'IF':
        try:
            image, alpha, note = to_8_bits(image)
        except ValueError as error:
            raise UnusablePixels(str(error)) from None
        if note:
            notes.append(note)
    return Photo(metadata.upright(_flattened(image, alpha, convert), orientation), tuple(notes))


def check_scans(image, data):
    """Raise UnusablePixels where an opened image is a JPEG of so many scans that decoding it would take minutes.

    All of them are decoded, and one of a few bytes takes as long as one of megabytes.
    """
    if image.format not in ('JPEG', 'MPO'):
        return
    count, position = 0, 2
    while (found := JPEG_MARKER.search(data, position)) and data[found.end() - 1] != JPEG_END:
        count += data[found.end() - 1] == JPEG_SCAN
        if count > MOST_SCANS:
            raise UnusablePixels(f'it is a JPEG of more than {MOST_SCANS} scans')
        position = found.end() + max(2, int.from_bytes(data[found.end():found.end() + 2], 'big'))


def _load(image, data):
    """Decode the pixels of an opened image; returns its orientation.

    Pillow reads and rewrites metadata while it decodes a TIFF or PNG, and fails where that is damaged.
    """
    if image.format == 'TIFF':
        orientation = metadata.orientation(image)
        image.load_end = lambda: None  # it would rotate the pixels
        image.load()
        image._size = image.im.size    # Pillow expects that they are rotated now
        return orientation
    image.load()
    if image.format == 'PNG':
        _mend_transparent_color(image, data)
    return metadata.orientation(image)


def _mend_transparent_color(image, data):
    """Take a PNG's transparent color to the 8 bits that Pillow takes the pixels to."""
    key, bits = image.info.get('transparency'), data[24]
    if isinstance(key, int) and bits in (2, 4):
        image.info['transparency'] = key * 255 // (2**bits - 1)
    elif isinstance(key, tuple) and bits == 16:
        image.info['transparency'] = tuple(value >> 8 for value in key)


def _flattened(image, alpha, convert):
    """An image of any 8-bit mode as RGB in sRGB, its transparency over white. alpha: a mask to use, or None."""
    if alpha is not None:
        image = image.convert('RGBA')
        image.putalpha(alpha)
    elif image.has_transparency_data:
        image = image.convert({'La': 'LA'}.get(image.mode, image.mode)).convert('RGBA')
    if image.mode == 'RGBA':
        if convert:
            image = Image.merge('RGBA', (*convert(image.convert('RGB')).split(), image.getchannel('A')))
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    if convert is None:
        return image.convert('RGB')
    return convert(image if image.mode == 'CMYK' else image.convert('RGB'))

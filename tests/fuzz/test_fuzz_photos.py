"""The photo reader on damaged files: a photo or one clause of a reason, in bounded time and memory, nothing else.

See running.py for the development mode.
"""
import io
import resource
import struct
import sys
import time
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running
from hypothesis import strategies as st
from PIL import Image, ImageCms

from imaging import metadata
from imaging.photos import BrokenPhoto, Photos
from imaging.pixels import formats

SECONDS = 20  # that one file of a few kilobytes may take, on a loaded machine
MEGABYTES = 700  # that the process may grow to: Pillow decodes pictures of up to 178 megapixels
KINDS = {'JPEG': ('RGB', 'L', 'CMYK'), 'PNG': ('RGB', 'L', 'P', 'RGBA', 'LA', '1', 'I;16'),
         'TIFF': ('RGB', 'L', 'CMYK', 'RGBA', 'I;16', 'I', 'F', '1', 'P'), 'WEBP': ('RGB', 'RGBA'), 'GIF': ('P', 'L'),
         'BMP': ('RGB', 'P', '1'), 'JPEG2000': ('RGB', 'L', 'RGBA'), 'TGA': ('RGB', 'RGBA', 'L'), 'ICO': ('RGBA',),
         'PPM': ('RGB', 'L', '1'), 'PCX': ('RGB', 'P'), 'SGI': ('RGB', 'L'), 'DDS': ('RGB', 'RGBA'), 'AVIF': ('RGB',),
         'IM': ('RGB', 'F', 'YCbCr'), 'MPO': ('RGB',), 'DIB': ('RGB',), 'ICNS': ('RGBA',), 'SPIDER': ('F',),
         'MSP': ('1',), 'QOI': ('RGB',)}


@lru_cache(maxsize=1)
def files():
    """Small sound files of every kind that this Pillow writes, with metadata of several sorts: [(format, bytes)]."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0131] = 6, 72.0, 'a camera'
    exif.get_ifd(0x8769)[0xA001] = 1
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    found = []
    for kind, modes in KINDS.items():
        for mode in modes:
            picture = Image.radial_gradient('L').resize((24, 16))
            for step in {'I;16': ('I', 'I;16'), 'YCbCr': ('RGB', 'YCbCr')}.get(mode, (mode,)):
                picture = picture.convert(step)
            for options in {}, {'exif': exif}, {'icc_profile': profile, 'exif': exif}, {'compression': 'tiff_lzw'}:
                buffer = io.BytesIO()
                try:
                    picture.save(buffer, kind, **options)
                except Exception:  # not with these options, or not by this version
                    continue
                if (kind, buffer.getvalue()) not in found:
                    found.append((kind, buffer.getvalue()))
    return found


def edits():
    """Strategies of changes to a file, each (what, place from 0 to 1, value)."""
    place = st.floats(0, 1, exclude_max=True)
    return st.lists(st.one_of(
        st.tuples(st.just('byte'), place, st.integers(0, 255)),
        st.tuples(st.just('head'), place, st.integers(0, 255)),  # among the first bytes, where sizes are
        st.tuples(st.just('word'), place, st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])),
        st.tuples(st.just('cut'), place, st.integers(0, 64)),
        st.tuples(st.just('drop'), place, st.integers(1, 64)),
        st.tuples(st.just('insert'), place, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just('repeat'), place, st.integers(1, 200))), min_size=1, max_size=6)


def edited(data, changes):
    """The bytes after the changes."""
    data = bytearray(data)
    for what, place, value in changes:
        at = int(place * (min(len(data), 200) if what == 'head' else len(data)))
        if what in ('byte', 'head') and data:
            data[at] = value
        elif what == 'word':
            data[at:at + 4] = struct.pack('<I' if value % 2 else '>I', value)
        elif what == 'cut':
            del data[max(at, 8):]
        elif what == 'drop':
            del data[at:at + value]
        elif what == 'insert':
            data[at:at] = value
        elif what == 'repeat':
            data[at:at] = data[at:at + value]
    return bytes(data)


class OneFile(Photos):
    """Photos with one file that is not on a disk."""

    def __init__(self, data):
        self.data = data

    def read(self, name):
        return self.data


def load(data):
    """The Photo or None; checks what may come back, and how long it took."""
    started = time.monotonic()
    try:
        photo = OneFile(data).load('x')
    except BrokenPhoto as error:
        photo = None
        assert str(error) and '\n' not in str(error) and len(str(error)) < 500, repr(str(error))
    else:
        assert photo.image.mode == 'RGB' and min(photo.image.size) > 0
        assert all(isinstance(note, str) and '\n' not in note for note in photo.notes)
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEGABYTES << 10 or 'torch' in sys.modules
    return photo


def check_any_damage(number, changes):
    kind, data = files()[number % len(files())]
    assert kind not in formats() or load(data) is not None, 'the sound file cannot be read'
    load(edited(data, changes))


def with_exif(kind, block):
    """A sound JPEG, PNG or WebP of 24x16 red pixels with a block of EXIF bytes."""
    buffer = io.BytesIO()
    Image.new('RGB', (24, 16), 'red').save(buffer, kind, exif=block)
    return buffer.getvalue()


def check_exif_damage(kind, changes):
    """Only pixels that cannot be decoded may lose a photo."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0128], exif[0x0131] = 6, 72.0, 2, 'a camera'
    exif.get_ifd(0x8769)[0xA002] = 24
    block = edited(exif.tobytes(), changes)
    if not block.startswith(b'Exif\0\0'):
        block = b'Exif\0\0' + block
    photo = load(with_exif(kind, block[:60000]))
    assert photo is not None, 'damaged EXIF lost a photo'
    assert photo.image.size in ((24, 16), (16, 24)) and photo.image.getpixel((0, 0))[0] > 250


TYPES = st.integers(0, 14)
TAGS = st.sampled_from([0x0112, 0x011A, 0x011B, 0x0128, 0x0100, 0x0101, 0x8769, 0x8825, 0xA005, 0x0201, 0x0202, 0x010F,
                        0x013B, 0x9C9B, 0xB001])


def check_exif_entries(kind, order, entries, tail):
    """EXIF blocks with any tags in any type: text in the place of numbers, negative sizes, pointers to anywhere."""
    mark = {'<': b'II*\0', '>': b'MM\0*'}[order]
    body = struct.pack(order + 'H', len(entries)) + b''.join(
        struct.pack(order + 'HHI', tag, number_type, count) + value for tag, number_type, count, value in entries)
    photo = load(with_exif(kind, b'Exif\0\0' + mark + struct.pack(order + 'I', 8) + body + tail))
    assert photo is not None and photo.image.size in ((24, 16), (16, 24))
    assert photo.image.getpixel((0, 0))[0] > 250


def check_profile_damage(kind, changes):
    """A damaged profile counts as none, or converts: it never loses a photo."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    buffer = io.BytesIO()
    Image.new('RGB', (24, 16), 'red').save(buffer, kind, icc_profile=edited(profile, changes))
    photo = load(buffer.getvalue())
    assert photo is not None and photo.image.size == (24, 16)


def check_orientation_bytes(block):
    assert 1 <= metadata.orientation_in(block) <= 8


EXIF_KINDS = st.sampled_from(['JPEG', 'PNG', 'WEBP'])
CHECKS = {
    'any damage': (check_any_damage, {'number': st.integers(0, 1000), 'changes': edits()}),
    'damaged EXIF': (check_exif_damage, {'kind': EXIF_KINDS, 'changes': edits()}),
    'odd EXIF': (check_exif_entries, {
        'kind': EXIF_KINDS, 'order': st.sampled_from('<>'), 'tail': st.binary(max_size=40),
        'entries': st.lists(st.tuples(TAGS, TYPES, st.sampled_from([0, 1, 2, 4, 40, 2**31, 2**32 - 1]),
                                      st.binary(min_size=4, max_size=4)), max_size=6)}),
    'damaged profile': (check_profile_damage, {'kind': st.sampled_from(['JPEG', 'PNG', 'TIFF', 'WEBP']),
                                               'changes': edits()}),
    'orientation': (check_orientation_bytes, {'block': st.binary(max_size=60).map(lambda tail: b'II*\0' + tail)}),
}

test_any_damage = running.fixed(300, **CHECKS['any damage'][1])(check_any_damage)
test_damaged_exif = running.fixed(150, **CHECKS['damaged EXIF'][1])(check_exif_damage)
test_odd_exif = running.fixed(150, **CHECKS['odd EXIF'][1])(check_exif_entries)
test_damaged_profile = running.fixed(100, **CHECKS['damaged profile'][1])(check_profile_damage)
test_orientation = running.fixed(200, **CHECKS['orientation'][1])(check_orientation_bytes)

if __name__ == '__main__':
    running.main(CHECKS)

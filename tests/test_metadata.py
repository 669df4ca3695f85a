"""imaging/metadata.py: metadata that is wrong neither loses nor turns a photo."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_pixels import chunk, loaded, noise, saved

from imaging.pixels import read_photo


def entry(tag, number_type, count, value):
    return struct.pack('<HHI', tag, number_type, count) + value


def exif_block(*entries, tail=b''):
    """EXIF of these entries, which may be wrong in any way."""
    return b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(entries) + bytes(4) + tail


ROTATED = entry(0x0112, 3, 1, struct.pack('<HH', 6, 0))


WRONG = {
    'a resolution as text': [entry(0x011A, 2, 4, b'72\0\0')],
    'a negative resolution': [entry(0x011A, 9, 1, struct.pack('<i', -72))],
    'a width as text': [entry(0x0100, 2, 3, b'wid\0'), entry(0x0101, 2, 3, b'hei\0')],
    'a fraction without a denominator': [entry(0x011A, 5, 1, struct.pack('<I', 38))],
    'a pointer to nowhere': [entry(0x8769, 4, 1, struct.pack('<I', 2**31)), entry(0x8825, 4, 1, b'\xff' * 4)],
    'a pointer that is text': [entry(0x8769, 2, 4, b'here')],
    'a pointer to itself': [entry(0x8769, 4, 1, struct.pack('<I', 8)), entry(0xA005, 4, 1, struct.pack('<I', 8))],
    'a type that does not exist': [entry(0x010F, 99, 1, bytes(4))],
    'more values than there are': [entry(0x010F, 2, 2**31, bytes(4)), entry(0x013B, 12, 2**28, bytes(4))],
    'a thumbnail that is not there': [entry(0x0201, 4, 1, b'\xff\xff\0\0'), entry(0x0202, 4, 1, b'\xff' * 4)],
}


@pytest.mark.parametrize('kind, what', [(kind, what) for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF') for what in WRONG
                                        if (kind, what) != ('TIFF', 'a width as text')])  # there it is no metadata
def test_wrong_exif_neither_loses_nor_turns_a_photo(kind, what):
    picture = Image.new('RGB', (32, 16), 'red')
    picture.paste('blue', (0, 0, 16, 16))  # blue at the left: at the top, once it is upright
    if kind == 'TIFF':
        data = saved(picture, kind, tiffinfo={0x0112: 6, 0x010F: 'x' * 50})
        good = struct.pack('<HHI', 0x010F, 2, 51)
        assert good in data
        data = data.replace(good, WRONG[what][0][:8])
    else:
        data = saved(picture, kind, exif=exif_block(ROTATED, *WRONG[what]))
    image = read_photo(data).image
    assert image.size == (16, 32)
    top, bottom = image.getpixel((8, 4)), image.getpixel((8, 28))
    assert top[2] > 200 > 50 > top[0] and bottom[0] > 200 > 50 > bottom[2]


def test_orientation_that_is_no_number():
    picture = noise(8, 4)
    for value in entry(0x0112, 2, 2, b'6\0\0\0'), entry(0x0112, 3, 1, struct.pack('<HH', 77, 0)), \
            entry(0x0112, 3, 0, bytes(4)), entry(0x0112, 5, 1, struct.pack('<I', 2**31)):
        np.testing.assert_array_equal(loaded(picture, exif=exif_block(value)), np.asarray(picture))


def test_damaged_chunks_and_segments_beside_the_pixels():
    picture = noise(8, 4)
    png = saved(picture, 'PNG')
    wrong_sum = struct.pack('>I', 4) + b'tEXt' + b'a\0bc' + bytes(4)
    bomb = chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**24)))
    profile = chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(2**21)))
    rotated = chunk(b'eXIf', exif_block(ROTATED)[6:])
    for bad in wrong_sum, bomb, profile, wrong_sum + rotated:
        photo = read_photo(png[:33] + bad + png[33:])
        expected = np.rot90(np.asarray(picture), -1) if rotated in bad else np.asarray(picture)
        np.testing.assert_array_equal(np.asarray(photo.image), expected)
        assert photo.notes in ((), ('damaged metadata, which was left out',))
    end = png.index(b'IEND') - 4
    np.testing.assert_array_equal(np.asarray(read_photo(png[:end] + wrong_sum + png[end:]).image), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(read_photo(png + b'more').image), np.asarray(picture))
    jpeg = saved(picture, 'JPEG')
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    for segment in (b'\xff\xed\0\x10Photoshop 3.0\0', b'\xff\xe2\0\x08MPF\0\0\0', b'\xff\xe1\0\x0aExif\0\0II',
                    b'\xff\xe2\0\x10ICC_PROFILE\0\7\1', b'\xff\xee\0\x04ab'):
        np.testing.assert_array_equal(np.asarray(read_photo(jpeg[:2] + segment + jpeg[2:]).image), expected)


def test_pixels_that_cannot_be_decoded_still_make_a_photo_broken():
    for kind in 'PNG', 'JPEG', 'WEBP', 'TIFF', 'GIF':
        data = saved(noise(64, 64), kind)
        for length in len(data) // 2, len(data) // 10, 10:
            with pytest.raises(Exception):  # noqa: B017 (Pillow raises errors of many kinds)
                read_photo(data[:length])

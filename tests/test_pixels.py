"""imaging/pixels.py and metadata.py: files of all kinds become the pixels that a viewer shows."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imaging.pixels import read_photo


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def loaded(image, kind='PNG', **options):
    result = read_photo(saved(image, kind, **options)).image
    assert result.mode == 'RGB'
    return np.asarray(result)


def test_16_bit_gray_is_scaled():
    gray = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.repeat(np.rint(gray / 257)[..., None], 3, axis=-1)
    for kind in 'PNG', 'TIFF':
        np.testing.assert_array_equal(loaded(Image.fromarray(gray), kind), expected)
    np.testing.assert_array_equal(loaded(Image.fromarray(gray.astype(np.int32)), 'TIFF'), expected)


def test_transparency_lies_on_white():
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (16, 16, 4), np.uint8)
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(loaded(Image.fromarray(rgba)), rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
    la = rgba[..., 2:]
    expected = np.repeat(la[..., :1] * alpha + 255 * (1 - alpha), 3, -1)
    np.testing.assert_allclose(loaded(Image.fromarray(la, 'LA')), expected, atol=1)
    palette = Image.new('P', (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(loaded(palette), [[[10, 20, 30], [200, 100, 50]]])
    np.testing.assert_array_equal(loaded(palette, transparency=0), [[[255] * 3, [200, 100, 50]]])
    key = Image.new('RGB', (2, 1), (1, 2, 3))
    key.putpixel((1, 0), (4, 5, 6))
    np.testing.assert_array_equal(loaded(key, transparency=(1, 2, 3)), [[[255] * 3, [4, 5, 6]]])


def test_other_modes():
    image = noise(16, 16)
    rgb, gray, bits = (np.asarray(image.convert(mode)) for mode in ('RGB', 'L', '1'))
    np.testing.assert_array_equal(loaded(image), rgb)
    np.testing.assert_array_equal(loaded(image.convert('L')), np.repeat(gray[..., None], 3, -1))
    np.testing.assert_array_equal(loaded(image.convert('1')), np.repeat(bits[..., None] * 255, 3, -1))
    np.testing.assert_array_equal(loaded(image.convert('CMYK'), 'TIFF'), rgb)
    np.testing.assert_array_equal(loaded(image, 'WEBP', lossless=True), rgb)
    with pytest.raises(ValueError, match='a strip of 60000x1 pixels'):  # enlarged to 1024 it would take 188 GB
        loaded(Image.new('RGB', (60000, 1)))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_rotation(orientation):
    upright = np.asarray(noise(8, 4))
    as_stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
                 6: np.rot90(upright), 7: np.rot90(upright.swapaxes(0, 1), 2), 8: np.rot90(upright, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(loaded(Image.fromarray(np.ascontiguousarray(as_stored)), exif=exif), upright)


# ---- transparency of few and many bits

def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def written_png(width, bits, color_type, row, transparent):
    """A PNG of one row, with a transparent color."""
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, 1, bits, color_type, 0, 0, 0)) +
            chunk(b'tRNS', transparent) + chunk(b'IDAT', zlib.compress(b'\0' + row)) + chunk(b'IEND', b''))


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
def test_transparent_gray(bits):
    """The gray level 1 is transparent, and level 0 beside it is not."""
    row = struct.pack('>2H', 0, 1) if bits == 16 else bytes([0, 1]) if bits == 8 else bytes([1 << (8 - 2 * bits)])
    image = read_photo(written_png(2, bits, 0, row, b'\0\1')).image
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0, 0, 0), (255, 255, 255)]


def test_transparent_color_of_16_bits():
    row = struct.pack('>6H', 0x1234, 0x8000, 0, 0xFF00, 0x8000, 0)
    image = read_photo(written_png(2, 16, 2, row, row[:6])).image
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (255, 128, 0)]


def test_premultiplied_alpha():
    """TIFFs with associated alpha: mode RGBa. Half transparent red over white is pink."""
    data = saved(Image.new('RGBA', (4, 4), (128, 0, 0, 128)), 'TIFF')
    tag = struct.pack('<HHIHH', 338, 3, 1, 2, 0)  # ExtraSamples: unassociated
    assert tag in data
    image = read_photo(data.replace(tag, struct.pack('<HHIHH', 338, 3, 1, 1, 0))).image
    assert np.abs(np.array(image.getpixel((0, 0))) - [255, 127, 127]).max() <= 1


# ---- metadata that is wrong

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

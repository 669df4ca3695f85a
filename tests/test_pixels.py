"""imaging/pixels.py: files of all kinds become the pixels that a viewer shows."""
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


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan is there so often that there are `count` scans."""
    data = saved(noise(16, 16), 'JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    return data[:last] + data[last:-2] * (count - data.count(b'\xff\xda') + 1) + data[-2:]


def test_jpegs_of_very_many_scans_are_not_decoded():
    """Each takes the time of a picture, however short it is."""
    picture = read_photo(jpeg_of_scans(10)).image
    assert picture.size == (16, 16)
    more = jpeg_of_scans(100)
    assert read_photo(more + b'\xff\xda' * 200).image.size == (16, 16)  # what follows its end is no scan
    thumbnail = b'\xff\xe3' + struct.pack('>H', 402) + b'\xff\xda' * 200  # nor is what metadata hold
    assert read_photo(more[:2] + thumbnail + more[2:]).image.size == (16, 16)
    with pytest.raises(ValueError, match='it is a JPEG of more than 100 scans'):
        read_photo(jpeg_of_scans(101))


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

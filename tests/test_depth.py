"""imaging/depth.py: gray of 16 and 32 bits and floating-point pixels, by a range that is declared or that fits."""
import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from imaging.depth import to_8_bits
from imaging.pixels import read_photo


def tiff(values, **tags):
    """A TIFF of one row of values, with these tags."""
    buffer = io.BytesIO()
    Image.fromarray(np.atleast_2d(values)).save(buffer, 'TIFF', tiffinfo={
        {'largest': 281, 'signed_largest': 341, 'signed_smallest': 340, 'photometric': 262}[name]: value
        for name, value in tags.items()})
    return buffer.getvalue()


def levels(data):
    image = np.asarray(read_photo(data).image)
    assert (image == image[..., :1]).all()
    return image[0, :, 0].tolist()


@pytest.mark.parametrize('dtype, values, expected, largest', [
    ('i4', [0, 100, 200, 255], [0, 100, 200, 255], 255),
    ('i4', [200] * 4, [200] * 4, 255),
    ('i4', [0, 1000, 4095], [0, 62, 255], 4095),
    ('i4', [0, 30000, 65535], [0, 117, 255], 65535),
    ('i4', [0, 2**30, 2**31 - 1], [0, 128, 255], 2**31 - 1),
    ('i4', [0, 2**22, 2**24 - 1], [0, 64, 255], 2**24 - 1),
    ('f4', [0, 0.5, 1], [0, 128, 255], 1),
    ('f4', [-0.02, 0.25, 1.05], [0, 64, 255], 1),
    ('f4', [0, 17.4, 255], [0, 17, 255], 255),
    ('f4', [0, 32768, 65535], [0, 128, 255], 65535),
])
def test_undeclared_ranges_follow_the_values_and_are_told(dtype, values, expected, largest):
    photo = read_photo(tiff(np.array(values, dtype)))
    assert np.asarray(photo.image)[0, :, 0].tolist() == expected
    assert photo.notes == (f'pixels without a declared range, taken as 0 to {largest}',)


@pytest.mark.parametrize('dtype, values', [('i4', [0, 70000]), ('i4', [-5, 200]), ('f4', [0, 5]), ('f4', [-1, 1]),
                                           ('f4', [0, np.nan]), ('f4', [0, np.inf]), ('f4', [0, 1e30])])
def test_ranges_that_cannot_be_told(dtype, values):
    with pytest.raises(ValueError, match='whose range is unknown|not numbers'):
        read_photo(tiff(np.array(values, dtype)))


def test_declared_ranges():
    assert levels(tiff(np.array([0, 2000, 4000], 'u2'))) == [0, 8, 16]  # 16 bits are declared
    assert levels(tiff(np.array([0, 2000, 4000], 'u2'), largest=4095)) == [0, 125, 249]
    assert levels(tiff(np.array([0, 100, 200], 'i4'), signed_largest=1000)) == [0, 26, 51]
    assert levels(tiff(np.array([0, 600, 70000], 'i4'), signed_largest=140000)) == [0, 1, 128]
    assert levels(tiff(np.array([-100, 0, 100], 'i4'), signed_smallest=-100, signed_largest=100)) == [0, 128, 255]
    for nonsense in 0, 3:  # values lie outside of what is declared
        assert levels(tiff(np.array([0, 100, 200], 'i4'), signed_largest=nonsense)) == [0, 100, 200]
    assert read_photo(tiff(np.array([0, 100], 'i4'), signed_largest=1000)).notes == ()


def test_rows_at_a_time_give_the_same_with_little_memory():
    """NumPy's whole arrays of 8 bytes a number took 27 bytes a pixel."""
    values = np.random.default_rng(0).integers(0, 2**16, (1000, 1000), np.uint16)
    values[:2, :2] = 7
    for array, kind, options, expected in (
            (values, 'PNG', {'transparency': 7}, np.where(values == 7, 255, (values * 255. + 2**15) // (2**16 - 1))),
            (values.astype(np.int32), 'TIFF', {}, (values * 255. + 2**15) // (2**16 - 1)),
            (values.astype(np.float32), 'TIFF', {}, np.rint(values * (255 / (2**16 - 1))))):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **options)
        image = Image.open(buffer)
        image.load()
        tracemalloc.start()
        gray, alpha, _ = to_8_bits(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        levels = np.asarray(gray) if alpha is None else np.where(np.asarray(alpha), gray, 255)
        np.testing.assert_array_equal(levels, expected)
        assert peak < 14 * values.size


def test_white_is_zero():
    """Photometric interpretation 0; Pillow turns 8 bits around, and leaves 16 as they are."""
    data = tiff(np.array([0, 25700, 65535], 'u2'))
    black_is_zero = struct.pack('<HHIHH', 262, 3, 1, 1, 0)
    assert black_is_zero in data
    assert levels(data.replace(black_is_zero, struct.pack('<HHIHH', 262, 3, 1, 0, 0))) == [255, 155, 0]


def test_unsigned_32_bits():
    data = tiff(np.array([0, 2**31 - 1, -1], 'i4'))
    signed = struct.pack('<HHIHH', 339, 3, 1, 2, 0)
    assert signed in data
    assert levels(data.replace(signed, struct.pack('<HHIHH', 339, 3, 1, 1, 0))) == [0, 127, 255]


def test_12_bits():
    """Three bytes hold two samples."""
    data = tiff(np.zeros(4, 'u2'))
    samples = bytes.fromhex('000 800 fff 010'.replace(' ', ''))
    header = data.replace(struct.pack('<HHIHH', 258, 3, 1, 16, 0), struct.pack('<HHIHH', 258, 3, 1, 12, 0))
    assert header != data
    offset = Image.open(io.BytesIO(data)).tag_v2[273][0]
    twelve = header[:offset] + samples + header[offset + len(samples):]
    assert levels(twelve) == [0, 128, 255, 1]


def test_big_endian_and_maps_of_netpbm():
    values = np.array([[0, 25700, 65535]], '>u2')
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, 'TIFF')
    assert levels(buffer.getvalue()) == [0, 100, 255]
    assert levels(b'P5 3 1 1023\n' + struct.pack('>3H', 0, 512, 1023)) == [0, 128, 255]
    assert levels(b'P5 3 1 65535\n' + values.tobytes()) == [0, 100, 255]
    assert levels(b'Pf\n3 1\n-1.0\n' + struct.pack('<3f', 0, 0.5, 1)) == [0, 128, 255]

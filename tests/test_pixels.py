"""imaging/pixels.py: files of all kinds become the pixels that a viewer shows, and torchvision's squares."""
import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from imaging.fit import RESAMPLE, resize_and_crop
from imaging.pixels import read_photo


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize('resample', ['lanczos', 'bilinear'])
@pytest.mark.parametrize('shape', [(100, 37), (37, 100), (64, 64), (65, 201), (30, 51), (300, 20), (129, 128), (1, 1)])
def test_resize_and_crop_is_torchvisions(shape, resample):
    image = noise(*shape, seed=sum(shape))
    mode = {'lanczos': InterpolationMode.LANCZOS, 'bilinear': InterpolationMode.BILINEAR}[resample]
    expected = F.center_crop(F.resize(image, 64, mode), [64, 64])
    ours = resize_and_crop(image, 64, RESAMPLE[resample])
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


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
    for mode, array in ('F', np.ones((2, 2), np.float32)), ('I', np.full((2, 2), 70000, np.int32)):
        with pytest.raises(ValueError, match='whose range is unknown'):
            loaded(Image.fromarray(array, mode), 'TIFF')
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

"""imaging/fit.py: photos that are not square become squares, and pictures their shape again."""
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from imaging.fit import RESAMPLE, Fit, resize_and_crop


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


def ramp(width, height):
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize('crop_y, top', [(0, 0), (0.25, 64 / 4), (0.5, 64 / 2), (1, 64)])
def test_crop_of_a_portrait(crop_y, top):
    square = np.asarray(Fit('crop', crop_y).square(ramp(64, 128), 64, Image.Resampling.BILINEAR)).astype(float)
    assert abs(square[0, 0, 1] - top / 127 * 255) < 3 and abs(square[-1, 0, 1] - (top + 63) / 127 * 255) < 3
    landscape = ramp(128, 64)
    np.testing.assert_array_equal(np.asarray(Fit('crop', crop_y).square(landscape, 64, Image.Resampling.BILINEAR)),
                                  np.asarray(Fit().square(landscape, 64, Image.Resampling.BILINEAR)))


@pytest.mark.parametrize('shape', [(90, 60), (60, 90), (64, 64), (200, 31), (7, 100)])
def test_pad_keeps_all_of_a_photo_and_is_undone(shape):
    photo = ramp(*shape)
    square = Fit('pad').square(photo, 64, Image.Resampling.LANCZOS)
    assert square.size == (64, 64)
    width, height = (round(64 * side / max(shape)) for side in shape)
    pixels = np.asarray(square)
    bars = np.ones((64, 64), bool)
    left, top = (64 - width) // 2, (64 - height) // 2
    bars[top:top + height, left:left + width] = False
    assert (pixels[bars] == 255).all() and (pixels[~bars][:, 2] == 0).all()
    back = Fit('pad').undone(square, shape[0] / shape[1])
    assert back.size == (width, height)
    np.testing.assert_array_equal(np.asarray(back), np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS)))


@pytest.mark.parametrize('shape', [(90, 60), (60, 90), (64, 64)])
def test_squeeze_is_undone(shape):
    square = Fit('squeeze').square(ramp(*shape), 64, Image.Resampling.LANCZOS)
    assert square.size == (64, 64)
    pixels = np.asarray(square).astype(int)
    assert pixels[0, 0, 0] < 5 and pixels[0, -1, 0] > 250 and pixels[-1, 0, 1] > 250  # all of it is there
    back = Fit('squeeze').undone(square, shape[0] / shape[1])
    assert back.size == tuple(round(64 * side / max(shape)) for side in shape)
    small = ramp(*shape).resize(back.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(back).astype(int) - np.asarray(small)).max() < 8


def test_crop_is_not_undone_and_texts_say_all():
    picture = noise(16, 16)
    assert Fit().undone(picture, 0.5) is picture
    for fit in Fit(), Fit('crop', 0.1), Fit('crop', 1.), Fit('pad'), Fit('squeeze'):
        assert Fit.of(str(fit)) == fit
    with pytest.raises(ValueError):
        Fit.of('bend')
    assert Fit().enlarges((100, 30), 64) and not Fit('pad').enlarges((100, 30), 64)
    assert Fit('squeeze').enlarges((100, 30), 64) and not Fit().enlarges((100, 64), 64)

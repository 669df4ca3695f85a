"""Maps: their numbers on a surface that is known, and their files opened by Pillow, NumPy and FFmpeg's decoders."""
import errno
import resource

import av
import numpy as np
import pytest
import torch
from PIL import Image

from camera import cameras_at
from surfaces.maps import CHANNELS, map_of, map_range, save_map
from volume_renderer import Rendering, camera_directions

SIZE, RADIUS = 64, 0.08


@pytest.fixture
def ball():
    """The Rendering of a ball around the origin, traced analytically, and its camera."""
    camera = cameras_at(torch.tensor([[0.5, -0.3]]), SIZE)
    rays = camera_directions(SIZE, camera.focal)[0] @ camera.extrinsics[0, :, :3].T
    origin = camera.extrinsics[0, :, 3]
    a, b, c = rays.square().sum(1), rays @ origin, origin @ origin - RADIUS ** 2
    root = b ** 2 - a * c
    t = torch.where(root > 0, (-b - root.clamp(min=0).sqrt()) / a, 1.12)
    xyz = (origin + rays * t[:, None]).T.view(1, 3, SIZE, SIZE)
    return Rendering(None, None, xyz, (root <= 0).float().view(1, 1, SIZE, SIZE), None, None), camera


def test_the_numbers_of_a_ball(ball):
    surface, camera = ball
    maps = {kind: map_of(kind, surface, camera) for kind in CHANNELS}
    half = 1.12 * np.tan(np.radians(6))
    for kind, values in maps.items():
        assert values.dtype == np.float32 and values.shape == (SIZE, SIZE) + (3,) * (CHANNELS[kind] == 3)
        low, high = map_range(kind, 0.88, 1.12, half)
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    seen = maps['mask'] == 1
    assert np.allclose(maps['mask'], seen) and 0.3 < seen.mean() < 0.5
    assert np.allclose(np.linalg.norm(maps['position'][seen], axis=1), RADIUS, atol=1e-5)
    middle = SIZE // 2
    assert maps['depth'][middle, middle] == pytest.approx(1 - RADIUS, abs=2e-3)
    assert maps['depth'][0, 0] == pytest.approx(1.12)  # along the axis, not along the ray
    inner = (slice(middle - 12, middle + 12),) * 2
    x, y, z = maps['normal'][middle, middle + 10]
    assert x > 0.3 and abs(y) < 0.1 and maps['normal'][middle - 10, middle, 1] > 0.3  # x right, y up
    assert maps['normal'][middle, middle, 2] > 0.99
    assert np.allclose(maps['normal'][inner], maps['position'][inner] / RADIUS @ camera.extrinsics[0, :, :3].numpy(),
                       atol=0.03)


def decoded(path, kind):
    """The picture in a file, by FFmpeg's decoder."""
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
        assert frame.format.name == kind
        return frame.to_ndarray()


@pytest.mark.parametrize('kind', CHANNELS)
def test_files(tmp_path, ball, kind):
    values = map_of(kind, *ball)
    low, high = map_range(kind, 0.88, 1.12, 1.12 * np.tan(np.radians(6)))
    for suffix in ('png', 'exr', 'npy'):
        save_map(tmp_path / f'a.{suffix}', values, low, high)
    assert np.array_equal(np.load(tmp_path / 'a.npy'), values)
    one = CHANNELS[kind] == 1
    assert np.array_equal(decoded(tmp_path / 'a.exr', 'grayf32le' if one else 'gbrpf32le'), values)
    stored = decoded(tmp_path / 'a.png', 'gray16be' if one else 'rgb48be')
    assert stored.dtype == np.uint16 and np.abs(low + stored / 65535 * (high - low) - values).max() < (high - low) / 1e5
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.size == (SIZE, SIZE)
        if one:
            assert picture.mode.startswith('I;16') and np.array_equal(np.asarray(picture), stored)


@pytest.mark.parametrize('suffix', ['png', 'exr', 'npy'])
def test_a_full_disk_is_said_to_be_one(tmp_path, suffix):
    """By its number, which makes one sentence of it. A largest size of files stands in for the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError) as failed:
            save_map(tmp_path / f'a.{suffix}', np.random.rand(SIZE, SIZE, 3).astype(np.float32), 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.errno == errno.EFBIG and not list(tmp_path.iterdir())

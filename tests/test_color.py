"""imaging/color.py: pictures become sRGB whatever their file says of its colors; LittleCMS says what is right."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from imaging.pixels import read_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
# A profile in which red and blue change places: a viewer shows red pixels as blue ones.
SWAPPED = SRGB.replace(b'rXYZ', b'tmp!').replace(b'bXYZ', b'rXYZ').replace(b'tmp!', b'bXYZ')
UNUSABLE = 'a color profile that cannot be used, which was left out'


def saved(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colors():
    """An RGB picture of many colors."""
    steps = np.linspace(0, 255, 12).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(36, 48, 3))


def with_chunk(png, name, body):
    """A PNG with one more chunk behind its header."""
    chunk = struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]


def gray_profile(gamma):
    """An ICC profile of gray pixels with that gamma (as u8Fixed8)."""
    curve = b'curv\0\0\0\0' + struct.pack('>IH', 1, round(gamma * 256))
    white = b'XYZ \0\0\0\0' + struct.pack('>3i', 63190, 65536, 54061)
    table = struct.pack('>I', 2) + b'wtpt' + struct.pack('>II', 156, 20) + b'kTRC' + struct.pack('>II', 176, len(curve))
    body = table + white + curve
    head = struct.pack('>I4xI4s4s4s12x4s28x3i', 128 + len(body), 0x02400000, b'mntr', b'GRAY', b'XYZ ', b'acsp', 63190,
                       65536, 54061).ljust(128, b'\0')
    return head + body


def cmyk_profile():
    """A press profile: an ICC lookup table from four inks to Lab, in which black alone makes a dark brown."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 3)] * 4, indexing='ij'), -1).reshape(-1, 4)
    lightness = 100 * (1 - grid[:, :3].mean(1)) * (1 - 0.85 * grid[:, 3])
    lab = np.stack([lightness / 100 * 65280, 32768 + 4000 * grid[:, 3], 32768 + 6000 * grid[:, 3]], 1).round()
    ramp = struct.pack('>2H', 0, 65535)
    identity = struct.pack('>9i', *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = (b'mft2\0\0\0\0' + bytes([4, 3, 3, 0]) + identity + struct.pack('>2H', 2, 2) + ramp * 4 +
             lab.astype('>u2').tobytes() + ramp * 3)
    tags = struct.pack('>I', 1) + b'A2B0' + struct.pack('>II', 144, len(table))
    head = struct.pack('>I4xI4s4s4s12x4s28x3i', 144 + len(table), 0x02400000, b'prtr', b'CMYK', b'Lab ', b'acsp', 63190,
                       65536, 54061).ljust(128, b'\0')
    return head + tags + table


def converted(image, profile):
    """What LittleCMS makes of the pixels, relative colorimetric."""
    srgb, intent = ImageCms.createProfile('sRGB'), ImageCms.Intent.RELATIVE_COLORIMETRIC
    return np.asarray(ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, renderingIntent=intent,
                                                outputMode='RGB')).astype(int)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'JPEG'])
def test_profiles_are_applied(kind):
    options = {'lossless': True} if kind == 'WEBP' else {}
    data = saved(colors(), kind, icc_profile=SWAPPED, **options)
    photo = read_photo(data)
    opened = Image.open(io.BytesIO(data)).convert('RGB')
    np.testing.assert_array_equal(np.asarray(photo.image), converted(opened, SWAPPED))
    assert photo.notes == ()
    red = read_photo(saved(Image.new('RGB', (64, 64), 'red'), kind, icc_profile=SWAPPED, **options)).image
    assert np.abs(np.array(red.getpixel((0, 0))) - [0, 0, 255]).max() <= 2


def test_pictures_that_say_srgb_keep_their_pixels():
    np.testing.assert_array_equal(np.asarray(read_photo(saved(colors(), icc_profile=SRGB)).image), np.asarray(colors()))


@pytest.mark.parametrize('profile', [b'junk', SWAPPED[:200], SWAPPED[:-300], SWAPPED.replace(b'acsp', b'nope'),
                                     SWAPPED.replace(b'RGB ', b'5CLR'), cmyk_profile(), gray_profile(1.8), bytes(4000)])
def test_a_profile_that_cannot_be_used_counts_as_none(profile):
    photo = read_photo(saved(colors(), icc_profile=profile))
    np.testing.assert_array_equal(np.asarray(photo.image), np.asarray(colors()))
    assert photo.notes == (UNUSABLE,)


def test_press_profiles():
    inks = Image.merge('CMYK', [Image.radial_gradient('L').resize((16, 16)).rotate(90 * i) for i in range(4)])
    for kind in 'TIFF', 'JPEG':
        data = saved(inks, kind, icc_profile=cmyk_profile())
        opened = Image.open(io.BytesIO(data))
        assert opened.mode == 'CMYK'
        photo = read_photo(data)
        np.testing.assert_array_equal(np.asarray(photo.image), converted(opened, cmyk_profile()))
        naive = np.asarray(opened.convert('RGB')).astype(int)
        assert not photo.notes and np.abs(np.asarray(photo.image) - naive).max() > 20
    plain = saved(inks, 'TIFF')
    np.testing.assert_array_equal(np.asarray(read_photo(plain).image), np.asarray(inks.convert('RGB')))


@pytest.mark.parametrize('mode', ['L', 'LA', 'I;16', '1'])
def test_gray_profiles(mode):
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    image = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257) if mode == 'I;16' else \
        gray.convert(mode)
    expected = converted(image.convert('L') if mode == '1' else gray, gray_profile(1.0))[..., 0]
    photo = read_photo(saved(image, 'PNG', icc_profile=gray_profile(1.0)))
    for channel in range(3):
        np.testing.assert_array_equal(np.asarray(photo.image)[..., channel], expected)
    assert mode == '1' or (expected > np.asarray(gray).astype(int) + 40).any()
    for rgb_profile in SWAPPED, SRGB:  # of which grays know only the curve
        assert np.abs(np.asarray(read_photo(saved(gray, icc_profile=rgb_profile)).image)[..., 0].astype(int) -
                      np.asarray(gray)).max() <= 1


def test_transparent_pixels_are_converted_and_then_laid_over_white():
    picture = colors().convert('RGBA')
    picture.putalpha(Image.linear_gradient('L').resize(picture.size))
    alpha = np.asarray(picture)[..., 3:] / 255
    expected = converted(colors(), SWAPPED) * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(np.asarray(read_photo(saved(picture, icc_profile=SWAPPED)).image), expected, atol=1)
    palette = Image.new('P', (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    found = np.asarray(read_photo(saved(palette, icc_profile=SWAPPED, transparency=1)).image)
    assert np.abs(found.astype(int) - [[[0, 0, 255], [255, 255, 255]]]).max() <= 2


# ---- what files say without a profile

def encoded(linear):
    """sRGB levels of linear light."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize('gamma', [1.0, 0.55555, 0.45455])
def test_gamma_of_png(gamma):
    grays = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    found = np.asarray(read_photo(with_chunk(saved(grays), b'gAMA', struct.pack('>I', round(1e5 * gamma)))).image)
    exact = encoded((np.arange(256) / 255) ** (1 / gamma)).reshape(16, 16) if gamma != 0.45455 else np.asarray(grays)
    assert np.abs(found[..., 0] - exact).max() <= 1.01
    marked = with_chunk(with_chunk(saved(grays), b'gAMA', struct.pack('>I', 100000)), b'sRGB', b'\0')
    np.testing.assert_array_equal(np.asarray(read_photo(marked).image)[..., 0], np.asarray(grays))


def linear_matrix(primaries):
    """From linear RGB of these chromaticities (x, y of white, red, green, blue; white D65) to linear sRGB."""
    def to_xyz(values):
        x, y = np.reshape(values, (4, 2)).T
        xyz = np.stack([x, y, 1 - x - y]) / y
        return xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    srgb = 0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06
    return np.linalg.inv(to_xyz(srgb)) @ to_xyz(primaries)


P3 = 0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060
ADOBE = 0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06


def srgb_linear(levels):
    v = levels / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def exact(linear, primaries):
    return encoded(np.clip(linear @ linear_matrix(primaries).T, 0, 1))


def test_display_p3_by_code_points():
    found = np.asarray(read_photo(with_chunk(saved(colors()), b'cICP', bytes([12, 13, 0, 1]))).image)
    assert np.abs(found - exact(srgb_linear(np.asarray(colors())), P3)).max() < 2.5
    rule = with_chunk(with_chunk(saved(colors(), icc_profile=SWAPPED), b'gAMA', struct.pack('>I', 100000)), b'cICP',
                      bytes([12, 13, 0, 1]))
    np.testing.assert_array_equal(np.asarray(read_photo(rule).image), found)  # cICP goes before all else
    for unknown in [200, 13, 0, 1], [1, 200, 0, 1], [1, 13, 0, 1], []:
        same = read_photo(with_chunk(saved(colors()), b'cICP', bytes(unknown))).image
        np.testing.assert_array_equal(np.asarray(same), np.asarray(colors()))


def test_chromaticities_of_png():
    body = struct.pack('>8I', *(round(1e5 * value) for value in P3))
    found = np.asarray(read_photo(with_chunk(saved(colors()), b'cHRM', body)).image)
    assert np.abs(found - exact(srgb_linear(np.asarray(colors())), P3)).max() < 2.5
    for nonsense in bytes(32), struct.pack('>8I', *[2**31] * 8), struct.pack('>8I', *[30000] * 8):
        same = read_photo(with_chunk(saved(colors()), b'cHRM', nonsense)).image
        np.testing.assert_array_equal(np.asarray(same), np.asarray(colors()))


def camera_exif(color_space, interoperability):
    """The EXIF block of a camera: a color space, and the name of the interoperability rule where there is one."""
    entries = struct.pack('<HHII', 0xA001, 3, 1, color_space)
    inside = struct.pack('<H', 1 + bool(interoperability)) + entries
    if interoperability:
        start = 26 + 2 + 24 + 4
        inside += struct.pack('<HHII', 0xA005, 4, 1, start) + bytes(4)
        inside += struct.pack('<HHHI', 1, 1, 2, 4) + interoperability + b'\0' + bytes(4)
    return b'Exif\0\0II*\0' + struct.pack('<IHHHIII', 8, 1, 0x8769, 4, 1, 26, 0) + inside + bytes(8)


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'PNG'])
def test_adobe_rgb_of_cameras(kind):
    """They mark it in EXIF, and give no profile."""
    gray_of_color = Image.new('RGB', (16, 16), (90, 160, 120))
    options = {'JPEG': {'quality': 100}, 'WEBP': {'lossless': True}}.get(kind, {})
    right = exact((np.array([90, 160, 120]) / 255) ** (563 / 256), ADOBE)
    for color_space, rule in (65535, b'R03'), (2, b''):
        photo = read_photo(saved(gray_of_color, kind, exif=camera_exif(color_space, rule), **options))
        if kind != 'PNG':  # whose own chunks say all that is to be said
            assert np.abs(np.array(photo.image.getpixel((8, 8))) - right).max() < 3.5
    for color_space, rule in (1, b''), (65535, b'R98'), (65535, b''):
        photo = read_photo(saved(gray_of_color, kind, exif=camera_exif(color_space, rule), **options))
        assert np.abs(np.array(photo.image.getpixel((8, 8))) - [90, 160, 120]).max() <= 1


@pytest.mark.parametrize('transfer, level', [(16, 0.58069), (18, 0.75)])
def test_white_of_high_dynamic_range(transfer, level):
    """The levels of reference white become white, or nearly so; darker ones stay in order."""
    grays = np.minimum(np.arange(256), 255).astype(np.uint8).reshape(16, 16)
    found = np.asarray(read_photo(with_chunk(saved(Image.fromarray(grays)), b'cICP', bytes([9, transfer, 0, 1]))).image)
    curve = found[..., 0].ravel().astype(int)
    assert (np.diff(curve) >= 0).all() and curve[0] == 0 and curve[-1] == 255
    assert abs(int(np.argmax(curve >= 253)) / 255 - level) < 0.02

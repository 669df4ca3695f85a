"""Colors as sRGB, whatever a file says they are: ICC profiles, PNG's own chunks, and the EXIF mark of Adobe RGB.

A file without any of these holds sRGB already, as every viewer takes it. A profile that is damaged, or that is of other
colors than the pixels, counts as none. Conversions are relative colorimetric.
"""
import io
import struct
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

LARGEST_PROFILE = 2**24  # bytes; a larger profile counts as damaged
UNSEEN = 2               # a conversion that changes no color by more levels than this is left out
# Chromaticities (x, y) of white, red, green and blue.
D65 = 0.3127, 0.3290
PRIMARIES = {'srgb': (*D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
             'adobe': (*D65, 0.640, 0.330, 0.210, 0.710, 0.150, 0.060)}
# The code points of ITU-T H.273 that PNG's cICP chunk uses: primaries, and below the transfer functions.
CICP_PRIMARIES = {1: PRIMARIES['srgb'], 4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
                  5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06), 6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
                  7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
                  8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
                  9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
                  11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
                  12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)}
WHITE_NITS = 203  # the brightness of white in PQ and HLG pictures (ITU-R BT.2408)
EXIF, INTEROPERABILITY, COLOR_SPACE = 0x8769, 0xA005, 0xA001  # tags


def conversion(image, data):
    """(convert, damaged): the function that takes this image's colors to sRGB, or None where they are sRGB already.

    image: an opened Pillow image; data: the bytes of its file. `convert` takes an image with the same colors, of mode
    RGB or (where `image` is) CMYK, and returns an RGB one. damaged: whether there is a profile that cannot be used.
    """
    try:
        profile = _described(image, data)
    except Exception:  # whatever damaged metadata leads to
        profile = None
    if profile is None:
        profile = image.info.get('icc_profile')
    if not profile or image.mode == 'LAB':
        return None, False
    if not isinstance(profile, bytes) or len(profile) > LARGEST_PROFILE:
        return None, True
    space = 'CMYK' if image.mode == 'CMYK' else 'GRAY' if image.mode[0] in '1LIF' else 'RGB '
    found = _transform(profile, space)
    return (None, True) if found is False else (found, False)


@lru_cache(maxsize=32)
def _transform(profile, space):
    """The conversion by an ICC profile of pixels in a color space: a function, None for no change, False if damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        declared = source.profile.xcolor_space
        if declared != space and (declared, space) != ('RGB ', 'GRAY'):
            return False
        mode = {'RGB ': 'RGB', 'GRAY': 'L', 'CMYK': 'CMYK'}[declared]
        transform = ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), mode, 'RGB',
                                            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC)

        def convert(image):
            return ImageCms.applyTransform(image.getchannel(0) if mode == 'L' else image, transform)

        return None if mode != 'CMYK' and _changes_nothing(convert, mode == 'L') else convert
    except Exception:  # lcms2 and Pillow raise errors of several kinds for damaged profiles
        return False


def _changes_nothing(convert, grays_only):
    """Whether a conversion leaves all grays, and the colors of a grid, as they are but for rounding.

    Most photos say that they are sRGB; these keep their pixels exactly.
    """
    colors = np.repeat(np.arange(256)[:, None], 3, 1)
    if not grays_only:
        steps = np.linspace(0, 255, 9).astype(int)
        colors = np.concatenate([colors, np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)])
    converted = np.asarray(convert(Image.fromarray(colors.astype(np.uint8)[None])))[0]
    return np.abs(converted.astype(int) - colors).max() <= UNSEEN


# ---- what files say in other ways ----------------------------------------------------------------

def _described(image, data):
    """An ICC profile for what a file says of its colors in another way; None where it says nothing, b'' for sRGB."""
    if image.format == 'PNG':
        cicp = _png_chunk(data, b'cICP')
        if cicp is not None:
            return _cicp_profile(*cicp[:2])
        if 'icc_profile' in image.info or 'srgb' in image.info:
            return None
        gamma, chromaticity = image.info.get('gamma'), image.info.get('chromaticity')
        if gamma or chromaticity:
            return _profile(chromaticity or PRIMARIES['srgb'], _gamma_curve(gamma))
    elif 'icc_profile' not in image.info and image.mode != 'CMYK' and _is_adobe_rgb(image):
        return _profile(PRIMARIES['adobe'], lambda v: v ** (563 / 256))
    return None


def _gamma_curve(gamma):
    """The transfer function that PNG's gAMA tells. 1/2.2 stands for sRGB's, which encoders describe that way."""
    if not gamma or abs(gamma - 1 / 2.2) < 0.001:
        return _srgb_curve
    return lambda v: v ** (1 / gamma)


def _is_adobe_rgb(image):
    """Whether EXIF marks the colors as Adobe RGB: cameras write that instead of a profile."""
    exif = image.getexif()
    inside = exif.get_ifd(EXIF)
    return inside.get(COLOR_SPACE) == 2 or (
        INTEROPERABILITY in inside and str(exif.get_ifd(INTEROPERABILITY).get(1)).startswith('R03'))


def _png_chunk(data, name):
    """The contents of a PNG's first chunk of this name before the pixels, or None."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack('>I4s', data[position:position + 8])
        if kind == name:
            return data[position + 8:position + 8 + length]
        if kind == b'IDAT':
            return None
        position += length + 12
    return None


def _cicp_profile(primaries, transfer):
    """An ICC profile for code points of H.273; b'' where they are unknown, and so count as sRGB."""
    if primaries not in CICP_PRIMARIES or transfer not in CICP_CURVES:
        return b''
    return _profile(CICP_PRIMARIES[primaries], CICP_CURVES[transfer])


def _srgb_curve(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _bt709_curve(v):
    return np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45))


def _pq_curve(v):
    """SMPTE ST 2084 with white at WHITE_NITS; what is brighter is white."""
    root = v ** (32 / 2523)
    nits = 10000 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
    return np.minimum(nits / WHITE_NITS, 1)


def _hlg_curve(v):
    """Hybrid log-gamma on a display of 1000 nits with white at WHITE_NITS; what is brighter is white."""
    scene = np.where(v <= 0.5, v ** 2 / 3, (np.exp((v - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return np.minimum(1000 / WHITE_NITS * scene ** 1.2, 1)


CICP_CURVES = {1: _bt709_curve, 4: lambda v: v ** 2.2, 5: lambda v: v ** 2.8, 6: _bt709_curve, 8: lambda v: v,
               13: _srgb_curve, 14: _bt709_curve, 15: _bt709_curve, 16: _pq_curve, 18: _hlg_curve}


def _profile(chromaticity, curve):
    """The bytes of an ICC profile (version 2, matrix and curves).

    chromaticity: x, y of white, red, green and blue; curve: from encoded values in [0, 1] to linear ones.
    """
    tags = {name: b'XYZ \0\0\0\0' + _fixed(xyz)
            for name, xyz in zip((b'rXYZ', b'gXYZ', b'bXYZ'), _primaries_at_d50(chromaticity).T, strict=True)}
    levels = np.clip(curve(np.linspace(0, 1, 4096)), 0, 1)
    tags |= dict.fromkeys((b'rTRC', b'gTRC', b'bTRC'),
                          b'curv\0\0\0\0' + struct.pack('>I', 4096) + (levels * 65535).round().astype('>u2').tobytes())
    tags[b'wtpt'] = b'XYZ \0\0\0\0' + _fixed(D50)
    table, body = struct.pack('>I', len(tags)), b''
    start = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack('>II', start + len(body), len(value))
        body += value
    head = struct.pack('>I4xI4s4s4s12x4s28x', start + len(body), 0x02400000, b'mntr', b'RGB ', b'XYZ ', b'acsp')
    return (head + _fixed(D50)).ljust(128, b'\0') + table + body


D50 = 0.9642, 1., 0.8249
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _primaries_at_d50(chromaticity):
    """The matrix (3,3) from linear RGB to XYZ under D50, to which the white point is adapted."""
    x, y = np.reshape(chromaticity, (4, 2)).T
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    white, primaries = xyz[:, 0], xyz[:, 1:]
    matrix = primaries * np.linalg.solve(primaries, white)
    if not np.isfinite(matrix).all():
        raise ValueError('chromaticities that are no colors')
    adapted = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD
    return adapted @ matrix


def _fixed(numbers):
    """Numbers as ICC's s15Fixed16Number."""
    return struct.pack(f'>{len(numbers)}i', *(round(65536 * number) for number in numbers))

"""Gray pixels of more than 8 bits, and floating-point ones, as 8 bits."""
import numpy as np
from PIL import Image

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_FORMAT = 258, 262, 339  # tags
TIFF_LARGEST = 341, 281   # SMaxSampleValue, MaxSampleValue
TIFF_SMALLEST = 340       # SMinSampleValue
FULL_16_BITS = {'PNG', 'PPM', 'JPEG2000'}  # these formats scale to 16 bits, or Pillow does
USUAL_BITS = 8, 12, 16
FLOAT_RANGES = 1., 255., 4095., 65535.


def to_8_bits(image):
    """(gray, alpha, note) of an image of mode I, I;16… or F: Pillow images of mode L, and a clause for the report.

    The range of the values is the one that the file declares. Where it declares none, it is the smallest usual one that
    holds them, which the note says; else the note is None. alpha is None where no value is transparent. Raises
    ValueError for pixels whose range cannot be told.
    """
    values = np.asarray(image)
    if values.dtype.kind == 'f':
        if not np.isfinite(values).all():
            raise ValueError('it has pixels that are not numbers')
        values = values.astype(np.float64)
    else:
        values = values.astype(np.int64)
        if _tag(image, TIFF_FORMAT) == 1 and _tag(image, TIFF_BITS) == 32:
            values &= 2**32 - 1  # Pillow takes them for signed ones
    declared = _declared_range(image, values)
    low, high = declared or (0, _likely_largest(values))
    if values.dtype.kind == 'i':  # exact for every level
        levels = ((values - low) * 255 + (high - low) // 2) // (high - low)
    else:
        levels = np.rint((values - low) * (255 / (high - low)))
    levels = np.clip(levels, 0, 255).astype(np.uint8)
    key = image.info.get('transparency')
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
    if image.format == 'TIFF' and _tag(image, TIFF_PHOTOMETRIC) == 0:  # white is zero: Pillow minds it in 8 bits only
        levels = 255 - levels
    note = None if declared else f'pixels without a declared range, taken as 0 to {high:.0f}'
    return Image.fromarray(levels), alpha, note


def _tag(image, number):
    """The first value of a TIFF tag as a number; None where there is none."""
    value = getattr(image, 'tag_v2', {}).get(number)
    if isinstance(value, tuple):
        value = value[0] if value else None
    try:
        value = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return value if np.isfinite(value) else None


def _declared_range(image, values):
    """(low, high) as the file declares it; None where it does not, or where values lie outside."""
    if image.format == 'TIFF':
        high = next((value for value in map(lambda tag: _tag(image, tag), TIFF_LARGEST) if value), None)
        low = _tag(image, TIFF_SMALLEST) or 0
        if high is not None and low < high and low <= values.min() and values.max() <= high:
            return (int(low), int(high)) if values.dtype.kind == 'i' else (low, high)
        bits = _tag(image, TIFF_BITS) or 0
        return (0, 2**int(bits) - 1) if bits <= 16 and _tag(image, TIFF_FORMAT) in (None, 1) else None
    if values.dtype.kind == 'i' and (image.format in FULL_16_BITS or image.mode != 'I') and values.max() < 2**16:
        return 0, 2**16 - 1
    return None


def _likely_largest(values):
    """The largest value that pixels of an undeclared range may have. Raises ValueError."""
    low, high = values.min(), values.max()
    if values.dtype.kind == 'i':
        if low < 0:
            raise ValueError('it has negative pixels, whose range is unknown')
        for bits in USUAL_BITS:
            if high < 2**bits:
                return 2**bits - 1
        for bits in 24, 31, 32:
            if 2**(bits - 2) <= high < 2**bits:
                return 2**bits - 1
        raise ValueError(f'it has pixels up to {high}, whose range is unknown')
    for largest in FLOAT_RANGES:
        if high <= 1.1 * largest and low >= -0.1 * largest and (largest == 1 or high >= largest / 16):
            return largest
    raise ValueError(f'it has floating-point pixels from {low:g} to {high:g}, whose range is unknown')

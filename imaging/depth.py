"""Gray pixels of more than 8 bits, and floating-point ones, as 8 bits."""
import numpy as np
from PIL import Image

TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_FORMAT = 258, 262, 339  # tags
TIFF_LARGEST = 341, 281   # SMaxSampleValue, MaxSampleValue
TIFF_SMALLEST = 340       # SMinSampleValue
FULL_16_BITS = {'PNG', 'PPM', 'JPEG2000'}  # these formats scale to 16 bits, or Pillow does
USUAL_BITS = 8, 12, 16
FLOAT_RANGES = 1., 255., 4095., 65535.
ROWS = 64  # that are computed at a time: with 8 bytes a number a whole scan would take gigabytes


def to_8_bits(image):
    """(gray, alpha, note) of an image of mode I, I;16… or F: Pillow images of mode L, and a clause for the report.

    The range of the values is the one that the file declares. Where it declares none, it is the smallest usual one that
    holds them, which the note says; else the note is None. alpha is None where no value is transparent. Raises
    ValueError for pixels whose range cannot be told.
    """
    values = np.asarray(image)
    if values.dtype == np.int32 and _tag(image, TIFF_FORMAT) == 1 and _tag(image, TIFF_BITS) == 32:
        values = values.view(np.uint32)  # Pillow takes them for signed ones
    smallest, largest = values.min().item(), values.max().item()
    if not np.isfinite([smallest, largest]).all():
        raise ValueError('it has pixels that are not numbers')
    declared = _declared_range(image, smallest, largest)
    low, high = declared or (0, _likely_largest(smallest, largest))
    key = image.info.get('transparency')
    levels = np.empty(values.shape, np.uint8)
    alpha = np.empty(values.shape, np.uint8) if isinstance(key, int) else None
    for row in range(0, len(values), ROWS):
        rows = slice(row, row + ROWS)
        levels[rows] = _levels(values[rows], low, high)
        if alpha is not None:
            alpha[rows] = np.where(values[rows] == key, 0, 255)
    if image.format == 'TIFF' and _tag(image, TIFF_PHOTOMETRIC) == 0:  # white is zero: Pillow minds it in 8 bits only
        np.subtract(255, levels, out=levels)
    note = None if declared else f'pixels without a declared range, taken as 0 to {high:.0f}'
    return Image.fromarray(levels), None if alpha is None else Image.fromarray(alpha), note


def _levels(values, low, high):
    """Values of the range from low to high as 8 bits, not yet of that type."""
    if values.dtype.kind == 'f':
        levels = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    else:  # exact for every level
        levels = ((values.astype(np.int64) - low) * 255 + (high - low) // 2) // (high - low)
    return np.clip(levels, 0, 255)


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


def _declared_range(image, smallest, largest):
    """(low, high) as the file declares it; None where it does not, or where values lie outside."""
    if image.format == 'TIFF':
        high = next((value for value in map(lambda tag: _tag(image, tag), TIFF_LARGEST) if value), None)
        low = _tag(image, TIFF_SMALLEST) or 0
        if high is not None and low < high and low <= smallest and largest <= high:
            return (int(low), int(high)) if isinstance(largest, int) else (low, high)
        bits = _tag(image, TIFF_BITS) or 0
        return (0, 2**int(bits) - 1) if bits <= 16 and _tag(image, TIFF_FORMAT) in (None, 1) else None
    if isinstance(largest, int) and (image.format in FULL_16_BITS or image.mode != 'I') and largest < 2**16:
        return 0, 2**16 - 1
    return None


def _likely_largest(low, high):
    """The largest value that pixels of an undeclared range may have, which lie between low and high. Raises ValueError.
    """
    if isinstance(high, int):
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

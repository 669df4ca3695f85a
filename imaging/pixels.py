"""From the bytes of an image file to 8-bit RGB pixels, and to a square of a given size."""
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

RESAMPLE = {'lanczos': Image.Resampling.LANCZOS, 'bilinear': Image.Resampling.BILINEAR}
MAX_ASPECT = 16  # a narrower strip is no photo, and would need much memory when its short side is enlarged


def load_image(data):
    """The 8-bit RGB image in the bytes of a file, as a viewer shows it.

    EXIF rotation is applied, transparency laid over white, 16-bit gray scaled to 8 bits; the first frame of several.
    Raises whatever Pillow raises for a broken file, ValueError for a strip and for pixels whose range is unknown.
    """
    with warnings.catch_warnings():  # Pillow warns of odd metadata and of large images: neither is an error
        warnings.simplefilter('ignore')
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f'it is a strip of {image.width}x{image.height} pixels')
        if image.mode.startswith('I'):
            image = _to_8_bits(image)
        elif image.mode == 'F':
            raise ValueError('it has floating-point pixels, whose range is unknown')
        if image.has_transparency_data:
            image = image.convert('RGBA')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        return image.convert('RGB')


def _to_8_bits(image):
    """Gray of modes I;16* (and I, in which some versions of Pillow read 16-bit files): v / 257, rounded."""
    gray = np.asarray(image).astype(np.int32)
    if gray.min() < 0 or gray.max() > 65535:
        raise ValueError('it has 32-bit pixels, whose range is unknown')
    return Image.fromarray(((gray + 128) // 257).astype(np.uint8))


def resize_and_crop(image, size, resample):
    """Resize the short side to `size` pixels and cut a square from the center: torchvision's resize, then center_crop.

    The pixels are theirs exactly. (Resizing the square alone, with Pillow's `box`, would not give the same ones.)
    """
    width, height = (size * length // min(image.size) for length in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))

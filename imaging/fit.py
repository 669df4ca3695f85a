"""How a photo that is not square becomes a square picture, and how that is undone."""
from typing import NamedTuple

from PIL import Image

RESAMPLE = {'lanczos': Image.Resampling.LANCZOS, 'bilinear': Image.Resampling.BILINEAR}
MODES = 'crop', 'pad', 'squeeze', 'align'


class Fit(NamedTuple):
    """mode: `crop` cuts out a square, `pad` adds white bars at two sides, `squeeze` changes the photo's proportions,
    `align` means that the photos are squares already, which imaging/alignment.py cut out around faces.

    crop_y: where `crop` cuts a portrait photo: 0 takes its top, 0.5 its middle, 1 its bottom.
    """
    mode: str = 'crop'
    crop_y: float = 0.5

    def __str__(self):
        return self.mode if self.crop_y == 0.5 else f'{self.mode} {self.crop_y!r}'

    @classmethod
    def of(cls, text):
        """The Fit that str() gave `text` for. Raises ValueError."""
        mode, _, crop_y = text.partition(' ')
        if mode not in MODES:
            raise ValueError(f'{mode!r} is no way to fit a photo')
        crop_y = float(crop_y) if crop_y else 0.5
        if not 0 <= crop_y <= 1:
            raise ValueError(f'{crop_y} is no height in a photo')
        return cls(mode, crop_y)

    def square(self, image, size, resample):
        """An RGB Pillow image as size x size pixels."""
        if self.mode == 'squeeze':
            return image.resize((size, size), resample)
        if self.mode == 'pad':
            width, height = (max(round(size * length / max(image.size)), 1) for length in image.size)
            picture = Image.new('RGB', (size, size), 'white')
            picture.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
            return picture
        return resize_and_crop(image, size, resample, self.crop_y)

    def enlarges(self, image_size, size):
        """Whether a photo of (width, height) pixels has to be enlarged for `size`."""
        return (max if self.mode == 'pad' else min)(image_size) < size

    def undone(self, picture, aspect):
        """A square picture in the proportions of the photos again. aspect: width / height of these."""
        width, height = (round(picture.width * side / max(aspect, 1)) or 1 for side in (aspect, 1))
        if self.mode == 'squeeze':
            return picture.resize((width, height), Image.Resampling.LANCZOS)
        if self.mode == 'pad':
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            return picture.crop((left, top, left + width, top + height))
        return picture


CENTER_CROP = Fit()


def resize_and_crop(image, size, resample, crop_y=0.5):
    """Resize the short side to `size` pixels and cut out a square: torchvision's resize, then center_crop.

    The pixels are theirs exactly. (Resizing the square alone, with Pillow's `box`, would not give the same ones.)
    crop_y: the square's place in a portrait, from 0 (top) to 1 (bottom); 0.5 is the center.
    """
    width, height = (size * length // min(image.size) for length in image.size)
    left, top = round((width - size) / 2), round((height - size) * crop_y)
    return image.resize((width, height), resample).crop((left, top, left + size, top + size))

"""Faces aligned as those of FFHQ were: upright, the eyes and the mouth always at about the same place.

The square is that of Karras et al. 2019 (A style-based generator architecture, where FFHQ is described) and 2018
(Progressive growing, appendix C): with the eyes e0, e1 and the corners of the mouth m0, m1,

    x' = e1 - e0        y' = (e0 + e1) / 2 - (m0 + m1) / 2        center = (e0 + e1) / 2 - 0.1 y'
    side = max(4 |x'|, 3.6 |y'|)        its x axis = x' - rotated(y'), its y axis at a right angle to that

Beyond the photo's edge it is continued by its mirror image, more and more blurred.
"""
import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from imaging.photos import BrokenPhoto
from utils import UserError

EYES, MOUTH, DOWN = 4.0, 3.6, 0.1  # the numbers of the formulas above
LARGEST_SIDE = 4096     # pixels of an aligned face; a larger one is shrunk
MOST_OUTSIDE = 4.       # a square that is larger than so many times the photo's short side comes from wrong landmarks
COLUMNS = ('photo', 'eye0_x', 'eye0_y', 'eye1_x', 'eye1_y', 'mouth0_x', 'mouth0_y', 'mouth1_x', 'mouth1_y')
LEAST_SURE = 0.9        # of the detector, from 0 to 1
DETECTED_SIDE = 1024    # larger photos are shrunk before a face is looked for
MISSING = ('--align needs a detector of faces: pip install --no-deps facenet-pytorch (its weights are in the package), '
           'or give the landmarks with --landmarks FILE.')


class Landmarks(NamedTuple):
    """Where the eyes and the corners of the mouth are, in pixels of the photo, x to the right and y down; those that
    are on the left in the picture come first."""
    eyes: np.ndarray   # (2,2)
    mouth: np.ndarray  # (2,2)
    sure: float = 1.   # of the detector that it is a face


class Square(NamedTuple):
    """A square in a photo, that may be turned and reach beyond its edge."""
    center: np.ndarray  # (2,)
    right: np.ndarray   # (2,) from the center to the middle of its right edge
    down: np.ndarray    # (2,) and of its lower edge

    @property
    def side(self):
        return 2 * float(np.hypot(*self.right))


def face_square(landmarks):
    """The Square of a face. Raises ValueError where the points are not those of a face."""
    eyes, mouth = landmarks.eyes.mean(0), landmarks.mouth.mean(0)
    across, up = landmarks.eyes[1] - landmarks.eyes[0], eyes - mouth
    if np.hypot(*across) < 1 or np.hypot(*up) < 1:
        raise ValueError('its eyes and mouth are at the same place')
    axis = across - np.array([up[1], -up[0]])  # up, turned a quarter to the left, is a second estimate of left
    length = np.hypot(*axis)
    if length < 1:
        raise ValueError('its mouth is above its eyes, or left and right are exchanged')
    axis = axis / length
    half = max(EYES * np.hypot(*across), MOUTH * np.hypot(*up)) / 2
    return Square(eyes - DOWN * up, half * axis, half * np.array([-axis[1], axis[0]]))


def aligned(image, landmarks):
    """The aligned face of an RGB Pillow image: a square, as large as it is in the photo, at most LARGEST_SIDE.

    Raises BrokenPhoto where the points are not those of a face.
    """
    try:
        square = face_square(landmarks)
    except ValueError as error:
        raise BrokenPhoto(f'its landmarks are not those of a face: {error}') from None
    inside = (square.center >= 0).all() and (square.center <= image.size).all()
    if not inside or square.side > MOST_OUTSIDE * min(image.size) or square.side < 4:
        raise BrokenPhoto('its landmarks are not those of a face in this photo')
    image, square = _shrunk(image, square)
    image, square = _continued(image, square)
    side = max(1, round(square.side))
    # Pillow asks for the place in the photo of each pixel, by an affine map from the square's upper left corner.
    corner, step_x, step_y = square.center - square.right - square.down, square.right / side * 2, square.down / side * 2
    places = (step_x[0], step_y[0], corner[0], step_x[1], step_y[1], corner[1])
    return image.transform((side, side), Image.Transform.AFFINE, places, Image.Resampling.BICUBIC)


def _shrunk(image, square):
    """The image and square so much smaller that the square has at most LARGEST_SIDE pixels."""
    if square.side <= LARGEST_SIDE:
        return image, square
    factor = LARGEST_SIDE / square.side
    size = tuple(max(1, round(length * factor)) for length in image.size)
    scale = np.array([size[0] / image.width, size[1] / image.height])
    return image.resize(size, Image.Resampling.LANCZOS), Square(*(vector * scale for vector in square))


def _continued(image, square):
    """The image continued beyond its edges as far as the square reaches, and the square there."""
    reach = np.abs(square.right) + np.abs(square.down)
    low, high = np.floor(square.center - reach).astype(int), np.ceil(square.center + reach).astype(int)
    before = np.maximum(0, -low)
    after = np.maximum(0, high - np.array(image.size))
    if not before.any() and not after.any():
        return image, square
    pixels = np.asarray(image)
    widths = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    mirrored = np.pad(pixels, widths, mode='symmetric')
    inside = [np.clip(np.minimum(np.arange(length + extra[0] + extra[1]) - extra[0],
                                 length - 1 - np.arange(length + extra[0] + extra[1]) + extra[0]) * -1, 0, None)
              for length, extra in zip(pixels.shape[:2], widths[:2], strict=True)]  # pixels beyond the edge
    beyond = np.maximum(inside[0][:, None], inside[1][None, :])[..., None]
    blurred = np.asarray(Image.fromarray(mirrored).filter(ImageFilter.GaussianBlur(max(1., square.side * 0.02))))
    share = np.clip(beyond / max(1., square.side * 0.05), 0, 1)
    mixed = (mirrored * (1 - share) + blurred * share + 0.5).astype(np.uint8)
    return Image.fromarray(mixed), square._replace(center=square.center + before)


# ---------------------------------------------------------------------------------------------- where they come from

def read_landmarks(path):
    """{photo: Landmarks} of a CSV file with the COLUMNS. Raises UserError for one that is missing or wrong."""
    try:
        # Excel's "CSV UTF-8" begins with a mark that is no part of the first column's name.
        rows = list(csv.DictReader(Path(path).read_text(encoding='utf-8-sig').splitlines()))
    except OSError as error:
        raise UserError(f'--landmarks {path} cannot be read ({error.strerror}); give a CSV file.') from None
    except (UnicodeDecodeError, csv.Error):
        rows = [{}]
    if not rows or not set(COLUMNS) <= {*rows[0]} - {None}:
        raise UserError(f'--landmarks {path} is no table with the columns {",".join(COLUMNS)}, one row a photo.')
    found = {}
    for number, row in enumerate(rows, 2):
        try:
            values = np.array([float(row[name]) for name in COLUMNS[1:]]).reshape(2, 2, 2)
            if not np.isfinite(values).all() or np.abs(values).max() > 1e6:
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(f'--landmarks {path}: line {number} does not hold eight numbers after the name of the '
                            'photo.') from None
        if row['photo'] in found:
            raise UserError(f'--landmarks {path}: line {number} names a photo of an earlier line; leave out one of '
                            'them.')
        found[row['photo']] = Landmarks(*values)
    return found


class Aligner:
    """Aligns photos by landmarks from a file, or those that a detector finds."""

    def __init__(self, landmarks=None):
        """landmarks: the path of a file for read_landmarks, or None for the detector. Raises UserError."""
        self._given = None if landmarks is None else read_landmarks(landmarks)
        self._path, self._detector = landmarks, None
        if landmarks is None:
            _mtcnn()  # that it is missing is noticed before the work

    def __call__(self, name, image):
        """(aligned square, a note on it) of a photo called `name`. Raises BrokenPhoto where it has no face."""
        landmarks = self._find(image) if self._given is None else self._listed(name)
        note = '' if self._given is not None else f'a face, {100 * landmarks.sure:.0f}% sure'
        return aligned(image, landmarks), note

    def _listed(self, name):
        for key in (name, Path(name).name):
            if key in self._given:
                return self._given[key]
        raise BrokenPhoto(f'--landmarks {self._path} has no line for it')

    def _find(self, image):
        self._detector = self._detector or _mtcnn()(keep_all=True, post_process=False, device='cpu')
        return detected(self._detector, image)

    def __getstate__(self):
        return self.__dict__ | {'_detector': None}  # for workers that are spawned


def _mtcnn():
    """facenet-pytorch's MTCNN, whose weights are in its package."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        raise UserError(MISSING) from None
    return MTCNN


def detected(detector, image):
    """The Landmarks of the largest face that a detector (MTCNN) is sure of. Raises BrokenPhoto that says what it found.
    """
    scale = min(1., DETECTED_SIDE / max(image.size))
    size = tuple(max(1, round(length * scale)) for length in image.size)
    try:
        boxes, sure, points = detector.detect(image if scale == 1 else image.resize(size), landmarks=True)
    except (RuntimeError, ValueError, IndexError):  # of photos too small for it
        boxes = None
    if boxes is None or not len(boxes):
        raise BrokenPhoto('no face was found in it')
    areas = [(box[2] - box[0]) * (box[3] - box[1]) * (certain >= LEAST_SURE)
             for box, certain in zip(boxes, sure, strict=True)]
    best = int(np.argmax(areas))
    if not areas[best]:
        raise BrokenPhoto(f'no face was found in it for sure (the likeliest {100 * max(map(float, sure)):.0f}%)')
    eye0, eye1, _, mouth0, mouth1 = np.asarray(points[best], dtype=float) / scale
    landmarks = Landmarks(np.stack([eye0, eye1]), np.stack([mouth0, mouth1]), float(sure[best]))
    turned = math.hypot(*(eye1 - eye0)) / max(1e-6, math.hypot(*(landmarks.eyes.mean(0) - landmarks.mouth.mean(0))))
    if turned < 0.35:  # from the side the eyes come together
        raise BrokenPhoto(f'the face in it is turned too far to the side ({100 * landmarks.sure:.0f}% sure that it is '
                          'one)')
    return landmarks


class AlignedPhotos:
    """Photos (imaging.photos) whose images are aligned faces."""

    def __init__(self, photos, aligner):
        self._photos, self._aligner = photos, aligner

    def __getattr__(self, name):
        if name.startswith('__') or name == '_photos':  # pickle asks before there is anything
            raise AttributeError(name)
        return getattr(self._photos, name)

    def load(self, name):
        """The imaging.pixels.Photo of one aligned face. Raises BrokenPhoto."""
        photo = self._photos.load(name)
        return photo._replace(image=self._aligner(name, photo.image)[0])

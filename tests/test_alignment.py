"""imaging/alignment.py: the geometry of FFHQ's alignment from given landmarks; a detector that is missing or unsure."""
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import prepare_data
from dataset import ImageDataset
from imaging.alignment import Aligner, Landmarks, aligned, detected, face_square, read_landmarks
from imaging.photos import BrokenPhoto
from utils import UserError

EYES, MOUTH = np.array([[40., 50.], [60., 50.]]), np.array([[43., 75.], [57., 75.]])
HEADER = 'photo,eye0_x,eye0_y,eye1_x,eye1_y,mouth0_x,mouth0_y,mouth1_x,mouth1_y\n'


def turned(points, angle, center=(50., 60.)):
    """Points turned clockwise, as a picture is seen (y is down)."""
    c, s = math.cos(angle), math.sin(angle)
    return (points - center) @ np.array([[c, s], [-s, c]]) + center


def test_an_upright_face_by_hand():
    square = face_square(Landmarks(EYES, MOUTH))
    assert square.center == pytest.approx([50, 52.5])           # a tenth of the way from the eyes to the mouth
    assert square.side == pytest.approx(max(4 * 20, 3.6 * 25))  # 90
    assert square.right == pytest.approx([45, 0]) and square.down == pytest.approx([0, 45])
    wide = face_square(Landmarks(np.array([[35., 50.], [65., 50.]]), MOUTH))
    assert wide.side == pytest.approx(120)


@pytest.mark.parametrize('angle', [-0.5, 0.3, 1.5])
def test_the_square_turns_and_grows_with_the_face(angle):
    square = face_square(Landmarks(turned(EYES, angle), turned(MOUTH, angle)))
    assert square.right == pytest.approx(45 * np.array([math.cos(angle), math.sin(angle)]))
    assert square.down == pytest.approx(45 * np.array([-math.sin(angle), math.cos(angle)]))
    larger = face_square(Landmarks(3 * EYES, 3 * MOUTH))
    assert larger.side == pytest.approx(270) and larger.center == pytest.approx([150, 157.5])


def picture(landmarks, size=(100, 120)):
    """A face: red eyes and a blue mouth on gray."""
    image = Image.new('RGB', size, (120, 120, 120))
    draw = ImageDraw.Draw(image)
    for points, color in ((landmarks.eyes, 'red'), (landmarks.mouth, 'blue')):
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
    return image


def center_of(image, channel):
    """Where the pixels are in which one color is far above the others, as a share of the side."""
    pixels = np.asarray(image).astype(int)
    other = [c for c in (0, 1, 2) if c != channel]
    mask = pixels[..., channel] - pixels[..., other].max(-1) > 60
    rows, columns = np.nonzero(mask)
    return (columns.mean() + 0.5) / image.width, (rows.mean() + 0.5) / image.height


@pytest.mark.parametrize('angle, scale', [(0, 1), (0.4, 1), (-0.6, 2.5)])
def test_eyes_and_mouth_come_to_the_same_place(angle, scale):
    landmarks = Landmarks(scale * turned(EYES, angle), scale * turned(MOUTH, angle))
    face = aligned(picture(landmarks, (round(100 * scale), round(120 * scale))), landmarks)
    assert face.size == (round(90 * scale),) * 2
    assert center_of(face, 0) == pytest.approx((0.5, 0.5 - 2.5 / 90), abs=0.02)
    assert center_of(face, 2) == pytest.approx((0.5, 0.5 + 22.5 / 90), abs=0.02)


def test_beyond_the_edge_the_photo_goes_on():
    landmarks = Landmarks(EYES - [35, 40], MOUTH - [35, 40])  # in the upper left corner
    face = np.asarray(aligned(picture(landmarks, (60, 60)), landmarks))
    assert face.shape == (90, 90, 3) and (face[0, 0] > 60).all()  # no black corner
    small = aligned(picture(Landmarks(EYES, MOUTH)), Landmarks(EYES, MOUTH))
    assert np.asarray(small).std() > 5


@pytest.mark.parametrize('eyes, mouth', [(EYES, EYES), (EYES[:1].repeat(2, 0), MOUTH), (EYES * 50, MOUTH * 80)])
def test_points_that_are_no_face_are_refused(eyes, mouth):
    with pytest.raises(BrokenPhoto, match='landmarks are not those of a face'):
        aligned(Image.new('RGB', (100, 120)), Landmarks(eyes, mouth))


@pytest.mark.parametrize('way', [(600, 0), (-600, 0), (0, 600), (0, -600), (10 ** 5, 10 ** 5), (55, 0)])
def test_landmarks_of_a_larger_original_are_refused(way):
    """The face lies beside the photo."""
    with pytest.raises(BrokenPhoto, match='landmarks are not those of a face in this photo'):
        aligned(Image.new('RGB', (100, 120)), Landmarks(EYES + way, MOUTH + way))
    assert aligned(Image.new('RGB', (100, 120)), Landmarks(EYES + (45, 0), MOUTH + (45, 0))).size == (90, 90)


# ---------------------------------------------------------------------------------------------- where they come from

def line(name, landmarks):
    return f'{name},' + ','.join(str(value) for value in [*landmarks.eyes.flat, *landmarks.mouth.flat]) + '\n'


def test_landmarks_from_a_file_make_a_data_set(command, tmp_path):
    (tmp_path / 'faces').mkdir()
    landmarks = Landmarks(turned(EYES, 0.3), turned(MOUTH, 0.3))
    picture(landmarks).save(tmp_path / 'faces/a.png')
    Image.new('RGB', (50, 50)).save(tmp_path / 'faces/unknown.png')
    (tmp_path / 'l.csv').write_text(HEADER + line('a.png', landmarks))
    arguments = ['--out_path', 'data', '--size', '64', 'faces']
    code, out, _ = command(prepare_data, *arguments, '--align', '--landmarks', 'l.csv')
    assert code == 0 and 'unknown.png: --landmarks l.csv has no line for it' in out
    code, _, error = command(prepare_data, *arguments)
    assert code == 2 and '--align' in error  # the data set remembers
    image = ImageDataset(tmp_path / 'data', 64)
    assert len(image) == 1
    assert center_of(image.picture(0), 0) == pytest.approx((0.5, 0.5 - 2.5 / 90), abs=0.02)


@pytest.mark.parametrize('text', ['', 'x', 'photo,eye0_x\na,1\n', HEADER, HEADER + 'a,1,2,3,4,5,6,7\n',
                                  HEADER + 'a,1,2,3,4,5,6,7,nan\n'])
def test_a_wrong_file_of_landmarks_is_refused(tmp_path, text):
    (tmp_path / 'l.csv').write_text(text)
    with pytest.raises(UserError, match='--landmarks'):
        read_landmarks(tmp_path / 'l.csv')


def test_landmarks_as_excel_saves_them(tmp_path):
    (tmp_path / 'l.csv').write_text(HEADER + line('a.png', Landmarks(EYES, MOUTH)), encoding='utf-8-sig')
    assert np.array_equal(read_landmarks(tmp_path / 'l.csv')['a.png'].mouth, MOUTH)


def test_a_missing_detector_is_named(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'facenet_pytorch', None)
    (tmp_path / 'faces').mkdir()
    code, _, error = command(prepare_data, '--out_path', 'data', '--size', '64', '--align', 'faces')
    assert code == 2 and 'pip install --no-deps facenet-pytorch' in error and error.count('\n') == 1
    code, _, error = command(prepare_data, '--out_path', 'data', '--size', '64', '--landmarks', 'l.csv', 'faces')
    assert code == 2 and '--align only' in error


class Detector:
    """Finds what it was told to."""

    def __init__(self, *found):
        self.found = found

    def detect(self, image, landmarks):
        return self.found


def found(sure, landmarks, box=(0, 0, 10, 10)):
    nose = (landmarks.eyes.mean(0) + landmarks.mouth.mean(0)) / 2
    return box, sure, np.stack([*landmarks.eyes, nose, *landmarks.mouth])


def test_the_largest_sure_face_is_taken():
    small, large = Landmarks(EYES, MOUTH), Landmarks(2 * EYES, 2 * MOUTH)
    faces = [found(0.99, small), found(0.95, large, (0, 0, 30, 30)), found(0.2, small, (0, 0, 90, 90))]
    taken = detected(Detector(*map(np.array, zip(*faces, strict=True))), Image.new('RGB', (100, 120)))
    assert taken.sure == pytest.approx(0.95) and np.allclose(taken.eyes, 2 * EYES)


def test_what_is_no_face_is_said(monkeypatch):
    image = Image.new('RGB', (100, 120))
    with pytest.raises(BrokenPhoto, match='no face was found in it$'):
        detected(Detector(None, [None], None), image)
    unsure = [np.array([part]) for part in found(0.4, Landmarks(EYES, MOUTH))]
    with pytest.raises(BrokenPhoto, match='likeliest 40%'):
        detected(Detector(*unsure), image)
    profile = Landmarks(np.array([[48., 50.], [52., 50.]]), MOUTH)
    with pytest.raises(BrokenPhoto, match='turned too far'):
        detected(Detector(*[np.array([part]) for part in found(0.99, profile)]), image)


def test_the_real_detector_finds_a_real_face():
    pytest.importorskip('facenet_pytorch')
    from skimage.data import astronaut
    face, note = Aligner()('astronaut', Image.fromarray(astronaut()))
    assert '% sure' in note and 100 < face.width < 250
    torch.manual_seed(0)
    with pytest.raises(BrokenPhoto):
        Aligner()('gray', Image.new('RGB', (200, 200), 'gray'))

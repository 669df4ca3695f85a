"""The flags of prepare_data.py and download_models.py, and damaged zips: a result or one UserError, nothing else.

See running.py for the development mode.
"""
import contextlib
import io
import sys
import tempfile
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running
from hypothesis import strategies as st
from PIL import Image
from test_fuzz_photos import edited, edits

import download_models
import prepare_data
from imaging.photos import BrokenPhoto, Photos
from utils import UserError

NAMES = {
    prepare_data.read_flags: ['--out_path', '--size', '--n_worker', '--resample', '--fit', '--crop_y', '--no_upscale',
                              '--strict', '--shard', '--merge', '--out', '--help', '-h', '--', '-', '--size=8',
                              'photos'],
    download_models.read_flags: ['--only', '--mirror', '--out_dir', '--list', '--help', '--', '-x', 'sphere_init']}
VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str),
                   st.sampled_from(['64,256', '8,', '1/8', '8/1', '0.5', 'nan', 'inf', '1e5', '٣', '²', '٣/٤', '', ' ',
                                    '\n',
                                    'http://', 'http://[', 'https://a:99999/x', 'http://a b', 'sphere_init,', '\udcff',
                                    '9' * 5000, '1/' + '9' * 5000, 'crop', 'pad', '\0']))


def check_flags(read_flags, words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            read_flags(words)
        except UserError as error:
            assert str(error).strip() and len(str(error)) < 20000
        except SystemExit as stop:
            assert not stop.code and {'--help', '-h'} & set(words)


def command_line(read_flags):
    word = st.one_of(st.sampled_from(NAMES[read_flags]), VALUES)
    return st.lists(word, max_size=9).map(lambda words: [*words])


@lru_cache(maxsize=1)
def sound_zips():
    found = []
    for method in zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, 'w', method) as archive:
            for name in 'a.png', 'class/b.png', 'ü.png', 'notes.txt':
                picture = io.BytesIO()
                Image.radial_gradient('L').resize((16, 16)).save(picture, 'PNG')
                archive.writestr(name, picture.getvalue())
        found.append(buffer.getvalue())
    return found


def check_zip(number, changes):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a name twice, for instance
        path = Path(folder, 'z.zip')
        path.write_bytes(edited(sound_zips()[number], changes))
        try:
            photos = Photos(path)
        except UserError as error:
            assert str(path) in str(error) and '\n' not in str(error)
            return
        for name in photos.files:
            with contextlib.suppress(BrokenPhoto):
                assert photos.load(name).image.mode == 'RGB'
        assert list(Path(folder).iterdir()) == [path]


CHECKS = {
    'flags of prepare_data': (check_flags, {'read_flags': st.just(prepare_data.read_flags),
                                            'words': command_line(prepare_data.read_flags)}),
    'flags of download_models': (check_flags, {'read_flags': st.just(download_models.read_flags),
                                               'words': command_line(download_models.read_flags)}),
    'zips': (check_zip, {'number': st.integers(0, 1), 'changes': edits()}),
}


def test_flags_of_prepare_data():
    running.fixed(150, **CHECKS['flags of prepare_data'][1])(check_flags)()


def test_flags_of_download_models():
    running.fixed(150, **CHECKS['flags of download_models'][1])(check_flags)()


test_zips = running.fixed(100, **CHECKS['zips'][1])(check_zip)

if __name__ == '__main__':
    running.main(CHECKS)

"""imaging/photos.py: which files of a folder or zip are photos, and what becomes of all others."""
import multiprocessing
import os
import pickle
import socket
import stat
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from imaging import photos as module
from imaging.photos import BrokenPhoto, Photos
from imaging.workers import load_in_workers
from utils import UserError


def make_photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(path)


def make_photos(folder, count):
    for i in range(count):
        make_photo(folder / f'{i:04d}.png', i)
    return folder


class FileBytes(Dataset):
    """Item i: the bytes of photo i."""

    def __init__(self, photos):
        self.photos, self.names = photos, list(photos.files)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.photos.read(self.names[index])


def test_a_zip_that_was_read_before_workers_start(tmp_path):
    """As evaluate.py does for its hash. Forked workers would share the place in the file, spawned ones cannot."""
    folder = Photos(make_photos(tmp_path / 'photos', 200))
    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as archive:
        for name in folder.files:
            archive.write(folder.path / name, name)
    photos = Photos(tmp_path / 'photos.zip')
    photos.read('0000.png')
    assert pickle.loads(pickle.dumps(photos)).read('0001.png') == folder.read('0001.png')
    results = [list(load_in_workers(FileBytes(source), workers, batch_size=None, collate_fn=lambda item: item))
               for source, workers in ((photos, 4), (folder, 0))]
    assert results[0] == results[1]


# ---- folders as they are

def count_of_files(folder):
    """All that is below a folder and is no folder, or is a link to one, as `find` counts it."""
    return sum(len(names) + sum(os.path.islink(Path(where, name)) for name in folders)
               for where, folders, names in os.walk(folder))


def test_every_file_is_accounted_for(tmp_path):
    folder = make_photos(tmp_path / 'photos', 3)
    make_photo(folder / 'b' / '0000.png')  # a name twice, in two folders
    make_photo(folder / '.git' / 'hidden.png')
    for name in 'Thumbs.db', 'desktop.ini', '._0000.png', '.DS_Store', 'noname', 'b/x.HEIC', 'b/y.nef', 'inner.zip':
        (folder / name).write_text('x')
    (folder / 'dangling.png').symlink_to('/nowhere/at/all.png')
    (folder / 'circle.png').symlink_to('circle.png')
    (folder / 'b' / 'loop').symlink_to(folder)
    (folder / 'linked.png').symlink_to(folder / '0000.png')
    os.mkfifo(folder / 'pipe.png')
    end = socket.socket(socket.AF_UNIX)
    end.bind(os.path.relpath(folder / 'socket.png'))
    photos = Photos(folder)
    end.close()
    assert list(photos.files) == ['0000.png', '0001.png', '0002.png', 'b/0000.png', 'linked.png']
    assert photos.ignored == {'.db': 1, '.ini': 1, 'no suffix': 1, '.heic': 1, '.nef': 1, '.zip': 1}
    assert photos.others == {'hidden files': 3, 'links that lead nowhere': 2, 'pipes': 1, 'sockets': 1,
                             'links to folders that were read already': 1}
    assert photos.count() == count_of_files(folder)
    report = '\n'.join(photos.left_out())
    assert 'other files ignored: 6 (.db, .heic, .ini, .nef, .zip, no suffix)' in report
    assert '.heic: "pip install pillow-heif"' in report and '.nef: raw photos' in report and 'unpack it' in report
    assert 'links that lead nowhere (2)' in report and 'pipes (1)' in report


@pytest.mark.skipif(sys.platform == 'win32' or os.getuid() != 0, reason='needs root, to become another user')
def test_what_may_not_be_read_is_skipped_and_named(tmp_path):
    folder = make_photos(tmp_path / 'photos', 3)
    make_photo(folder / 'lost+found' / 'a.png')
    make_photo(folder / 'half' / 'b.png')
    (folder / '0001.png').chmod(0)
    (folder / 'lost+found').chmod(0)
    (folder / 'half').chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)  # its names may be read, its files not
    for path in tmp_path, *tmp_path.parents:
        if path.is_relative_to('/tmp'):
            path.chmod(path.stat().st_mode | 0o755)
    here, there = multiprocessing.get_context('fork').Pipe()

    def as_somebody_else():
        os.setgid(65534)
        os.setuid(65534)
        photos, found = Photos(folder), []
        for attempt in (lambda: photos.load('0001.png')), (lambda: Photos(folder / 'lost+found')):
            try:
                attempt()
            except Exception as error:
                found.append(f'{type(error).__name__} {error}')
        there.send([*found, list(photos.files), *photos.left_out()])

    process = multiprocessing.get_context('fork').Process(target=as_somebody_else)
    process.start()
    assert here.poll(60)
    reason, error, files, heading, *named = here.recv()
    process.join()
    assert reason == 'BrokenPhoto Permission denied'
    assert files == ['0000.png', '0001.png', '0002.png'] and heading == 'not readable: 2'
    assert set(named) == {'  lost+found/: Permission denied', '  half/b.png: Permission denied'}
    assert error.startswith('UserError cannot read') and error.endswith('check its permissions.')


def test_zips_as_they_are(tmp_path):
    make_photo(tmp_path / 'a.png')
    data = (tmp_path / 'a.png').read_bytes()
    link = zipfile.ZipInfo('link.png')
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / 'z.zip', 'w') as archive:
        archive.mkdir('cats') if hasattr(archive, 'mkdir') else None
        for name in ('cats\\1.png', '__MACOSX\\cats\\._1.png', '__MACOSX/cats/._2.png', 'cats/2.png', '.DS_Store',
                     '../../evil.png', 'x\\..\\..\\evil.png', '/root.png', 'notes.txt', 'cats/k.xyz'):
            archive.writestr(name, data)
        archive.writestr(link, '../../etc/passwd')
        with pytest.warns(UserWarning):
            archive.writestr('cats/2.png', data)
    photos = Photos(tmp_path / 'z.zip')
    assert list(photos.files) == ['/root.png', 'cats/2.png', 'cats\\1.png']
    assert photos.others == {'hidden files': 3, 'entries of the zip whose name leads out of it': 2,
                             'links in the zip': 1, 'entries of the zip whose name is there twice': 1}
    assert photos.count() == 12 and photos.load('cats\\1.png').image.size == (24, 24)


@pytest.mark.parametrize('edit', ['cut', 'zeros', 'method', 'encrypted', 'version'])
def test_damaged_zips(tmp_path, edit):
    """Either the zip is refused, or its photo is a broken one."""
    make_photo(tmp_path / 'a.png')
    path = tmp_path / 'z.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / 'a.png', 'a.png')
    data = bytearray(path.read_bytes())
    directory = data.index(b'PK\1\2')
    if edit == 'cut':
        del data[-10:]
    elif edit == 'zeros':
        data[40:200] = bytes(160)
    elif edit == 'method':
        data[8:10] = data[directory + 10:directory + 12] = b'\x09\0'
    elif edit == 'encrypted':
        data[6] |= 1
        data[directory + 8] |= 1
    else:
        data[directory + 6:directory + 8] = b'\xff\0'
    path.write_bytes(data)
    try:
        photos = Photos(path)
    except UserError as error:
        assert 'is a damaged zip file' in str(error) and edit in ('cut', 'version')
    else:
        with pytest.raises(BrokenPhoto) as caught:
            photos.load('a.png')
        assert '\n' not in str(caught.value)


def test_no_images_says_what_else_there_is(tmp_path):
    def refused():
        with pytest.raises(UserError) as caught:
            Photos(tmp_path)
        return str(caught.value)

    assert 'holds no images; give' in refused()
    (tmp_path / '.hidden').write_text('x')
    assert 'only hidden files (1)' in refused()
    (tmp_path / 'a.heic').write_text('x')
    assert 'only other files (.heic; "pip install pillow-heif" makes these readable)' in refused()


def test_a_kind_of_file_that_needs_another_package_is_named(tmp_path, monkeypatch):
    make_photo(tmp_path / 'a.png')
    (tmp_path / 'phone.jpg').write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
    photos = Photos(tmp_path)
    monkeypatch.setattr(module, 'readable_suffixes', lambda: {'.jpg'})
    with pytest.raises(BrokenPhoto, match='it is a .heic file; "pip install pillow-heif"'):
        photos.load('phone.jpg')


def test_formats_that_run_other_programs_are_left_alone(tmp_path):
    """Pillow hands EPS to Ghostscript."""
    make_photo(tmp_path / 'a.png')
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\n'
    (tmp_path / 'b.eps').write_bytes(eps)
    (tmp_path / 'c.png').write_bytes(eps)
    photos = Photos(tmp_path)
    assert photos.ignored == {'.eps': 1}
    with pytest.raises(BrokenPhoto, match='not an image'):
        photos.load('c.png')


def test_shards_share_the_photos(tmp_path):
    folder = make_photos(tmp_path / 'photos', 40)
    shards = [list(Photos(folder, (i, 3)).files) for i in (1, 2, 3)]
    assert sorted(sum(shards, [])) == list(Photos(folder).files) and all(shards)
    photos = Photos(folder, (1, 3))
    assert photos.others == {'photos of other shards': 40 - len(photos.files)} and photos.count() == 40


def test_a_name_twice_in_a_zip_is_the_entry_that_was_listed(tmp_path, monkeypatch):
    """The other one may be of any size."""
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about the name
        archive.writestr('a.png', b'small')
        archive.writestr('a.png', bytes(10 ** 6))
    monkeypatch.setattr('imaging.photos.MAX_FILE_BYTES', 1000)
    assert Photos(tmp_path / 'a.zip').read('a.png') == b'small'


@pytest.mark.parametrize('lie', [False, True])
def test_an_entry_that_unpacks_to_much_is_not_unpacked(tmp_path, monkeypatch, lie):
    data = bytes(10 ** 6)
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.bmp', data)
    if lie:  # the zip says that it is as large as unpacked
        written = bytearray((tmp_path / 'a.zip').read_bytes())
        place = written.index(b'PK\1\2') + 20
        written[place:place + 4] = len(data).to_bytes(4, 'little')
        (tmp_path / 'a.zip').write_bytes(written)
    else:
        assert Photos(tmp_path / 'a.zip').read('a.bmp') == data  # that is not much yet
    monkeypatch.setattr(module, 'MUCH', 10 ** 5)
    with pytest.raises(BrokenPhoto, match='unpacking it would take 0 MiB, which no photo'):
        Photos(tmp_path / 'a.zip').load('a.bmp')


def test_names_that_a_terminal_would_obey(tmp_path):
    """A stranger's zip may hold any."""
    make_photo(tmp_path / 'a.png')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.write(tmp_path / 'a.png', 'a.png')
        archive.writestr('b.\x1b[2J\nother', b'')
    photos = Photos(tmp_path / 'a.zip')
    photos.unreadable['\x1b]0;x\x07\nforged: 3'] = 'of a kind \x1b[31m'
    assert photos.left_out() == [r'other files ignored: 1 (.\x1b[2j\nother)', 'not readable: 1',
                                 r'  \x1b]0;x\x07\nforged: 3: of a kind \x1b[31m']
    assert photos.count() == 3
    with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
        archive.writestr('b.\x1b[2J', b'')
    with pytest.raises(UserError) as caught:
        Photos(tmp_path / 'b.zip')
    assert r'only other files (.\x1b[2j)' in str(caught.value)
    assert module.named_lines('broken', {'x' * 1000: 'it is none'})[1] == f'  {"x" * module.MAX_NAME}…: it is none'

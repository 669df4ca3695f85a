"""prepare_data.py: pixels, indices, resuming after any kind of end, and bad input."""
import contextlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

import prepare_data
from dataset import ImageDataset
from imaging.fit import Fit
from imaging.lmdb_files import image_key, open_lmdb, read_contents, read_fit
from imaging.photos import Photos
from prepare_data import prepare
from utils import UserError, run_command

resource = pytest.importorskip('resource')
fork = get_context('fork')  # runs the command in a process of its own without importing PyTorch again


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def make_photos(folder, count, size=24, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        noise(size, size, i).save(folder / f'{i:04d}.png')
    return folder


def small(seed, size):
    return np.asarray(noise(24, 24, seed).resize((size, size), Image.Resampling.LANCZOS))


def dump(path):
    """{key: value} of a whole LMDB."""
    with contextlib.closing(open_lmdb(path)) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


def pixels(path, size, index):
    return np.asarray(Image.open(io.BytesIO(dump(path)[image_key(size, index)])))


@pytest.fixture
def run(command):
    """run(*arguments) -> (exit code, stdout, stderr) of the command, in this process."""
    return partial(command, prepare_data)


def child(log, *arguments, before=lambda: None, commit_seconds=0):
    """The command in a started process of its own (group), with its output in the file `log`."""
    def target():
        os.setpgrp()
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')  # not pytest's capture
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ['prepare_data.py', *map(str, arguments)]
        prepare_data.COMMIT_SECONDS = commit_seconds
        prepare_data.tqdm.set_lock(threading.RLock())  # its own is shared with forks, and lost when one is killed
        before()
        run_command('prepare_data', prepare_data.read_flags)

    process = fork.Process(target=target)
    process.start()
    return process


def contents_of(path):
    with contextlib.closing(open_lmdb(path)) as environment:
        return read_contents(environment)


def commit_slowly():
    """For child's `before`: leave time to interrupt the run."""
    commit = prepare_data.Writer.commit
    prepare_data.Writer.commit = lambda writer, batch: time.sleep(0.02) or commit(writer, batch)


def stored(out):
    """How many photos are stored so far; 0 where the LMDB is just being made."""
    try:
        return len(contents_of(out).sources)
    except UserError:
        return 0


def wait_until_stored(process, out, count):
    while process.is_alive() and stored(out) < count:
        time.sleep(0.005)


# ---- what is stored under which index

def test_class_folders_and_zip_give_the_same(tmp_path, run):
    photos = tmp_path / 'photos'
    make_photos(photos / 'b', 2, first=2)
    make_photos(photos / 'a' / 'deep', 2)
    noise(30, 40, 9).save(photos / 'ROTATED.JPG')
    (photos / 'notes.txt').write_text('not an image')
    (photos / '.hidden.png').write_bytes(b'a shadow of macOS')
    (photos / 'loop').symlink_to(photos)
    code, report, _ = run('--out_path', tmp_path / 'x', '--size', '16,8', '--n_worker', 2, photos)
    assert code == 0
    assert re.search(r'5 images at 8, 16; 5 of them written now, in .* \(\d+ images/s\)', report)
    assert 'other files ignored: 1 (.txt)' in report
    found = dump(tmp_path / 'x')
    names = ['ROTATED.JPG', 'a/deep/0000.png', 'a/deep/0001.png', 'b/0002.png', 'b/0003.png']
    assert [found[b'source-%05d' % i].decode().split(' ')[1] for i in range(5)] == names
    assert found[b'length'] == b'5' and found[b'resample'] == b'lanczos' and len(found) == 2 + 5 + 10
    for i, name in enumerate(names):
        image = Image.open(photos / name)
        for size in 8, 16:
            expected = F.center_crop(F.resize(image, size, InterpolationMode.LANCZOS), [size, size])
            np.testing.assert_array_equal(pixels(tmp_path / 'x', size, i), np.asarray(expected))

    with zipfile.ZipFile(tmp_path / 'photos.zip', 'w') as archive:
        for name in reversed(names):
            archive.write(photos / name, name)
        archive.writestr('__MACOSX/a/._0000.png', b'a shadow of macOS')
    arguments = '--out_path', tmp_path / 'y', '--size', '8,16', tmp_path / 'photos.zip'
    assert run('--n_worker', 1, *arguments)[0] == 0
    assert dump(tmp_path / 'y') == found
    assert '5 images at 8, 16; 0 of them written now' in run(*arguments)[1]
    assert dump(tmp_path / 'y') == found


def test_broken_images_are_skipped_and_named(tmp_path, monkeypatch, run):
    photos = make_photos(tmp_path / 'photos', 6)
    whole = (photos / '0001.png').read_bytes()
    (photos / '0001.png').write_bytes(whole[:len(whole) // 2])
    (photos / '0003.png').write_text('text')
    (photos / '0004.png').write_bytes(b'')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 30 * 30)  # an error beyond twice this
    noise(50, 50).save(photos / '0006.png')
    noise(40, 40).save(photos / '0007.png')
    out, log = tmp_path / 'out', ['0001.png: ', '0003.png: ', '0004.png: ', '0006.png: ']
    code, _, error = run('--out_path', out, '--size', 8, '--n_worker', 2, '--strict', photos)
    assert code == 2 and re.fullmatch(r'prepare_data.py: error: --strict: 0001.png cannot be read \(.+\); mend or .*',
                                      error.splitlines()[-1])
    assert contents_of(out).length is None and stored(out) == 1
    code, report, _ = run('--out_path', out, '--size', 8, '--n_worker', 2, photos)
    assert code == 0
    assert '4 images at 8; 3 of them' in report and 'broken images skipped: 4\n' in report
    assert all(f'\n  {line}' in report for line in log) and 'decompression bomb' in report
    before = dump(out)
    assert [before[b'source-%05d' % i][-8:] for i in range(4)] == [b'0000.png', b'0002.png', b'0005.png', b'0007.png']
    assert before[b'length'] == b'4'

    (photos / '0001.png').write_bytes(whole)  # mended: it comes last, nobody else's index changes
    assert run('--out_path', out, '--size', 8, photos)[0] == 0
    assert dump(out) == before | {b'length': b'5', b'source-00004': b'%d 0001.png' % len(whole),
                                  b'8-00004': dump(out)[b'8-00004']}
    np.testing.assert_array_equal(pixels(out, 8, 4), small(1, 8))


def test_more_photos_and_another_size_add_only_what_is_missing(tmp_path, monkeypatch):
    photos, out = make_photos(tmp_path / 'photos', 4, first=2), tmp_path / 'out'
    assert prepare(Photos(photos), out, [8])[:2] == (4, 4)
    first = dump(out)
    make_photos(photos, 2)  # they sort before the others, but come after them
    assert prepare(Photos(photos), out, [16])[:3] == (6, 6, [8, 16])  # new ones at the old size too
    second = dump(out)
    assert first.items() - {(b'length', b'4')} <= second.items() and second[b'length'] == b'6'
    assert contents_of(out).complete_sizes() == [8, 16] and second[b'source-00004'].endswith(b' 0000.png')
    for index, seed in enumerate([2, 3, 4, 5, 0, 1]):
        np.testing.assert_array_equal(pixels(out, 16, index), small(seed, 16))
    monkeypatch.setattr(prepare_data.Shrinker, '__getitem__', None)  # nothing is made again
    assert prepare(Photos(photos), out, [8])[:3] == (6, 0, [8, 16])


def test_a_photo_that_breaks_later_makes_no_hole(tmp_path):
    photos, out = make_photos(tmp_path / 'photos', 3), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    (photos / '0001.png').write_bytes(bytes((photos / '0001.png').stat().st_size))
    with pytest.raises(UserError, match='0001.png is image 00001 .* can no longer be read'):
        prepare(Photos(photos), out, [8, 16])
    assert contents_of(out).complete_sizes() == [8]


def test_names_that_are_no_text(tmp_path, run):
    photos = make_photos(tmp_path / 'photos', 1)
    for name in (b'caf\xe9.png', 'Ümläut 猫.png'.encode(), b'broken \xff.png'):
        Path(os.fsdecode(os.fsencode(photos) + b'/' + name)).write_bytes(
            b'' if name.startswith(b'broken') else (photos / '0000.png').read_bytes())
    out = tmp_path / os.fsdecode(b'out \xff')
    for written in 3, 0:
        code, report, _ = run('--out_path', out, '--size', 8, photos)
        assert code == 0
        assert f'3 images at 8; {written} of them' in report and r'broken \udcff.png: ' in report
    out.rename(tmp_path / 'out')
    assert dump(tmp_path / 'out')[b'source-00001'].endswith(b' caf\xe9.png')


# ---- every kind of end

def test_killed_runs_complete_to_the_same(tmp_path):
    photos, out = make_photos(tmp_path / 'photos', 150), tmp_path / 'out'
    (photos / '0040.png').write_text('broken')
    prepare(Photos(photos), tmp_path / 'whole', [32, 48])
    expected, rng = dump(tmp_path / 'whole'), random.Random(0)
    arguments = '--out_path', out, '--size', '32,48', '--n_worker', 2, photos

    def kill_in_transaction(nth):
        """SIGKILL in the nth transaction, between two of its puts."""
        commit = prepare_data.Writer.commit

        def killed(writer, batch):
            nonlocal nth
            nth -= 1

            def entries():
                yield batch[0]
                os.kill(os.getpid(), signal.SIGKILL)
            return commit(writer, batch if nth else entries())
        prepare_data.Writer.commit = killed

    seen = set()
    for attempt in range(8):
        if attempt % 2:
            process = child(tmp_path / 'log', *arguments, before=lambda: kill_in_transaction(rng.randint(1, 9)))
        else:  # from outside, at some moment: while it starts, makes the LMDB, or writes
            process = child(tmp_path / 'log', *arguments)
            wait_until_stored(process, out, stored(out) + rng.randint(0, 12) if attempt else 0)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if not (out / 'data.mdb').exists() or not (out / 'data.mdb').stat().st_size:
            continue
        found = dump(out)  # it opens, and what is there is a beginning of the whole
        seen.add(len(found))
        assert found.items() <= expected.items()
        count = sum(key.startswith(b'source-') for key in found)
        assert b'length' not in found or found == expected
        assert {image_key(size, i) for size in (32, 48) for i in range(count)} <= found.keys()
        assert len(found) == 3 * count + bool(count) + (b'length' in found)
    assert len(seen) > 2, 'no kill hit a run at work'
    process = child(tmp_path / 'log', *arguments)
    process.join()
    assert process.exitcode == 0 and dump(out) == expected


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_workers_of_a_killed_run_end(tmp_path):
    def running(pid):
        try:
            return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
        except FileNotFoundError:
            return False

    photos, out = make_photos(tmp_path / 'photos', 60, 256), tmp_path / 'out'  # results that fill the workers' pipes
    process = child(tmp_path / 'log', '--out_path', out, '--size', '256', '--n_worker', 3, photos, before=commit_slowly)
    wait_until_stored(process, out, 2)
    workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(workers) == 3
    deadline = time.monotonic() + 30
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in workers if running(pid)]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left, 'workers outlive the run'


def test_a_killed_addition_leaves_the_old_data_set(tmp_path):
    photos, out = make_photos(tmp_path / 'photos', 60), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    make_photos(photos, 60, first=60)
    before = stored(out)
    process = child(tmp_path / 'log', '--out_path', out, '--size', '8,32', photos,
                    before=lambda: setattr(prepare_data, 'tqdm', kill_after(80)))
    process.join()
    contents = contents_of(out)
    assert process.exitcode == -signal.SIGKILL and before == 60 < len(contents.sources) < 120
    assert contents.length == 60 and contents.complete_sizes() == [8, 32]
    assert prepare(Photos(photos), out, [8, 32])[0] == 120
    prepare(Photos(photos), tmp_path / 'whole', [8, 32])
    assert dump(out) == dump(tmp_path / 'whole')


def kill_after(count):
    """A stand-in for tqdm that kills its process after `count` items."""
    class Bar:
        def __init__(self, items, **_):
            self.items = items

        def __iter__(self):
            for i, item in enumerate(self.items):
                if i == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield item
    return Bar


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_cleanly(tmp_path, number, code):
    photos, out, log = make_photos(tmp_path / 'photos', 120), tmp_path / 'out', tmp_path / 'log'
    arguments = '--out_path', out, '--size', 64, '--n_worker', 2, photos
    process = child(log, *arguments, before=commit_slowly)
    wait_until_stored(process, out, 5)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: workers too
    else:
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, log.read_text()
    assert 'Traceback' not in log.read_text() and 'stopped; whatever was finished is on disk' in log.read_text()
    done = stored(out)
    assert 5 <= done < 120 and contents_of(out).length is None
    assert prepare(Photos(photos), out, [64], n_worker=2)[:2] == (120, 120 - done)


def test_a_dead_worker_is_told(tmp_path, monkeypatch, run):
    photos = make_photos(tmp_path / 'photos', 20)
    shrink, parent = prepare_data.Shrinker.__getitem__, os.getpid()

    def deadly(self, i):
        assert os.getpid() != parent
        return shrink(self, i) if i < 15 else os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(prepare_data.Shrinker, '__getitem__', deadly)
    code, _, error = run('--out_path', tmp_path / 'out', '--size', 8, '--n_worker', 1, photos)
    assert code == 2 and re.search(r'error: a worker process died \(DataLoader worker .*[^.]\); if memory .*, use '
                                   r'fewer .*\.$', error.splitlines()[-1])
    assert open_lmdb(tmp_path / 'out').close() is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('mounting a file system needs root')
    yield disk
    subprocess.run(['umount', disk], check=True)


def assert_full(process, log, out):
    process.join()
    assert process.exitcode == 2 and 'Traceback' not in log.read_text()
    error = log.read_text().splitlines()[-1]
    assert f'error: cannot write to {out} (' in error and 'free some space' in error
    return error


def test_full_disk(tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr(prepare_data, 'SPARE_BYTES', 2**20)
    photos, out, log = make_photos(tmp_path / 'photos', 80, 128), small_disk / 'out', tmp_path / 'log'
    arguments = '--out_path', out, '--size', 128, '--n_worker', 2, photos
    assert 'its disk is full' in assert_full(child(log, *arguments), log, out)
    done = stored(out)
    assert 5 < done < 80
    assert 'less than 1 MiB' in assert_full(child(log, *arguments), log, out)
    assert stored(out) == done and contents_of(out).length is None
    subprocess.run(['mount', '-o', 'remount,size=30m', small_disk], check=True)
    assert prepare(Photos(photos), out, [128], n_worker=2)[:2] == (80, 80 - done)
    prepare(Photos(photos), tmp_path / 'whole', [128], n_worker=2)
    assert dump(out) == dump(tmp_path / 'whole')


def test_file_size_limit(tmp_path):
    photos, out, log = make_photos(tmp_path / 'photos', 60, 64), tmp_path / 'out', tmp_path / 'log'
    limit = 2**18

    def before():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    error = assert_full(child(log, '--out_path', out, '--size', 64, '--n_worker', 1, photos, before=before), log, out)
    assert 'File too large' in error
    done = stored(out)
    assert 3 < done < 60
    assert prepare(Photos(photos), out, [64])[:2] == (60, 60 - done)


def test_map_grows_and_reserves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, 'SPARE_BYTES', 2**16)  # the first map
    monkeypatch.setattr(prepare_data, 'COMMIT_BYTES', 2**20)  # more than it holds
    photos, out = make_photos(tmp_path / 'photos', 40, 256), tmp_path / 'out'
    assert prepare(Photos(photos), out, [256])[:2] == (40, 40)
    data = sum(map(len, dump(out).values()))
    assert data < (out / 'data.mdb').stat().st_size < 1.2 * data
    with contextlib.closing(open_lmdb(out)) as environment:
        assert environment.info()['map_size'] < 4 * data


def test_two_runs_at_once_are_noticed(tmp_path):
    photos, out = make_photos(tmp_path / 'photos', 3), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    with contextlib.closing(prepare_data.Writer(out)) as writer:
        writer.put({b'8-00002': b'other', b'source-00002': b'other'})
        with pytest.raises(UserError, match='another prepare_data.py is writing to'):
            writer.flush()
    assert b'other' not in dump(out).values()


# ---- several writers, and disks that lack something

def test_the_second_of_two_runs_is_refused_at_once(tmp_path, run, capsys):
    photos, out = make_photos(tmp_path / 'photos', 3), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    capsys.readouterr()  # the progress bar
    with contextlib.closing(prepare_data.Writer(out)):
        assert 'another prepare_data.py is writing to' in refusal(run('--out_path', out, '--size', '8,16', photos))
    assert run('--out_path', out, '--size', '8,16', photos)[0] == 0
    assert {path.name for path in out.iterdir()} == {'data.mdb', 'lock.mdb'}
    process = child(tmp_path / 'log', '--out_path', out, '--size', 32, photos,
                    before=lambda: setattr(prepare_data, 'load_in_workers', lambda *_, **__: time.sleep(60)))
    while not (out / prepare_data.LOCK).exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert run('--out_path', out, '--size', 32, photos)[0] == 0  # a dead process holds nothing


def test_two_first_runs_at_once(tmp_path):
    out = tmp_path / 'out'
    with contextlib.closing(prepare_data.Writer(out)) as first, contextlib.closing(prepare_data.Writer(out)) as second:
        first.put({b'8-00000': b'first', b'source-00000': b'5 a'})
        first.flush()
        second.put({b'8-00000': b'second', b'source-00000': b'6 b'})
        with pytest.raises(UserError, match='another prepare_data.py is writing to'):
            second.flush()
    assert dump(out) == {b'8-00000': b'first', b'source-00000': b'5 a'}


@pytest.mark.parametrize('words, remedy', [
    ('No locks available', 'on a local disk, then copy'), ('Invalid argument', 'on a local disk, then copy'),
    ('Cannot allocate memory', 'ulimit -v'), ('Permission denied', 'check the permissions'),
    ('Read-only file system', 'check the permissions'), ('Disk quota exceeded', 'free some space'),
    ('Too many open files', 'ulimit -n'), ('Input/output error', 'mend the folder')])
def test_remedies_fit_the_cause(tmp_path, run, monkeypatch, words, remedy):
    photos, out, opened = make_photos(tmp_path / 'photos', 3), tmp_path / 'out', lmdb.open

    def failing(path, readonly=False, **options):
        if readonly:
            return opened(path, readonly=True, **options)
        raise lmdb.Error(f'{path}: {words}')

    monkeypatch.setattr(lmdb, 'open', failing)
    code, _, error = run('--out_path', out, '--size', 8, '--n_worker', 1, photos)
    sentence = error.splitlines()[-1]
    assert code == 2 and f'cannot write to {out}' in sentence and words in sentence and remedy in sentence
    assert 'finished' not in sentence and 'Traceback' not in error  # nothing was
    monkeypatch.undo()
    prepare(Photos(photos), out, [8])
    monkeypatch.setattr(lmdb, 'open', failing)
    with pytest.raises(UserError, match='What was finished is kept'):
        prepare(Photos(photos), out, [16])


def test_a_map_that_another_process_enlarges(tmp_path):
    photos, out = make_photos(tmp_path / 'photos', 3), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    with contextlib.closing(prepare_data.Writer(out)) as writer:
        writer.put({b'16-00000': b'a'})
        writer.flush()

        process = fork.Process(target=lambda: os.execv(sys.executable, [sys.executable, '-c', (
            f'import lmdb; e = lmdb.open({str(out)!r}, map_size=2**28); t = e.begin(write=True); '
            't.put(b"32-00000", bytes(2**26)); t.commit()')]))
        process.start()
        process.join()
        with pytest.raises(UserError, match='another prepare_data.py is writing to .* wait for it to end'):
            writer.put({b'16-00001': b'b'})
            writer.flush()


# ---- what the report says

def test_the_report_accounts_for_every_file(tmp_path, run):
    photos = make_photos(tmp_path / 'photos', 4)
    noise(10, 200).save(photos / 'narrow.png')  # a strip
    noise(9, 12).save(photos / 'small.png')
    (photos / 'broken.png').write_text('x')
    Image.fromarray(np.full((30, 30), 200, 'i4')).save(photos / 'deep.tif')
    (photos / 'gone.png').symlink_to('nowhere')
    (photos / '.DS_Store').write_text('x')
    (photos / 'notes.txt').write_text('x')
    code, report, _ = run('--out_path', tmp_path / 'out', '--size', '8,24', '--n_worker', 1, photos)
    assert code == 0 and '6 images at 8, 24; 6 of them written now' in report
    assert 'smaller than 24 pixels, enlarged: 1 (small.png for one)\n' in report
    assert 'pixels without a declared range, taken as 0 to 255: 1 (deep.tif for one)\n' in report
    assert 'broken images skipped: 2\n  broken.png: it is not an image' in report and 'narrow.png: it is a s' in report
    assert 'holds 11 files in all: 6 images, 2 that are left out, 3 others\n' in report
    assert 'note: training takes sizes that are powers of two from 8, so not 24;' in report
    code, report, _ = run('--out_path', tmp_path / 'exact', '--size', '8,32', '--no_upscale', '--n_worker', 1, photos)
    assert code == 2 or '1 images' in report  # all but the deep one are smaller than 32
    assert 'note' not in report


def test_the_report_spells_out_names_that_a_terminal_would_obey(tmp_path, run):
    photos = make_photos(tmp_path / 'photos', 1)
    noise(9, 12).save(photos / 'small\x1b[2J\nforged.png')
    (photos / 'broken\x1b[2J.png').write_text('x')
    code, report, _ = run('--out_path', tmp_path / 'out', '--size', '24', '--n_worker', 1, photos)
    assert code == 0 and '\x1b' not in report and '\n  broken\\x1b[2J.png: it is' in report
    assert r'enlarged: 1 (small\x1b[2J\nforged.png for one)' in report


def test_small_photos_can_be_left_out(tmp_path, run):
    photos = make_photos(tmp_path / 'photos', 3)
    noise(40, 20).save(photos / 'small.png')
    code, report, _ = run('--out_path', tmp_path / 'out', '--size', '8,24', '--no_upscale', '--n_worker', 1, photos)
    assert code == 0 and '3 images at 8, 24' in report and b'source-00003' not in dump(tmp_path / 'out')
    assert 'images smaller than the size, left out by --no_upscale: 1\n  small.png: it has 40x20 pixels' in report
    code, _, error = run('--out_path', tmp_path / 'none', '--size', 64, '--no_upscale', '--n_worker', 1, photos)
    assert code == 2 and 'no image of 4 is large enough; 0000.png for one (it has 24x24 pixels)' in error
    assert not (tmp_path / 'none').exists()
    code, report, _ = run('--out_path', tmp_path / 'out', '--size', 8, photos)  # and added without the flag
    assert code == 0 and '4 images at 8, 24; 1 of them written now' in report and 'enlarged: 1' in report
    code, report, _ = run('--out_path', tmp_path / 'out', '--size', 48, '--no_upscale', photos)  # those there stay
    assert code == 0 and '4 images at 8, 24, 48; 4 of them written now' in report and 'enlarged: 4' in report


# ---- photos that are not square

@pytest.mark.parametrize('flags, fit', [(['--fit', 'pad'], Fit('pad')), (['--fit', 'squeeze'], Fit('squeeze')),
                                        (['--crop_y', '0'], Fit('crop', 0.))])
def test_fits_are_remembered(tmp_path, run, flags, fit):
    photos, out = tmp_path / 'photos', tmp_path / 'out'
    photos.mkdir()
    for i, shape in enumerate([(30, 40), (60, 80), (100, 50)]):
        noise(*shape, i).save(photos / f'{i}.png')
    assert run('--out_path', out, '--size', '16,24', '--n_worker', 1, *flags, photos)[0] == 0
    for i in range(3):
        image = Image.open(photos / f'{i}.png')
        np.testing.assert_array_equal(pixels(out, 16, i), np.asarray(fit.square(image, 16, Image.Resampling.LANCZOS)))
    remembered = read_fit(out)
    assert remembered == (fit, 0.75)
    shape = (64, 64) if fit.mode == 'crop' else (48, 64)
    assert remembered.fit.undone(Image.new('RGB', (64, 64)), 0.75).size == shape
    found = dump(out)
    assert found[b'shape-00001'] == b'60x80' and found[b'fit'] == str(fit).encode()
    noise(33, 44).save(photos / '3.png')  # going on the same way works, another is refused
    assert '--fit crop: ' in refusal(run('--out_path', out, '--size', 16, photos)) and dump(out) == found
    assert run('--out_path', out, '--size', 16, *flags, photos)[0] == 0 and dump(out)[b'length'] == b'4'
    assert len(ImageDataset(out, 16)) == 4


def test_usual_data_sets_remember_the_usual_way(tmp_path):
    photos, out = make_photos(tmp_path / 'photos', 2), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    assert read_fit(out) == (Fit(), 1) and b'fit' not in dump(out) and b'shape-00000' not in dump(out)


# ---- many machines

def test_shards_make_what_one_run_makes(tmp_path, run):
    photos = make_photos(tmp_path / 'photos', 30)
    make_photos(photos / 'class', 10, first=30)
    (photos / '0004.png').write_text('broken')
    prepare(Photos(photos), tmp_path / 'whole', [8, 16])
    parts = [tmp_path / f'part{i}' for i in range(3)]
    for i, part in enumerate(parts):  # counted from 1, or from 0
        code, report, _ = run('--out_path', part, '--size', '8,16', '--n_worker', 1, '--shard', f'{i}/3', photos)
        assert code == 0 and 'photos of other shards (' in report and 'holds 40 files in all' in report
    assert '--shard: ' in refusal(run('--out_path', parts[0], '--size', 8, '--shard', '1/3', photos))
    assert '--shard: ' in refusal(run('--out_path', parts[0], '--size', 8, photos))
    out = tmp_path / 'merged'
    assert 'shard 2 is missing' in refusal(run('--out_path', out, '--merge', parts[0], parts[1]))
    assert 'given twice' in refusal(run('--out_path', out, '--merge', *parts, parts[1]))
    assert 'is one of the shards' in refusal(run('--out_path', parts[0], '--merge', *parts))
    assert 'is no shard' in refusal(run('--out_path', out, '--merge', *parts, tmp_path / 'whole'))
    assert not out.exists()
    for written in 39, 0:
        code, report, _ = run('--out_path', out, '--merge', *reversed(parts))
        assert code == 0 and f'39 images at 8, 16; {written} of them written now' in report
        assert dump(out) == dump(tmp_path / 'whole')


def test_more_photos_and_sizes_of_shards(tmp_path):
    """A merge into a data set that is there adds only what is missing, as a run would."""
    photos, parts = make_photos(tmp_path / 'photos', 12), [tmp_path / 'a', tmp_path / 'b']
    out, whole = tmp_path / 'out', tmp_path / 'whole'
    for sizes in [8], [8, 16]:
        for i, part in enumerate(parts):
            prepare(Photos(photos, (i + 1, 2)), part, sizes, fit=Fit('pad'))
        prepare(prepare_data.Shards(list(map(str, parts))), out, None)
        prepare(Photos(photos), whole, sizes, fit=Fit('pad'))
        assert dump(out) == dump(whole)
        make_photos(photos, 5, first=100)
    prepare(Photos(photos, (1, 2)), parts[0], [8], fit=Fit('pad'))
    with pytest.raises(UserError, match='differ in|do not belong'):
        prepare(Photos(photos, (2, 2)), tmp_path / 'c', [8])
        prepare_data.Shards([str(parts[0]), str(tmp_path / 'c')])
    unfinished = tmp_path / 'd'
    with contextlib.closing(prepare_data.Writer(unfinished)) as writer:
        writer.put({b'shard': b'2/2', b'8-00000': b'x', b'source-00000': b'1 x'})
        writer.flush()
    with pytest.raises(UserError, match='is unfinished'):
        prepare_data.Shards([str(parts[0]), str(unfinished)])


def test_a_shard_without_the_shapes_that_its_fit_needs_is_damaged(tmp_path, monkeypatch):
    photos, parts = make_photos(tmp_path / 'photos', 10), [str(tmp_path / 'a'), str(tmp_path / 'b')]
    for i, part in enumerate(parts):
        prepare(Photos(photos, (i + 1, 2)), part, [8], fit=Fit('pad'))
    monkeypatch.setattr(prepare_data, 'read_shape', lambda *_: None)
    with pytest.raises(UserError, match='--merge: .* is damaged: the shape of image'):
        prepare(prepare_data.Shards(parts), tmp_path / 'c', None)


# ---- bad input

def refusal(result):
    """The one sentence that a command, of which run() gave `result`, refused its input with."""
    code, _, error = result
    error = error.splitlines()
    assert code == 2 and len(error) == 1, error
    assert error[0].startswith('prepare_data.py: error: ') and error[0].endswith('.'), error
    return error[0]


def test_bad_input_says_what_to_do(tmp_path, run):
    photos = make_photos(tmp_path / 'photos', 2)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'texts').mkdir()
    (tmp_path / 'texts' / 'a.txt').write_text('text')
    (tmp_path / 'bad.zip').write_bytes(b'PK no zip')
    with zipfile.ZipFile(tmp_path / 'no_images.zip', 'w') as archive:
        archive.writestr('a.txt', 'text')
    for source, message in {'gone': 'gone does not exist', 'gone.zip': 'gone.zip does not exist',
                            'empty': 'empty holds no images; give', 'texts/a.txt': 'is neither a folder nor a zip',
                            'texts': 'texts holds no images, only other files (.txt)',
                            'bad.zip': 'is a damaged zip file',
                            'no_images.zip': 'no_images.zip holds no images, only other files (.txt)'}.items():
        assert message in refusal(run('--out_path', tmp_path / 'out', '--size', 8, tmp_path / source))
    for arguments, message in {('--size', '8'): '--out_path', ('--out_path', 'x'): '--size',
                               ('--size', '8,x', '--out_path', 'x'): "'8,x' is no list of whole numbers",
                               ('--size', '0', '--out_path', 'x'): 'from 1 to 4096',
                               ('--size', '8,', '--out_path', 'x'): '--size',
                               ('--size', '8', '--out', 'x'): '--out',
                               ('--size', '8', '--out_path', 'x', '--n_worker', '0'): "'0' is no whole number from 1",
                               ('--size', '8', '--out_path', ''): '--out_path: must be a name or path',
                               ('--size', '8', '--out_path', 'x', '--resample', 'box'): '--resample',
                               ('--size', '8', '--out_path', 'x', '--fit', 'bend'): '--fit',
                               ('--size', '8', '--out_path', 'x', '--crop_y', '1.5'): "'1.5' is no number from 0",
                               ('--size', '8', '--out_path', 'x', '--crop_y', 'nan'): "'nan' is no number from 0",
                               ('--size', '8', '--out_path', 'x', '--fit', 'pad', '--crop_y', '0'): '--crop_y is for',
                               ('--size', '8', '--out_path', 'x', '--shard', '4/3'): "'4/3' is no share like 1/8",
                               ('--size', '8', '--out_path', 'x', '--shard', '0/0'): "'0/0' is no share like 1/8",
                               ('--size', '8', '--out_path', 'x', 'more'): 'one IN at a time, not 2',
                               ('--size', '8', '--out_path', 'x', '--merge'): 'leave out --size',
                               ('--out_path', 'x', '--merge', '--fit', 'pad'): 'leave out --size, --shard, --fit',
                               ('--out_path', 'x', '--merge', '--crop_y', '0'): '--crop_y',
                               ('--out_path', 'x', '--merge', '--resample', 'bilinear'): '--resample',
                               ('--out_path', 'x', '--merge', '--no_upscale'): '--no_upscale',
                               ('--out_path', 'x', '--merge', '--strict'): '--strict',
                               ('--out_path', 'x', '--merge'): 'photos'}.items():
        assert message in refusal(run(*arguments, photos))
    assert not (tmp_path / 'out').exists() and not Path('x').exists()


def test_other_folders_are_left_alone(tmp_path, run, capsys):
    photos, out = make_photos(tmp_path / 'photos', 3), tmp_path / 'out'
    prepare(Photos(photos), out, [8])
    before = dump(out)
    capsys.readouterr()  # the progress bar

    def refused(out, photos, *more):
        return refusal(run('--out_path', out, '--size', 8, *more, photos))

    assert 'holds other files and is not a data set' in refused(photos, photos)
    assert 'is a file' in refused(photos / '0000.png', photos)
    for what, make in (('folder', Path.mkdir), ('link', lambda path: path.symlink_to('/nowhere'))):
        (tmp_path / what).mkdir()
        make(tmp_path / what / 'data.mdb')
        assert 'holds other files and is not a data set' in refused(tmp_path / what, photos)
    other = make_photos(tmp_path / 'other', 3)
    assert '--resample lanczos' in refused(out, photos, '--resample', 'bilinear')
    (other / '0002.png').unlink()
    assert '1 of its 3 are not in' in refused(out, other)
    noise(99, 99).save(other / '0002.png')  # the same names, another photo
    assert '(0002.png for one)' in refused(out, other)
    for entries, message in (({b'8-00000': b'png', b'length': b'1'}, 'another program'),
                             ({b'x': b'y'}, 'something else')):
        foreign = tmp_path / message
        with lmdb.open(str(foreign)) as environment, environment.begin(write=True) as transaction:
            for item in entries.items():
                transaction.put(*item)
        assert message in refused(foreign, photos)
    assert dump(out) == before
    size = (out / 'data.mdb').stat().st_size
    os.truncate(out / 'data.mdb', size // 2)
    assert 'is cut short' in refused(out, photos)
    assert (out / 'data.mdb').stat().st_size == size // 2


def test_nothing_readable_leaves_nothing(tmp_path, run):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.png').write_text('text')
    code, _, error = run('--out_path', tmp_path / 'out', '--size', 8, tmp_path / 'photos')
    assert code == 2 and 'no image of 1 can be read; a.png for one (it is not' in error.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_command_with_spawned_workers(tmp_path):
    """As on systems that do not fork: the script as a process, its worker imports it again. Real photos if present."""
    root = Path(__file__).resolve().parents[1]
    photos = Photos(make_photos(tmp_path / 'photos', 3))
    cats = root / '..' / 'shared' / 'data' / 'afhq_cat_256.zip'
    if cats.exists():
        with zipfile.ZipFile(cats) as archive:
            for name in [name for name in archive.namelist() if name.endswith('.webp')][:8]:
                archive.extract(name, photos.path)
    (tmp_path / 'sitecustomize.py').write_text('import multiprocessing\nmultiprocessing.set_start_method("spawn")\n')
    result = subprocess.run([sys.executable, root / 'prepare_data.py', '--out_path', tmp_path / 'out', '--size', '32',
                             '--n_worker', '1', photos.path], capture_output=True, text=True,
                            env=os.environ | {'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 0, result.stderr
    prepare(Photos(photos.path), tmp_path / 'here', [32])
    assert dump(tmp_path / 'out') == dump(tmp_path / 'here')
    assert contents_of(tmp_path / 'out').length == len(Photos(photos.path).files) == (11 if cats.exists() else 3)

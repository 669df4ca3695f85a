"""Video files: formats, colors, timing, and recordings that are stopped or fail."""

import contextlib
import signal
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import read_video
from PIL import Image, ImageSequence

from inference import video_files
from inference.video_files import WITH_ALPHA, unfinished_path, video_path, video_writer


def ramp(i, height=48, width=64):
    """A colored picture that changes with i."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full((height, width), 20 * i % 256)], -1).astype(np.uint8)


@pytest.mark.parametrize('size', [(48, 64), (47, 63), (4, 4)])
def test_mp4(tmp_path, size):
    path = tmp_path / 'a.mp4'
    with video_writer(path, 'mp4', 25) as add:
        for i in range(9):
            add(ramp(i, *size))
    assert sorted(tmp_path.iterdir()) == [path]
    facts, frames = read_video(path)
    assert facts == ('h264', 'yuv420p', 25) and len(frames) == 9
    assert frames[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    if size[0] > 4:
        for i in (0, 8):  # colors come back: matrix and range are as the file says
            assert np.abs(frames[i][:size[0], :size[1]].astype(int) - ramp(i, *size)).mean() < 3
    data = path.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')  # fast start


@pytest.mark.parametrize('kind', ['gif', 'webp', 'frames'])
def test_other_formats(tmp_path, kind):
    path = video_path(tmp_path, 'a', kind)
    with video_writer(path, kind, 20) as add:
        for i in range(5):
            add(ramp(i))
    if kind == 'frames':
        assert [file.name for file in sorted(path.iterdir())] == [f'{i:05d}.png' for i in range(5)]
        assert np.array_equal(np.asarray(Image.open(path / '00003.png')), ramp(3))
        return
    with Image.open(path) as video:
        assert video.n_frames == 5 and video.size == (64, 48) and video.info['loop'] == 0
        durations = []
        for i in range(5):
            video.seek(i)
            picture = np.asarray(video.convert('RGB')).astype(int)
            durations.append(video.info['duration'])
        assert durations == [50] * 5 and np.abs(picture - ramp(4)).mean() < 5


@pytest.mark.parametrize('kind', ['mp4', 'gif', 'webp', 'frames'])
def test_stopped_and_failed_recordings(tmp_path, kind):
    path = video_path(tmp_path, 'a', kind)
    with pytest.raises(KeyboardInterrupt), video_writer(path, kind):
        raise KeyboardInterrupt  # before the first frame: nothing
    assert not path.is_file()
    with video_writer(path, kind) as add:
        for i in range(6):
            add(ramp(i))
    with pytest.raises(ValueError, match='a bug'), video_writer(path, kind) as add:
        add(ramp(0))
        raise ValueError('a bug')  # the earlier video stays

    def count(path):
        return {'frames': lambda: len(list(path.iterdir())), 'mp4': lambda: len(read_video(path)[1])}.get(
            kind, lambda: Image.open(path).n_frames)()

    assert count(path) == 6
    for frames in (4, 3):  # what was stopped never takes the place of what is finished, and does not pile up
        with pytest.raises(KeyboardInterrupt), video_writer(path, kind) as add:
            for i in range(frames):
                add(ramp(i))
            raise KeyboardInterrupt
        unfinished = video_path(tmp_path, 'a_unfinished', kind)
        assert count(path) == 6 and count(unfinished) == frames and sorted(tmp_path.iterdir()) == [path, unfinished]


def frames_with_alpha(path, kind):
    """The frames (H,W,4) of a video with alpha."""
    if kind == 'frames':
        return [np.asarray(Image.open(file)) for file in sorted(path.iterdir())]
    if kind == 'webp':
        with Image.open(path) as video:
            return [np.asarray(frame.convert('RGBA')) for frame in ImageSequence.Iterator(video)]
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        assert stream.metadata['ALPHA_MODE'] == '1'  # which tells browsers of it
        decoder = av.CodecContext.create('libvpx-vp9', 'r')  # FFmpeg's own decoder leaves out alpha
        return [frame.to_ndarray(format='rgba') for packet in video.demux(stream) for frame in decoder.decode(packet)]


@pytest.mark.parametrize('kind', WITH_ALPHA)
def test_videos_with_alpha(tmp_path, kind):
    path, pictures = video_path(tmp_path, 'a', kind), []
    for i in range(4):
        alpha = np.roll(np.linspace(0, 255, 64), 3 * i).astype(np.uint8)
        pictures.append(np.dstack([ramp(i), np.tile(alpha, (48, 1))]))
    with video_writer(path, kind, 20) as add:
        for picture in pictures:
            add(picture)
    frames = frames_with_alpha(path, kind)
    assert len(frames) == 4
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.abs(frame[..., 3].astype(int) - picture[..., 3]).mean() < 2
        seen = picture[..., 3] > 20  # elsewhere WebP does not keep colors
        assert np.abs(frame[..., :3].astype(int) - picture[..., :3])[seen].mean() < 5


def test_webm_without_alpha(tmp_path):
    with video_writer(tmp_path / 'a.webm', 'webm', 20) as add:
        for i in range(3):
            add(ramp(i))
    facts, frames = read_video(tmp_path / 'a.webm')
    assert facts[:2] == ('vp9', 'yuv420p') and np.abs(frames[2].astype(int) - ramp(2)).mean() < 4


def test_a_folder_of_frames_keeps_what_is_no_frame(tmp_path):
    path = tmp_path / 'a'
    for frames in (3, 1):
        with video_writer(path, 'frames') as add:
            for i in range(frames):
                add(ramp(i))
        (path / 'notes.txt').write_text('mine')
    assert sorted(file.name for file in path.iterdir()) == ['00000.png', 'notes.txt']
    (tmp_path / 'b').write_text('a file')
    with pytest.raises(FileExistsError, match='b'), video_writer(tmp_path / 'b', 'frames'):
        pass
    assert (tmp_path / 'b').read_text() == 'a file'


def test_what_cannot_be_moved_leaves_an_earlier_folder_as_it_was(tmp_path, monkeypatch):
    """As a folder in it that belongs to somebody else."""
    path, rename = tmp_path / 'a', Path.rename
    with video_writer(path, 'frames') as add:
        add(ramp(0))
        add(ramp(1))
    (path / 'theirs').mkdir()
    for name in 'abcdef':
        (path / f'{name}.txt').write_text(name)
    (path / 'theirs' / 'x').write_text('x')

    def contents():
        return {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}

    def guarded(self, target):
        if self.name == 'theirs':
            raise PermissionError(13, 'Permission denied', str(self), None, str(target))
        return rename(self, target)

    before = contents()
    monkeypatch.setattr(Path, 'rename', guarded)
    with pytest.raises(PermissionError) as refused, video_writer(path, 'frames') as add:
        add(ramp(2))
    assert refused.value.filename == str(path / 'theirs') and contents() == before and len(before) == 9


def test_a_stopped_folder_of_an_edited_identity(tmp_path):
    """What follows the dot in its name is no suffix."""
    path = tmp_path / 'sample_video_seed3-shape2+1.5_elipsoid'
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), video_writer(path, 'frames') as add:
            add(ramp(0))
            raise KeyboardInterrupt
    assert sorted(tmp_path.iterdir()) == [path, path.with_name(f'{path.name}_unfinished')]
    assert unfinished_path('a+1.5_b.mp4') == Path('a+1.5_b_unfinished.mp4')


def interrupt_main():
    """Ctrl-C, which then gets the time to arrive."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.2)


@pytest.mark.parametrize('when', ['last frames', 'end'])
def test_an_interrupt_after_the_last_frame_loses_nothing(tmp_path, monkeypatch, when):
    """Of two videos of one recording, each of which replaces an earlier one."""
    paths = [tmp_path / name for name in ('a.mp4', 'b.mp4')]
    for path in paths:
        with video_writer(path) as add:
            add(ramp(0))
    encode, close = video_files._Recording.encode, video_files._Recording.close
    calls, came = [], threading.Event()

    def interrupted_encode(self, frame):
        if when == 'last frames' and frame.max() == 255 and not calls:
            calls.append('encode')
            came.wait(60)  # for the end of the block
            interrupt_main()
        encode(self, frame)

    def interrupted_close(self):
        if when == 'end' and not calls:
            calls.append('close')
            interrupt_main()
        close(self)

    monkeypatch.setattr(video_files._Recording, 'encode', interrupted_encode)
    monkeypatch.setattr(video_files._Recording, 'close', interrupted_close)
    with pytest.raises(KeyboardInterrupt), video_writer(paths[0]) as first, video_writer(paths[1]) as second:
        for i in range(3):
            first(ramp(i))
            second(ramp(i) if i < 2 else np.full_like(ramp(i), 255))
        threading.Timer(0.1, came.set).start()
    assert calls and sorted(tmp_path.iterdir()) == paths
    assert [len(read_video(path)[1]) for path in paths] == [3, 3]

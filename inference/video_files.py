"""Video files written frame by frame: H.264 in mp4, gif, animated webp, VP9 in webm, or a folder of PNGs.

Frames with alpha go into the last three.

Frames are encoded on a thread of their own and dropped then, so memory does not grow with the video. A recording that
is stopped (Ctrl-C) is finished with the frames that it has, but never replaces one that was there before.
"""
import contextlib
import errno
import os
import re
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from options import VIDEO_FORMATS
from utils import QUICK_PNG, UserError, atomic_path

WITH_ALPHA = ('webm', 'webp', 'frames')
CODECS = {'mp4': 'libx264', 'gif': 'gif', 'webp': 'libwebp_anim', 'webm': 'libvpx-vp9'}
CONTAINER_OPTIONS = {'mp4': {'movflags': 'faststart'},          # the index comes first: browsers play while they load
                     'gif': {'loop': '0'}, 'webp': {'loop': '0'}, 'webm': {}}  # 0: for ever
WEBP_QUALITY = 90
# Of VP9: no limit on the size, since crf says how good it is; half the time of the usual settings.
VP9 = {'b': '0', 'deadline': 'good', 'cpu-used': '4', 'row-mt': '1'}
BT709 = 1           # the standard's number for color primaries and transfer (ITU-T H.273)
WAITING_FRAMES = 4  # at most this many are held for the encoder


def video_path(folder, name, file_format):
    """Where a video goes: a file, or a folder for the file_format 'frames'."""
    return Path(folder) / (name if file_format == 'frames' else f'{name}.{file_format}')


def unfinished_path(path):
    """Where a video goes that was stopped, if there is one at `path` already."""
    path = Path(path)
    suffix = '' if path.is_dir() else path.suffix  # what follows a dot in a folder's name belongs to an edit's amount
    return path.with_name(f'{path.name.removesuffix(suffix)}_unfinished{suffix}')


def check_encoder(file_format):
    """Raise UserError where PyAV cannot write this format: builds of FFmpeg differ in the encoders that they have."""
    codec = CODECS.get(file_format)
    if codec:
        try:
            av.codec.Codec(codec, 'w')
        except ValueError:  # PyAV's UnknownCodecError
            others = ', '.join(other for other in VIDEO_FORMATS if other != file_format)
            raise UserError(f'--format {file_format}: the installed PyAV lacks the encoder {codec}; use another format '
                            f'({others}), or install PyAV anew from PyPI (pip install --force-reinstall av).') from None


@contextlib.contextmanager
def video_writer(path, file_format='mp4', fps=30, crf=10):
    """Yield a function that adds one frame, a uint8 array (H,W,3) in RGB, to the video at `path`.

    Frames of a file_format of WITH_ALPHA may be (H,W,4), the last alpha. file_format: of VIDEO_FORMATS. fps: a whole
    number. crf: quality of H.264 and VP9, from 0 (lossless) to 51. Odd sizes of a file get one more row or column, a
    copy of the last, since yuv420p halves them. The video appears when the block ends. When KeyboardInterrupt ends it,
    the frames so far become the video, or go to unfinished_path(path) where there is a video already. When it comes
    after the last frame, the video is finished first. After any other exception, or without a frame, nothing changes.
    Raises UserError for a format that this machine cannot write.
    """
    check_encoder(file_format)
    path, stop, cut = Path(path), None, False

    def target():
        return unfinished_path(path) if cut and path.exists() else path

    recording = _folder(path, target) if file_format == 'frames' else _file(path, target, file_format, fps, crf)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        encode, waiting, frames = stack.enter_context(recording), deque(), 0

        def add(frame):
            nonlocal frames
            frames += 1
            waiting.append(thread.submit(encode, frame))
            while len(waiting) > WAITING_FRAMES:
                waiting.popleft().result()  # raises here what went wrong there

        def finish():
            for encoded in waiting:
                encoded.result()
            stack.close()

        try:
            yield add
        except KeyboardInterrupt as interrupt:
            if frames == 0:
                raise
            # A writer inside of this one may have been interrupted after its last frame, which is that of this one too.
            stop, cut = interrupt, not hasattr(interrupt, 'after_last_frame')
        try:
            # Python raises KeyboardInterrupt in the main thread only, so that it cuts nothing short here, and the end
            # of the block waits for the thread.
            thread.submit(finish).result()
        except KeyboardInterrupt as interrupt:
            if not cut:
                interrupt.after_last_frame = True
            raise
    if stop is not None:
        raise stop


@contextlib.contextmanager
def _folder(path, target):
    """Yield encode(frame) for a folder of numbered PNGs, which is filled under another name and then takes its place.

    Files in an earlier folder that are no frames move into the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    count = 0
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}-', dir=path.parent) as temporary:
        new = Path(temporary) / 'new'
        new.mkdir()

        def encode(frame):
            nonlocal count
            with _errors_name(path / f'{count:05d}.png'):
                Image.fromarray(frame).save(new / f'{count:05d}.png', **QUICK_PNG)
            count += 1

        yield encode
        # Beside the temporary folder, not in it: whatever goes wrong, nothing of the user's is removed with that.
        _replace_folder(target(), new, old=Path(f'{temporary}-earlier'))


def _replace_folder(place, new, old):
    """Rename the folder `new` to `place`. The folder that was there is called `old` meanwhile.

    Its files that are no frames move into the new one. What fails puts everything back. This runs on the encoder's
    thread, where no KeyboardInterrupt comes in between.
    """
    moved = []
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
        for file in [*old.iterdir()] if old.exists() else ():
            if not re.fullmatch(r'\d{5,}\.png', file.name):
                with _errors_name(place / file.name):
                    file.rename(place / file.name)
                moved.append(file)
        if old.exists():
            old.rename(new)  # which is removed with the temporary folder
    except OSError:
        for file in moved:
            (place / file.name).rename(file)
        if old.exists():
            if place.exists():
                place.rename(new)
            old.rename(place)
        raise


@contextlib.contextmanager
def _errors_name(path):
    """An OSError inside names `path`, which the user knows, instead of a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def _file(path, target, file_format, fps, crf):
    """Yield encode(frame) for a video file made by FFmpeg."""
    with atomic_path(path, target) as temporary:
        recording = _Recording(temporary, file_format, fps, crf)
        try:
            yield recording.encode
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong is on its way up already
                recording.container.close()
            raise
        recording.close()


class _Recording:
    """A video file being written; the first frame decides its size."""

    def __init__(self, path, file_format, fps, crf):
        self.file_format, self.fps, self.crf, self.count = file_format, fps, crf, 0
        self.container = av.open(str(path), 'w', format=file_format, options=CONTAINER_OPTIONS[file_format])
        self.stream = self.convert = None

    def encode(self, frame):
        frame = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode='edge')
        if self.stream is None:
            self._begin(*frame.shape)
        kind = 'rgba' if frame.shape[2] == 4 else 'rgb24'
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=kind)
        picture.pts, picture.time_base = self.count, Fraction(1, self.fps)
        self.container.mux(self.stream.encode(self.convert(picture)))
        self.count += 1

    def _begin(self, height, width, channels):
        self.stream = self.container.add_stream(CODECS[self.file_format], rate=self.fps)
        codec = self.stream.codec_context
        codec.width, codec.height = width, height
        if self.file_format == 'gif':
            codec.pix_fmt, self.convert = 'pal8', _palette_filter(height, width, self.fps)
        elif self.file_format == 'webp':
            codec.pix_fmt, codec.options = 'bgra', {'quality': str(WEBP_QUALITY)}
            self.convert = partial(av.VideoFrame.reformat, format='bgra')
        else:
            kind = 'yuva420p' if channels == 4 else 'yuv420p'
            codec.pix_fmt, codec.options = kind, {'crf': str(self.crf)} | (VP9 if self.file_format == 'webm' else {})
            if channels == 4:
                self.stream.metadata['alpha_mode'] = '1'
            codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
            codec.color_primaries = codec.color_trc = BT709
            self.convert = partial(av.VideoFrame.reformat, format=kind, dst_colorspace=Colorspace.ITU709,
                                   dst_color_range=ColorRange.MPEG)

    def close(self):
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()


def _palette_filter(height, width, fps):
    """A function that gives a frame a palette of its own (FFmpeg's palettegen, paletteuse): no second pass needed."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format='rgb24', time_base=Fraction(1, fps))
    split = graph.add('split')
    make, use = graph.add('palettegen', 'stats_mode=single'), graph.add('paletteuse', 'new=1')
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(graph.add('buffersink'))
    graph.configure()

    def convert(picture):
        graph.push(picture)
        return graph.pull()

    return convert

"""The cameras of stills and videos as data: --views, --path, and files of key frames.

A camera looks at the origin from an azimuth and an elevation. Zoom magnifies its picture. Distance moves it nearer or
farther (1 is the sphere that the model was trained on), while the lens keeps what lies at the origin equally large: a
dolly zoom. A file of key frames is a table in CSV with a header of some of these columns; angles are in degrees:

    azimuth,elevation,zoom,distance
    -30,0,1,1
    30,10,1.5,1
    -30,0,1,1

The frames pass the key frames at equal times (or at those of a column `time`) on a smooth curve, which closes smoothly
where the last key frame is the first one again.
"""
import csv
import dataclasses
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from camera import cameras_of, video_viewpoints
from utils import UserError

COLUMNS = {'azimuth': 0., 'elevation': 0., 'zoom': 1., 'distance': 1.}  # and what each is where a file does not say
LIMITS = {'azimuth': (-3600., 3600.), 'elevation': (-89., 89.), 'zoom': (0.1, 20.), 'distance': (0.3, 20.)}
RATIOS = ('zoom', 'distance')  # Equal steps in time are equal ratios of these.
MAX_KEY_FRAMES, MAX_BYTES = 10_000, 1 << 20
CLOSEST = 1e-6  # that two key frames may be in time, as a share of the whole, or of 1 where that is shorter
MAX_NAME = 50   # characters of a file's name in the names of videos
TRAINED_SPREADS = 3  # Viewpoints of training lie within so many standard deviations, but for a few in a thousand.
ELEVATION_OF_ORBIT = 0.


def path_name(path):
    """The name of a --path in the names of videos: elipsoid (as the original spells it), azim, orbit, dolly, or
    path_NAME of a file NAME.csv. Where letters of NAME had to be replaced or left out, a hash of it follows, so that
    the videos of another file do not take its place."""
    built_in = {'ellipse': 'elipsoid', 'azimuth': 'azim', 'orbit': 'orbit', 'dolly': 'dolly'}
    if path in built_in:
        return built_in[path]
    stem = Path(path).stem
    name = re.sub(r'[^A-Za-z0-9]', '-', stem)[:MAX_NAME]
    return f'path_{name}' if name == stem else f'path_{name}-{zlib.crc32(os.fsencode(stem)):08x}'


def path_cameras(opt, path, frames, device):
    """The Cameras of the frames of a video along a --path. Raises UserError for a file of key frames that is none."""
    if path in ('ellipse', 'azimuth'):
        return cameras_of(opt, video_viewpoints(frames, opt.camera.azim, opt.camera.elev, opt.camera.uniform,
                                                path == 'azimuth', device))
    angle = np.linspace(0, 2 * math.pi, frames)
    if path == 'orbit':
        track = track_of(frames, azimuth=np.degrees(angle), elevation=np.full(frames, ELEVATION_OF_ORBIT))
    elif path == 'dolly':
        track = track_of(frames, distance=2 ** -np.sin(angle))
    else:
        track = interpolated(read_key_frames(path), frames)
    nearest, radius = track['distance'].min(), opt.camera.dist_radius
    if nearest <= radius:  # the near plane would lie behind the camera
        raise UserError(f'--path {path}: the camera comes as near to the origin as {nearest:g}, and what this model '
                        f'shows reaches {radius:g} around it (--dist_radius); use a path that stays farther away.')
    return cameras_on(opt, track, device)


def track_of(frames, **columns):
    """{column: (frames,)} with the usual value in all columns that are not given."""
    return {name: columns.get(name, np.full(frames, usual)) for name, usual in COLUMNS.items()}


def cameras_on(opt, track, device):
    """The Cameras of a track, {column: (B,)}."""
    values = {name: torch.tensor(column, dtype=torch.float32, device=device) for name, column in track.items()}
    cameras = cameras_of(opt, torch.deg2rad(torch.stack([values['azimuth'], values['elevation']], dim=1)))
    distance, radius = values['distance'].view(-1, 1, 1), opt.camera.dist_radius
    extrinsics = torch.cat([cameras.extrinsics[..., :3], cameras.extrinsics[..., 3:] * distance], dim=-1)
    return dataclasses.replace(cameras, extrinsics=extrinsics, near=distance - radius, far=distance + radius,
                               focal=cameras.focal * distance * values['zoom'].view(-1, 1, 1))


def interpolated(key_frames, frames):
    """{column: (frames,)} on a smooth curve through key frames {column or 'time': (K,)}, equally spaced in time."""
    from scipy.interpolate import CubicSpline, PchipInterpolator  # takes a while to import, and few paths need it

    time = key_frames['time']
    at = np.linspace(time[0], time[-1], frames)
    columns = {name: key_frames[name] for name in COLUMNS}
    closed = len(time) > 2 and all(column[0] == column[-1] for column in columns.values())
    track = {}
    for name, column in columns.items():
        column = np.log(column) if name in RATIOS else column
        curve = (CubicSpline(time, column, bc_type='periodic') if closed else
                 PchipInterpolator(time, column) if len(time) > 1 else lambda at, column=column: column.repeat(len(at)))
        found = np.exp(curve(at)) if name in RATIOS else curve(at)
        track[name] = found.clip(*LIMITS[name])
    return track


def read_key_frames(path):
    """{column or 'time': (K,)} of a file of key frames. Raises UserError that names the line which will not do."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f'--path {path} is no file; give a table of key frames.')
        if Path(path).stat().st_size > MAX_BYTES:
            raise UserError(f'--path {path} is larger than {MAX_BYTES >> 20} MB; give a table of key frames.')
        text = Path(path).read_text(encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'--path {path}: {error.strerror}; give ellipse, azimuth, orbit, dolly, or a file of key '
                        'frames.') from None
    except ValueError:
        raise UserError(f'--path {path} is no text; give a table of key frames in CSV.') from None
    try:
        rows = list(csv.reader(line for line in text.splitlines() if line.strip() and not line.startswith('#')))
    except csv.Error as error:
        raise UserError(f'--path {path} is no table in CSV ({error}); see docs/video.md.') from None
    header = [name.strip().lower() for name in rows[0]] if rows else []
    known = {'time', *COLUMNS}
    if not set(header) & {'azimuth', 'elevation', 'zoom', 'distance'} or not set(header) <= known \
            or len(set(header)) < len(header):
        raise UserError(f'--path {path}: its first line must name columns, some of {", ".join(COLUMNS)} and time.')
    if not 1 <= len(rows) - 1 <= MAX_KEY_FRAMES:
        raise UserError(f'--path {path} has {len(rows) - 1:,} key frames; give 1 to {MAX_KEY_FRAMES:,}.')
    values = {name: np.array([_value(path, number, name, row[i] if len(row) == len(header) else None)
                              for number, row in enumerate(rows[1:], start=1)]) for i, name in enumerate(header)}
    count = len(rows) - 1
    key_frames = {'time': np.arange(count, dtype=float), **track_of(count), **values}
    least = CLOSEST * max(1., np.ptp(key_frames['time']))  # the curve's slopes would be no finite numbers
    if (np.diff(key_frames['time']) <= least).any():
        raise UserError(f'--path {path}: the times of its key frames must increase, by more than {least:g} each.')
    return key_frames


def _value(path, number, name, text):
    """One number of a table of key frames. number: of the key frame."""
    if text is None:
        raise UserError(f'--path {path}: key frame {number} has another number of columns than the header.')
    low, high = LIMITS.get(name, (-1e9, 1e9))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f'--path {path}: {name} of key frame {number} must be a number from {low:g} to {high:g}, not '
                        f'{text.strip()[:40]!r}.')
    return value


def warn_beyond_training(opt, viewpoints, flag):
    """Say where viewpoints (B,2) lie outside of those that the model was trained on, which it draws badly."""
    reach = TRAINED_SPREADS if not opt.camera.uniform else 1
    for name, angles, spread in zip(('azimuth', 'elevation'), viewpoints.T, (opt.camera.azim, opt.camera.elev),
                                    strict=True):
        farthest, trained = angles.abs().max().item(), reach * spread
        if farthest > trained + 1e-4:
            print(f'{flag} reaches {name} {math.degrees(farthest):.0f} degrees; the model was trained up to about '
                  f'{math.degrees(trained):.0f}, and what it shows beyond may be wrong.')

"""Maps of a surface as a camera sees it: depth, normals, mask and positions, one number or three for each pixel.

    depth     of the expected surface point, along the camera's axis, in the world's unit
    normal    unit vectors in the camera's frame: x right, y up, z toward the camera
    mask      1 where there is a surface, 0 in the background: 1 less the background's weight
    position  of the expected surface point, in the world

They are taken from the field alone. In files of whole numbers a range is stretched over all values of 16 bits.
"""
import io

import av
import numpy as np
import torch

from surfaces.shading import grid_normals
from utils import UserError, atomic_path

CHANNELS = {'depth': 1, 'normal': 3, 'mask': 1, 'position': 3}
FORMATS = ('png', 'exr', 'npy')
CODECS = {'png': {1: 'gray16be', 3: 'rgb48be'}, 'exr': {1: 'grayf32le', 3: 'gbrpf32le'}}
LARGEST = 65535  # of 16 bits


def map_of(kind, surface, camera):
    """(H,W) or (H,W,3) float32 numbers of a kind of CHANNELS, from the Rendering of one view by one camera."""
    rotation, position = camera.extrinsics[0, :, :3], camera.extrinsics[0, :, 3]
    if kind == 'depth':
        values = torch.einsum('i,ihw->hw', rotation[:, 2], position[:, None, None] - surface.xyz[0])
    elif kind == 'normal':
        values = torch.einsum('ij,ihw->hwj', rotation, grid_normals(surface.xyz[0]))
    elif kind == 'mask':
        values = (1 - surface.background[0, 0]).clamp(0, 1)
    else:
        values = surface.xyz[0].movedim(0, -1)
    return values.float().cpu().numpy()


def map_range(kind, near, far, half_width):
    """(lowest, highest) number of a kind of map. near, far: depths of the planes. half_width: of what the camera sees
    at the far one."""
    if kind == 'depth':
        return near, far
    if kind == 'position':
        reach = (max(1 - near, far - 1) ** 2 + 2 * half_width ** 2) ** 0.5
        return -reach, reach
    return (0., 1.) if kind == 'mask' else (-1., 1.)


def check_map_format(suffix):
    """Raise UserError where PyAV cannot write this format: builds of FFmpeg differ in the encoders that they have."""
    if suffix in CODECS:
        try:
            av.codec.Codec(suffix, 'w')
        except ValueError:  # PyAV's UnknownCodecError
            raise UserError(f'--map_format {suffix}: the installed PyAV lacks this encoder; use --map_format npy, or '
                            'install PyAV anew from PyPI (pip install --force-reinstall av).') from None


def save_map(path, values, low, high):
    """Write numbers (H,W) or (H,W,3) atomically in the format of the path's suffix.

    PNG: 16 bits, 0 for `low` and 65535 for `high`. EXR and NPY: 32-bit floats as they are.
    """
    with atomic_path(path) as temporary:
        if temporary.suffix == '.npy':
            file = io.BytesIO()  # to a file itself NumPy writes without saying why it cannot
            np.save(file, values)
            temporary.write_bytes(file.getbuffer())
            return
        if temporary.suffix == '.png':
            values = np.rint(((values - low) / (high - low)).clip(0, 1) * LARGEST).astype(np.uint16)
        temporary.write_bytes(encoded(values, temporary.suffix[1:]))


def encoded(values, codec):
    """The bytes of a picture of uint16 or float32 numbers (H,W) or (H,W,3) by an encoder of CODECS."""
    kind = CODECS[codec][1 if values.ndim == 2 else 3]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format=kind)
    context = av.CodecContext.create(codec, 'w')
    context.height, context.width = values.shape[:2]
    context.pix_fmt, context.time_base = kind, 1
    if codec == 'exr':
        context.options = {'format': 'float', 'compression': 'zip16'}
    return b''.join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])

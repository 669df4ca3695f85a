"""What the page of results holds inside itself: pictures as data: URIs, and meshes small enough for a phone."""
import base64
import contextlib
import gzip
import io
import math
import warnings

import av
import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from camera import project
from surfaces.files import for_gltf
from surfaces.shading import shade_surface
from surfaces.textured_files import load_textured, textured_glb
from utils import to_uint8

PICTURE_SIZE = 512      # pixels along a side
PICTURE_QUALITY = 90    # WebP
TEXTURE_SIZE = 1024     # of the longer side of a texture, in pixels
LOSSLESS_SIZE = 128     # smaller pictures are kept without loss
POSITIONS, NORMALS = 2. ** -16, 2. ** -6  # steps that coordinates and normals are rounded to, for compression
MOST_PIXELS = 1 << 27     # of a picture that is read: our rows are up to 1 << 17 wide, mostly less than 1024 high
COMPRESSION = 6         # of gzip: the highest, 9, takes four times as long for 1% fewer bytes
PLASTER = (0.32, 0.31, 0.29, 1.)          # the color of a surface without colors of its own, red, green, blue, alpha


def data_uri(kind, data):
    """Bytes as a data: URI of a media type."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def picture_uri(image):
    """A PIL image as a data: URI, no larger than PICTURE_SIZE; small ones without loss."""
    small = max(image.size) <= LOSSLESS_SIZE
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, 'webp', lossless=small, quality=PICTURE_QUALITY)
    return data_uri('image/webp', file.getvalue())


def first_frame(path):
    """The first frame of a video file as a data: URI, or None where it cannot be decoded."""
    try:
        with av.open(str(path)) as video:
            return picture_uri(next(video.decode(video=0)).to_image())
    except (OSError, ValueError, IndexError, StopIteration, av.error.FFmpegError):
        return None


@contextlib.contextmanager
def opened_picture(path):
    """Yield the PIL image in a file. Raises ValueError for one of more than MOST_PIXELS, before it is unpacked."""
    with warnings.catch_warnings():  # Pillow's own limit is below the rows that generation writes
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        picture = Image.open(path)
    with picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f'it has more than {MOST_PIXELS >> 20} million pixels')
        yield picture


def pictures_of_row(path, count):
    """The `count` square pictures that stand side by side in a file, as data: URIs. Raises ValueError for huge ones."""
    with opened_picture(path) as row:
        width = row.width // count
        return [picture_uri(row.crop((i * width, 0, (i + 1) * width, row.height))) for i in range(count)]


def compact_mesh(mesh, triangles, camera=None):
    """A mesh of at most about so many triangles as gzipped GLB in base64: quadric error decimation, rounded numbers.

    camera: of a depth mesh's view; gives texture coordinates, which lay that view's picture on the mesh. Vertex colors
    are kept; they and the normals are those of the nearest vertices of the full mesh.
    """
    reduced = mesh.simplify_quadric_decimation(face_count=triangles) if len(mesh.faces) > triangles else mesh
    # Normals computed from the reduced triangles, some of which are slivers, would be worse than the full mesh's.
    nearest = cKDTree(mesh.vertices).query(reduced.vertices)[1]
    small = trimesh.Trimesh(np.round(reduced.vertices / POSITIONS) * POSITIONS, reduced.faces, process=False,
                            vertex_normals=np.round(mesh.vertex_normals[nearest] / NORMALS) * NORMALS)
    if mesh.visual.kind == 'vertex':
        small.visual = trimesh.visual.ColorVisuals(small, vertex_colors=mesh.visual.vertex_colors[nearest])
        # PLASTER multiplies the colors, since the viewer's light is chosen for it.
        small = for_gltf(small, baseColorFactor=PLASTER)
    else:
        uv = None
        if camera is not None:
            pixels, _ = project(torch.from_numpy(np.array(small.vertices)).float(), camera, 1)
            uv = (pixels * torch.tensor([1., -1.]) + torch.tensor([0., 1.])).numpy()  # v counts from below
        small.visual = trimesh.visual.TextureVisuals(uv=uv, material=trimesh.visual.material.PBRMaterial(
            baseColorFactor=PLASTER, metallicFactor=0., roughnessFactor=0.7, doubleSided=True))
    glb = trimesh.exchange.gltf.export_glb(trimesh.Scene(small), include_normals=True, unitize_normals=False)
    return base64.b64encode(gzip.compress(glb, COMPRESSION, mtime=0)).decode()


def compact_textured(path, most):
    """The mesh with a texture in a GLB file as gzipped GLB in base64, with rounded numbers and the texture as JPEG.

    None where it is not shown: where it is damaged, or takes more than `most` bytes.
    """
    mesh = load_textured(path)
    if mesh is None:
        return None
    texture, file = mesh.visual.material.baseColorTexture.convert('RGB'), io.BytesIO()
    texture.thumbnail((TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.LANCZOS)
    texture.save(file, 'jpeg', quality=PICTURE_QUALITY)
    small = trimesh.Trimesh(np.round(mesh.vertices / POSITIONS) * POSITIONS, mesh.faces, process=False,
                            vertex_normals=np.round(mesh.vertex_normals / NORMALS) * NORMALS)
    small.visual = trimesh.visual.TextureVisuals(uv=np.round(mesh.visual.uv / POSITIONS) * POSITIONS, material=trimesh.
                                                 visual.material.PBRMaterial(baseColorTexture=Image.open(file)))
    glb = base64.b64encode(gzip.compress(textured_glb(small), COMPRESSION, mtime=0)).decode()
    return glb if len(glb) <= most else None


def depth_picture(mesh, camera):
    """Depth of a view from its depth mesh, as a data: URI: white at the near plane, black at the far one."""
    size = math.isqrt(len(mesh.vertices))
    xyz = torch.from_numpy(np.array(mesh.vertices)).float().T.reshape(3, size, size)
    shaded = shade_surface(xyz, torch.zeros(1, size, size), camera, 'depth', size=2 * size)
    return picture_uri(Image.fromarray(to_uint8(shaded)).convert('L'))

"""Mesh files, and the colors of their vertices."""
import io
import json
import re
from pathlib import Path

import numpy as np
import torch
import trimesh

from utils import UserError, atomic_path, shortened

FARTHEST = 1e6  # from the origin that a vertex of a mesh may lie; ours lie within 2
# Of a GLB; ours have up to 1, 1, 1, 1, 5 and 6.
MOST_PARTS = {'meshes': 1, 'materials': 1, 'textures': 1, 'images': 1, 'accessors': 8, 'bufferViews': 8}
UNLIT = 'KHR_materials_unlit'  # the only extension of glTF that our files use
# What trimesh writes at the beginning of a PLY: vertices, with normals or colors, then triangles.
PLY_HEADER = re.compile(rb'ply\nformat binary_little_endian 1\.0\n(?:comment .*\n)*element vertex \d+\n'
                        rb'(?:property (?:float|double|uchar) [a-z]{1,5}\n){3,10}element face \d+\n'
                        rb'property list uchar u?int vertex_ind(?:ex|ices)\nend_header\n')


@torch.no_grad()
def color_vertices(mesh, renderer, w, camera, points, viewdirs):
    """Give a mesh the field's own colors at points (P,3), the world positions of its vertices, seen along viewdirs.

    viewdirs: (P,3) unit vectors. camera: one camera, for the scale of the points.
    """
    colors = renderer.color_at(w, points, viewdirs, camera)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=(colors * 255).round().byte().cpu().numpy())
    return mesh


def srgb_to_linear(colors):
    """Light intensities in [0, 1] from sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light):
    """The inverse of srgb_to_linear."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def for_gltf(mesh, **material):
    """A copy of a mesh that glTF files, and viewers that are built on glTF, show as it is meant.

    glTF takes vertex colors as linear (glTF 2.0, section 3.7.2.1), not as sRGB like other files; in 8 bits the darkest
    become a little coarse. It shows a mesh without a material as metal (section 5.19), so the copy gets a matte one.
    material: further arguments of trimesh's PBRMaterial.
    """
    visual = trimesh.visual.TextureVisuals(material=trimesh.visual.material.PBRMaterial(
        metallicFactor=0., roughnessFactor=1., **material))
    if mesh.visual.kind == 'vertex':
        colors = mesh.visual.vertex_colors.copy()
        colors[:, :3] = np.rint(255 * srgb_to_linear(colors[:, :3] / 255))
        visual.vertex_attributes['color'] = colors
    mesh = mesh.copy(include_cache=True)  # normals that were given are in it
    mesh.visual = visual
    return mesh


def obj_lines(numbers, line):
    """The text of a line for each row of `numbers` (n,k), formatted by `line`: all at once, which is much quicker."""
    return (line * len(numbers)) % tuple(numbers.ravel().tolist())


def save_obj(path, mesh):
    """Write a mesh as a Wavefront OBJ file: vertices, with colors in [0, 1] behind them if there are any, and faces."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if mesh.visual.kind == 'vertex':
        vertices = np.concatenate([vertices, mesh.visual.vertex_colors[:, :3] / 255], axis=1)
    with open(path, 'w', encoding='ascii') as file:
        file.write(obj_lines(vertices, f'v{" %.8f" * vertices.shape[1]}\n'))
        file.write(obj_lines(np.asarray(mesh.faces) + 1, 'f %d %d %d\n'))


def check_mesh(mesh):
    """Raise ValueError for something that trimesh read and that cannot be drawn."""
    if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces) or not len(mesh.vertices):
        raise ValueError('it has no triangles')
    if not np.isfinite(mesh.vertices).all():
        raise ValueError('a vertex lies nowhere: a coordinate is no finite number')
    if np.abs(mesh.vertices).max() > FARTHEST:
        raise ValueError('a vertex lies too far away')
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise ValueError('a triangle has a vertex that is not there')


def check_glb(data):
    """Raise ValueError for the bytes of a GLB that would take far more memory than they are.

    glTF counts numbers that no buffer holds as zeros, so a file of a hundred bytes could ask for gigabytes. So could a
    small one whose parts all name the same bytes, because trimesh copies them for each part, and a mesh for each node;
    or one whose numbers overlap (byteStride). What trimesh makes of extensions may be larger than the file too: it
    computes with the pictures of one.
    """
    length = int.from_bytes(data[12:16], 'little')
    tree = json.loads(data[20:20 + length], object_hook=_without_extensions)
    primitives = [primitive for mesh in tree.get('meshes', ()) for primitive in mesh['primitives']]
    attributes = sum(len(primitive['attributes']) for primitive in primitives)
    shown = sum('mesh' in node for node in tree.get('nodes', ()))
    if (max(len(primitives), shown) > 1 or attributes > MOST_PARTS['accessors']
            or any(len(tree.get(part, ())) > most for part, most in MOST_PARTS.items())):
        raise ValueError('it holds more parts than one mesh needs')
    if any('byteStride' in view for view in tree.get('bufferViews', ())):
        raise ValueError('its numbers do not lie one after the other')
    for accessor in tree.get('accessors', ()):
        if 'bufferView' not in accessor or not 0 <= accessor['count'] <= len(data):
            raise ValueError('it claims more numbers than it holds')


def _without_extensions(part):
    """A dict of a GLB's JSON as it is. Raises ValueError where it uses an extension but UNLIT."""
    if not set(part.get('extensions', ())) <= {UNLIT}:
        raise ValueError('it uses extensions of glTF')
    return part


def check_ply(data):
    """Raise ValueError for the bytes of a PLY that has another header than ours.

    What trimesh needs for a text grows with the square of its size where rows differ in length, and for a header with
    that of the number of properties.
    """
    if not PLY_HEADER.match(data):
        raise ValueError('its header is not that of a mesh that was written here')


def without_materials(data):
    """The bytes of an OBJ without the lines that choose a material.

    trimesh copies all vertices for each material, so a small file could take minutes and gigabytes.
    """
    # It joins lines that end in a backslash, and only then looks for materials.
    text = data.decode('ascii', 'ignore').replace('\r\n', '\n').replace('\\\n', '').replace('\\', '')
    return '\n'.join(line for line in text.split('\n') if 'usemtl' not in line).encode()


def save_mesh(path, mesh):
    """Write a mesh atomically in the format of the path's suffix (.obj, .ply, .glb)."""
    with atomic_path(path) as temporary:
        if temporary.suffix == '.obj':
            save_obj(temporary, mesh)
        elif temporary.suffix == '.glb':
            for_gltf(mesh).export(temporary)
        else:
            mesh.export(temporary)


def load_mesh(path):
    """The mesh in a file, its vertices in the file's order; vertex colors are sRGB, as save_mesh took them.

    Nothing else is read, whatever other files the file names. Raises UserError for a file that holds no usable mesh.
    """
    suffix = Path(path).suffix
    try:
        data = Path(path).read_bytes()
        if suffix == '.glb':
            check_glb(data)
        elif suffix == '.ply':
            check_ply(data)
        elif suffix == '.obj':
            data = without_materials(data)
        # trimesh does not know where bytes lie, and so cannot look around there. Where there is a material too, it
        # would drop the vertex colors.
        mesh = trimesh.load_mesh(io.BytesIO(data), file_type=suffix[1:], process=False, maintain_order=True,
                                 skip_materials=True)
        check_mesh(mesh)
    except Exception as error:  # each of trimesh's readers fails in its own way
        reason = shortened(error) or type(error).__name__
        raise UserError(f'{path} is not a mesh that can be read ({reason}); remove it, or generate it again.') from None
    if suffix == '.glb' and mesh.visual.kind == 'vertex':
        colors = mesh.visual.vertex_colors.copy()
        colors[:, :3] = np.rint(255 * linear_to_srgb(colors[:, :3] / 255))
        mesh.visual.vertex_colors = colors
    return mesh

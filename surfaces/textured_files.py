"""Files of meshes with a texture: GLB, and OBJ with MTL and PNG.

A texture is a picture that was lit when it was painted. So the GLB's material is `unlit`, which programs show as it is
(glTF extension KHR_materials_unlit; those that do not know it shade a matte surface). The OBJ's material says so too
(`illum 0`), but few programs obey.
"""
import io
from pathlib import Path

import numpy as np
import trimesh

from surfaces.camera_files import add_gltf_cameras
from surfaces.files import UNLIT, check_glb, check_mesh, obj_lines
from utils import atomic_path

MOST_TEXELS = 1 << 14  # along a side of a texture that is read


def textured_glb(mesh, cameras=()):
    """The bytes of a GLB file of a mesh with a texture. cameras: camera_entries that go into the file."""
    def finish(tree):
        for material in tree['materials']:
            material.setdefault('extensions', {})[UNLIT] = {}
        tree['extensionsUsed'] = [*tree.get('extensionsUsed', ()), UNLIT]
        add_gltf_cameras(tree, cameras)

    return trimesh.exchange.gltf.export_glb(trimesh.Scene(mesh), include_normals=True, tree_postprocessor=finish)


def save_textured_glb(path, mesh, cameras=()):
    """Write a mesh with a texture as GLB, atomically. cameras: camera_entries that go into the file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(textured_glb(mesh, cameras))


def save_textured_obj(path, mesh):
    """Write a mesh with a texture as OBJ, and beside it MTL and PNG of the same name, atomically; the OBJ comes last.
    """
    path = Path(path)
    picture, material = path.with_suffix('.png'), path.with_suffix('.mtl')
    with atomic_path(picture) as temporary:
        mesh.visual.material.baseColorTexture.save(temporary)
    with atomic_path(material) as temporary:
        temporary.write_text(f'newmtl picture\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 0\nmap_Kd {picture.name}\n',
                             encoding='utf-8')
    with atomic_path(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        file.write(f'mtllib {material.name}\nusemtl picture\n')
        file.write(obj_lines(np.asarray(mesh.vertices, dtype=np.float64), 'v %.8f %.8f %.8f\n'))
        file.write(obj_lines(np.asarray(mesh.visual.uv, dtype=np.float64), 'vt %.7f %.7f\n'))
        file.write(obj_lines(np.asarray(mesh.vertex_normals, dtype=np.float64), 'vn %.5f %.5f %.5f\n'))
        file.write(obj_lines(np.repeat(np.asarray(mesh.faces) + 1, 3, axis=1), f'f{" %d/%d/%d" * 3}\n'))


def load_textured(path):
    """The mesh in a GLB with a texture, or None where there is none that can be shown.

    No other file is read, whatever the file names.
    """
    try:
        data = Path(path).read_bytes()
        check_glb(data)
        # trimesh does not know where bytes lie, and so cannot look around there.
        scene = trimesh.load(io.BytesIO(data), file_type='glb', process=False)
        # As a Scene it comes without a copy, for which trimesh would unpack the pictures, whatever their size.
        node, = scene.graph.nodes_geometry
        matrix, name = scene.graph[node]
        mesh = scene.geometry[name].apply_transform(matrix)
        check_mesh(mesh)
        picture = mesh.visual.material.baseColorTexture
        if len(mesh.visual.uv) != len(mesh.vertices):
            return None
        return mesh if max(picture.size) <= MOST_TEXELS else None
    except Exception:  # each of trimesh's readers fails in its own way
        return None

"""Mesh files: what is written comes back, and GLB as glTF wants it."""
import json

import numpy as np
import pytest
import trimesh

from surfaces.files import load_mesh, save_mesh


@pytest.mark.parametrize('suffix', ['obj', 'ply', 'glb'])
def test_mesh_files(tmp_path, suffix):
    mesh = trimesh.creation.icosphere(subdivisions=1)
    colors = np.random.default_rng(0).integers(0, 256, (len(mesh.vertices), 3), dtype=np.uint8)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
    save_mesh(tmp_path / f'a.{suffix}', mesh)
    loaded = load_mesh(tmp_path / f'a.{suffix}')
    assert np.allclose(loaded.vertices, mesh.vertices, atol=1e-6) and np.array_equal(loaded.faces, mesh.faces)
    difference = np.abs(loaded.visual.vertex_colors[:, :3].astype(int) - colors)
    assert difference.max() <= (7 if suffix == 'glb' else 0)  # linear colors in 8 bits are coarse where it is dark
    assert difference[colors > 64].max() <= 1
    assert np.array_equal(mesh.visual.vertex_colors[:, :3], colors)  # it stays as it was
    assert [path.name for path in tmp_path.iterdir()] == [f'a.{suffix}']


def glb_parts(path):
    """(JSON, binary chunk) of a GLB file (glTF 2.0, section 4.4)."""
    data = path.read_bytes()
    assert data[:8] == b'glTF' + (2).to_bytes(4, 'little')
    length = int.from_bytes(data[12:16], 'little')
    return json.loads(data[20:20 + length]), data[28 + length:]


def test_glb_colors_are_linear_and_matte(tmp_path):
    """Read from the file itself: half as much light as white is sRGB 188, and mid gray is a fifth of it."""
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 2], [0, 3, 1]], process=False)
    colors = [[0, 255, 128], [188, 10, 64], [255, 255, 255], [0, 0, 0]]
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.array(colors, dtype=np.uint8))
    save_mesh(tmp_path / 'a.glb', mesh)
    tree, data = glb_parts(tmp_path / 'a.glb')
    primitive = tree['meshes'][0]['primitives'][0]
    accessor = tree['accessors'][primitive['attributes']['COLOR_0']]
    assert (accessor['componentType'], accessor['type'], accessor['normalized']) == (5121, 'VEC4', True)
    start = tree['bufferViews'][accessor['bufferView']].get('byteOffset', 0) + accessor.get('byteOffset', 0)
    stored = np.frombuffer(data, np.uint8, 16, start).reshape(4, 4)
    assert stored.tolist() == [[0, 255, 55, 255], [128, 1, 13, 255], [255, 255, 255, 255], [0, 0, 0, 255]]


@pytest.mark.parametrize('colored', [True, False])
def test_glb_is_no_metal(tmp_path, colored):
    mesh = trimesh.creation.icosphere(subdivisions=1)
    if colored:
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.full((len(mesh.vertices), 3), 90, np.uint8))
    save_mesh(tmp_path / 'a.glb', mesh)
    tree, _ = glb_parts(tmp_path / 'a.glb')
    primitive = tree['meshes'][0]['primitives'][0]
    material = tree['materials'][primitive['material']]['pbrMetallicRoughness']
    assert (material['metallicFactor'], material['roughnessFactor']) == (0, 1)  # both are 1 where they are not given
    assert ('COLOR_0' in primitive['attributes']) == colored

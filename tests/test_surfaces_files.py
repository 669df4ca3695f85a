"""Mesh files: what is written comes back, GLB is as glTF wants it, and damaged files are refused."""
import contextlib
import json
import struct

import numpy as np
import pytest
import trimesh

from surfaces.files import UNLIT, load_mesh, save_mesh
from utils import UserError


def good_meshes(folder):
    """The bytes of a small mesh in each format."""
    for suffix in ('obj', 'ply', 'glb'):
        save_mesh(folder / f'good.{suffix}', trimesh.creation.icosphere(subdivisions=1))
    return {suffix: (folder / f'good.{suffix}').read_bytes() for suffix in ('obj', 'ply', 'glb')}


@pytest.mark.parametrize('suffix', ['obj', 'ply', 'glb'])
@pytest.mark.parametrize('damage', [
    lambda data: b'', lambda data: data[:1000], lambda data: data[:-len(data) // 2], lambda data: bytes(range(256)) * 9,
    lambda data: b'v 0 0 0\nv 1 0 0\n', lambda data: b'v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n',
    lambda data: b'v 0 nan 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n', lambda data: b'v 0 1e30 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n'])
def test_damaged_mesh_files_end_in_one_sentence(tmp_path, suffix, damage):
    (tmp_path / f'a.{suffix}').write_bytes(damage(good_meshes(tmp_path)[suffix]))
    with pytest.raises(UserError, match=f'a.{suffix} is not a mesh that can be read'):
        load_mesh(tmp_path / f'a.{suffix}')


def glb_of(tree, data):
    """The bytes of a GLB file (glTF 2.0, section 4.4)."""
    text = json.dumps(tree).encode()
    text += b' ' * (-len(text) % 4)
    return (b'glTF' + struct.pack('<II', 2, 20 + len(text) + 8 + len(data)) + struct.pack('<I', len(text)) + b'JSON'
            + text + struct.pack('<I', len(data)) + b'BIN\0' + data)


@pytest.mark.parametrize('accessor', [{'count': 2 * 10 ** 9}, {'count': 2 * 10 ** 9, 'bufferView': 0}])
def test_a_glb_costs_no_more_than_its_size(tmp_path, accessor):
    """glTF counts numbers that no buffer holds as zeros."""
    tree = {'asset': {'version': '2.0'}, 'accessors': [{'componentType': 5126, 'type': 'VEC3'} | accessor],
            'bufferViews': [{'buffer': 0, 'byteLength': 4}], 'buffers': [{'byteLength': 4}],
            'meshes': [{'primitives': [{'attributes': {'POSITION': 0}}]}], 'nodes': [{'mesh': 0}], 'scenes': [
                {'nodes': [0]}], 'scene': 0}
    (tmp_path / 'a.glb').write_bytes(glb_of(tree, bytes(4)))
    with pytest.raises(UserError, match='claims more numbers than it holds'):
        load_mesh(tmp_path / 'a.glb')


def with_more_nodes(tree):
    tree['nodes'] += [{'mesh': 0}] * 9
    tree['scenes'][0]['nodes'] = list(range(len(tree['nodes'])))


def with_more_attributes(tree):
    attributes = tree['meshes'][0]['primitives'][0]['attributes']
    attributes |= {f'_A{i}': attributes['POSITION'] for i in range(9)}


def with_more(tree, part):
    tree[part] += tree[part][:1] * 9


def other_files(path):
    """The bytes of a GLB file in which more parts than there should be name the same bytes."""
    tree, data = glb_parts(path)
    parts = [part for part in ('meshes', 'accessors', 'bufferViews', 'materials', 'textures', 'images') if part in tree]
    changes = [with_more_nodes, with_more_attributes, lambda tree: with_more(tree['meshes'][0], 'primitives'),
               *(lambda tree, part=part: with_more(tree, part) for part in parts)]
    for change in changes:
        tree, data = glb_parts(path)
        change(tree)
        yield glb_of(tree, data)


def test_a_glb_costs_no_more_for_naming_its_bytes_often(tmp_path):
    save_mesh(tmp_path / 'a.glb', trimesh.creation.icosphere(subdivisions=1))
    (tmp_path / 'b.glb').write_bytes(glb_of(*glb_parts(tmp_path / 'a.glb')))
    assert len(load_mesh(tmp_path / 'b.glb').faces) == 80
    files = list(other_files(tmp_path / 'a.glb'))
    assert len(files) == 7
    for data in files:
        (tmp_path / 'b.glb').write_bytes(data)
        with pytest.raises(UserError, match='holds more parts than one mesh needs'):
            load_mesh(tmp_path / 'b.glb')


def test_the_numbers_of_a_glb_do_not_overlap(tmp_path):
    """trimesh would unpack 64 bytes for each."""
    save_mesh(tmp_path / 'a.glb', trimesh.creation.icosphere(subdivisions=1))
    tree, data = glb_parts(tmp_path / 'a.glb')
    tree['bufferViews'].append({'buffer': 0, 'byteLength': len(data), 'byteStride': 1})
    tree['accessors'].append({'bufferView': len(tree['bufferViews']) - 1, 'componentType': 5126, 'type': 'MAT4',
                              'count': len(data) - 63})
    (tmp_path / 'a.glb').write_bytes(glb_of(tree, data))
    with pytest.raises(UserError, match='do not lie one after the other'):
        load_mesh(tmp_path / 'a.glb')


@pytest.mark.parametrize('part', ['materials', 'nodes', 'primitives'])
def test_a_glb_uses_no_extension_but_ours(tmp_path, part):
    save_mesh(tmp_path / 'a.glb', trimesh.creation.icosphere(subdivisions=1))
    for name, refused in ((UNLIT, False), ('KHR_materials_pbrSpecularGlossiness', True)):
        tree, data = glb_parts(tmp_path / 'a.glb')
        (tree['meshes'][0] if part == 'primitives' else tree)[part][0]['extensions'] = {name: {}}
        (tmp_path / 'b.glb').write_bytes(glb_of(tree, data))
        with pytest.raises(UserError, match='it uses extensions') if refused else contextlib.nullcontext():
            load_mesh(tmp_path / 'b.glb')


@pytest.mark.parametrize('header', [
    'format ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n',
    'format binary_little_endian 1.0\nelement vertex 3\n' + ''.join(f'property char a{i}\n' for i in range(99)),
    'format binary_little_endian 1.0\nelement vertex 3\n' + 'property list uchar int x\n' * 3,
    'format binary_little_endian 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n'
    + 'element edge 1\nproperty int vertex1\n'])
def test_a_ply_has_our_header(tmp_path, header):
    """What trimesh reads of others may cost the square of their size."""
    (tmp_path / 'a.ply').write_text(f'ply\n{header}element face 1\nproperty list uchar int vertex_indices\nend_header\n'
                                    '0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n')
    with pytest.raises(UserError, match='its header is not that of a mesh that was written here'):
        load_mesh(tmp_path / 'a.ply')


@pytest.mark.parametrize('line', ['usemtl m{}', '# usemtl m{}', 'use\\\nmtl m{}', 'use\\\\\n\nmtl m{}',
                                  'use\\\r\nmtl m{}'])
def test_an_obj_costs_no_more_for_its_materials(tmp_path, line):
    """trimesh copies all vertices for each."""
    vertices = [[i, i % 7, 0] for i in range(90)]
    lines = ['mtllib a.mtl', *('v {} {} {}'.format(*vertex) for vertex in vertices)]
    for i in range(1, 90, 3):
        lines += [line.format(i), f'f {i} {i + 1} \\\n{i + 2}']
    (tmp_path / 'a.obj').write_text('\n'.join(lines), newline='')
    mesh = load_mesh(tmp_path / 'a.obj')
    assert mesh.vertices.tolist() == vertices and mesh.faces.ravel().tolist() == list(range(90))


def test_a_mesh_file_cannot_have_other_files_read(tmp_path):
    """Not the buffers that a GLB keeps elsewhere, nor the materials of an OBJ."""
    (tmp_path / 'inner').mkdir()
    mesh = trimesh.creation.icosphere(subdivisions=1)
    buffers = trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh))
    for name, data in buffers.items():
        (tmp_path / name).write_bytes(data)
    tree = json.loads(buffers['model.gltf'])
    for buffer in tree['buffers']:
        buffer['uri'] = '../' + buffer['uri']
    text = json.dumps(tree).encode()
    text += b' ' * (-len(text) % 4)
    head = b'glTF' + (2).to_bytes(4, 'little') + (20 + len(text)).to_bytes(4, 'little')
    (tmp_path / 'inner/a.glb').write_bytes(head + len(text).to_bytes(4, 'little') + b'JSON' + text)
    with pytest.raises(UserError, match='a.glb is not a mesh'):
        load_mesh(tmp_path / 'inner/a.glb')
    (tmp_path / 'inner/a.obj').write_text('mtllib ../../etc/passwd\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n')
    assert len(load_mesh(tmp_path / 'inner/a.obj').faces) == 1


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


@pytest.mark.parametrize('colored', [True, False])
def test_obj_text_is_trimeshs(tmp_path, colored):
    mesh = trimesh.creation.icosphere(subdivisions=2)
    if colored:
        colors = np.random.default_rng(0).integers(0, 256, (len(mesh.vertices), 3), dtype=np.uint8)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
    save_mesh(tmp_path / 'a.obj', mesh)
    expected = mesh.export(file_type='obj', include_normals=False, include_texture=False, header=None)
    assert (tmp_path / 'a.obj').read_text().split() == expected.split()


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

"""Files of meshes with a texture, opened by trimesh and Pillow."""
import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image, ImageFile
from test_surfaces_files import glb_of, glb_parts, other_files

from camera import cameras_at
from surfaces.camera_files import camera_entries
from surfaces.textured_files import UNLIT, load_textured, save_textured_glb, save_textured_obj


@pytest.fixture
def mesh():
    """A ball with a texture, a picture in which red grows to the right and green downwards, and normals of its own."""
    ball = trimesh.creation.icosphere(subdivisions=2)
    mesh = trimesh.Trimesh(ball.vertices, ball.faces, process=False, vertex_normals=-ball.vertices)
    picture = np.stack([*np.meshgrid(np.arange(64) * 4, np.arange(32) * 8), np.full((32, 64), 7)], axis=-1)
    mesh.visual = trimesh.visual.TextureVisuals(uv=ball.vertices[:, :2] / 2 + 0.5, material=trimesh.visual.material.
                                                PBRMaterial(baseColorTexture=Image.fromarray(picture.astype(np.uint8))))
    return mesh


def test_obj_mtl_and_png(tmp_path, mesh):
    save_textured_obj(tmp_path / 'a.obj', mesh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.mtl', 'a.obj', 'a.png']
    loaded = trimesh.load(tmp_path / 'a.obj', process=False, maintain_order=True)
    assert np.allclose(loaded.vertices, mesh.vertices, atol=1e-7) and np.array_equal(loaded.faces, mesh.faces)
    assert np.allclose(loaded.visual.uv, mesh.visual.uv, atol=1e-6)
    assert np.allclose(loaded.vertex_normals, mesh.vertex_normals, atol=1e-4)  # those of the file
    expected = np.asarray(mesh.visual.material.baseColorTexture)
    assert np.array_equal(np.asarray(loaded.visual.material.image.convert('RGB')), expected)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'a.png')), expected)


def test_glb_with_cameras(tmp_path, mesh):
    cameras = cameras_at(torch.tensor([[0.3, 0.2], [-0.4, 0.1]]), 64, fov=7.)
    save_textured_glb(tmp_path / 'a.glb', mesh, camera_entries(cameras, ['first', 'second'], 128, 64))
    loaded = trimesh.load(tmp_path / 'a.glb', process=False)
    shown, = loaded.geometry.values()
    assert np.allclose(shown.vertices, mesh.vertices, atol=1e-6) and np.array_equal(shown.faces, mesh.faces)
    assert np.allclose(shown.visual.uv, mesh.visual.uv, atol=1e-6)
    assert np.allclose(shown.vertex_normals, mesh.vertex_normals, atol=1e-4)
    assert np.array_equal(np.asarray(shown.visual.material.baseColorTexture.convert('RGB')),
                          np.asarray(mesh.visual.material.baseColorTexture))
    assert np.allclose(loaded.camera.fov, 14) and np.allclose(loaded.camera_transform[:3], cameras.extrinsics[1])
    tree, _ = glb_parts(tmp_path / 'a.glb')
    assert [camera['name'] for camera in tree['cameras']] == ['first', 'second']
    assert UNLIT in tree['extensionsUsed'] and all(UNLIT in material['extensions'] for material in tree['materials'])
    nodes = [tree['nodes'][i] for i in tree['scenes'][0]['nodes'] if 'camera' in tree['nodes'][i]]
    assert [node['camera'] for node in nodes] == [0, 1]
    assert np.allclose(np.reshape(nodes[1]['matrix'], (4, 4)).T[:3], cameras.extrinsics[1])
    json.dumps(tree, allow_nan=False)


def test_reading_textured_files(tmp_path, mesh):
    save_textured_glb(tmp_path / 'a.glb', mesh)
    assert len(load_textured(tmp_path / 'a.glb').visual.uv) == len(mesh.vertices)
    data = (tmp_path / 'a.glb').read_bytes()
    trimesh.creation.icosphere().export(tmp_path / 'plain.glb')
    for other in (data[:1000], b'', data.replace(b'bufferView', b'bufferWiew'), (tmp_path / 'plain.glb').read_bytes()):
        (tmp_path / 'b.glb').write_bytes(other)
        assert load_textured(tmp_path / 'b.glb') is None
    indices = mesh.faces.astype('<u4').tobytes()
    assert indices in data
    (tmp_path / 'c.glb').write_bytes(data.replace(indices, b'\x60\xea\0\0' + indices[4:]))  # no such vertex
    assert load_textured(tmp_path / 'c.glb') is None


def test_a_textured_file_costs_no_more_for_naming_its_bytes_often(tmp_path, mesh):
    save_textured_glb(tmp_path / 'a.glb', mesh)
    files = list(other_files(tmp_path / 'a.glb'))
    assert len(files) == 9
    for data in files:
        (tmp_path / 'b.glb').write_bytes(data)
        assert load_textured(tmp_path / 'b.glb') is None


def test_a_picture_is_not_unpacked_before_its_size_is_known(tmp_path, mesh, monkeypatch):
    save_textured_glb(tmp_path / 'a.glb', mesh)

    def load(image):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, 'load', load)
        loaded = load_textured(tmp_path / 'a.glb')
    assert loaded.visual.material.baseColorTexture.convert('RGB').getpixel((63, 31)) == (252, 248, 7)
    monkeypatch.setattr('surfaces.textured_files.MOST_TEXELS', 63)
    assert load_textured(tmp_path / 'a.glb') is None


def test_trimesh_does_not_compute_with_pictures(tmp_path, mesh):
    """With those of this extension it does, in double precision, while it reads the file."""
    save_textured_glb(tmp_path / 'a.glb', mesh)
    tree, data = glb_parts(tmp_path / 'a.glb')
    picture = {'index': 0}
    tree['materials'][0]['extensions']['KHR_materials_pbrSpecularGlossiness'] = {
        'diffuseTexture': picture, 'specularGlossinessTexture': picture, 'glossinessFactor': 1.}
    (tmp_path / 'b.glb').write_bytes(glb_of(tree, data))
    assert load_textured(tmp_path / 'b.glb') is None


def test_where_a_node_puts_a_textured_mesh(tmp_path, mesh):
    save_textured_glb(tmp_path / 'a.glb', mesh)
    tree, data = glb_parts(tmp_path / 'a.glb')
    tree['nodes'][0]['translation'] = [1, 2, 3]
    (tmp_path / 'b.glb').write_bytes(glb_of(tree, data))
    assert np.allclose(load_textured(tmp_path / 'b.glb').vertices, mesh.vertices + [1, 2, 3], atol=1e-6)

"""The generation command: the original's pictures and meshes, seeds, bounded chunks, and every bad input."""
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import golden_head
import numpy as np
import pytest
import torch
import trimesh
from conftest import ROOT
from forked import start_command
from PIL import Image
from tiny_training import ended, finish

import checkpoint
import generate_shapes_and_images as generate
import prepare_data
import render_video
from inference.pictures import PIXELS_AT_ONCE
from model import build_generator
from options import parse
from surfaces.files import load_mesh

TINY = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--channel_max', '16', '--renderer_spatial_output_dim', '8', '--N_samples', '4', '--truncation_mean', '50',
        '--device', 'cpu']


@pytest.fixture
def run(command):
    """run(*arguments) -> (exit code, stdout, stderr) of the command, in an empty folder."""
    return partial(command, generate)


@pytest.fixture
def tiny_model(tmp_path):
    """A tiny untrained model under full_models/tiny.pt, with its flags."""
    torch.manual_seed(0)
    state = build_generator(parse('generate_shapes_and_images', '', TINY)).state_dict()
    checkpoint.save(tmp_path / 'full_models' / 'tiny.pt', {'g_ema': state})
    return ['--expname', 'tiny', *TINY]


@pytest.fixture
def small_surfaces(monkeypatch):
    """Surfaces at 16 x 16 x 16, to test what is around them."""
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)


# ---------------------------------------------------------------------------------------------- the original's results

@pytest.fixture
def shape(tmp_path, head_checkpoint):
    """The golden head under full_models/shape.pt, with its flags."""
    (tmp_path / 'full_models').mkdir()
    os.symlink(head_checkpoint, tmp_path / 'full_models' / 'shape.pt')
    return golden_head.FLAGS


def mesh_of(path):
    """The mesh of an OBJ file, as it stands there. (trimesh takes a second to read a large one.)"""
    lines = path.read_text().splitlines()
    vertices, faces = (np.fromstring(' '.join(line[2:] for line in lines if line.startswith(f'{kind} ')), sep=' ')
                       .reshape(-1, 3) for kind in 'vf')
    return trimesh.Trimesh(vertices, faces.astype(int) - 1, process=False)


@pytest.mark.parametrize('name, folder, arguments', [
    ('random', 'evaluations/shape/final_model/random_angles', ['--identities', 2, '--num_views_per_id', 2]),
    ('fixed', 'evaluations/shape/final_model/fixed_angles', ['--identities', 1, '--fixed_camera_angles']),
    ('uniform', 'uniform/shape/final_model/random_angles',
     ['--identities', 1, '--truncation_ratio', 0.9, '--num_views_per_id', 3, '--uniform', '--azim', 0.5,
      '--elev', 0.2, '--fov', 7, '--results_dir', './uniform']),
])
def test_the_originals_pictures_and_meshes(run, tmp_path, shape, name, folder, arguments):
    assert run(*shape, *arguments)[0] == 0
    golden, folder = golden_head.SHAPE, tmp_path / folder
    pictures = sorted(golden.glob(f'{name}_0*.png'))
    assert sorted(path.name for path in (folder / 'images').iterdir()) == [p.name[len(name) + 1:] for p in pictures]
    for picture in pictures:
        expected = np.asarray(Image.open(picture)).astype(int)
        actual = np.asarray(Image.open(folder / 'images' / picture.name[len(name) + 1:])).astype(int)
        actual = actual[golden_head.ROWS.get(picture.name, slice(None))]
        difference = np.abs(actual - expected)
        assert difference.mean() < 0.5 and difference.max() <= 8, picture.name
    meshes = {path.stem: mesh_of(path) for path in folder.glob('*_meshes/*.obj')}
    with np.load(golden / f'{name}_meshes.npz') as expected:
        assert {key.split(':')[0] for key in expected.files} == set(meshes)
        for key in expected.files:
            file, what = key.split(':')
            mesh = meshes[file]
            if what == 'count':
                assert [len(mesh.vertices), len(mesh.faces)] == expected[key].tolist(), file
                assert 'depth_mesh' in file or (mesh.is_watertight and mesh.volume > 0), file
            elif what == 'vertices':
                assert np.abs(mesh.vertices[::golden_head.MESH_STEP] - expected[key]).max() < 2e-4, file
            else:
                assert np.array_equal(mesh.faces[::golden_head.MESH_STEP], expected[key]), file


# ---------------------------------------------------------------------------------------------- seeds, views, files

def picture(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize('flags', [['--identities', 3, '--num_views_per_id', 9], ['--seeds', '4,2,7'],
                                   ['--identities', 2, '--no_surface_renderings']])
def test_two_identities_at_a_time_are_those_of_one_after_the_other(run, tiny_model, small_surfaces, flags):
    """The noise too, which all identities draw from one stream; and index.json names them in their order."""
    before, said = torch.get_num_threads(), []
    try:
        for threads in 1, 2:
            torch.set_num_threads(threads)
            code, out, _ = run(*tiny_model, *flags, '--results_dir', str(threads))
            assert code == 0
            said.append('two at a time' in out)
    finally:
        torch.set_num_threads(before)
    assert said == [False, True]
    one, two = ({path.relative_to(folder): path for path in sorted(Path(folder).rglob('*.*'))} for folder in '12')
    assert one.keys() == two.keys() and len(one) > 4
    for name, path in one.items():
        if path.suffix == '.png':
            assert np.array_equal(picture(path), picture(two[name])), name
        else:
            assert path.read_bytes() == two[name].read_bytes(), name


def test_an_identity_comes_from_its_own_seed_alone(run, tmp_path, tiny_model, small_surfaces):
    code, *_ = run(*tiny_model, '--seeds', '3-5,42', '--results_dir', 'a')
    assert code == 0
    assert run(*tiny_model, '--seeds', '42', '--num_views_per_id', '1', '--results_dir', 'b')[0] == 0
    several, alone = (tmp_path / name / 'tiny/final_model/random_angles' for name in 'ab')
    assert sorted(path.name for path in (several / 'images').iterdir()) == sorted(
        f'seed{seed:07d}{end}.png' for seed in (3, 4, 5, 42) for end in ('', '_thumb'))
    for file in ('images/seed0000042.png', 'images/seed0000042_thumb.png'):
        assert np.array_equal(picture(several / file), picture(alone / file))
    assert not np.array_equal(picture(several / 'images/seed0000003.png'), picture(several / 'images/seed0000004.png'))
    mesh, = alone.glob('depth_map_meshes/sample_seed42_*.obj')
    assert mesh.read_bytes() == (several / 'depth_map_meshes' / mesh.name).read_bytes()


def test_chunks_of_views_do_not_change_the_pictures(run, tmp_path, tiny_model, monkeypatch):
    arguments = [*tiny_model, '--identities', '1', '--num_views_per_id', '11', '--no_surface_renderings']
    assert run(*arguments, '--results_dir', 'a')[0] == 0
    monkeypatch.setitem(PIXELS_AT_ONCE, 'cpu', 2 * 16 * 16)
    assert run(*arguments, '--results_dir', 'b')[0] == 0
    a, b = (picture(tmp_path / name / 'tiny/final_model/random_angles/images/0000000.png') for name in 'ab')
    assert a.shape == (16, 11 * 16, 3)
    assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize('fit, shape', [('squeeze', (16, 12)), ('pad', (16, 12)), ('crop', (16, 16))])
def test_pictures_in_the_proportions_of_the_photos(command, run, tmp_path, tiny_model, fit, shape):
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (30, 40)).save(tmp_path / 'photos' / 'portrait.png')
    assert command(prepare_data, '--out_path', 'data', '--size', 16, '--n_worker', 1, '--fit', fit, 'photos')[0] == 0
    arguments = [*tiny_model, '--seeds', '3', '--views', '0,0', '20,0', '--no_surface_renderings']
    assert run(*arguments, '--results_dir', 'square')[0] == 0
    code, out, error = run(*arguments, '--proportions_of', 'data', '--results_dir', 'shaped')
    assert code == 0, error
    assert ('pictures stay square' in out) == (fit == 'crop')
    square, shaped = (picture(tmp_path / name / 'tiny/final_model/chosen_angles/images/seed0000003.png')
                      for name in ('square', 'shaped'))
    assert shaped.shape == (shape[0], 2 * shape[1], 3)
    second = Image.fromarray(square[:, 16:])
    expected = {'squeeze': second.resize((12, 16), Image.Resampling.LANCZOS), 'pad': second.crop((2, 0, 14, 16)),
                'crop': second}[fit]
    assert np.array_equal(shaped[:, shape[1]:], np.asarray(expected))
    assert command(render_video, *tiny_model, '--seeds', '3', '--frames', '1', '--format', 'frames',
                   '--no_surface_videos', '--proportions_of', 'data')[0] == 0
    videos = tmp_path / 'evaluations/tiny/final_model/videos'
    assert picture(videos / 'sample_video_seed3_elipsoid/00000.png').shape == (*shape, 3)


def test_proportions_of_what_is_no_data_set(run, tmp_path, tiny_model):
    code, _, error = run(*tiny_model, '--proportions_of', 'nothing')
    assert code == 2 and 'nothing' in error and not (tmp_path / 'evaluations').exists()


def test_index_lists_what_was_made_and_keeps_earlier_results(run, tmp_path, tiny_model, small_surfaces):
    assert run(*tiny_model, '--seeds', '1,2')[0] == 0
    assert run(*tiny_model, '--seeds', '2,7', '--no_surface_renderings')[0] == 0
    folder = tmp_path / 'evaluations/tiny/final_model/random_angles'
    index = json.loads((folder / 'index.json').read_text())
    assert sorted(index['results']) == ['seed0000001', 'seed0000002', 'seed0000007']
    for name, entry in index['results'].items():
        assert entry['seed'] == int(name[4:]) and len(entry['views']) == 1
        assert entry['checkpoint']['sha256'] == checkpoint.file_hash(tmp_path / 'full_models/tiny.pt')
        assert all((folder / file).is_file() for file in entry['files'])
    assert any('depth_mesh' in file for file in index['results']['seed0000001']['files'])
    # Made again without meshes: those of the first run are still there and still show it.
    again = index['results']['seed0000002']
    assert any('depth_mesh' in file for file in again['files']) and 'earlier_files' not in again
    # With another truncation it looks otherwise: its earlier meshes are no longer its own.
    assert run(*tiny_model, '--seeds', '2', '--no_surface_renderings', '--truncation_ratio', '0.9')[0] == 0
    other = json.loads((folder / 'index.json').read_text())['results']['seed0000002']
    assert not any('mesh' in file for file in other['files']) and any('depth' in f for f in other['earlier_files'])
    assert all((folder / file).is_file() for file in other['earlier_files'])


@pytest.mark.parametrize('mesh_format', ['obj', 'ply', 'glb'])
def test_mesh_formats_and_vertex_colors(run, tmp_path, tiny_model, small_surfaces, mesh_format):
    assert run(*tiny_model, '--identities', '1', '--mesh_format', mesh_format, '--vertex_colors')[0] == 0
    path, = (tmp_path / 'evaluations/tiny/final_model/random_angles/depth_map_meshes').iterdir()
    mesh = load_mesh(path)
    assert path.suffix == f'.{mesh_format}' and len(mesh.vertices) == 256
    assert mesh.visual.kind == 'vertex' and len(mesh.visual.vertex_colors) == 256


def test_vertex_colors_are_those_of_the_picture(run, tmp_path, shape):
    """On the surface of the golden head, a vertex has about the color that its pixel shows."""
    arguments = [*shape, '--seeds', '0', '--azim', '0', '--elev', '0', '--mesh_format', 'ply', '--vertex_colors']
    assert run(*arguments)[0] == 0
    folder = tmp_path / 'evaluations/shape/final_model/random_angles'
    thumbnail = picture(folder / 'images/seed0000000_thumb.png').astype(int)
    depth = trimesh.load(next(folder.glob('depth_map_meshes/*.ply')), process=False)
    colors = depth.visual.vertex_colors[:, :3].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    inside = (slice(24, 48), slice(20, 44))
    assert np.abs(colors - thumbnail)[inside].mean() < 6
    # the marching-cubes mesh lies in another frame: compare by projecting its frontal vertices
    mesh = trimesh.load(next(folder.glob('marching_cubes_meshes/*.ply')), process=False)
    front = mesh.vertex_normals[:, 2] > 0.8
    x, y = mesh.vertices[front, 0], mesh.vertices[front, 1]
    column, row = ((x / 0.12 + 1) * 32).astype(int), ((1 - y / 0.12) * 32).astype(int)
    keep = (column > 20) & (column < 44) & (row > 24) & (row < 48)
    difference = np.abs(mesh.visual.vertex_colors[front, :3] - thumbnail[row.clip(0, 63), column.clip(0, 63)])
    assert keep.sum() > 500 and difference[keep].mean() < 12


def test_a_field_without_decoder_gives_thumbnails_and_meshes(run, tmp_path, tiny_model, small_surfaces):
    opt = parse('generate_shapes_and_images', '', TINY)
    state = build_generator(opt, full_pipeline=False).state_dict()
    checkpoint.save(tmp_path / 'pretrained_renderer/field_vol_renderer.pt', {'g_ema': state})
    assert run(*TINY, '--expname', 'field', '--identities', '1')[0] == 0
    folder = tmp_path / 'evaluations/field/vol_renderer/random_angles'
    assert [path.name for path in (folder / 'images').iterdir()] == ['0000000_thumb.png']
    assert list(folder.glob('depth_map_meshes/*.obj'))


def test_no_zero_crossing_is_said_and_generation_goes_on(run, tmp_path, tiny_model, small_surfaces):
    path = tmp_path / 'full_models/tiny.pt'
    state = checkpoint.read(path)['g_ema']
    state['renderer.network.sigma_linear.bias'] += 5
    checkpoint.save(path, {'g_ema': state})
    code, _, stderr = run(*tiny_model, '--identities', '2')
    folder = tmp_path / 'evaluations/tiny/final_model/random_angles'
    assert code == 0 and len(list(folder.glob('depth_map_meshes/*.obj'))) == 2
    assert not (folder / 'marching_cubes_meshes').exists()


def test_truncation_ratio_one_and_same_view_names(run, tmp_path, tiny_model, small_surfaces):
    """The original crashes at ratio 1, and overwrites meshes whose views agree in whole degrees."""
    code, _, stderr = run(*tiny_model, '--truncation_ratio', '1', '--identities', '1', '--num_views_per_id', '3',
                       '--azim', '0', '--elev', '0')
    assert code == 0, stderr
    names = [p.name for p in (tmp_path / 'evaluations/tiny/final_model/random_angles/depth_map_meshes').iterdir()]
    assert len(names) == 3 and 'sample_0_depth_mesh_azim0_elev0.obj' in names


# ---------------------------------------------------------------------------------------------- textures

def seen_from(mesh, camera):
    """What a mesh with a texture shows to a camera of cameras.json: (colors (H,W,3), whether there is anything (H,W)),
    by trimesh's rays."""
    side, matrix = camera['width'], np.array(camera['camera_to_world'])
    place = (np.arange(side) + 0.5 - side / 2) / camera['focal_pixels']
    local = np.stack([*np.meshgrid(place, -place), np.full((side, side), -1.)], axis=-1).reshape(-1, 3)
    origins = np.broadcast_to(matrix[:3, 3], local.shape)
    points, ray, face = mesh.ray.intersects_location(origins, local @ matrix[:3, :3].T, multiple_hits=False)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    uv = (mesh.visual.uv[mesh.faces[face]] * weights[:, :, None]).sum(1)
    colors, hit = np.zeros((side * side, 3)), np.zeros(side * side, dtype=bool)
    colors[ray] = trimesh.visual.color.uv_to_interpolated_color(uv, mesh.visual.material.baseColorTexture)[:, :3]
    hit[ray] = True
    return colors.reshape(side, side, 3), hit.reshape(side, side)


def test_a_textured_mesh_lies_on_the_picture(run, tmp_path):
    """Of the demo model, from the exported camera; in both formats, and with as much detail as was asked for."""
    pytest.importorskip('xatlas', reason='needs xatlas (requirements-texture.txt)')
    pytest.importorskip('embreex', reason='needs embreex (requirements-test.txt)')
    arguments = ['--model', ROOT / 'demo/cats_demo.pt', '--expname', 'cats', '--seeds', '3', '--surface_resolution',
                 '64', '--views', '15,5', '-20,0', '--texture', '--texture_views', '4', '--device', 'cpu',
                 '--single_surface', '--decimate', '9000']
    code, _, stderr = run(*arguments)
    assert code == 0, stderr
    folder = tmp_path / 'evaluations/cats/final_model/chosen_angles'
    files = json.loads((folder / 'index.json').read_text())['results']['seed0000003']['files']
    assert {path.name for path in (folder / 'textured_meshes').iterdir()} == {
        f'sample_seed3_textured_mesh_azim15_elev5.{suffix}' for suffix in ('glb', 'obj', 'mtl', 'png')}
    assert {'cameras/seed0000003.json', *(f'textured_meshes/{path.name}' for path in (
        folder / 'textured_meshes').iterdir())} <= set(files)
    cameras = json.loads((folder / 'cameras/seed0000003.json').read_text())['cameras']
    assert [camera['name'] for camera in cameras] == ['azim15_elev5', 'azim-20_elev0']
    row = picture(folder / 'images/seed0000003.png').astype(float)
    scene = trimesh.load(folder / 'textured_meshes/sample_seed3_textured_mesh_azim15_elev5.glb', process=False)
    # trimesh takes the last of several cameras
    assert np.allclose(scene.camera_transform, cameras[-1]['camera_to_world'], atol=1e-6)
    mesh, = scene.geometry.values()
    marched, = (trimesh.load(path) for path in (folder / 'marching_cubes_meshes').iterdir())
    assert 8000 < len(marched.faces) <= 9000 and len(mesh.faces) == len(marched.faces)
    assert trimesh.graph.connected_component_labels(marched.face_adjacency).max() == 0
    colors, hit = seen_from(mesh, cameras[0])
    assert 0.3 < hit.mean() < 0.9 and np.abs(colors - row[:, :128])[hit].mean() < 4
    obj = trimesh.load(folder / 'textured_meshes/sample_seed3_textured_mesh_azim15_elev5.obj', process=False)
    assert np.allclose(obj.vertices, mesh.vertices, atol=1e-6) and np.allclose(obj.visual.uv, mesh.visual.uv, atol=1e-6)


# ---------------------------------------------------------------------------------------------- maps, transparency

@pytest.mark.parametrize('size, side', [('thumbnail', 8), ('surface', 64), ('image', 16)])
def test_maps(run, tmp_path, tiny_model, small_surfaces, size, side):
    code, _, stderr = run(*tiny_model, '--seeds', '3', '--views', '0,0', '20,0', '--maps', 'depth,position,mask',
                          '--map_size', size, '--surface_resolution', '64', '--map_format', 'npy',
                          '--no_surface_renderings')
    assert code == 0, stderr
    folder = tmp_path / 'evaluations/tiny/final_model/chosen_angles'
    entry = json.loads((folder / 'index.json').read_text())['results']['seed0000003']
    camera = json.loads((folder / 'cameras/seed0000003.json').read_text())['cameras'][1]
    depth, position, mask = (np.load(folder / f'maps/seed0000003_{kind}_azim20_elev0.npy')
                             for kind in ('depth', 'position', 'mask'))
    assert entry['maps']['size'] == side and depth.shape == mask.shape == (side, side)
    assert {f'maps/{path.name}' for path in (folder / 'maps').iterdir()} <= set(entry['files'])
    # Depths and cameras together give the positions.
    place = (np.arange(side) + 0.5 - side / 2) / (camera['focal_pixels'] * side / camera['width'])
    local = np.stack([*np.meshgrid(place, -place), np.full((side, side), -1.)], axis=-1) * depth[..., None]
    matrix = np.array(camera['camera_to_world'])
    assert np.allclose(local @ matrix[:3, :3].T + matrix[:3, 3], position, atol=1e-5)
    for kind, values in (('depth', depth), ('position', position), ('mask', mask)):
        low, high = entry['maps']['ranges'][kind]
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6


def test_transparent_pictures_and_depth_meshes(run, tmp_path, shape):
    """Of the golden head, whose field has a background."""
    arguments = [*shape, '--seeds', '0', '--azim', '0', '--elev', '0', '--surface_resolution', '64']
    assert run(*arguments, '--results_dir', 'plain')[0] == 0
    assert run(*arguments, '--transparent', '--results_dir', 'clear', '--vertex_colors')[0] == 0
    plain, clear = (tmp_path / name / 'shape/final_model/random_angles' for name in ('plain', 'clear'))
    for name in ('seed0000000.png', 'seed0000000_thumb.png'):
        before, after = picture(plain / 'images' / name).astype(int), picture(clear / 'images' / name).astype(int)
        assert before.shape[2] == 3 and after.shape[2] == 4
        opaque = after[..., 3] > 250
        assert 0.1 < opaque.mean() < 0.9 and (after[..., 3] < 5).mean() > 0.1
        assert np.abs(after[..., :3] - before)[opaque].mean() < 2
    sheet, head = (trimesh.load(next(folder.glob('depth_map_meshes/*.obj')), process=False)
                   for folder in (plain, clear))
    assert 0.1 < len(head.faces) / len(sheet.faces) < 0.9
    assert head.vertices[:, 2].min() > sheet.vertices[:, 2].min() + 0.03
    assert len(head.visual.vertex_colors) == len(head.vertices)


@pytest.mark.parametrize('arguments, words', [
    (['--maps', 'depth,color'], ['--maps', 'depth,normal,mask,position']),
    (['--map_size', 'image'], ['--map_size', '--maps']), (['--map_format', 'exr'], ['--map_format', '--maps']),
    (['--maps', 'depth', '--map_format', 'tiff'], ['--map_format', 'exr']),
    (['--maps', 'depth', '--map_size', '99'], ['--map_size', 'thumbnail'])])
def test_flags_of_maps_that_will_not_do(run, tiny_model, arguments, words):
    check_refused(run(*tiny_model, *arguments), *words)


@pytest.mark.parametrize('arguments, words', [
    (['--texture', '--no_surface_renderings'], ['--texture', '--no_surface_renderings']),
    (['--texture_views', '3'], ['--texture_views', '--texture']),
    (['--texture', '--texture_views', '0'], ['--texture_views']),
    (['--surface_resolution', '20'], ['--surface_resolution', '64']),
    (['--surface_resolution', '1024'], ['--surface_resolution', '512']),
    (['--decimate', '5'], ['--decimate', '100'])])
def test_flags_of_surfaces_that_will_not_do(run, tiny_model, arguments, words):
    check_refused(run(*tiny_model, *arguments), *words)


def test_texture_without_xatlas(run, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'xatlas', None)
    check_refused(run(*tiny_model, '--texture'), 'xatlas', 'requirements-texture.txt')


# ---------------------------------------------------------------------------------------------- bad input

def check_refused(outcome, *words):
    code, _, stderr = outcome
    assert code == 2, stderr
    assert 'Traceback' not in stderr and len(stderr.strip().splitlines()) == 1, stderr
    for word in words:
        assert str(word) in stderr


def test_more_views_than_a_row_holds(run, tiny_model):
    check_refused(run(*tiny_model, '--num_views_per_id', '9000'), '--num_views_per_id 9000')


def test_no_such_checkpoint(run):
    check_refused(run('--expname', 'nobody'), 'full_models/nobody.pt', 'models_0300000.pt')


def test_sizes_that_contradict_the_file(run, tiny_model):
    check_refused(run(*tiny_model, '--width', '32'), '--width 32', 'tiny.pt')


@pytest.mark.parametrize('arguments, word', [
    (['--size', '100'], '--size'), (['--identities', '-1'], '--identities'), (['--identities', '0'], '--identities'),
    (['--frobnicate'], '--frobnicate'), (['--seeds', '5-'], '--seeds'), (['--device', 'tpu'], '--device')])
def test_bad_flags(run, tiny_model, arguments, word):
    check_refused(run(*tiny_model, *arguments), word)


@pytest.mark.skipif(torch.cuda.is_available(), reason='has CUDA')
def test_cuda_without_cuda(run, tiny_model):
    check_refused(run(*tiny_model, '--device', 'cuda'), '--device cuda')


@pytest.mark.parametrize('damage, word', [
    (lambda data: data[:len(data) // 3], 'incomplete'), (lambda data: b'hello, I am text', 'no PyTorch checkpoint')])
def test_damaged_checkpoints(run, tmp_path, tiny_model, damage, word):
    path = tmp_path / 'full_models/tiny.pt'
    path.write_bytes(damage(path.read_bytes()))
    check_refused(run(*tiny_model), 'tiny.pt', word)


def test_results_folder_that_cannot_be_written(run, tmp_path, tiny_model):
    (tmp_path / 'file').write_text('')
    check_refused(run(*tiny_model, '--results_dir', 'file'), '--results_dir')
    check_refused(run(*tiny_model, '--results_dir', '/proc/nowhere'), '--results_dir')


def test_a_foreign_index_is_not_overwritten(run, tmp_path, tiny_model):
    folder = tmp_path / 'evaluations/tiny/final_model/random_angles'
    folder.mkdir(parents=True)
    (folder / 'index.json').write_text('[1, 2]')
    check_refused(run(*tiny_model), 'index.json')
    assert (folder / 'index.json').read_text() == '[1, 2]'


def test_full_disk(run, tiny_model, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(generate, 'save_image_row', full)
    code, _, stderr = run(*tiny_model, '--identities', '1')
    assert code == 2 and 'No space left' in stderr and 'Traceback' not in stderr


@pytest.mark.parametrize('how, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_whole_files_only(tmp_path, tiny_model, small_surfaces, how, code):
    process = start_command('generate_shapes_and_images', [*tiny_model, '--seeds', '0-9999'], tmp_path)
    folder = tmp_path / 'evaluations/tiny/final_model/random_angles'
    with ended(process):
        deadline = time.monotonic() + 120
        while not (folder / 'index.json').exists():
            assert process.is_alive() and time.monotonic() < deadline, process.log.read_text()
            time.sleep(0.02)
        os.kill(process.pid, how)
        assert finish(process) == [code]
    said = process.log.read_text()
    assert 'Traceback' not in said and 'stopped' in said
    index = json.loads((folder / 'index.json').read_text())
    for entry in index['results'].values():
        assert all((folder / file).is_file() for file in entry['files'])
    for path in folder.rglob('*'):
        assert not path.name.startswith('.')
        if path.suffix == '.png':
            Image.open(path).load()

"""Cameras of stills and videos as data: --views, --path, files of key frames, --model."""
import math
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny_model

import generate_shapes_and_images
import render_video
from camera import cameras_at, cameras_of, project, video_viewpoints
from inference.camera_paths import path_cameras, path_name
from inference.loaded_model import load_model
from inference.results import CAMERA_PATH
from options import parse, view_list
from utils import UserError


@pytest.fixture
def opt():
    return parse('render_video', '', [])


def written(tmp_path, text, name='track.csv'):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


# ---------------------------------------------------------------------------------------------- paths

@pytest.mark.parametrize('path, azimuth_only', [('ellipse', False), ('azimuth', True)])
def test_the_originals_paths(opt, path, azimuth_only):
    cameras = path_cameras(opt, path, 9, 'cpu')
    expected = cameras_of(opt, video_viewpoints(9, 0.3, 0.15, False, azimuth_only))
    assert torch.equal(cameras.extrinsics, expected.extrinsics) and torch.equal(cameras.focal, expected.focal)


def test_an_orbit_goes_all_round(opt):
    cameras = path_cameras(opt, 'orbit', 5, 'cpu')
    position = cameras.extrinsics[:, :, 3]
    assert torch.allclose(position[:4], torch.tensor([[0., 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]]), atol=1e-6)
    assert torch.allclose(position[4], position[0], atol=1e-6)


def test_a_dolly_zoom_keeps_the_middle_and_changes_what_lies_behind(opt):
    cameras = path_cameras(opt, 'dolly', 5, 'cpu')
    assert torch.allclose(cameras.extrinsics[:, 2, 3], torch.tensor([1, 0.5, 1, 2, 1]), atol=1e-6)
    assert torch.allclose((cameras.near + cameras.far).flatten() / 2, cameras.extrinsics[:, 2, 3])
    sizes = {}
    for depth in (0., -0.1):
        points = torch.tensor([[0.05, 0., depth]])
        sizes[depth] = [project(points, cameras[i:i + 1], 64)[0][0, 0].item() - 32 for i in range(5)]
    assert sizes[0.] == pytest.approx([sizes[0.][0]] * 5, rel=1e-5)
    assert sizes[-0.1][1] < sizes[-0.1][0] < sizes[-0.1][3]  # from near by, what lies behind looks smaller


def test_a_camera_does_not_come_into_what_it_shows(tmp_path):
    """Its near plane would lie behind it."""
    wide = parse('render_video', '', ['--dist_radius', '0.5'])
    near, nearer = (written(tmp_path, f'distance\n{distance}\n', f'{distance}.csv') for distance in (0.51, 0.5))
    for path in ('orbit', near):
        assert path_cameras(wide, path, 5, 'cpu').near.min() > 0
    for path in ('dolly', nearer):
        with pytest.raises(UserError, match=f'--path {path}: the camera comes as near to the origin as 0.5'):
            path_cameras(wide, path, 5, 'cpu')


def test_key_frames_are_passed(opt, tmp_path):
    path = written(tmp_path, '# a comment\nazimuth, elevation,zoom\n-30,0,1\n10,20,2\n\n30,-10,1\n')
    cameras = path_cameras(opt, path, 9, 'cpu')
    degrees = torch.rad2deg(cameras.viewpoint)
    assert torch.allclose(degrees[[0, 4, 8]], torch.tensor([[-30., 0], [10, 20], [30, -10]]), atol=1e-4)
    assert (degrees[:, 0].diff() > 0).all() and degrees[:, 1].max() <= 20.001  # no swinging beyond the key frames
    focal = cameras.focal.flatten() / cameras_at(torch.zeros(1, 2)).focal.flatten()
    assert focal[[0, 4, 8]].tolist() == pytest.approx([1, 2, 1], rel=1e-5)
    assert path_name(path) == 'path_track'


def test_two_files_do_not_share_a_name():
    names = [path_name(name) for name in ('x/a-b.csv', 'a b.csv', 'a_b.csv', 'ä.csv', 'ö.csv', 'a' * 50 + '.csv',
                                          'a' * 51 + '.csv', 'a' * 52 + '.csv')]
    assert len(set(names)) == len(names) and names[0] == 'path_a-b' and names[5] == 'path_' + 'a' * 50
    assert all(re.fullmatch(CAMERA_PATH, name) for name in names)


def test_a_closed_path_has_no_corner_where_it_closes(opt, tmp_path):
    path = written(tmp_path, 'azimuth,elevation\n0,0\n20,10\n0,20\n-20,10\n0,0\n')
    steps = path_cameras(opt, path, 201, 'cpu').viewpoint.diff(dim=0)
    assert (steps[0] - steps[-1]).norm() < 0.1 * steps.norm(dim=1).max()


def test_times_of_key_frames(opt, tmp_path):
    path = written(tmp_path, 'time,azimuth\n0,0\n1,10\n4,20\n')
    degrees = torch.rad2deg(path_cameras(opt, path, 5, 'cpu').viewpoint[:, 0])
    assert degrees[[0, 1, 4]].tolist() == pytest.approx([0, 10, 20], abs=1e-4)
    one = path_cameras(opt, written(tmp_path, 'azimuth\n15\n'), 3, 'cpu')
    assert torch.allclose(torch.rad2deg(one.viewpoint), torch.tensor([15., 0.]))


@pytest.mark.parametrize('text, says', [
    ('', 'first line must name columns'), ('a,b\n1,2\n', 'first line must name columns'),
    ('time\n1\n', 'first line must name columns'), ('azimuth,azimuth\n1,2\n', 'first line must name columns'),
    ('azimuth\n', 'has 0 key frames'), ('azimuth,zoom\n1\n', 'another number of columns'),
    ('azimuth\nx\n', "azimuth of key frame 1 must be a number from -3600 to 3600, not 'x'"),
    ('azimuth\n1\nnan\n', 'key frame 2'), ('elevation\n90\n', '-89 to 89'), ('zoom\n0\n', '0.1 to 20'),
    ('distance\n0.01\n', '0.3 to 20'), ('time,azimuth\n1,1\n1,2\n', 'must increase'),
    ('time,azimuth\n1,1\n0,2\n', 'must increase, by more than 1e-06 each'),
    ('time,azimuth\n0,1\n1e-310,2\n', 'must increase'),
    ('time,azimuth\n0,0\n1e-310,5\n1,10\n', 'must increase'), ('time,azimuth\n0,0\n1e-310,5\n1,0\n', 'must increase'),
    ('azimuth\n' + '1\n' * 10_001, '10,001 key frames'), ('azimuth\n"1\nx"\n', 'key frame'),
    ('x' * (1 << 21), 'larger than')])
def test_tables_that_are_none(opt, tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        path_cameras(opt, written(tmp_path, text), 3, 'cpu')


def test_files_that_are_none(opt, tmp_path):
    (tmp_path / 'binary').write_bytes(bytes(range(256)))
    for name, says in (('binary', 'is no text'), ('nowhere', 'No such file'), ('.', 'is no file')):
        with pytest.raises(UserError, match=says):
            path_cameras(opt, str(tmp_path / name), 3, 'cpu')


# ---------------------------------------------------------------------------------------------- views

@pytest.mark.parametrize('text, views', [
    ('20,0', [(20, 0)]), ('20,0 -20,5.5', [(20, 0), (-20, 5.5)]), ('-30:30:3,0', [(-30, 0), (0, 0), (30, 0)]),
    ('0:10:2,-5:5:2', [(0, -5), (10, -5), (0, 5), (10, 5)]), ('360,-89', [(360, -89)])])
def test_view_lists(text, views):
    assert view_list(text) == tuple(views)


@pytest.mark.parametrize('text', ['', 'x', '20', '20,0,0', '20,90', '400,0', '0:10,0', '0:10:1,0', '0:1:9999,0',
                                  'nan,0', '20,0;1,1', '1e2,0', '\u0663,0', '20,'])
def test_view_lists_that_are_none(text):
    with pytest.raises(ValueError, match='must be'):
        view_list(text)


@pytest.mark.parametrize('typed', [['--views', '20,0', '-20,5', '--seed', '3'], ['--views=20,0 -20,5', '--seed', '3'],
                                   ['--seed', '3', '--views', '20,0', '-20,5']])
def test_views_as_people_type_them(typed):
    opt = parse('generate_shapes_and_images', '', typed)
    assert opt.inference.views == ((20, 0), (-20, 5)) and opt.experiment.seed == 3


def test_angles_in_degrees_are_pointed_to_views():
    with pytest.raises(UserError, match='radians .*--views'):
        parse('generate_shapes_and_images', '', ['--azim', '20'])


# ---------------------------------------------------------------------------------------------- the commands

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    save_tiny_model(tmp_path)
    return ['--expname', 'tiny', '--device', 'cpu', '--truncation_mean', 50]


def test_chosen_views_are_rendered(command, tiny):
    run = partial(command, generate_shapes_and_images, *tiny)
    code, out, error = run('--seeds', 3, '--views', '20,0', '-20,0', '80,0', '--page')
    assert code == 0, error
    folder = Path('evaluations/tiny/final_model/chosen_angles')
    assert sorted(path.name for path in (folder / 'depth_map_meshes').iterdir()) == [
        f'sample_seed3_depth_mesh_azim{azim}_elev0.obj' for azim in (-20, 20, 80)]
    assert Image.open(folder / 'images/seed0000003.png').size == (48, 16)
    assert 'reaches azimuth 80 degrees' in out and 'Chosen views' in Path(folder.parent, 'index.html').read_text()
    code, _, error = run('--views', '20,0', '--fixed_camera_angles')
    assert code == 2 and '--views and --fixed_camera_angles' in error
    code, _, error = run('--views', '0:90:1000,0', '--size', 16, '--num_views_per_id', 2)
    assert code == 2 and '--num_views_per_id' in error


def test_videos_along_paths(command, tiny, tmp_path):
    run = partial(command, render_video, *tiny, '--frames', 4, '--format', 'frames', '--no_surface_videos', '--seeds',
                  3)
    track = written(tmp_path, 'azimuth,zoom\n0,1\n10,3\n', 'my track.csv')
    for path, name in (('orbit', 'orbit'), ('dolly', 'dolly'), (track, path_name(track))):
        code, out, error = run('--path', path)
        assert code == 0, error
        assert ('reaches azimuth 360' in out) == (path == 'orbit')
        frames = sorted(Path(f'evaluations/tiny/final_model/videos/sample_video_seed3_{name}').iterdir())
        pictures = [np.asarray(Image.open(frame)).astype(int) for frame in frames]
        assert len(pictures) == 4 and np.abs(pictures[0] - pictures[1]).max() > 0
    code, _, error = run('--path', 'orbit', '--azim_video')
    assert code == 2 and '--azim_video and --path' in error
    code, _, error = run('--path', 'nowhere.csv')
    assert code == 2 and 'nowhere.csv' in error and error.count('\n') == 1


def test_a_model_by_its_file(command, tiny, tmp_path):
    (tmp_path / 'else where').mkdir()
    shutil.move(tmp_path / 'full_models/tiny.pt', tmp_path / 'else where/my cat.pt')
    arguments = ['--model', 'else where/my cat.pt', '--seeds', 3, '--no_surface_renderings', *tiny[2:]]
    code, _, error = command(generate_shapes_and_images, *arguments)
    assert code == 0, error
    assert Path('evaluations/my_cat/final_model/random_angles/images/seed0000003.png').is_file()
    assert command(generate_shapes_and_images, *arguments, '--expname', 'named')[0] == 0
    assert Path('evaluations/named/final_model/random_angles').is_dir()
    model = load_model('else where/my cat.pt', device='cpu', truncation_mean=50)
    assert math.isclose(model.w_of([3], 0.7).shape[1], 8)
    code, _, error = command(generate_shapes_and_images, '--model', 'nowhere.pt')
    assert code == 2 and 'nowhere.pt does not exist' in error

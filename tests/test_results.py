"""Where results go: names that are built and read back, the index that several runs write, and damaged results."""
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from inference import results
from inference.results import add_to_index, long_name, read_generated, read_index, read_videos, short_name
from options import parse
from utils import UserError

VIEWS = [(0.4, 0.1), (-0.3, -0.2), (-0.301, -0.201)]


def entry(files=(), **changed):
    """An identity as generate_shapes_and_images.py puts it into the index."""
    return {'seed': 3, 'checkpoint': {'sha256': 'abc'}, 'truncation_ratio': 0.5, 'truncation_mean': {'draws': 10},
            'fov': 6., 'dist_radius': 0.12, 'views': [{'azim': azim, 'elev': elev} for azim, elev in VIEWS],
            'files': list(files)} | changed


def write(folder, file):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (3, 1)).save(path, 'png')
    return file


@pytest.mark.parametrize('by_seed, long, short, title', [(False, '0000012', '12', 'Identity 12'),
                                                         (True, 'seed0000012', 'seed12', 'Seed 12')])
def test_names_are_read_back(tmp_path, by_seed, long, short, title):
    assert (long_name(12, by_seed), short_name(12, by_seed)) == (long, short)
    names = results.view_names(VIEWS)
    assert names == ['azim22_elev5', 'azim-17_elev-11', 'azim-17_elev-11_view2']
    files = [write(tmp_path, results.picture_file(long, kind)) for kind in results.PICTURES]
    files += [write(tmp_path, results.mesh_file(short, 'depth_mesh', names[i], 'ply')) for i in (2, 0)]
    files += [write(tmp_path, results.mesh_file(short, 'marching_cubes_mesh', names[0], 'glb'))]
    add_to_index(tmp_path, long, entry(files))
    found, = read_generated(tmp_path)
    assert (found.name, found.title, found.by_seed, found.seed, found.views) == (long, title, by_seed, 3, VIEWS)
    assert found.pictures == {'image': tmp_path / files[0], 'thumbnail': tmp_path / files[1]}
    assert found.depth_meshes == [tmp_path / files[3], None, tmp_path / files[2]]
    assert found.marching_cubes == [tmp_path / files[4]]


def test_many_views_are_named_in_a_moment():
    """A stranger's index.json may list any number."""
    started = time.process_time()
    names = results.view_names([(float(i), 0.) for i in (*range(40_000), 0)])
    assert time.process_time() - started < 2
    assert names[:2] == ['azim0_elev0', 'azim57_elev0'] and names[-1] == 'azim0_elev0_view40000'
    assert len(set(names)) == 40_001


def test_names_of_videos_are_read_back(tmp_path):
    for path in ('elipsoid', 'azim', 'orbit', 'path_my-track'):
        for name in ('0', 'seed3', results.walk_name(range(10))):
            for kind in results.VIDEO_KINDS:
                write(tmp_path, f'{results.video_stem(kind, name, path)}.mp4')
    write(tmp_path, results.frontal_mesh_file('seed3', 'obj'))
    write(tmp_path, 'sample_video_0_elipsoid_unfinished.mp4')
    found = {result.title: result for result in read_videos(tmp_path)}
    assert set(found) == {'Identity 0', 'Seed 3', 'Walk through seeds 0 1 2 3 4 5 6 7 and 2 more'}
    for result in found.values():
        assert [kind for kind, _, _ in result.videos] == [kind for kind in results.VIDEO_KINDS for _ in range(4)]
        assert {path for _, path, _ in result.videos} == {'azim', 'elipsoid', 'orbit', 'path_my-track'}
    assert found['Seed 3'].frontal_meshes and not found['Identity 0'].frontal_meshes


def test_folders_of_frames_of_edited_identities_are_read_back(tmp_path):
    name = short_name(3, True) + results.edits_name([('shape2', 1.5)])
    stem = results.video_stem('video', name, 'elipsoid')
    for ending in ('', '_unfinished'):
        (tmp_path / f'{stem}{ending}').mkdir()
    write(tmp_path, f'{stem}.mp4')
    found, = read_videos(tmp_path)
    assert found.title == 'Seed 3, shape2+1.5'
    assert found.videos == [('video', 'elipsoid', tmp_path / stem), ('video', 'elipsoid', tmp_path / f'{stem}.mp4')]


def test_folders(tmp_path):
    opt = parse('generate_shapes_and_images', '', ['--results_dir', 'out', '--expname', 'a/b', '--fixed_camera_angles'])
    assert results.generation_folder(opt, 'final_model').as_posix() == 'out/a/b/final_model/fixed_angles'
    opt = parse('render_video', '', ['--project_noise'])
    assert results.video_folder(opt, 'x').as_posix() == 'evaluations/debug/x/videos/with_noise_projection'


# ---------------------------------------------------------------------------------------------- the index

def test_runs_at_the_same_time_lose_nothing(tmp_path):
    """Two and more runs into one folder: every entry must be there afterwards (each opens the files anew)."""
    def run(first):
        for number in range(first, first + 20):
            add_to_index(tmp_path, long_name(number, True), entry())

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(run, range(0, 600, 100)))
    assert len(read_index(tmp_path)) == 120
    assert [path.name for path in tmp_path.iterdir()] == ['index.json']


def test_meshes_stay_listed_while_nothing_changes_that_decides_how_they_look(tmp_path):
    picture, mesh = (write(tmp_path, file) for file in ('images/0000000.png', 'depth_map_meshes/a.obj'))
    add_to_index(tmp_path, '0000000', entry([picture, mesh]))
    add_to_index(tmp_path, '0000000', entry([picture]))  # --no_surface_renderings
    assert read_index(tmp_path)['0000000']['files'] == [picture, mesh]
    add_to_index(tmp_path, '0000000', entry([picture], truncation_ratio=0.7))
    again = read_index(tmp_path)['0000000']
    assert again['files'] == [picture] and again['earlier_files'] == [mesh]
    os.remove(tmp_path / mesh)
    add_to_index(tmp_path, '0000000', entry([picture], truncation_ratio=0.7))
    assert 'earlier_files' not in read_index(tmp_path)['0000000']


# ---------------------------------------------------------------------------------------------- damage

@pytest.mark.parametrize('text', [
    '', '[]', '{"results": []}', '{"results": {"0000000": 3}}', '{"results": {"0000000": {"files": [3]}}}',
    '{"results": {"0000000": {"files": "abc"}}}', '{"results": {"0000000": {"earlier_files": "abc"}}}',
    '{"results": {"0000000": {"earlier_files": {"abc": 1}}}}', '{"results": {"0000000": {"earlier_files": 3}}}',
    '[' * 100_000, '{"results": null}', 'NaN'])
def test_what_is_no_index_is_refused(tmp_path, text):
    (tmp_path / 'index.json').write_text(text)
    with pytest.raises(UserError, match='not an index that this command wrote'):
        read_index(tmp_path)
    with pytest.raises(UserError, match='index.json'):
        read_generated(tmp_path)


@pytest.mark.parametrize('name, changed, says', [
    ('0000000', {'views': []}, 'no views'), ('0000000', {'views': [{'azim': math.nan, 'elev': 0}]}, 'no number'),
    ('0000000', {'views': [{'azim': 0}]}, 'elev'), ('0000000', {'views': 3}, 'damaged'),
    ('0000000', {'views': [{'azim': 1e308, 'elev': True}]}, 'no number'),
    ('0000000', {'fov': '6'}, 'no number'), ('0000000', {'fov': 0}, 'out of range'),
    ('0000000', {'dist_radius': math.inf}, 'no number'), ('0000000', {'truncation_ratio': None}, 'no number'),
    ('0000000', {'seed': 'x'}, 'no number'), ('nobody', {}, 'no identity'), ('', {}, 'no identity'),
    ('0000000\ud800', {}, 'no identity'), ('seed\u0663333333', {}, 'no identity'),
    ('0000000', {'files': ['../../secret.png']}, 'outside'), ('0000000', {'files': ['/etc/passwd']}, 'outside'),
    ('0000000', {'files': ['marching_cubes_meshes/../../../x.obj']}, 'outside'),
    ('0000000', {'files': ['link/passwd']}, 'outside'), ('0000000', {'files': ['a\0b']}, 'outside')])
def test_damaged_entries_are_named(tmp_path, name, changed, says):
    os.symlink('/etc', tmp_path / 'link')
    (tmp_path / 'index.json').write_text(json.dumps({'results': {name: entry(**changed)}}))
    with pytest.raises(UserError, match=says) as refusal:
        read_generated(tmp_path)
    str(refusal.value).encode()  # it can be printed


def test_pictures_and_videos_that_are_links_to_elsewhere_are_not_read(tmp_path):
    (tmp_path / 'secret.png').write_bytes(b'secret')
    folder = tmp_path / 'results'
    add_to_index_folder = folder / 'random_angles'
    add_to_index_folder.mkdir(parents=True)
    (add_to_index_folder / 'images').mkdir()
    os.symlink(tmp_path / 'secret.png', add_to_index_folder / 'images/0000000.png')
    add_to_index(add_to_index_folder, '0000000', entry())
    assert read_generated(add_to_index_folder)[0].pictures == {}
    (folder / 'videos').mkdir()
    os.symlink(tmp_path / 'secret.png', folder / 'videos/sample_video_0_azim.mp4')
    assert read_videos(folder / 'videos') == []

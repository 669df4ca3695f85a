"""A loaded model: its pictures, meshes and videos are those of the commands, also for several threads at once."""
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tiny_model import frames_of, z_of

import options
from camera import cameras_at
from inference.meshes import generate_meshes
from utils import to_uint8


@pytest.fixture
def model(loaded_tiny):
    return loaded_tiny


def test_a_picture_is_the_generators(model):
    w = model.w_of([3], 0.7)
    picture = model.picture(w, model.cameras([[20., -10.]]), 0.7)
    camera = cameras_at(torch.tensor([[math.radians(20), math.radians(-10)]]), 8)
    with torch.no_grad():
        expected = model.generator(z_of(3), camera, psi=0.7, means=model.means, noise='fixed').image
    assert picture.shape == (16, 16, 3) and (picture == to_uint8(expected)[0]).all()
    assert not (picture == model.picture(w, model.cameras([[0., 0.]]), 0.7)).all()


def test_zoom_is_a_narrower_field_of_view(model):
    narrow = math.degrees(math.atan(math.tan(math.radians(6)) / 2))
    expected = cameras_at(torch.tensor([[0.3, 0.1]]), 8, narrow)
    zoomed = model.cameras([[math.degrees(0.3), math.degrees(0.1)]], zoom=2)
    assert torch.allclose(zoomed.focal, expected.focal) and torch.allclose(zoomed.extrinsics, expected.extrinsics)
    assert model.surface(model.w_of([3], 0.7), zoomed).shape == (512, 512, 3)


def test_the_mesh_is_the_commands(model):
    mesh = model.mesh(model.w_of([3], 0.5))
    opt = options.replaced(model.opt, truncation_ratio=0.5)
    w = model.generator.map(z_of(3), 0.5, model.means)
    made = generate_meshes(model.generator, w, cameras_at(torch.zeros(1, 2), 8), opt)
    expected, = (mesh for kind, _, mesh in made if kind == 'marching_cubes_mesh')
    assert np.allclose(mesh.vertices, expected.vertices) and (mesh.faces == expected.faces).all()
    assert mesh.visual.kind == 'vertex'


def test_a_walk_reaches_both_seeds(model, tmp_path, monkeypatch):
    monkeypatch.setattr('inference.loaded_model.IMAGE_CRF', 0)  # lossless: noisy pictures suffer from compression
    w = model.w_of([3, 8], 0.7)
    frames = frames_of(model.video(tmp_path / 'walk.mp4', w, 0.7, frames=5))
    still = frames_of(model.video(tmp_path / 'still.mp4', w[1:], 0.7, frames=5))
    assert len(frames) == len(still) == 5
    near, far = (np.abs(frames[i] - still[i]).mean() for i in (2, 0))
    assert near < 1 and far > 2 * near  # half way round: the second seed, from the same camera
    assert frames_of(model.video(tmp_path / 'both.mp4', w[:1], 0.7, 2, with_surface=True))[0].shape == (512, 1024, 3)


def test_several_at_once_get_what_one_alone_gets(model):
    def made(seed):
        w = model.w_of([seed], 0.7)
        camera = model.cameras([[float(seed), 0.]])
        return model.picture(w, camera, 0.7), model.surface(w, camera)

    alone = [made(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(made, range(6)))
    for one, other in zip(alone, together, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert not (alone[0][0] == alone[1][0]).all()



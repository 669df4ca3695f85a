"""inference/: identities and their draws, pictures in chunks, names of views, loading."""

import numpy as np
import pytest
import torch
from tiny_model import TINY, save_tiny_model

from camera import cameras_of
from inference import identities, pictures, results
from inference.frames import render_frames, side_by_side
from inference.latents import latents_of_w
from inference.loading import load_generator
from inference.meshes import generate_meshes
from options import parse
from utils import UserError


def options(*more):
    return parse('generate_shapes_and_images', '', [*TINY, '--expname', 'tiny', '--device', 'cpu', *more])


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A tiny model, loaded as commands load it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    save_tiny_model(tmp_path)
    return load_generator(options('--num_views_per_id', '3'), torch.device('cpu'))


def drawn(opt, rng):
    """What generation draws of each identity: its z and its viewpoints."""
    return [(identities.draw_z(opt, identity.rng), identities.draw_viewpoints(opt, identity.rng))
            for identity in identities.identities(opt, rng)]


# ---------------------------------------------------------------------------------------------- identities

def test_pictures_beside_each_other_keep_their_proportions():
    image, surface = np.zeros((32, 24, 3), np.uint8), np.full((16, 12, 3), 255, np.uint8)
    both = side_by_side(image, surface)
    assert both.shape == (32, 48, 3) and not both[:, :24].any() and (both[:, 24:] == 255).all()


def test_one_stream_draws_z_then_azimuths_then_elevations():
    opt = options('--identities', '2', '--num_views_per_id', '3')
    found = drawn(opt, identities.seeded(7, 'cpu'))
    rng = torch.Generator().manual_seed(7)
    for z, viewpoints in found:
        assert torch.equal(z, torch.randn(1, 8, generator=rng))
        azimuth, elevation = torch.randn(3, 1, generator=rng) * 0.3, torch.randn(3, 1, generator=rng) * 0.15
        assert torch.equal(viewpoints, torch.cat([azimuth, elevation], dim=1))


def test_a_seed_draws_the_same_whatever_else_is_generated():
    several = drawn(options('--seeds', '5,3,9'), identities.seeded(0, 'cpu'))
    alone = drawn(options('--seeds', '3'), identities.seeded(1, 'cpu'))
    assert all(torch.equal(a, b) for a, b in zip(several[1], alone[0], strict=True))
    assert identities.identity_count(options('--seeds', '5,3,9')) == 3
    fixed = identities.draw_viewpoints(options('--fixed_camera_angles'), identities.seeded(0, 'cpu'))
    assert fixed.shape == (13, 2) and fixed[0].tolist() == [0, 0]


def test_a_closed_walk_passes_its_stops_and_returns():
    stops = torch.randn(3, 8)
    walk = identities.closed_walk(stops, 7)
    assert torch.allclose(walk[[0, 2, 4]], stops, atol=1e-5) and torch.allclose(walk[6], stops[0], atol=1e-5)


# ---------------------------------------------------------------------------------------------- a loaded generator

def test_loading_reads_the_sizes_from_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved = save_tiny_model(tmp_path)
    loaded = load_generator(parse('generate_shapes_and_images', '', ['--expname', 'tiny']), torch.device('cpu'))
    assert (loaded.name, loaded.path.name, loaded.opt.model.size) == ('final_model', 'tiny.pt', 16)
    assert 'size 16' in capsys.readouterr().out
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.generator.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in loaded.generator.parameters())
    for name, meant in ('nobody', 'you are in.$'), ('tinny', 'Did you mean tiny?'), ('cat_demo', 'mean cats_demo?'):
        with pytest.raises(UserError, match=f'no checkpoint for --expname {name}: .*{meant}'):
            load_generator(parse('generate_shapes_and_images', '', ['--expname', name]), torch.device('cpu'))


def test_pictures_do_not_depend_on_how_many_are_made_at_once(loaded, monkeypatch):
    generator, opt = loaded.generator, loaded.opt
    means, z = generator.mean_latents(50), torch.randn(1, 8)
    latents = latents_of_w(generator, generator.map(z, 0.5, means), 0.5, means)
    cameras = cameras_of(opt, torch.linspace(-0.3, 0.3, 22).view(11, 2))

    def images():
        rng = torch.Generator().manual_seed(1)
        batches = list(pictures.generate_images(generator, latents, cameras, opt, rng))
        return len(batches), torch.cat([image for image, _ in batches])

    few, whole = images()
    monkeypatch.setitem(pictures.PIXELS_AT_ONCE, 'cpu', 2 * 16 * 16)
    many, parts = images()
    assert few == 2 and many > few and whole.shape == (11, 3, 16, 16)
    assert (whole - parts).abs().max() < 1e-5


def test_a_frame_is_the_picture_of_its_camera(loaded):
    generator, opt = loaded.generator, loaded.opt
    means, z = generator.mean_latents(50), torch.randn(1, 8)
    cameras = cameras_of(opt, torch.tensor([[0.1, 0.], [-0.2, 0.1]]))
    with torch.no_grad():
        expected = generator(z, cameras, psi=0.5, means=means, noise='fixed').image
        latents = latents_of_w(generator, generator.map(z, 0.5, means), 0.5, means)
        frames = list(render_frames(generator, latents, cameras, lambda camera: generator.decoder.fixed_noise(), opt,
                                    surfaces=False))
    made = np.stack([frame['video'] for frame in frames]).astype(int)
    assert made.shape == (2, 16, 16, 3)
    assert np.abs(made - ((expected.movedim(1, -1).clamp(-1, 1) + 1) * 127.5).numpy()).max() <= 1


def test_each_view_has_a_depth_mesh_and_the_first_a_surface(loaded):
    opt, w = loaded.opt, loaded.generator.map(torch.randn(1, 8), 0.5, loaded.generator.mean_latents(50))
    cameras = cameras_of(opt, torch.tensor([[0., 0.], [0.2, 0.1]]))
    made = [(kind, view) for kind, view, mesh in generate_meshes(loaded.generator, w, cameras, opt)]
    assert made == [('depth_mesh', 0), ('marching_cubes_mesh', 0), ('depth_mesh', 1)]


# ---------------------------------------------------------------------------------------------- names

def test_names_of_views_are_cut_toward_zero_and_unlike():
    assert results.view_names([(0.329, -0.2), (0.329, -0.2), (-0.329, 0.)]) == [
        'azim18_elev-11', 'azim18_elev-11_view1', 'azim-18_elev0']

"""The field and its volume rendering against the original's numbers: the definition, and as the commands use it."""
import dataclasses

import pytest
import torch
from conftest import assert_close, formula, load_formula_weights

import volume_renderer
from camera import cameras_at
from losses import eikonal_loss, minimal_surface_loss
from model import Generator
from op.tiles import TiledRenderer
from volume_renderer import SigmoidDensity, SoftplusDensity, VolumeRenderer, ray_weights, sample_depths

SWITCHES = {
    'default': {},
    'force_background': {'force_background': True},
    'no_sdf': {'sdf': False},
    'stratified_positions': {'offset_sampling': False},
    'no_z_normalize': {'z_normalize': False},
    'static_viewdirs': {'static_viewdirs': True},
}


def small_generator(manifest, beta=None, model='small.full.g', renderer=VolumeRenderer, **switches):
    """The golden numbers' small field, with formula weights."""
    settings = {'style_dim': 64, 'resolution': 64, 'samples': 24, 'depth': 4, 'width': 64, 'perturb': 0., **switches}
    fixed = {} if beta is None else {'sigmoid_beta': beta}
    return load_formula_weights(Generator(64, renderer(**settings)), manifest[model], **fixed)


BOTH = pytest.mark.parametrize('renderer', [VolumeRenderer, TiledRenderer])


@BOTH
@pytest.mark.parametrize('name', SWITCHES)
def test_every_switch(golden, manifest, name, renderer):
    expected = golden('volume_renderer')
    generator = small_generator(manifest, 0.02, renderer=renderer, **SWITCHES[name])
    with torch.no_grad():
        w = generator.map(expected['z'])
        rendering = generator.renderer(w, cameras_at(expected['poses']), sdf=True)
    assert_close(w, expected['latent'])
    assert_close(rendering.thumbnail[:, :, ::4, ::4], expected[f'{name}_rgb_grid'], what='rgb')
    assert_close(rendering.xyz[:, :, ::4, ::4], expected[f'{name}_xyz_grid'], what='xyz')
    assert_close(rendering.background[:, :, ::4, ::4], expected[f'{name}_mask_grid'], what='background')
    assert_close(rendering.sdf[:, ::16, ::16], expected[f'{name}_sdf_rows'], what='sdf')
    assert_close(rendering.features[:, :, ::16, ::16], expected[f'{name}_features_rows'], what='features')


@BOTH
def test_training_gradients(golden, manifest, renderer):
    expected = golden('volume_renderer')
    generator = small_generator(manifest, model='small.volume_renderer.g', renderer=renderer)
    rendering = generator.renderer(generator.map(expected['z']), cameras_at(expected['poses']), features=False,
                                   sdf=True, eikonal=True)
    eikonal = eikonal_loss(rendering.eikonal)
    minimal_surface = minimal_surface_loss(rendering.sdf, 100.)
    (eikonal + minimal_surface + rendering.thumbnail.square().mean()).backward()
    assert_close(rendering.thumbnail[:, :, ::4, ::4], expected['train_thumb_grid'])
    assert_close(rendering.sdf[:, ::16, ::16], expected['train_sdf_rows'])
    assert_close(rendering.eikonal[:, ::16, ::16], expected['train_eikonal_rows'])
    assert_close(eikonal, expected['eikonal_loss'])
    assert_close(minimal_surface, expected['minimal_surface_loss'])
    parameters = dict(generator.named_parameters())
    for key in expected:
        if key.startswith('grad:'):
            assert_close(parameters[key[5:]].grad, expected[key], 2e-5, key)  # sums over 200,000 points


@BOTH
def test_eikonal_is_the_slope_of_the_sdf(manifest, renderer):
    """Finite differences in double precision, by the unscaled points."""
    renderer = small_generator(manifest, renderer=renderer, resolution=2, samples=3).double().renderer
    w = formula('w', (1, 64)).double()
    cameras = cameras_at(torch.tensor([[0.3, 0.1]], dtype=torch.float64), resolution=2)
    analytic = renderer(w, cameras, eikonal=True).eikonal
    step = 1e-6
    for axis in range(3):
        shifted = []
        for sign in (1, -1):
            extrinsics = cameras.extrinsics.clone()
            extrinsics[:, axis, 3] += sign * step
            moved = dataclasses.replace(cameras, extrinsics=extrinsics)
            shifted.append(renderer(w, moved, sdf=True, color=False).sdf[..., 0])
        assert_close((shifted[0] - shifted[1]) / (2 * step), analytic[..., axis], 1e-5)


def test_weights_with_forced_background_sum_to_one():
    density = torch.rand(5, 11) * 30
    weights = ray_weights(density, torch.full((5, 11), 0.02), force_background=True)
    assert_close(weights.sum(-1), torch.ones(5), 1e-6)
    plain = ray_weights(density, torch.full((5, 11), 0.02))
    assert_close(plain[:, :-1], weights[:, :-1], 1e-6)
    transmittance = torch.exp(-(density[:, :-1] * 0.02).sum(-1))  # Beer-Lambert
    assert_close(weights[:, -1], transmittance, 1e-5)


@pytest.mark.parametrize('offset_sampling', [True, False])
def test_jitter_stays_in_its_bin(offset_sampling):
    near, far = torch.full((2, 1, 1), 0.88), torch.full((2, 1, 1), 1.12)
    settings = {'offset_sampling': offset_sampling, 'rays': 50}
    still = sample_depths(near, far, 8, **settings)
    jittered = sample_depths(near, far, 8, perturb=1., rng=torch.Generator().manual_seed(0), **settings)
    again = sample_depths(near, far, 8, perturb=1., rng=torch.Generator().manual_seed(0), **settings)
    assert torch.equal(jittered, again)
    assert jittered.shape == (2, 50, 8) and (jittered.diff(dim=-1) >= 0).all()
    assert jittered.min() >= 0.88 and jittered.max() <= 1.12 + 1e-6
    if offset_sampling:  # one offset a ray: equal spacing
        assert_close(jittered.diff(dim=-1), torch.full((2, 50, 7), 0.03), 1e-4)
    else:
        middle = (still[..., 1:] + still[..., :-1]) / 2
        assert (jittered[..., 1:] >= middle - 1e-6).all() and (jittered[..., :-1] <= middle + 1e-6).all()
        assert jittered.diff(dim=-1).std() > 1e-3


def test_raw_noise_changes_only_the_density_without_sdf(manifest):
    generator = small_generator(manifest, resolution=4, samples=5, sdf=False, raw_noise_std=1.)
    w, cameras = formula('w', (1, 64)), cameras_at(torch.zeros(1, 2), resolution=4)
    with torch.no_grad():
        first, second = generator.renderer(w, cameras, sdf=True), generator.renderer(w, cameras, sdf=True)
    assert torch.equal(first.sdf, second.sdf) and not torch.equal(first.thumbnail, second.thumbnail)


def test_points_to_fit_a_sphere_to_are_stratified(manifest):
    """Each sample of a ray lies in its own bin, and its distance is the field's."""
    renderer, w = small_generator(manifest, resolution=4, samples=5).renderer, formula('w', (2, 64))
    cameras = cameras_at(torch.tensor([[0.2, 0.1], [-0.4, 0.]]), resolution=4)
    sdf, points = renderer.stratified_sdf(w, cameras, torch.Generator().manual_seed(0))
    assert sdf.shape == (2, 80, 1) and points.shape == (2, 80, 3) and sdf.requires_grad
    for i in range(2):
        assert_close(renderer.sdf_at(renderer.field(w[i:i + 1]), points[i], cameras[i:i + 1]), sdf[i, :, 0], 1e-5)
        depth = -((points[i] - cameras.extrinsics[i, :, 3]) @ cameras.extrinsics[i, :, 2])
        assert (depth.view(16, 5).diff(dim=1) > 0).all() and depth.min() >= 0.88 - 1e-6 and depth.max() <= 1.12 + 1e-6
    assert renderer.stratified_sdf(w, cameras.magnified(0.5), resolution=2)[1].shape == (2, 20, 3)


def test_beyond_its_support_there_is_no_density():
    density = SigmoidDensity(torch.tensor(0.02))
    assert density.value(density.support) < 1e-3 * density.value(-density.support)
    assert SoftplusDensity().support is None


def test_color_at_equals_the_rendered_samples(manifest):
    """One sample a ray with forced background: the thumbnail is that sample's own color."""
    generator = small_generator(manifest, resolution=3, samples=2, static_viewdirs=True, force_background=True)
    w, cameras = formula('w', (1, 64)), cameras_at(torch.tensor([[0.3, -0.2]]), resolution=3)
    with torch.no_grad():
        generator.renderer.network.sigma_linear.bias += 100  # no density, so all weight is on the last sample
        rendering = generator.renderer(w, cameras)
        local = volume_renderer.camera_directions(3, cameras.focal)[0]
        colors = generator.renderer.color_at(w, rendering.xyz[0].flatten(1).T,
                                               torch.nn.functional.normalize(local, dim=-1), cameras)
    assert_close(2 * colors - 1, rendering.thumbnail[0].flatten(1).T, 1e-5)


def test_each_layer_of_the_field_can_have_its_own_latents(manifest):
    network = small_generator(manifest).renderer.network
    layers, points = network.num_layers, formula('points', (1, 6, 3))
    viewdirs, w = torch.nn.functional.normalize(formula('views', (1, 2, 3)), dim=-1), formula('w', (1, 64))
    own = w[:, None].repeat(1, layers, 1)
    with torch.no_grad():
        expected = network(w, points, viewdirs)
        assert all(map(torch.equal, network(own, points, viewdirs), expected))
        own[:, -1] += 1  # of the layer that sees the view direction
        sdf, features, _ = network(own, points, viewdirs)
        assert torch.equal(sdf, expected[0]) and not torch.equal(features, expected[1])
        own[:, 0] += 1
        assert not torch.equal(network(own, points, viewdirs)[0], sdf)

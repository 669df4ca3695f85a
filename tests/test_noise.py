"""Noise on surfaces: white in every view, and moving with the surface."""
import math

import pytest
import torch
import torch.nn.functional as F

from camera import Cameras, cameras_at
from metrics.views import View, view_difference, warp
from surfaces.meshes import surface_mesh
from surfaces.noise import SurfaceNoise, frontal_noise, pixels_a_frame


def plane(half=0.125, cells=128):
    """(F,3,3) triangles of a square in the plane z = 0, facing the frontal camera."""
    x = torch.linspace(-half, half, cells + 1)
    a = torch.stack(torch.meshgrid(x[:-1], x[:-1], indexing='xy'), dim=-1).view(-1, 1, 2)
    step = x[1] - x[0]
    offsets = torch.tensor([[[0., 0.], [1., 0.], [0., 1.]], [[1., 0.], [1., 1.], [0., 1.]]]) * step
    return F.pad((a[:, :, None] + offsets[None]).view(-1, 3, 2), (0, 1))


def moved(camera, pixels, resolution):
    """The frontal camera, moved so that points at distance 1 appear `pixels` further left."""
    extrinsics = camera.extrinsics.clone()
    extrinsics[0, 0, 3] += pixels / (camera.focal.item() * resolution / 64)
    return Cameras(extrinsics, camera.focal, camera.near, camera.far, camera.viewpoint)


def correlation(a, b):
    return (((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())).item()


def test_noise_is_white_and_moves_with_the_surface():
    camera = cameras_at(torch.zeros(1, 2))
    noise = SurfaceNoise(plane(), [64, 128, 128], torch.Generator().manual_seed(0))
    fixed = [torch.full((1, 1, size, size), math.nan) for size in noise.sizes]
    still = [layer[0, 0] for layer in noise.maps(camera, 64, fixed)]
    for layer in still:
        assert layer.isfinite().all()  # the square fills the image
        few = 4 / len(layer)  # four standard errors
        assert abs(layer.mean()) < few and abs(layer.std() - 1) < few
        for shift in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)):
            down, right = shift
            assert abs(correlation(layer[down:, right:], layer[:len(layer) - down, :len(layer) - right])) < few + 0.02
    assert abs(correlation(still[1], still[2])) < 0.04  # layers of one resolution are independent

    # A shift by whole pixels takes the noise along; by half a pixel too, and what comes is still N(0, 1).
    whole = noise.maps(moved(camera, 3, 128), 64, fixed)[1][0, 0]
    inner = slice(8, -8)
    assert torch.allclose(whole[inner, 8:-11], still[1][inner, 11:-8], atol=0.35)
    assert correlation(whole[inner, 8:-11], still[1][inner, 11:-8]) > 0.99
    half = noise.maps(moved(camera, 0.5, 128), 64, fixed)[1][0, 0]
    assert correlation(half[:, :-1], still[1][:, :-1] + still[1][:, 1:]) > 0.8
    assert abs(half.std() - 1) < 0.04


@pytest.mark.parametrize('size', (16, 32, 64))
def test_the_noise_of_a_slow_surface_does_not_jump(size):
    """White noise that moves by d pixels changes by pi / sqrt(3) d; rounded to quarters of pixels it would by more."""
    camera, step = cameras_at(torch.zeros(1, 2)), 0.05
    noise = SurfaceNoise(plane(), [size], torch.Generator().manual_seed(0))
    fixed = [torch.zeros(1, 1, size, size)]
    maps = [noise.maps(moved(camera, i * step, size), 64, fixed)[0] for i in range(6)]
    changes = torch.stack([(after - before).std() for before, after in zip(maps, maps[1:], strict=False)])
    assert changes.mean() < 1.5 * math.pi / 3 ** 0.5 * step


def test_pixels_a_frame():
    turning = cameras_at(torch.tensor([[0., 0.], [0.01, 0.], [0.02, 0.]]))
    expected = 0.01 * 0.06 * 128 / 2 / math.tan(math.radians(6))  # half way to the near plane, 0.12 away
    assert abs(pixels_a_frame(turning, 64, 128) / expected - 1) < 0.01


def test_uncovered_pixels_keep_their_noise():
    camera = cameras_at(torch.zeros(1, 2))
    noise = SurfaceNoise(plane(half=0.03), [64], torch.Generator().manual_seed(0))
    fixed = [torch.randn(1, 1, 64, 64)]
    projected, = noise.maps(camera, 64, fixed)
    kept = (projected == fixed[0])[0, 0]
    edge = 0.03 * camera.focal.item()  # pixels from the middle
    distance = (torch.arange(64) + 0.5 - 32).abs()
    farthest = torch.maximum(distance, distance[:, None])
    assert kept[farthest > edge + 1].all() and not kept[farthest < edge - 1].any()
    away, = noise.maps(cameras_at(torch.tensor([[math.pi, 0.]])), 64, fixed)  # from behind nothing is seen
    assert torch.equal(away, fixed[0])


def test_noise_sticks_to_the_head(head_views):
    generator, (front, first, second) = head_views['generator'], head_views['cameras']
    mesh = surface_mesh(head_views['surfaces'][0].sdf, front)
    noise = frontal_noise(mesh, generator.renderer, front, generator.decoder.noise_sizes,
                          torch.Generator().manual_seed(0))
    fixed = generator.decoder.fixed_noise()

    def view(camera, surface, image):
        return View(image, surface.xyz, surface.background, camera, 64)

    # The mesh lies on the field's zero level, not only near it: a voxel is 0.24 / 128 wide.
    renderer = generator.renderer
    distances = renderer.sdf_at(renderer.field(head_views['w']), noise.corners.view(-1, 3), front)
    assert distances.abs().max() < 0.1 * 0.24 / 128

    maps = [noise.maps(camera, 64, fixed) for camera in (first, second)]
    for layer in (1, 3):
        covered = maps[0][layer] != fixed[layer]
        assert abs(maps[0][layer][covered].std() - 1) < 0.04
        sources = {'projected': [m[layer] for m in maps], 'fixed': [fixed[layer]] * 2}
        agreement = {}
        for name, (a, b) in sources.items():
            target = view(second, head_views['surfaces'][2], b)
            carried = warp(view(first, head_views['surfaces'][1], a), target)
            where = carried.visible & (carried.motion > 1)
            assert where.sum() > 500
            agreement[name] = correlation(carried.image[0, 0][where], b[0, 0][where])
        assert agreement['projected'] > 0.7 and abs(agreement['fixed']) < 0.25, agreement

    # Of the images too, noise on the surface flickers least.
    w_prime = generator.decoder.map(head_views['w'], 0.5, head_views['means'].w_prime)
    flicker = {}
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        features = [generator.renderer(head_views['w'], camera).features for camera in (first, second)]
        for name, noises in {'projected': maps, 'fixed': [fixed, fixed],
                             'random': [generator.decoder.random_noise(1, random) for _ in range(2)]}.items():
            images = [generator.decoder(part, w_prime, layers) for part, layers in zip(features, noises, strict=True)]
            flicker[name] = view_difference(view(first, head_views['surfaces'][1], images[0]),
                                            view(second, head_views['surfaces'][2], images[1]))
    assert flicker['projected'] < 0.7 * flicker['fixed'] and flicker['fixed'] < flicker['random'], flicker

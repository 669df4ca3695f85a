"""Videos: trajectories, drawn surfaces, noise on surfaces, the flicker measure, video files and the command."""
import errno
import math
import os
import resource
import signal
from functools import partial
from pathlib import Path

import av
import golden_head
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import checkpoint
import render_video
from camera import Cameras, cameras_at, project, video_viewpoints
from inference.identities import closed_walk
from inference.video_files import video_path, video_writer
from metrics.views import View, view_difference, warp
from model import build_generator
from options import parse
from surfaces.meshes import depth_mesh, surface_mesh
from surfaces.noise import SurfaceNoise, frontal_noise, pixels_a_frame
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface
from utils import to_uint8
from volume_renderer import camera_directions

SHAPE = [*golden_head.FLAGS, '--identities', '1']
TINY = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--renderer_spatial_output_dim', '8', '--truncation_mean', '50', '--device', 'cpu']
VIDEOS = Path('evaluations/shape/final_model/videos')


@pytest.fixture
def run(command):
    """run(*arguments) -> (exit code, stdout, stderr) of the command, in an empty folder."""
    return partial(command, render_video)


@pytest.fixture
def tiny(tmp_path):
    """Writes a tiny untrained model; tiny(change) lets change(state) edit it. Returns its flags."""
    def write(change=lambda state: None, decoder=True, sdf=True):
        torch.manual_seed(0)
        flags = TINY if sdf else [*TINY, '--no_sdf']
        state = build_generator(parse('render_video', '', flags), decoder).state_dict()
        change(state)
        checkpoint.save(tmp_path / 'full_models' / 'tiny.pt', {'g_ema': state})
        return ['--expname', 'tiny', '--identities', '1', *flags]
    return write


@pytest.fixture
def small_surfaces(monkeypatch):
    """Surfaces at 16 x 16 x 16, to test what is around them."""
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)


@pytest.fixture(scope='module')
def shape():
    """The golden head: generator, latents, and its surface in three views of a video of 60 frames."""
    generator = build_generator(parse('render_video', '', SHAPE)).requires_grad_(False)
    generator.load_state_dict(golden_head.head_state())
    random = torch.Generator().manual_seed(1234)
    means = generator.mean_latents(10000, random)
    z = torch.randn(1, 64, generator=random)
    w = generator.map(z, 0.5, means)
    with torch.no_grad():
        viewpoints = torch.cat([torch.zeros(1, 2), video_viewpoints(60, 0.3, 0.15)[11:13]])
        cameras = [cameras_at(viewpoint[None]) for viewpoint in viewpoints]
        surfaces = [render_surface(generator.renderer, w, camera, sdf=i == 0) for i, camera in enumerate(cameras)]
    return dict(generator=generator, z=z, w=w, means=means, cameras=cameras, surfaces=surfaces)


def read_video(path):
    """(stream facts, uint8 frames) of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
        return (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate), frames


# ---------------------------------------------------------------------------------------------- cameras

@pytest.mark.parametrize('uniform, azimuth_only', [(False, False), (True, False), (False, True)])
def test_trajectories(uniform, azimuth_only):
    viewpoints = video_viewpoints(250, 0.3, 0.15, uniform, azimuth_only).double()
    for i in (0, 60, 125, 249):
        angle = 2 * math.pi * i / 249
        azimuth = (0.3 if uniform else 0.45) * math.cos(angle)
        elevation = 0.075 + 0.075 * math.sin(angle) if uniform else 0.225 * math.sin(angle)
        expected = [azimuth, 0. if azimuth_only else elevation]
        assert viewpoints[i].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(video_viewpoints(1, 0.3, 0.15)) == 1


def test_project_undoes_the_rays():
    cameras = cameras_at(torch.tensor([[0.4, -0.2]]), 16, fov=9)
    directions = camera_directions(16, cameras.focal)[0] @ cameras.extrinsics[0, :, :3].T
    points = cameras.extrinsics[0, :, 3] + directions * torch.linspace(0.9, 1.1, 256)[:, None]
    pixels, depth = project(points, cameras, 16)
    centers = torch.arange(16) + 0.5
    assert torch.allclose(pixels.view(16, 16, 2)[..., 0], centers.expand(16, 16), atol=1e-4)
    assert torch.allclose(pixels.view(16, 16, 2)[..., 1], centers[:, None].expand(16, 16), atol=1e-4)
    assert torch.allclose(depth, torch.linspace(0.9, 1.1, 256), atol=1e-6)


# ---------------------------------------------------------------------------------------------- drawn surfaces

def sphere_view(radius=0.09, resolution=128):
    """Depth map of an analytic sphere before a far plane: (camera, xyz (3,H,W), mask (1,H,W), normals (H,W,3))."""
    camera = cameras_at(torch.tensor([[0.3, 0.1]]), resolution)
    directions = (camera_directions(resolution, camera.focal)[0] @ camera.extrinsics[0, :, :3].T).double()
    origin = camera.extrinsics[0, :, 3].double()
    along, length = directions @ origin, directions.square().sum(1)
    root = along.square() - length * (1 - radius ** 2)
    t = torch.where(root > 0, (-along - root.clamp(min=0).sqrt()) / length, 1.12)
    points = (origin + directions * t[:, None]).view(resolution, resolution, 3)
    mask = (root <= 0).view(1, resolution, resolution).float()
    return camera, points.movedim(-1, 0).float(), mask, (points / radius)


def test_drawn_surfaces_of_a_sphere():
    camera, xyz, mask, normals = sphere_view()
    covered = F.max_pool2d(mask[None], 9, 1, 4)[0, 0] == 0  # away from the silhouette
    points = xyz.movedim(0, -1).double()
    rotation, eye = camera.extrinsics[0, :, :3].double(), camera.extrinsics[0, :, 3].double()

    light = F.normalize(torch.tensor([0., 1., 5.]).double() - points, dim=-1)
    cosine = (light * normals).sum(-1, keepdim=True)
    mirrored = 2 * cosine * normals - light
    highlight = (mirrored * F.normalize(eye - points, dim=-1)).sum(-1).clamp(min=0) ** 64
    cosine = cosine[..., 0]
    expected = {'phong': (0.1 + 0.65 * cosine.clamp(min=0) + 0.2 * highlight * (cosine > 0)).expand(3, -1, -1),
                'normals': ((normals @ rotation + 1) / 2).movedim(-1, 0),
                'depth': ((1.12 - (eye - points) @ rotation[:, 2]) / 0.24).expand(3, -1, -1)}
    background = {'phong': None, 'normals': 1., 'depth': 0.}
    for style, picture in expected.items():
        drawn = (shade_surface(xyz, mask, camera, style, size=128) + 1) / 2  # at the pixels' own centers
        error = (drawn - picture)[:, covered].abs()
        assert error.max() < (0.02 if style != 'depth' else 1e-4) and error.mean() < 2e-3, style
        if background[style] is not None:
            assert torch.allclose(drawn[:, 0, 0], torch.tensor(background[style]))
        assert shade_surface(xyz, mask, camera, style).shape == (3, 512, 512)


def test_drawing_equals_ray_casting_the_mesh(shape):
    """The same mesh through Embree: area-weighted vertex normals, interpolated at the hits of a 512 x 512 image."""
    pytest.importorskip('embreex', reason='needs embreex (requirements-test.txt)')
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
    camera, surface = shape['cameras'][1], shape['surfaces'][1]
    mesh = depth_mesh(surface.xyz[0])
    corners = mesh.vertices[mesh.faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(mesh.vertices)
    np.add.at(normals, mesh.faces.reshape(-1), np.repeat(areas, 3, axis=0))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)

    scene = EmbreeScene()
    TriangleMesh(scene, corners.astype(np.float32))
    eye = camera.extrinsics[0, :, 3].numpy()
    rays = (camera_directions(512, camera.magnified(8).focal)[0] @ camera.extrinsics[0, :, :3].T).numpy()
    hits = scene.run(np.tile(eye, (len(rays), 1)), rays, output=True)
    hit, weights = hits['primID'] >= 0, np.stack([1 - hits['u'] - hits['v'], hits['u'], hits['v']], axis=1)
    faces = mesh.faces[hits['primID'][hit]]
    points = np.einsum('pk,pkd->pd', weights[hit], mesh.vertices[faces])
    normal = np.einsum('pk,pkd->pd', weights[hit], normals[faces])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    light = unit(np.array([0, 1, 5]) - points)
    cosine = (light * normal).sum(1)
    mirrored = 2 * cosine[:, None] * normal - light
    highlight = np.maximum((mirrored * unit(eye - points)).sum(1), 0) ** 64 * (cosine > 0)
    expected = np.ones(len(rays))
    expected[hit] = 0.1 + 0.65 * np.maximum(cosine, 0) + 0.2 * highlight

    drawn = ((shade_surface(surface.xyz[0], surface.background[0], camera) + 1) / 2)[0].numpy()
    error = 255 * np.abs(drawn - expected.reshape(512, 512))
    assert ((drawn == 1) == ~hit.reshape(512, 512)).mean() > 0.999  # the edge of the mesh
    assert error[hit.reshape(512, 512)].mean() < 0.2 and np.quantile(error, 0.999) < 5


# ---------------------------------------------------------------------------------------------- noise on surfaces

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


def test_noise_sticks_to_the_head(shape):
    generator, (front, first, second) = shape['generator'], shape['cameras']
    mesh = surface_mesh(shape['surfaces'][0].sdf, front)
    noise = frontal_noise(mesh, generator.renderer, front, generator.decoder.noise_sizes,
                          torch.Generator().manual_seed(0))
    fixed = generator.decoder.fixed_noise()

    def view(camera, surface, image):
        return View(image, surface.xyz, surface.background, camera, 64)

    # The mesh lies on the field's zero level, not only near it: a voxel is 0.24 / 128 wide.
    field, points = generator.renderer.network.fold(shape['w']), noise.corners.view(1, -1, 3)
    assert field.sdf(field.hidden(generator.renderer.scale(points, front))).abs().max() < 0.1 * 0.24 / 128

    maps = [noise.maps(camera, 64, fixed) for camera in (first, second)]
    for layer in (1, 3):
        covered = maps[0][layer] != fixed[layer]
        assert abs(maps[0][layer][covered].std() - 1) < 0.04
        sources = {'projected': [m[layer] for m in maps], 'fixed': [fixed[layer]] * 2}
        agreement = {}
        for name, (a, b) in sources.items():
            target = view(second, shape['surfaces'][2], b)
            carried = warp(view(first, shape['surfaces'][1], a), target)
            where = carried.visible & (carried.motion > 1)
            assert where.sum() > 500
            agreement[name] = correlation(carried.image[0, 0][where], b[0, 0][where])
        assert agreement['projected'] > 0.7 and abs(agreement['fixed']) < 0.25, agreement

    # Of the images too, noise on the surface flickers least.
    w_prime = generator.decoder.map(shape['w'], 0.5, shape['means'].w_prime)
    flicker = {}
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        features = [generator.renderer(shape['w'], camera).features for camera in (first, second)]
        for name, noises in {'projected': maps, 'fixed': [fixed, fixed],
                             'random': [generator.decoder.random_noise(1, random) for _ in range(2)]}.items():
            images = [generator.decoder(part, w_prime, layers) for part, layers in zip(features, noises, strict=True)]
            flicker[name] = view_difference(view(first, shape['surfaces'][1], images[0]),
                                            view(second, shape['surfaces'][2], images[1]))
    assert flicker['projected'] < 0.7 * flicker['fixed'] and flicker['fixed'] < flicker['random'], flicker


def test_view_difference_of_a_textured_sphere():
    views = {}
    for name in ('painted', 'on screen'):
        pair = []
        for azimuth in (0.2, 0.3):
            camera = cameras_at(torch.tensor([[azimuth, 0.]]), 128)
            directions = camera_directions(128, camera.focal)[0] @ camera.extrinsics[0, :, :3].T
            origin = camera.extrinsics[0, :, 3]
            along, length = directions @ origin, directions.square().sum(1)
            root = along.square() - length * (1 - 0.09 ** 2)
            t = torch.where(root > 0, (-along - root.clamp(min=0).sqrt()) / length, 1.12)
            xyz = (origin + directions * t[:, None]).T.view(1, 3, 128, 128)
            mask = (root <= 0).float().view(1, 1, 128, 128)
            where = xyz if name == 'painted' else xyz - 0.1 * azimuth
            image = torch.sin(100 * where)
            image[mask.expand_as(image) > 0] = 5.  # the background must not count
            pair.append(View(image, xyz, mask, camera, 128))
        views[name] = pair
    assert view_difference(*views['painted']) < 0.01
    assert view_difference(*views['on screen']) > 0.2
    carried = warp(*views['painted'])
    assert 0.3 < carried.visible.float().mean() < (views['painted'][1].background == 0).float().mean()
    source, target = views['painted']
    assert math.isnan(view_difference(source, target._replace(background=torch.ones_like(target.background))))


# ---------------------------------------------------------------------------------------------- video files

def ramp(i, height=48, width=64):
    """A colored picture that changes with i."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full((height, width), 20 * i % 256)], -1).astype(np.uint8)


@pytest.mark.parametrize('size', [(48, 64), (47, 63), (4, 4)])
def test_mp4(tmp_path, size):
    path = tmp_path / 'a.mp4'
    with video_writer(path, 'mp4', 25) as add:
        for i in range(9):
            add(ramp(i, *size))
    assert sorted(tmp_path.iterdir()) == [path]
    facts, frames = read_video(path)
    assert facts == ('h264', 'yuv420p', 25) and len(frames) == 9
    assert frames[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    if size[0] > 4:
        for i in (0, 8):  # colors come back: matrix and range are as the file says
            assert np.abs(frames[i][:size[0], :size[1]].astype(int) - ramp(i, *size)).mean() < 3
    data = path.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')  # fast start


@pytest.mark.parametrize('kind', ['gif', 'webp', 'frames'])
def test_other_formats(tmp_path, kind):
    path = video_path(tmp_path, 'a', kind)
    with video_writer(path, kind, 20) as add:
        for i in range(5):
            add(ramp(i))
    if kind == 'frames':
        assert [file.name for file in sorted(path.iterdir())] == [f'{i:05d}.png' for i in range(5)]
        assert np.array_equal(np.asarray(Image.open(path / '00003.png')), ramp(3))
        return
    with Image.open(path) as video:
        assert video.n_frames == 5 and video.size == (64, 48) and video.info['loop'] == 0
        durations = []
        for i in range(5):
            video.seek(i)
            picture = np.asarray(video.convert('RGB')).astype(int)
            durations.append(video.info['duration'])
        assert durations == [50] * 5 and np.abs(picture - ramp(4)).mean() < 5


@pytest.mark.parametrize('kind', ['mp4', 'gif', 'webp', 'frames'])
def test_stopped_and_failed_recordings(tmp_path, kind):
    path = video_path(tmp_path, 'a', kind)
    with pytest.raises(KeyboardInterrupt), video_writer(path, kind):
        raise KeyboardInterrupt  # before the first frame: nothing
    assert not path.is_file()
    with video_writer(path, kind) as add:
        for i in range(6):
            add(ramp(i))
    with pytest.raises(ValueError, match='a bug'), video_writer(path, kind) as add:
        add(ramp(0))
        raise ValueError('a bug')  # the earlier video stays
    count = {'frames': lambda: len(list(path.iterdir())), 'mp4': lambda: len(read_video(path)[1])}.get(
        kind, lambda: Image.open(path).n_frames)
    assert count() == 6
    with pytest.raises(KeyboardInterrupt), video_writer(path, kind) as add:
        for i in range(4):
            add(ramp(i))
        raise KeyboardInterrupt
    assert count() == 4 and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------- the command

def test_the_originals_frames(run, tmp_path, shape, head_checkpoint):
    (tmp_path / 'full_models').mkdir()
    os.symlink(head_checkpoint, tmp_path / 'full_models' / 'shape.pt')
    code, _, error = run(*SHAPE, '--frames', 4, '--format', 'frames', '--side_by_side')
    assert code == 0, error
    cameras = cameras_at(video_viewpoints(4, 0.3, 0.15))
    for i in golden_head.VIDEO_FRAMES:
        def picture(video, frame=i):
            return np.asarray(Image.open(VIDEOS / f'sample_{video}_0_elipsoid' / f'{frame:05d}.png')).astype(int)

        def golden(video, frame=i):
            return np.asarray(Image.open(golden_head.SHAPE / f'video_{video}_{frame}.png')).astype(int)

        assert np.abs(picture('video') - golden('rgb')).max() <= 1  # the original cuts, we round
        difference = np.abs(picture('depth_video') - golden('depth'))
        assert difference.mean() < 1 and difference.max() < 20  # nothing moved, mirrored or lit from elsewhere
        both = picture('side_by_side_video')
        assert both.shape == (512, 1024, 3) and np.array_equal(both[:, 512:], picture('depth_video'))
    assert np.abs(picture('video', 0) - picture('video', 1)).mean() > 3
    assert np.array_equal(picture('video', 0), picture('video', 3))

    # A frame is what generation gives for its pose, latent and noise.
    opt = parse('render_video', '', SHAPE)
    assert opt.rendering.N_samples == 64
    with torch.no_grad():
        generated = shape['generator'](shape['z'], cameras[1:2], psi=0.5, means=shape['means'], noise='fixed')
    assert np.abs(to_uint8(generated.image)[0].astype(int) - picture('video', 1)).max() <= 1


def test_mp4_videos_of_the_command(run, tiny, small_surfaces):
    code, out, _ = run(*tiny(), '--frames', 5, '--fps', 12, '--seeds', '3,5', '--azim_video', '--no_surface_videos')
    assert code == 0
    videos = Path('evaluations/tiny/final_model/videos')
    assert sorted(path.name for path in videos.iterdir()) == [f'sample_video_seed{seed}_azim.mp4' for seed in (3, 5)]
    facts, frames = read_video(videos / 'sample_video_seed3_azim.mp4')
    assert facts == ('h264', 'yuv420p', 12) and len(frames) == 5 and frames[0].shape == (16, 16, 3)
    assert '2 identities' in out and 's a frame' in out


def with_surface(state):
    """Make the tiny field's SDF cross zero: its bias moves to the middle of its values."""
    opt = parse('render_video', '', TINY)
    generator = build_generator(opt)
    generator.load_state_dict(state)
    with torch.no_grad():
        sdf = render_surface(generator.renderer, torch.zeros(1, 8), cameras_at(torch.zeros(1, 2), 8), sdf=True).sdf
    state['renderer.network.sigma_linear.bias'] -= sdf.median()


@pytest.mark.parametrize('style', ['phong', 'normals', 'depth'])
def test_depth_videos_and_projected_noise(run, tiny, small_surfaces, style):
    code, out, error = run(*tiny(with_surface), '--frames', 3, '--project_noise', '--side_by_side',
                           '--depth_style', style, '--truncation_ratio', 0.1)
    assert code == 0, error
    folder = Path('evaluations/tiny/final_model/videos/with_noise_projection')
    names = [f'sample_{video}_0_elipsoid.mp4' for video in ('depth_video', 'side_by_side_video', 'video')]
    assert {path.name for path in folder.iterdir()} == {'sample_0_frontal_marching_cubes_mesh.obj', *names}
    sizes = [read_video(folder / name)[1][0].shape for name in names]
    assert sizes == [(512, 512, 3), (512, 1024, 3), (16, 16, 3)]


def test_a_walk_between_identities(run, tiny, small_surfaces):
    stops = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    walk = closed_walk(stops, 31)
    assert torch.allclose(walk[[0, 10, 20]], stops, atol=1e-6) and torch.allclose(walk[30], stops[0], atol=1e-6)
    speed = walk.diff(dim=0)
    assert torch.allclose(speed[0], speed[-1], atol=0.5 * speed.abs().max().item())  # no corner where it closes
    assert (speed.diff(dim=0).norm(dim=1) < 0.5 * speed.norm(dim=1).max()).all()

    code, _, error = run(*tiny(), '--frames', 7, '--interpolate', '3,7,9', '--no_surface_videos', '--format', 'frames')
    assert code == 0, error
    folder = Path('evaluations/tiny/final_model/videos/sample_video_walk_3_7_9_elipsoid')
    frames = [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.iterdir())]
    assert len(frames) == 7 and np.array_equal(frames[0], frames[6])
    code, _, _ = run(*tiny(), '--frames', 1, '--seeds', '3', '--no_surface_videos', '--format', 'frames')
    alone = np.asarray(Image.open('evaluations/tiny/final_model/videos/sample_video_seed3_elipsoid/00000.png'))
    assert np.array_equal(frames[0], alone)  # it starts at the identity of its first seed


@pytest.mark.parametrize('bias', [10., -10.])
@pytest.mark.parametrize('flags, left_out', [([], 'surface video'),
                                             (['--project_noise'], 'surface video, projected noise')])
def test_no_surface(run, tiny, small_surfaces, bias, flags, left_out):
    model = tiny(lambda state: state['renderer.network.sigma_linear.bias'].fill_(bias))
    code, out, _ = run(*model, '--frames', 2, *flags)
    assert code == 0 and 'does not cross zero' in out and f'left out: {left_out}.' in out
    folder = Path('evaluations/tiny/final_model/videos', *(['with_noise_projection'] if flags else []))
    assert [path.name for path in folder.iterdir() if path.is_file()] == ['sample_video_0_elipsoid.mp4']
    assert len(read_video(folder / 'sample_video_0_elipsoid.mp4')[1]) == 2


def test_models_without_decoder_or_sdf(run, tiny, small_surfaces):
    code, out, _ = run(*tiny(decoder=False), '--frames', 2)
    assert code == 0 and 'no decoder' in out
    assert read_video('evaluations/tiny/final_model/videos/sample_video_0_elipsoid.mp4')[1][0].shape == (8, 8, 3)
    assert run(*tiny(decoder=False), '--project_noise')[0] == 2
    code, _, _ = run(*tiny(sdf=False), '--frames', 2, '--results_dir', 'other')
    assert code == 0 and Path('other/tiny/final_model/videos/sample_depth_video_0_elipsoid.mp4').is_file()
    code, _, error = run(*tiny(sdf=False), '--project_noise')
    assert code == 2 and 'has no SDF' in error


@pytest.mark.parametrize('sent, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_early(run, tiny, small_surfaces, monkeypatch, sent, code):
    drawn = []

    def shade_then_stop(*arguments):
        drawn.append(shade_surface(*arguments))
        if len(drawn) == 4:
            os.kill(os.getpid(), sent)
        return drawn[-1]

    monkeypatch.setattr('inference.frames.shade_surface', shade_then_stop)
    got, out, error = run(*tiny(sdf=False), '--frames', 20)
    assert got == code and 'have 3 of 20 frames' in out and 'stopped' in error
    for video in ('video', 'depth_video'):
        assert len(read_video(f'evaluations/tiny/final_model/videos/sample_{video}_0_elipsoid.mp4')[1]) == 3


@pytest.mark.parametrize('flags, words', [
    (['--frames', 0], '--frames'), (['--fps', 0], '--fps'), (['--seeds', 'A'], '--seeds'),
    (['--interpolate', '3,x'], '--interpolate'), (['--format', 'avi'], '--format'),
    (['--depth_style', 'x'], '--depth_style'), (['--seeds', '1', '--interpolate', '1,2'], '--interpolate'),
    (['--format', 'gif', '--fps', 60], '--fps 60'),
    (['--project_noise', '--interpolate', '1,2'], '--project_noise'),
    (['--side_by_side', '--no_surface_videos'], '--side_by_side'),
    (['--results_dir', 'full_models/tiny.pt'], '--results_dir'), (['--expname', 'nobody'], 'nobody')])
def test_bad_input(run, tiny, flags, words):
    code, _, error = run(*tiny(), *flags)
    assert code == 2 and words in error and error.count('\n') == 1 and 'Traceback' not in error


@pytest.mark.parametrize('kind', ['mp4', 'frames'])
def test_no_space_left(run, tiny, small_surfaces, monkeypatch, kind):
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    model = tiny(sdf=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        code, _, error = run(*model, '--frames', 3, '--format', kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and os.strerror(errno.EFBIG) in error and 'free some space' in error
    folder = Path('evaluations/tiny/final_model/videos')
    assert not list(folder.glob('*.mp4')) and not list(folder.rglob('.*'))

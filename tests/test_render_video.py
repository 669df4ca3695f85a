"""The video command: the original's frames, walks, projected noise, stops and bad input."""
import errno
import os
import re
import resource
import signal
from functools import partial
from pathlib import Path

import golden_head
import numpy as np
import pytest
import torch
from conftest import read_video
from PIL import Image

import checkpoint
import render_video
from camera import cameras_at, video_viewpoints
from inference.identities import closed_walk
from inference.video_files import CODECS
from model import build_generator
from options import parse
from surfaces.rendering import render_surface
from surfaces.shading import shade_surface
from utils import to_uint8

SHAPE = [*golden_head.FLAGS, '--identities', '1']
TINY = ['--size', '16', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--channel_max', '16', '--renderer_spatial_output_dim', '8', '--truncation_mean', '50', '--device', 'cpu']
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


# ---------------------------------------------------------------------------------------------- the command

def test_the_originals_frames(run, tmp_path, head_model, head_checkpoint):
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
        generated = head_model['generator'](head_model['z'], cameras[1:2], psi=0.5, means=head_model['means'],
                                            noise='fixed')
    assert np.abs(to_uint8(generated.image)[0].astype(int) - picture('video', 1)).max() <= 1


def test_mp4_videos_of_the_command(run, tiny, small_surfaces):
    code, out, _ = run(*tiny(), '--frames', 5, '--fps', 12, '--seeds', '3,5', '--azim_video', '--no_surface_videos')
    assert code == 0
    videos = Path('evaluations/tiny/final_model/videos')
    assert sorted(path.name for path in videos.iterdir()) == [f'sample_video_seed{seed}_azim.mp4' for seed in (3, 5)]
    facts, frames = read_video(videos / 'sample_video_seed3_azim.mp4')
    assert facts == ('h264', 'yuv420p', 12) and len(frames) == 5 and frames[0].shape == (16, 16, 3)
    assert '2 identities' in out and 's a frame' in out


def test_transparent_videos(run, tiny, small_surfaces):
    code, _, stderr = run(*tiny(with_surface), '--frames', 2, '--transparent', '--format', 'frames', '--side_by_side')
    assert code == 0, stderr
    videos = Path('evaluations/tiny/final_model/videos')
    for video, size in (('video', (16, 16)), ('depth_video', (512, 512)), ('side_by_side_video', (512, 1024))):
        frame = np.asarray(Image.open(videos / f'sample_{video}_0_elipsoid' / '00001.png'))
        assert frame.shape == (*size, 4) and frame[..., 3].max() > 0
    code, _, stderr = run(*tiny(), '--transparent')
    assert code == 2 and '--format webm' in stderr and len(stderr.strip().splitlines()) == 1


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


@pytest.mark.parametrize('two, at, counts', [(False, 4, [3]), (True, 8, range(3, 8))])
@pytest.mark.parametrize('sent, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_early(run, tiny, small_surfaces, monkeypatch, sent, code, two, at, counts):
    """Where two frames are rendered at once, up to two are worked on and two not yet written when the signal comes."""
    drawn = []
    monkeypatch.setattr('inference.parallel.two_at_once', lambda device, count: two)

    def shade_then_stop(*arguments):
        drawn.append(shade_surface(*arguments))
        if len(drawn) == at:
            os.kill(os.getpid(), sent)
        return drawn[-1]

    monkeypatch.setattr('inference.frames.shade_surface', shade_then_stop)
    got, out, error = run(*tiny(sdf=False), '--frames', 20)
    assert got == code and 'stopped' in error
    count = int(re.search(r'have (\d+) of 20 frames', out)[1])
    assert count in counts
    for video in ('video', 'depth_video'):
        assert len(read_video(f'evaluations/tiny/final_model/videos/sample_{video}_0_elipsoid.mp4')[1]) == count


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
    assert 'evaluations/tiny/final_model/videos/sample_' in error and '/.' not in error  # the name that the user knows
    folder = Path('evaluations/tiny/final_model/videos')
    assert not list(folder.glob('*.mp4')) and not list(folder.rglob('.*'))


@pytest.mark.parametrize('kind', ['mp4', 'gif', 'webp'])
def test_an_encoder_that_is_missing_is_noticed_before_the_work(run, tiny, monkeypatch, kind):
    monkeypatch.setitem(CODECS, kind, 'libnope')
    code, _, error = run(*tiny(), '--frames', 2, '--format', kind)
    assert code == 2 and f'--format {kind}' in error and 'libnope' in error and 'frames' in error
    assert error.count('\n') == 1 and not Path('evaluations').exists()

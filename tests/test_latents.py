"""inference/latents.py: a file of latents gives the picture that it was made with, and nothing else passes for one."""
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny_model, z_of

import checkpoint
import evaluate
import generate_shapes_and_images as generate
import render_video
from camera import cameras_of
from inference.latents import (
    Latents,
    Owner,
    files_of,
    latents_of_w,
    mixed,
    name_of_file,
    read_latents,
    render_latents,
    save_latents,
    tuned_generator,
    weights_hash,
)
from inference.loaded_model import load_model
from utils import UserError, to_uint8

TINY = ['--expname', 'tiny', '--device', 'cpu', '--truncation_mean', '100']
VIEWPOINTS = torch.tensor([[0.1, -0.05]])


@pytest.fixture
def model(loaded_tiny):
    return loaded_tiny


@pytest.fixture
def latents(model):
    return latents_of_w(model.generator, model.w_of([3], 0.7), 0.7, model.means)


def write(model, latents, path='a.pt', **more):
    save_latents(path, latents, model.owner, VIEWPOINTS, **more)
    return path


# ---------------------------------------------------------------------------------------------- the same picture

def test_latents_give_the_picture_of_their_seed(model, latents):
    camera = model.cameras([[20., -10.]])
    with torch.no_grad():
        expected = model.generator(z_of(3), camera, psi=0.7, means=model.means, noise='fixed')
        picture, rendering = render_latents(model.generator, latents, camera)
    assert torch.equal(picture, expected.image) and torch.equal(rendering.thumbnail, expected.rendering.thumbnail)


def test_what_is_written_is_read_back(model, latents):
    noise = [torch.randn(1, 1, side, side) for side in model.generator.decoder.noise_sizes]
    tuned = {name: torch.randn_like(weight) for name, weight in model.generator.decoder.named_parameters()}
    saved = model.read(write(model, latents, 'some photo.pt', noise=noise, tuned=tuned, source='a photo'))
    assert saved.name == 'some-photo' and saved.source == 'a photo'
    assert torch.equal(saved.latents.w, latents.w) and torch.equal(saved.latents.w_prime, latents.w_prime)
    assert torch.equal(saved.viewpoints, VIEWPOINTS)
    assert all(torch.equal(a, b) for a, b in zip(saved.noise, noise, strict=True))
    assert all(torch.equal(saved.tuned[name], tuned[name].half().float()) for name in tuned)


@pytest.mark.parametrize('each_layer', [False, True])
def test_every_command_shows_the_same(model, latents, command, tmp_path, each_layer):
    """each_layer: whether the layers of the field have different w, as those of an inverted photo have."""
    noise = [torch.randn(1, 1, side, side) for side in model.generator.decoder.noise_sizes]
    tuned = {'conv1.conv.weight': 0.3 * torch.randn_like(model.generator.decoder.conv1.conv.weight)}
    layers = model.generator.renderer.network.num_layers
    w = latents.w[:, None] + 0.1 * torch.randn(1, layers, latents.w.shape[1]) if each_layer else latents.w + 0.01
    moved = Latents(w, latents.w_prime + torch.randn_like(latents.w_prime))
    file = write(model, moved, noise=noise, tuned=tuned)
    saved, decoder = model.read(file), tuned_generator(model.generator, model.read(file).tuned)
    with torch.no_grad():
        picture = render_latents(decoder, saved.latents, cameras_of(model.opt, VIEWPOINTS), noise)[0]
    expected = to_uint8(picture)[0]
    assert command(generate, *TINY, '--latents', file, '--save_latents')[0] == 0
    folder = tmp_path / 'evaluations/tiny/final_model/chosen_angles'
    assert np.array_equal(np.asarray(Image.open(folder / 'images/latents-a.png')), expected)
    again = model.read(folder / 'latents/latents-a.pt')  # and written again it is the same
    assert all(map(torch.equal, again.latents, saved.latents)) and torch.equal(again.noise[0], saved.noise[0])
    assert torch.equal(again.tuned['conv1.conv.weight'], saved.tuned['conv1.conv.weight'])
    camera = model.cameras(torch.rad2deg(VIEWPOINTS).tolist())
    assert np.abs(model.picture(saved, camera).astype(int) - expected).max() <= 1  # degrees round the angles
    azimuth, elevation = torch.rad2deg(VIEWPOINTS)[0].tolist()
    (tmp_path / 'still.csv').write_text(f'time,azimuth,elevation\n0,{azimuth},{elevation}\n1,{azimuth},{elevation}\n')
    assert command(render_video, *TINY, '--latents', file, '--frames', 2, '--format', 'frames', '--path',
                   'still.csv')[0] == 0
    frame, = (tmp_path / 'evaluations/tiny/final_model/videos').glob('sample_video_latents-a_*/*0.png')
    video = load_model('tiny', device='cpu', N_samples=64)  # videos always have so many
    assert np.abs(video.picture(saved, camera).astype(int) - np.asarray(Image.open(frame))).max() <= 1
    code, out, _ = command(evaluate, *TINY, '--latents', file)
    assert code == 0 and 'depth' in out and '1 of 1 identities' in out and 'fid' not in out


def test_generation_saves_the_latents_of_its_seeds(model, latents, command, tmp_path):
    assert command(generate, *TINY, '--seeds', '3', '--truncation_ratio', '0.7', '--save_latents',
                   '--no_surface_renderings')[0] == 0
    saved = model.read(tmp_path / 'evaluations/tiny/final_model/random_angles/latents/seed0000003.pt')
    assert torch.equal(saved.latents.w, latents.w) and torch.equal(saved.latents.w_prime, latents.w_prime)
    assert 'seed 3' in saved.source


def test_mixing_takes_the_shape_of_one_and_the_upper_layers_of_the_other(model, latents, command, tmp_path):
    other = latents_of_w(model.generator, model.w_of([8], 0.7), 0.7, model.means)
    mix = mixed(latents, other, 2)
    assert torch.equal(mix.w, latents.w) and torch.equal(mix.w_prime[:, :2], latents.w_prime[:, :2])
    assert torch.equal(mix.w_prime[:, 2:], other.w_prime[:, 2:])
    arguments = [*TINY, '--truncation_ratio', '0.7', '--no_surface_renderings', '--save_latents']
    assert command(generate, *arguments, '--mix', '3,8@2')[0] == 0
    saved = model.read(tmp_path / 'evaluations/tiny/final_model/random_angles/latents/mix-3-8-at2.pt')
    assert torch.equal(saved.latents.w_prime, mix.w_prime)
    code, _, error = command(generate, *arguments, '--mix', '3,8@9')
    assert code == 2 and 'no layer 9' in error and error.count('\n') == 1


# ---------------------------------------------------------------------------------------------- refused

def test_latents_of_another_model_are_refused_by_name(model, latents, tmp_path, command):
    file = write(model, latents)
    state = model.generator.state_dict()
    state['renderer.network.sigma_linear.bias'] += 0.01
    checkpoint.save(tmp_path / 'full_models/other.pt', {'g_ema': state})
    code, _, error = command(generate, '--expname', 'other', '--renderer_spatial_output_dim', 8, '--latents', file)
    assert code == 2 and 'is for the model tiny and of no use to other' in error and error.count('\n') == 1


def test_the_same_weights_in_half_precision_are_the_same_model(model):
    before = weights_hash(model.generator)
    model.generator.half().float()
    assert weights_hash(model.generator) == before


@pytest.mark.parametrize('change, message', [
    (lambda c: c | {'format': 'x'}, 'holds no latents'),
    (lambda c: c | {'model': None}, 'does not name the model'),
    (lambda c: c | {'w': c['w'][:, 1:]}, 'its w does not have'),
    (lambda c: c | {'w': c['w'].to_sparse()}, 'its w does not have'),
    (lambda c: c | {'w': c['w'][:, None].expand(-1, 10 ** 6, -1)}, 'its w does not have'),
    (lambda c: c | {'w_prime': c['w_prime'][:, :1].expand(-1, 1000, -1)}, "its w' does not have"),
    (lambda c: c | {'w': c['w'] * float('nan')}, 'not finite'),
    (lambda c: c | {'viewpoints': torch.zeros(0, 2)}, 'its viewpoints are no angles'),
    (lambda c: c | {'viewpoints': torch.zeros(1, 1).expand(10 ** 9, 2)}, 'its viewpoints'),
    (lambda c: c | {'noise': [torch.zeros(1, 1, 8, 8)]}, 'noise maps'),
    (lambda c: c | {'tuned': {'unknown': torch.zeros(1)}}, 'tuned weights'),
    (lambda c: c | {'tuned': torch.zeros(3)}, 'tuned weights'),
    (lambda c: c | {'tuned': {'conv1.conv.weight': torch.zeros(1)}}, 'tuned weights'),
    (lambda c: [], 'holds no latents')])
def test_a_damaged_file_is_refused_in_one_sentence(model, latents, change, message):
    file = write(model, latents)
    torch.save(change(torch.load(file, weights_only=True)), 'b.pt')
    with pytest.raises(UserError, match=message) as error:
        model.read('b.pt')
    assert '\n' not in str(error.value)


def test_what_is_no_file_of_latents_is_refused(model, tmp_path):
    (tmp_path / 'text.pt').write_text('hello')
    (tmp_path / 'code.pt').write_bytes(pickle.dumps(print))
    for name, message in (('text.pt', 'no PyTorch checkpoint'), ('code.pt', 'code.pt'), ('none.pt', 'does not exist'),
                          ('full_models/tiny.pt', 'holds no latents')):
        with pytest.raises(UserError, match=message):
            model.read(tmp_path / name)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no files of latents'):
        files_of(['empty'])


@pytest.mark.parametrize('flags, message', [
    (['--latents', 'a.pt', '--seeds', '3'], '--seeds and --latents'),
    (['--mix', '3,8@2', '--seeds', '3'], '--seeds and --mix'),
    (['--latents', 'a.pt', '--truncation_ratio', '0.5'], 'used as they are')])
def test_flags_that_contradict_each_other(command, tmp_path, flags, message):
    save_tiny_model(tmp_path)
    code, _, error = command(generate, *TINY, *flags)
    assert code == 2 and message in error


def test_evaluation_of_latents_has_no_fid(model, latents, command):
    code, _, error = command(evaluate, *TINY, '--latents', write(model, latents), '--metrics', 'fid,depth')
    assert code == 2 and '--latents: fid' in error


def test_names_and_folders(model, latents, tmp_path):
    assert name_of_file('a/My photo (1).pt') == 'My-photo-1' and name_of_file('…') == 'photo'
    assert name_of_file('Zoë é.png') == 'Zoe-e' and name_of_file('inversions/anna/latents.pt') == 'anna'
    (tmp_path / 'several').mkdir()
    for name in 'ba':
        write(model, latents, tmp_path / 'several' / f'{name}.pt')
    assert [path.name for path in files_of(['several', 'c.pt'])] == ['a.pt', 'b.pt', 'c.pt']
    for name in ('x', 'y'):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        write(model, latents, tmp_path / 'photos' / name / 'latents.pt')
    assert [name_of_file(path) for path in files_of(['photos'])] == ['x', 'y']
    owner = Owner.of(model.generator, model.opt)
    assert read_latents('several/a.pt', model.generator, owner).name == 'a'

"""invert_photos.py: from photos to files that the other commands take, Ctrl-C, and every bad input."""
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny_model

import generate_shapes_and_images as generate
import invert_photos
from inference.results import read_inversions
from inversion import inverting

TINY = ['--expname', 'tiny', '--device', 'cpu', '--truncation_mean', '100']
QUICK = ['--steps', '3', '--starts', '2']


@pytest.fixture
def model(loaded_tiny, monkeypatch, quick_inversion):
    monkeypatch.setattr('inversion.writing.FRAMES', 4)
    monkeypatch.setattr('inversion.encoder.FIRST', 8)
    monkeypatch.setattr('inversion.encoder.BATCH', 8)
    return loaded_tiny


@pytest.fixture
def photos(model, tmp_path):
    """A folder with two pictures of the model's own, larger, one of them in a zip too, and a broken one."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for seed, name in ((3, 'anna.png'), (8, 'ben.jpg')):
        picture = model.picture(model.w_of([seed], 0.7), model.cameras([[5., 3.]]), 0.7)
        Image.fromarray(picture).resize((48, 32)).save(folder / name, quality=95)
    (folder / 'broken.png').write_bytes(b'\x89PNG but no more')
    with zipfile.ZipFile(tmp_path / 'more.zip', 'w') as archive:
        archive.write(folder / 'anna.png', 'inside/anna.png')
    return folder


def invert(command, *arguments):
    return command(invert_photos, *TINY, *QUICK, *arguments)


# ---------------------------------------------------------------------------------------------- what it writes

def test_photos_become_latents_that_generation_takes(model, photos, command, tmp_path):
    code, out, _ = invert(command, photos, 'more.zip', '--tune', '--tune_steps', 3, '--fit_noise', '--page', '--video')
    assert code == 0, out
    folder = tmp_path / 'evaluations/tiny/final_model/inversions'
    assert 'not readable, skipped: 1' in out and 'broken.png' in out and '3 photos in' in out
    found = {one.name: one for one in read_inversions(folder)}
    assert set(found) == {'anna', 'ben', 'anna-2'}
    for name, one in found.items():
        assert set(one.files) == {'photo.png', 'reconstruction.png', 'views.png', 'depth.png', 'latents.pt', 'mesh',
                                  'video'}, name
        assert f'{name}: azimuth' in out and f'{one.psnr:.1f} dB' in out
    assert Image.open(found['anna'].files['views.png']).size == (5 * 16, 16)
    assert 'Photo anna' in (folder.parent / 'index.html').read_text()
    assert command(generate, *TINY, '--latents', found['anna'].files['latents.pt'], '--no_surface_renderings')[0] == 0
    again = np.asarray(Image.open(folder.parent / 'chosen_angles/images/latents-anna.png'))
    assert np.array_equal(again, np.asarray(Image.open(found['anna'].files['reconstruction.png'])))
    photo = np.asarray(Image.open(found['anna'].files['photo.png']), dtype=float)
    error = np.mean((photo - again) ** 2)
    assert abs(10 * np.log10(255 ** 2 / error) - found['anna'].psnr) < 0.1


def test_the_encoder_is_kept_and_used(model, photos, command, tmp_path):
    code, out, _ = invert(command, '--train_encoder', '--encoder_steps', 4)
    assert code == 0 and (tmp_path / 'full_models/tiny_encoder.pt').is_file() and 'photos in' not in out
    code, out, _ = invert(command, photos / 'anna.png', '--steps', 0)
    assert code == 0 and 'No encoder' not in out
    other = save_tiny_model(tmp_path)  # the same name, other weights
    state = other.state_dict() | {'style.0.bias': other.state_dict()['style.0.bias'] + 1}
    torch.save({'g_ema': state, 'options': {'model': {'renderer_spatial_output_dim': 8}}}, 'full_models/tiny.pt')
    code, _, error = invert(command, photos / 'anna.png')
    assert code == 2 and 'another one of that name' in error and error.count('\n') == 1


def test_interrupted_it_writes_the_best_so_far(model, photos, command, tmp_path, monkeypatch):
    run = inverting.Fitting.run

    def stopped(self, steps, seconds):
        for i, progress in enumerate(run(self, steps, seconds)):
            if i == 2:
                raise KeyboardInterrupt
            yield progress

    monkeypatch.setattr(inverting.Fitting, 'run', stopped)
    code, out, _ = invert(command, photos / 'anna.png', photos / 'ben.jpg')
    assert code == 130 and 'anna: azimuth' in out
    found = read_inversions(tmp_path / 'evaluations/tiny/final_model/inversions')
    assert {one.name for one in found} == {'anna', 'ben'}


def test_an_interrupted_encoder_leaves_the_one_before(model, photos, command, tmp_path, monkeypatch):
    assert invert(command, '--train_encoder', '--encoder_steps', 2)[0] == 0
    before = (tmp_path / 'full_models/tiny_encoder.pt').read_bytes()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('inversion.encoder.encoder_loss', stopped)
    code, out, _ = invert(command, photos, '--train_encoder', '--encoder_steps', 2)
    assert code == 130 and 'is then replaced' in out and 'anna' not in out
    assert (tmp_path / 'full_models/tiny_encoder.pt').read_bytes() == before


def test_what_is_interrupted_while_writing_is_of_one_photo(model, photos, command, tmp_path, monkeypatch):
    """The latents are there, and nothing of another photo that had the name before."""
    folder = tmp_path / 'evaluations/tiny/final_model/inversions'
    assert invert(command, photos / 'anna.png', '--video', '--mesh_format', 'ply')[0] == 0
    before, = read_inversions(folder)
    (tmp_path / 'other').mkdir()
    (photos / 'ben.jpg').rename(tmp_path / 'other/anna.jpg')
    (folder / 'anna/mine.txt').write_text('notes')

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('inversion.writing.save_mesh', stopped)
    code, out, _ = invert(command, 'other/anna.jpg', photos / 'broken.png', '--page')
    assert code == 130 and f'takes the place of what was found of {photos / "anna.png"}' in out and 'Page: ' not in out
    after, = read_inversions(folder)
    assert after.source == 'other/anna.jpg' and after.viewpoint != before.viewpoint
    assert set(after.files) == {'photo.png', 'reconstruction.png', 'views.png', 'depth.png', 'latents.pt'}
    assert {path.name for path in (folder / 'anna').iterdir()} == {*after.files, 'mine.txt'}
    assert tuple(model.read(after.files['latents.pt']).viewpoints[0].tolist()) == after.viewpoint


def test_an_interruption_still_tells_what_there_is(model, photos, command, tmp_path, monkeypatch):
    monkeypatch.setattr(invert_photos, 'batch_of', lambda inverter: 1)
    invert_one = invert_photos.invert
    calls = []

    def stopped_at_second(*args):
        calls.append(args)
        inversion, _ = invert_one(*args)
        return inversion, KeyboardInterrupt() if len(calls) == 2 else None

    monkeypatch.setattr(invert_photos, 'invert', stopped_at_second)
    code, out, _ = invert(command, photos / 'anna.png', photos / 'broken.png', photos / 'ben.jpg', 'more.zip', '--page')
    assert code == 130 and '2 photos in' in out and 'broken.png' in out and 'Page: ' in out


def test_latents_are_shown_with_the_cameras_that_they_were_found_with(model, photos, command, tmp_path):
    file = tmp_path / 'evaluations/tiny/final_model/inversions/anna/latents.pt'
    assert invert(command, photos / 'anna.png', '--fov', 7)[0] == 0
    code, _, error = command(generate, *TINY, '--latents', file, '--no_surface_renderings')
    assert code == 2 and 'made with --fov 7; give that for the same pictures, or --fov 6' in error
    for fov in (7, 6):
        assert command(generate, *TINY, '--latents', file, '--no_surface_renderings', '--fov', fov)[0] == 0


def test_a_batch_gives_what_one_photo_alone_gives(model, photos, command, tmp_path, monkeypatch):
    assert invert(command, photos, '--results_dir', 'a')[0] == 0
    monkeypatch.setattr(invert_photos, 'batch_of', lambda inverter: 1)
    assert invert(command, photos, '--results_dir', 'b')[0] == 0
    entries = [json.loads((tmp_path / name / 'tiny/final_model/inversions/index.json').read_text())['results']
               for name in 'ab']
    for name in entries[0]:
        assert abs(entries[0][name]['loss'] - entries[1][name]['loss']) < 1e-4
        assert entries[0][name]['viewpoint'] == pytest.approx(entries[1][name]['viewpoint'], abs=1e-4)


# ---------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize('arguments, message', [
    ([], 'name the photos'),
    (['nowhere.jpg'], 'nowhere.jpg does not exist'),
    (['text.txt'], 'text.txt cannot be used: it is not an image'),
    (['photos/broken.png'], 'broken.png cannot be used'),
    (['empty'], 'empty holds no images'),
    (['photos', '--features', 'nowhere.pt'], '--features nowhere.pt'),
    (['photos', '--steps', '-1'], '--steps')])
def test_bad_input_ends_in_one_sentence(model, photos, command, tmp_path, arguments, message):
    (tmp_path / 'text.txt').write_text('no photo')
    (tmp_path / 'empty').mkdir()
    code, _, error = command(invert_photos, *TINY, *arguments)
    assert code == 2 and message in error and error.count('\n') == 1
    assert not list(tmp_path.glob('evaluations/**/*.*'))


def test_a_small_photo_and_one_that_is_none_are_named_as_such(model, command, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save('noise.png')
    code, out, _ = invert(command, 'noise.png')
    assert code == 0 and 'not sure' in out and 'only 9x9 pixels' in out

"""The evaluation command: sets against themselves, going on after an interruption, several processes, bad input."""
import json
import os
import shutil
import sys
import types
import urllib.error
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import start_command
from PIL import Image
from test_training_processes import free_port
from tiny_training import differences, ended, finish, flags, newest, train

import checkpoint
import evaluate
import prepare_data
from dataset import Pixels, open_images
from imaging.fit import resize_and_crop
from imaging.photos import Photos
from metrics import features, measuring
from model import build_generator
from options import parse
from training import logs
from utils import UserError

TINY = ['--size', '32', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--channel_max', '4', '--renderer_spatial_output_dim', '8', '--N_samples', '4', '--truncation_mean', '50',
        '--device', 'cpu', '--num_workers', '0']
RESULTS = 'evaluations/tiny/final_model/metrics.json'


class Pooled(torch.nn.Module):
    """The network of the tests' features: 12 means of an image, if it is asked for features."""

    def forward(self, x, return_features: bool = False):
        x = torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
        return x if return_features else x[:, 0]


class Plain(torch.nn.Module):
    """A network of another kind: one number an image, in the wrong shape."""

    def forward(self, x):
        return x.float().mean((1, 2, 3))


class Nothing(torch.nn.Module):
    """A network of another kind: no number for an image."""

    def forward(self, x):
        return x.float()[:, :0, 0, 0]


@pytest.fixture(scope='session')
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('networks')
    for network in (Pooled(), Plain(), Nothing()):
        with warnings.catch_warnings():  # PyTorch would rather have other formats
            warnings.simplefilter('ignore')
            torch.jit.script(network).save(folder / f'{type(network).__name__}.pt')
    (folder / 'text.pt').write_text('no network')
    return folder


@pytest.fixture(scope='session')
def model(tmp_path_factory):
    """A folder with full_models/tiny.pt, untrained but with a surface, and eleven photos."""
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    generator = build_generator(parse('evaluate', '', TINY))
    with torch.no_grad():  # what the field's random values are around, so that there is a surface
        generator.renderer.sigmoid_beta.fill_(0.01)
    checkpoint.save(folder / 'full_models' / 'tiny.pt', {'g_ema': generator.state_dict()})
    random = np.random.default_rng(0)
    (folder / 'photos').mkdir()
    for i in range(11):
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / 'photos' / f'{i}.png')
    return folder


@pytest.fixture
def run(command, model, networks, tmp_path, monkeypatch):
    """run(*arguments) -> (exit code, stdout, stderr) of the command on the tiny model, in a folder of its own."""
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    return partial(command, evaluate, '--expname', 'tiny', *TINY, '--dataset_path', 'photos', '--num_images', '20',
                   '--num_surfaces', '3')


def results(path=RESULTS, which=-1):
    with open(path) as file:
        return json.load(file)['evaluations'][which]['metrics']


def lmdb_of(*sizes):
    prepare_data.prepare(Photos('photos'), 'lmdb', sizes)


# ---------------------------------------------------------------------------------------------- what it measures

def test_a_model_against_its_own_images(run, networks, tmp_path):
    """Its images are written, and are then the data: nothing is between equal sets."""
    network = ('--features', networks / 'Pooled.pt')
    code, out, _ = run(*network, '--save_images', 'own', '--seed', 5)
    assert code == 0
    first = results()
    assert set(first) == {'fid', 'kid', 'precision', 'recall', 'swd', 'depth', 'view', 'eikonal', 'single_surface',
                          'beta'}
    assert all(name in out for name in first) and 'Pooled.pt' in first['fid']['features']
    assert first['fid']['value'] > 0.01 and first['swd']['value'] > 20
    assert (first['fid']['images'], first['fid']['real_images']) == (20, 11)
    assert first['depth']['of'] == first['eikonal']['identities'] == 3 and first['beta']['value'] == pytest.approx(0.01)
    pictures = sorted((tmp_path / 'own').iterdir())
    assert [path.name for path in pictures] == [f'{i:07d}.png' for i in range(20)]
    assert np.asarray(Image.open(pictures[3])).shape == (32, 32, 3)

    assert run(*network, '--dataset_path', 'own', '--seed', 5, '--metrics', 'fid,kid,pr,swd')[0] == 0
    same = results()
    assert same['fid']['value'] == pytest.approx(0, abs=1e-6)
    assert (same['precision']['value'], same['recall']['value'], same['swd']['value']) == (1, 1, 0)
    assert same['kid']['value'] < 0  # unbiased, so less than that of equal sets is nothing
    assert same['depth'] == first['depth'] and same['fid']['data'] != first['fid']['data']
    assert run(*network, '--dataset_path', 'own', '--seed', 6, '--metrics', 'fid')[0] == 0
    other = results()
    assert set(other) == {'fid'} and other['fid']['value'] > 1e-6
    assert results(which=0) == same
    assert not list((tmp_path / 'evaluations/tiny/final_model').glob('unfinished-*'))


def test_images_larger_than_the_evaluation_and_other_batches(run, networks, tmp_path):
    """Shrunk as prepare_data.py shrinks photos; the images do not depend on the batch."""
    assert run('--metrics', 'swd', '--save_images', 'large', '--eval_batch', 3)[0] == 0
    assert run('--metrics', 'swd', '--save_images', 'small', '--eval_size', 16)[0] == 0
    for number in (0, 19):
        large, small = (Image.open(tmp_path / name / f'{number:07d}.png') for name in ('large', 'small'))
        expected = resize_and_crop(large, 16, Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(small).astype(int) - np.asarray(expected)).max() <= 1


def test_photos_and_the_data_set_made_from_them_are_the_same(run, networks):
    lmdb_of(32, 64)
    photos, lmdb = open_images('photos', 32), open_images('lmdb', 32)
    assert len(photos) == len(lmdb) == 11
    assert all(torch.equal(photos[i], lmdb[i]) for i in range(11))
    assert photos.pixels(0).dtype == torch.uint8 and photos[0].shape == (3, 32, 32)
    shrunk = open_images('lmdb', 16)  # from its next larger size
    assert shrunk[0].shape == (3, 16, 16) and open_images('lmdb', 64)[0].shape == (3, 64, 64)
    hashes = {one.fingerprint() for one in (photos, lmdb, shrunk, open_images('lmdb', 64))}
    assert len(hashes) == 4 and open_images('lmdb', 32).fingerprint() == lmdb.fingerprint()
    before = photos.fingerprint()
    picture = np.asarray(Image.open('photos/3.png')).copy()
    picture[0, 0, 0] ^= 1
    Image.fromarray(picture).save('photos/3.png')
    assert open_images('photos', 32).fingerprint() != before


def test_broken_photos_are_skipped_and_named(run, networks, tmp_path):
    """As prepare_data.py does it, also where what was measured is there already."""
    arguments = ['--metrics', 'fid,swd', '--features', networks / 'Pooled.pt']
    assert run(*arguments)[0] == 0
    whole = results()
    (tmp_path / 'photos' / 'a_text.png').write_text('x')
    cut = (tmp_path / 'photos' / '3.png').read_bytes()
    (tmp_path / 'photos' / 'zz_cut.png').write_bytes(cut[:len(cut) // 2])
    for _ in range(2):
        code, out, _ = run(*arguments)
        assert code == 0 and 'broken images skipped: 2\n  a_text.png: it is not an image' in out
        assert '  zz_cut.png: ' in out
        found = results()
        assert found['fid']['real_images'] == whole['fid']['real_images'] == 11
        assert found['fid']['value'] == pytest.approx(whole['fid']['value'], rel=1e-3)
    for i in range(5):
        (tmp_path / 'photos' / f'{i}.png').write_text('x')
    code, _, error = run(*arguments)
    assert code == 2 and 'only 6 of its images can be read' in error.splitlines()[-1]


def test_real_images_are_measured_once(run, networks, monkeypatch):
    seen = []
    read = Pixels.__getitem__
    monkeypatch.setattr(Pixels, '__getitem__', lambda self, index: seen.append(index) or read(self, index))
    for metrics in ('swd', 'fid,swd', 'fid,kid,swd'):
        assert run('--metrics', metrics, '--features', networks / 'Pooled.pt')[0] == 0
    assert seen == [*range(11), *range(11)]  # for patches, then for features


# ---------------------------------------------------------------------------------------------- going on

def test_an_interrupted_run_goes_on(run, networks, monkeypatch, tmp_path):
    arguments = ['--features', networks / 'Pooled.pt']
    monkeypatch.setattr(measuring, 'FAKE_BLOCK', 4)
    assert run(*arguments)[0] == 0
    whole = results()
    os.remove(RESULTS)
    drawn, identities, limit = [], [], [11]
    images, measure = measuring.numbered_images, measuring.measure_identity

    def stopping(generator, opt, numbers, *rest):
        if len(drawn) + len(numbers) > limit[0]:
            raise KeyboardInterrupt
        drawn.extend(numbers)
        return images(generator, opt, numbers, *rest)

    monkeypatch.setattr(measuring, 'numbered_images', stopping)
    monkeypatch.setattr(measuring, 'measure_identity', lambda *a, **k: identities.append(1) or measure(*a, **k))
    code, _, error = run(*arguments)
    assert code == 130 and 'Traceback' not in error and not os.path.exists(RESULTS)
    assert drawn == list(range(8)) and not identities
    assert run(*arguments, '--metrics', 'field')[0] == 0  # it ends first, and leaves what is not its own
    os.remove(RESULTS)
    identities.clear()
    limit[0] = 100
    assert run(*arguments)[0] == 0
    assert drawn == list(range(20)) and len(identities) == 3 and results() == whole


def test_saved_images_that_are_gone_are_made_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, 'FAKE_BLOCK', 4)
    monkeypatch.setattr(evaluate.shutil, 'rmtree', lambda *_, **__: None)  # as after an interruption
    arguments = ['--metrics', 'swd', '--save_images', 'own']
    assert run(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / 'own').iterdir()}
    for number in (2, 3, 9):
        (tmp_path / f'own/{number:07d}.png').unlink()
    assert run(*arguments)[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / 'own').iterdir()} == before


def test_more_images_of_the_same_run(run, networks, monkeypatch):
    """What a longer run shares with a shorter one, whose files are still there, is not made again."""
    monkeypatch.setattr(measuring, 'FAKE_BLOCK', 8)
    monkeypatch.setattr(evaluate.shutil, 'rmtree', lambda *_, **__: None)
    assert run('--metrics', 'swd', '--num_images', 18)[0] == 0
    drawn, images = [], measuring.numbered_images
    monkeypatch.setattr(measuring, 'numbered_images',
                        lambda generator, opt, numbers, *rest: drawn.extend(numbers) or images(generator, opt, numbers,
                                                                                               *rest))
    assert run('--metrics', 'swd', '--num_images', 27)[0] == 0
    assert drawn == list(range(16, 27))


def test_two_processes_measure_the_same(run, networks, tmp_path):
    """As torchrun starts them."""
    arguments = ['--expname', 'tiny', *TINY, '--dataset_path', 'photos', '--num_images', '70', '--num_surfaces', '3',
                 '--features', str(networks / 'Pooled.pt'), '--metrics', 'fid,kid,pr,swd,field']
    assert run(*arguments)[0] == 0
    alone = results()
    os.remove(RESULTS)
    environment = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    pair = [start_command('evaluate', arguments, tmp_path, f'log{rank}.txt', environment | {'RANK': str(rank)})
            for rank in range(2)]
    with ended(*pair):
        assert finish(*pair) == [0, 0], [process.log.read_text() for process in pair]
    assert 'fid' in pair[0].log.read_text() and 'fid' not in pair[1].log.read_text()
    together = results()
    assert set(alone) == set(together)
    for name, entry in alone.items():
        assert together[name]['value'] == pytest.approx(entry['value'], rel=1e-3), name


# ---------------------------------------------------------------------------------------------- Inception

@pytest.fixture
def fidelity(monkeypatch):
    """A module in torch-fidelity's place, with the part of its interface that is used and weights that load."""
    class Extractor(torch.nn.Module):
        def __init__(self, name, layers):
            super().__init__()
            assert layers == ['2048']

        def forward(self, images):
            assert images.dtype == torch.uint8
            return (images.float().mean((2, 3)) / 255,)

    package, inner = types.ModuleType('torch_fidelity'), types.ModuleType('feature_extractor_inceptionv3')
    package.FeatureExtractorInceptionV3, inner.URL_INCEPTION_V3 = Extractor, 'https://example.org/weights.pth'
    monkeypatch.setitem(sys.modules, 'torch_fidelity', package)
    monkeypatch.setitem(sys.modules, 'torch_fidelity.feature_extractor_inceptionv3', inner)
    asked = []
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', lambda url, **options: asked.append((url, options)))
    return asked


def test_inception_comes_from_torch_fidelity(run, fidelity):
    assert run('--metrics', 'fid')[0] == 0
    assert results()['fid']['features'] == features.INCEPTION and results()['fid']['value'] > 0
    url, options = fidelity[0]
    assert url == 'https://example.org/weights.pth' and options['check_hash'] and options['weights_only']


def test_the_installed_torch_fidelity_has_that_interface():
    package = pytest.importorskip('torch_fidelity')
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    assert URL_INCEPTION_V3.startswith('https://')
    assert features.LAYER in package.FeatureExtractorInceptionV3.get_provided_features_list()


# ---------------------------------------------------------------------------------------------- bad input

def refused(run, *arguments):
    """The sentence that the command ends with, after no more than a progress bar."""
    code, _, error = run(*arguments)
    lines = [line for line in error.split('\n') if line and not line.startswith(('\r', 'real images'))]
    assert code == 2 and len(lines) == 1 and lines[0].startswith('evaluate.py: error: '), error
    return lines[0]


def test_without_torch_fidelity(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch_fidelity', None)
    error = refused(run, '--metrics', 'kid,depth')
    assert 'pip install -r requirements-eval.txt' in error and '--features' in error
    assert run('--metrics', 'swd,field')[0] == 0


def test_weights_that_cannot_be_downloaded(run, fidelity, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError('no network')

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', fail)
    error = refused(run, '--metrics', 'fid')
    assert 'no network' in error and 'https://example.org/weights.pth' in error and '--features' in error


@pytest.mark.parametrize(('arguments', 'says'), [
    (['--metrics', 'fid,isc'], 'must be some of fid,kid'),
    (['--metrics', 'swd', '--num_images', '9'], '--num_images: 9 images are too few'),
    (['--metrics', 'depth', '--save_images', 'x'], 'none of the --metrics needs images'),
    (['--metrics', 'swd', '--dataset_path', 'nowhere'], 'nowhere does not exist'),
    (['--metrics', 'swd', '--dataset_path', 'few'], 'few: 3 images are too few'),
    (['--metrics', 'swd', '--dataset_path', 'broken'], 'only 5 of its images can be read, too few to compare'),
    (['--metrics', 'swd', '--dataset_path', 'lmdb'], 'at size 32; use a size that is there (16)'),
    (['--metrics', 'fid', '--features', 'NETWORKS/none.pt'], 'there is no such file'),
    (['--metrics', 'fid', '--features', 'NETWORKS/text.pt'], 'is not a TorchScript network'),
    (['--metrics', 'fid', '--features', 'NETWORKS/Plain.pt'], 'gives (2,) for 2 images'),
    (['--metrics', 'fid', '--features', 'NETWORKS/Nothing.pt'], 'gives no features'),
    (['--metrics', 'depth', '--expname', 'other'], 'no checkpoint for --expname other'),
])
def test_bad_input_is_one_sentence(run, networks, tmp_path, arguments, says):
    shutil.copytree('photos', 'broken')
    for i in range(5, len(list(Path('photos').iterdir()))):
        (tmp_path / f'broken/{i}.png').write_bytes(b'no picture')
    (tmp_path / 'few').mkdir()
    for i in range(3):
        shutil.copy(f'photos/{i}.png', 'few')
    lmdb_of(16)
    assert says in refused(run, *(argument.replace('NETWORKS', str(networks)) for argument in arguments))


def test_features_that_are_not_finite(networks):
    network = features.Features('n', 'n', lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(UserError, match='not finite'):
        network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_a_torchscript_file_that_fails_in_another_way(networks, monkeypatch):
    def load(*_, **__):
        raise IndexError('Argument passed to at() was not in the map.')

    monkeypatch.setattr(torch.jit, 'load', load)
    with pytest.raises(UserError, match='is not a TorchScript network, or a damaged one'):
        features.load_features(networks / 'Pooled.pt', 32, torch.device('cpu'))


def test_images_that_are_too_small_for_patches(run, tmp_path):
    torch.manual_seed(0)
    small = [*TINY, '--renderer_spatial_output_dim', '4']
    generator = build_generator(parse('evaluate', '', small), full_pipeline=False)
    checkpoint.save(tmp_path / 'small.pt', {'g_ema': generator.state_dict()})
    error = refused(run, '--model', 'small.pt', '--renderer_spatial_output_dim', 4, '--metrics', 'swd,field')
    assert '--metrics: swd compares patches of 7 x 7 pixels' in error and 'only 4 x 4; leave swd out' in error


@pytest.mark.parametrize('text', ['{"evaluations": 3}', '{"evaluations": {}}', '{"evaluations": ""}'])
def test_a_results_file_of_something_else(run, tmp_path, text):
    (tmp_path / RESULTS).parent.mkdir(parents=True)
    (tmp_path / RESULTS).write_text(text)
    assert 'was not written by this command' in refused(run, '--metrics', 'field')
    assert (tmp_path / RESULTS).read_text() == text


# ---------------------------------------------------------------------------------------------- during training

@pytest.mark.parametrize('stage', ('volume_renderer', 'full_pipeline'))
def test_training_is_the_same_with_measurements(stage, data, tmp_path, monkeypatch):
    monkeypatch.setattr('surfaces.rendering.SURFACE_RESOLUTION', 16)
    monkeypatch.setattr('training.quality.EVAL_IMAGES', 6)
    monkeypatch.setattr('training.quality.EVAL_IDENTITIES', 1)
    text = '--iter 2'
    if stage == 'full_pipeline':
        train('volume_renderer', tmp_path, flags(data, '--iter 1'))
        text += f' --renderer_ckpt {tmp_path}/pretrained_renderer/debug_vol_renderer.pt'
    for name, more in (('plain', ''), ('measured', ' --eval_every 1')):
        train(stage, tmp_path / name, flags(data, text + more))
    plain, measured = (newest(tmp_path / name, stage)[1] for name in ('plain', 'measured'))
    assert differences(plain, measured) == []
    lines = logs.read_stats(tmp_path / 'measured/checkpoint/debug' / stage / 'stats.jsonl')
    assert [line['iteration'] for line in lines if 'swd' in line] == [1, 2]
    assert all(line['swd'] > 0 for line in lines if 'swd' in line)
    # Another frequency of measurements does not keep a run from being resumed.
    train(stage, tmp_path / 'measured', flags(data, text.replace('--iter 2', '--iter 3') + ' --continue_training'))

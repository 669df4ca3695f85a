"""find_directions.py: a file that --edit reads, a contact sheet, and a direction between two groups."""
import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import find_directions
import generate_shapes_and_images as generate
from inference import results
from inference.contact_sheet import AMOUNTS, CELL
from inference.directions import Direction, read_directions, save_directions
from inference.latents import latents_of_w, save_latents
from inference.results import read_index
from utils import UserError

TINY = ['--expname', 'tiny', '--device', 'cpu', '--truncation_mean', '100']


@pytest.fixture
def model(loaded_tiny):
    return loaded_tiny


def test_directions_are_found_and_edit_identities(model, command, tmp_path):
    folder = tmp_path / 'evaluations/tiny/final_model'
    code, out, _ = command(find_directions, *TINY, '--count', 2)
    assert code == 0 and 'shape1, shape2, color1, color2' in out
    assert Image.open(folder / 'directions.png').width == CELL * len(AMOUNTS)
    found = read_directions(folder / 'directions.pt', model.generator, model.owner)
    arguments = [*TINY, '--seeds', 3, '--no_surface_renderings', '--save_latents']
    assert command(generate, *arguments)[0] == 0
    assert command(generate, *arguments, '--edit', 'shape2=+1.5,color1=-2')[0] == 0
    plain, moved = (model.read(folder / f'random_angles/latents/seed0000003{ending}.pt').latents
                    for ending in ('', '-shape2+1.5-color1-2'))
    assert torch.allclose(moved.w, plain.w + 1.5 * found['shape2'].w)
    assert torch.allclose(moved.w_prime, plain.w_prime - 2 * found['color1'].w_prime)
    assert (folder / 'random_angles/images/seed0000003-shape2+1.5-color1-2.png').is_file()


def test_other_directions_are_another_identity(model, command, tmp_path):
    """Its earlier files no longer belong to it, though they have the same name."""
    for file, method in (('a.pt', 'pca'), ('b.pt', 'factorization')):
        assert command(find_directions, *TINY, '--count', 1, '--out', file, '--method', method)[0] == 0
    arguments = [*TINY, '--seeds', 3, '--no_surface_renderings', '--edit', 'shape1=+1.5', '--directions']
    assert command(generate, *arguments, 'a.pt', '--save_latents')[0] == 0
    for file, expected in (('a.pt', 1), ('b.pt', 0)):
        assert command(generate, *arguments, file)[0] == 0
        entry = read_index(tmp_path / 'evaluations/tiny/final_model/random_angles')['seed0000003-shape1+1.5']
        assert sum('latents' in name for name in entry['files']) == expected


def test_a_direction_between_groups_joins_the_others(model, command, tmp_path):
    groups = {}
    for name, seeds in (('with', [1, 2]), ('without', [3, 4, 5])):
        groups[name] = [latents_of_w(model.generator, model.w_of([seed], 0.7), 0.7, model.means) for seed in seeds]
        for seed, latents in zip(seeds, groups[name], strict=True):
            if seed == 2:  # as of an inverted photo, whose layers have different w
                layers = model.generator.renderer.network.num_layers
                shares = torch.linspace(-1, 1, layers)[:, None]
                latents = latents._replace(w=latents.w[:, None] + 0.1 * shares)
            save_latents(tmp_path / name / f'{seed}.pt', latents, model.owner, torch.zeros(1, 2))
    arguments = [*TINY, '--out', 'd.pt', '--no_surface_renderings', '--count', 1]
    assert command(find_directions, *arguments)[0] == 0
    assert command(find_directions, *arguments, '--name', 'long', '--with_latents', 'with', '--without_latents',
                   'without')[0] == 0
    found = read_directions(tmp_path / 'd.pt', model.generator, model.owner)
    assert list(found) == ['shape1', 'color1', 'long'] and (tmp_path / 'd_long.png').is_file()
    expected = (torch.cat([one.w for one in groups['with']]).mean(0)
                - torch.cat([one.w for one in groups['without']]).mean(0))
    assert torch.allclose(found['long'].w[0], expected, atol=1e-6)
    assert command(find_directions, *arguments, '--method', 'factorization', '--count', 2)[0] == 0
    assert list(read_directions(tmp_path / 'd.pt', model.generator, model.owner)) == [
        'long', 'shape1', 'shape2', 'color1', 'color2']


def test_runs_at_the_same_time_keep_each_others_directions(model, command, tmp_path, monkeypatch):
    file, inside = tmp_path / 'new' / 'd.pt', []
    find, alone, save = find_directions.find_directions, results.alone, find_directions.save_directions

    def find_slowly(*arguments):
        found = find(*arguments)
        save(file, {'long': found['shape1']}, model.owner)  # by another run meanwhile
        return found

    @contextlib.contextmanager
    def seen(folder):
        with alone(folder):
            inside.append(folder)
            yield
            inside.append(read_directions(file, model.generator, model.owner))

    monkeypatch.setattr(find_directions, 'find_directions', find_slowly)
    monkeypatch.setattr(results, 'alone', seen)
    assert command(find_directions, *TINY, '--out', file, '--no_surface_renderings', '--count', 1)[0] == 0
    assert inside[0] == file.parent and list(inside[1]) == ['long', 'shape1', 'color1']


@pytest.mark.parametrize('name, taken', [('shape', True), ('color', True), ('shape7', True), ('color12', True),
                                         ('shapely', False), ('color1b', False)])
def test_names_that_the_next_run_would_replace_are_refused(model, command, name, taken):
    code, _, error = command(find_directions, *TINY, '--name', name, '--with_latents', 'a.pt', '--without_latents', 'b')
    expected = f'--name {name}: ' if taken else '--with_latents a.pt does not exist'
    assert code == 2 and expected in error and error.count('\n') == 1


@pytest.mark.parametrize('name', ['d.png', 'd', 'd.1'])
def test_directions_have_a_name_that_leaves_another_to_their_contact_sheet(model, command, name):
    code, _, error = command(find_directions, *TINY, '--out', name, '--count', 1)
    assert code == 2 and f'--out {name}: give a name that ends in .pt' in error


def test_a_picture_that_is_no_contact_sheet_is_not_overwritten(model, command, tmp_path):
    """An earlier sheet is, which a direction in the file shows."""
    arguments = [*TINY, '--out', 'cat.pt', '--no_surface_renderings', '--count', 1]
    save_latents(tmp_path / 'a.pt', latents_of_w(model.generator, model.w_of([1], 1.)), model.owner, torch.zeros(1, 2))
    named = ['--name', 'long', '--with_latents', 'a.pt', '--without_latents', 'a.pt']
    for more, sheet in (([], 'cat.png'), (named, 'cat_long.png')):
        (tmp_path / sheet).write_text('a photo')
        code, _, error = command(find_directions, *arguments, *more)
        assert code == 2 and f'{sheet} is no contact sheet' in error and (tmp_path / sheet).read_text() == 'a photo'
        (tmp_path / sheet).unlink()
        for _ in range(2):
            code, out, _ = command(find_directions, *arguments, *more)
            assert code == 0 and (tmp_path / sheet).stat().st_size > 1000
        assert ('1 direction (long) in cat.pt' if more else '2 directions (shape1, color1) in cat.pt') in out


@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs a folder in which nothing can be made')
@pytest.mark.parametrize('flags, said', [
    (['--truncation_ratio', 0], '--truncation_ratio 0 makes all identities the same'),
    (['--out', '/proc/a/d.pt'], '--out /proc/a: cannot write there'),
    (['--out', 'full_models'], 'give a name that ends in .pt'), (['--out', 'taken.pt'], 'taken.pt: this is a folder')])
def test_what_cannot_be_done_is_said_before_the_work(model, command, tmp_path, monkeypatch, flags, said):
    (tmp_path / 'taken.pt').mkdir()
    monkeypatch.setattr(find_directions, 'load_generator', lambda *_: pytest.fail('the model was loaded'))
    code, _, error = command(find_directions, *TINY, *flags)
    assert code == 2 and said in error and error.count('\n') == 1


def test_no_more_directions_are_written_than_can_be_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr('inference.directions.MAX_DIRECTIONS', 2)
    with pytest.raises(UserError, match='d.pt would hold 3 directions, more than 2'):
        save_directions(tmp_path / 'd.pt', dict.fromkeys('abc', Direction(None, None)), model.owner)
    assert not (tmp_path / 'd.pt').exists()


def test_bad_edits_end_in_one_sentence(model, command):
    assert command(find_directions, *TINY, '--out', 'd.pt', '--no_surface_renderings', '--count', 1)[0] == 0
    for flags, message in (
            (['--edit', 'shape1=2'], 'directions.pt does not exist'),
            (['--edit', 'shape9=2', '--directions', 'd.pt'], 'shape9: d.pt holds no such direction; it has shape1'),
            (['--directions', 'd.pt'], 'nothing is edited'),
            (['--edit', 'shape1'], '--edit'), (['--edit', 'shape1=1e9'], '--edit'),
            (['--edit', 'shape1=1', '--directions', 'full_models/tiny.pt'], 'holds no directions')):
        code, _, error = command(generate, *TINY, '--seeds', 3, *flags)
        assert code == 2 and message in error and error.count('\n') == 1, flags
    code, _, error = command(find_directions, *TINY, '--name', 'smile')
    assert code == 2 and '--with_latents' in error


def test_directions_of_shape_leave_the_decoder_alone_and_the_other_way_round(model):
    found = find_directions.find_directions(model.generator, model.means, 0.7, 'pca', 3)
    assert all(step.w_prime is None for name, step in found.items() if name.startswith('shape'))
    assert all(step.w is None for name, step in found.items() if name.startswith('color'))
    steps = np.array([step.w[0].norm().item() for name, step in found.items() if name.startswith('shape')])
    assert (np.diff(steps) < 0).all()

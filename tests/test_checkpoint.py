"""Checkpoints: strict and safe loading, sizes read off the file, where files are looked for."""
import errno
import io
import os
import pickle
import resource
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import checkpoint
from inference.loading import load_generator
from model import build_generator
from options import parse
from utils import UserError

TINY = ['--size', '32', '--style_dim', '8', '--width', '8', '--depth', '2', '--channel_multiplier', '1',
        '--channel_max', '4', '--renderer_spatial_output_dim', '8', '--N_samples', '4']


def options(arguments=TINY, *more):
    return parse('generate_shapes_and_images', '', [*arguments, *more])


@pytest.fixture
def tiny(tmp_path):
    """(path, generator) of a tiny checkpoint."""
    torch.manual_seed(0)
    generator = build_generator(options())
    path = tmp_path / 'tiny.pt'
    checkpoint.save(path, {'g_ema': generator.state_dict()})
    return path, generator


def test_loading_does_not_import_the_compiler(fresh_process):
    assert fresh_process[0]['loading imports the compiler'] is False


def test_round_trip(tiny):
    path, generator = tiny
    torch.manual_seed(1)
    other = checkpoint.load_state(build_generator(options()), checkpoint.read(path)['g_ema'], path)
    assert all(torch.equal(a, b) for a, b in zip(generator.state_dict().values(), other.state_dict().values(),
                                                 strict=True))
    assert [p.name for p in path.parent.iterdir()] == ['tiny.pt']  # no temporary file is left


class Bomb:
    """Unpickling this writes a file."""
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), 'w')


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_file_with_code_is_refused_and_never_run(tmp_path, protocol):
    """And said to be refused for that, not to be damaged. PyTorch refuses protocols but 2 and 3 whatever is in it."""
    target, path = tmp_path / 'boom', tmp_path / 'bomb.pt'
    for write in (lambda: torch.save({'g_ema': Bomb(target)}, path, pickle_protocol=protocol),
                  lambda: torch.save({'g_ema': Bomb(target)}, path, pickle_protocol=protocol,
                                     _use_new_zipfile_serialization=False),
                  lambda: path.write_bytes(pickle.dumps({'g_ema': Bomb(target)}, protocol))):
        write()
        with pytest.raises(UserError, match='bomb.pt .* code.* and was refused') as error:
            checkpoint.read(path)
        assert 'damaged' not in str(error.value) and '\n' not in str(error.value)
    assert not target.exists()


def damaged_files(tmp_path, good):
    data = good.read_bytes()
    yield 'truncated', data[:len(data) // 2]
    yield 'header', data[:100]
    yield 'empty', b''
    yield 'text', b'this is not a checkpoint\n'
    yield 'answer', b'Internal Server Error\n'  # begins like a pickle of protocol 0
    yield 'html', b'<!DOCTYPE html><html></html>'
    yield 'flipped', data[:3000] + bytes(64) + data[3064:]


def test_damaged_files_are_one_sentence(tmp_path, tiny):
    for name, data in damaged_files(tmp_path, tiny[0]):
        path = tmp_path / f'{name}.pt'
        path.write_bytes(data)
        try:
            state = checkpoint.read(path)['g_ema']
            checkpoint.load_state(build_generator(options()), state, path)
            assert name == 'flipped'  # zeros in the middle of a weight are still weights
        except UserError as error:
            assert f'{name}.pt' in str(error) and '\n' not in str(error) and 'refused' not in str(error)


@pytest.mark.parametrize('content', [{}, {'g': {}}, [1, 2], torch.zeros(3), {'g_ema': 3}, {'g_ema': {'a': 1}}])
def test_other_content_is_named(tmp_path, content):
    path = tmp_path / 'other.pt'
    torch.save(content, path)
    with pytest.raises(UserError, match='other.pt is not a StyleSDF checkpoint'):
        checkpoint.read(path)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_not_finite(tmp_path, tiny, value):
    path, generator = tiny
    state = generator.state_dict()
    state['style.1.bias'][3] = value
    checkpoint.save(path, {'g_ema': state})
    with pytest.raises(UserError, match='style.1.bias'):
        checkpoint.read(path)


@pytest.mark.parametrize('name, value, named', [
    ('renderer.sigmoid_beta', torch.zeros(1), 'beta .* of 0 or less'),
    ('renderer.sigmoid_beta', torch.tensor([-0.01]), 'beta .* of 0 or less'),
    ('style.0.weight', torch.zeros(0, 8), 'style.0.weight is empty'),
])
def test_weights_without_meaning(tmp_path, tiny, name, value, named):
    path, generator = tiny
    checkpoint.save(path, {'g_ema': {**generator.state_dict(), name: value}})
    with pytest.raises(UserError, match=named):
        checkpoint.read(path)


@pytest.mark.parametrize('protocol', [0, 1, 4])
def test_another_pickle_protocol_is_named(tmp_path, tiny, protocol):
    torch.save({'g_ema': tiny[1].state_dict()}, tmp_path / 'other.pt', pickle_protocol=protocol)
    with pytest.raises(UserError, match='other.pt is not pickled as torch.save does it.* and was refused'):
        checkpoint.read(tmp_path / 'other.pt')


@pytest.mark.parametrize('change, named', [
    (lambda s: s.pop('style.0.weight'), 'style.0.weight'),
    (lambda s: s.update(extra=torch.zeros(1)), 'extra'),
    (lambda s: s.update({'style.1.weight': torch.zeros(8, 9)}), 'style.1.weight'),
    (lambda s: s.pop('decoder.convs.1.conv.weight'), 'decoder.convs.1.conv.weight'),
    (lambda s: s.update({'decoder.conv1.noise.weight': torch.zeros(2)}), 'decoder.conv1.noise.weight'),
])
def test_strict_loading_names_the_entry(tiny, change, named):
    path, generator = tiny
    state = dict(generator.state_dict())
    change(state)
    with pytest.raises(UserError, match=named):
        checkpoint.load_state(build_generator(options()), state, path)


def test_noise_maps_of_another_size_are_skipped_once_and_said(tiny, capsys):
    path, generator = tiny
    state = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    state['decoder.noises.noise_2'] = torch.zeros(1, 1, 5, 5)
    state['decoder.noises.noise_3'] = torch.zeros(1, 1, 7, 7)
    fresh = build_generator(options())
    kept = fresh.decoder.noises.noise_2.clone()
    checkpoint.load_state(fresh, state, path)
    assert torch.equal(fresh.decoder.noises.noise_2, kept)
    assert torch.equal(fresh.decoder.noises.noise_0, generator.decoder.noises.noise_0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and '2 noise maps' in lines[0] and 'noise_2' in lines[0]


def test_sizes_come_from_the_file(tiny, capsys):
    path, generator = tiny
    opt = checkpoint.reconcile(options(['--renderer_spatial_output_dim', '8']), {'g_ema': generator.state_dict()}, path)
    assert (opt.model.size, opt.model.style_dim, opt.model.channel_multiplier, opt.rendering.width,
            opt.rendering.depth) == (32, 8, 2, 8, 2)  # at 32 pixels the channels do not depend on the multiplier
    checkpoint.load_state(build_generator(opt), generator.state_dict(), path)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert checkpoint.reconcile(options(), {'g_ema': generator.state_dict()}, path) == options()
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('saved', [{}, {'options': {'model': {'renderer_spatial_output_dim': 16}}}])
def test_the_thumbnails_side_comes_from_the_noise_maps(tiny, tmp_path, monkeypatch, saved):
    """Whatever the defaults and the file's own options say; a typed contradiction is refused."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save('full_models/eight.pt', {'g_ema': tiny[1].state_dict(), **saved})
    generator, opt, *_ = load_generator(options([], '--expname', 'eight'), torch.device('cpu'))
    assert (opt.model.renderer_spatial_output_dim, opt.model.size, generator.renderer.resolution) == (8, 32, 8)
    with pytest.raises(UserError, match='--renderer_spatial_output_dim 16 contradicts .*which has .* 8'):
        load_generator(options([], '--expname', 'eight', '--renderer_spatial_output_dim', '16'),
                                  torch.device('cpu'))


@pytest.mark.parametrize('sides', [(4, 8, 8, 16, 16), (5, 10, 10, 20, 20), (64, 3, 3, 3, 3), (4, 4, 4, 4, 4)])
def test_noise_maps_of_another_size_tell_no_side(sides):
    """As official files may have them: the flag holds."""
    with torch.device('meta'):
        state = build_generator(parse('render_video', '', ['--size', '256'])).state_dict()
        state |= {f'decoder.noises.noise_{i}': torch.empty(1, 1, side, side) for i, side in enumerate(sides)}
    sizes = checkpoint.sizes(state, 'x.pt')
    assert (sizes['size'], sizes['channel_multiplier']) == (256, 2) and 'renderer_spatial_output_dim' not in sizes


@pytest.mark.parametrize('size, multiplier', [(64, 1), (128, 1), (256, 1), (256, 2), (512, 4), (1024, 2)])
def test_size_and_multiplier_of_every_decoder(size, multiplier):
    opt = options(['--size', str(size), '--channel_multiplier', str(multiplier), '--style_dim', '2', '--width', '2',
                   '--depth', '1'])
    with torch.device('meta'):
        state = build_generator(opt).state_dict()
    sizes = checkpoint.sizes(state, 'x.pt')
    assert (sizes['size'], sizes['channel_multiplier']) == (size, multiplier)


@pytest.mark.parametrize('rays, size, multiplier, limit', [
    (64, 256, 4, 256), (64, 1024, 4, 64), (32, 128, 4, 512), (32, 64, 5, 600), (16, 256, 4, 256), (64, 256, 1, 600),
    (64, 64, 3, 0), (64, 512, 8, 64)])
def test_channels_of_every_decoder(rays, size, multiplier, limit, capsys):
    """The flags that are found make the same channels; those that the user typed stay where they do."""
    sizes = ['--size', str(size), '--style_dim', '2', '--width', '2', '--depth', '1', '--renderer_spatial_output_dim',
             str(rays)]
    channels = ['--channel_multiplier', str(multiplier), '--channel_max', str(limit)]
    with torch.device('meta'):
        state = build_generator(options([*sizes, *channels])).state_dict()
    found = checkpoint.reconcile(options(sizes), {'g_ema': state}, 'x.pt')
    with torch.device('meta'):
        again = build_generator(found).state_dict()
    assert {name: tensor.shape for name, tensor in again.items()} == {
        name: tensor.shape for name, tensor in state.items()}
    capsys.readouterr()
    typed = checkpoint.reconcile(options([*sizes, *channels]), {'g_ema': state}, 'x.pt')
    assert (typed.model.channel_multiplier, typed.model.channel_max) == (multiplier, limit)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('flag, value', [('size', '64'), ('style_dim', '16'), ('width', '16'), ('depth', '3')])
def test_a_typed_contradiction_is_refused(tiny, flag, value):
    path, generator = tiny
    with pytest.raises(UserError, match=f'--{flag} {value} contradicts'):
        checkpoint.reconcile(options([*TINY, f'--{flag}', value]), {'g_ema': generator.state_dict()}, path)


def test_a_field_without_sdf_or_decoder_is_recognized(tmp_path):
    opt = options([*TINY, '--no_sdf'])
    state = build_generator(opt, full_pipeline=False).state_dict()
    fitted = checkpoint.reconcile(options(), {'g_ema': state}, 'field.pt')
    assert fitted.rendering.no_sdf and fitted.model.size == 32
    with pytest.raises(UserError, match='--no_sdf'):
        checkpoint.reconcile(opt, {'g_ema': build_generator(options()).state_dict()}, 'sdf.pt')


def test_what_is_no_file_is_never_read_and_a_failing_disk_is_told(tmp_path, monkeypatch):
    """Reading from a pipe would wait for ever."""
    os.mkfifo(tmp_path / 'pipe.pt')
    for path in tmp_path / 'pipe.pt', tmp_path, Path('/dev/null'):
        with pytest.raises(UserError, match='is no file; check the path'):
            checkpoint.contents_of(path)

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / 'a.pt').write_bytes(b'a')
    monkeypatch.setattr(torch, 'load', fail)
    with pytest.raises(UserError, match='a.pt cannot be read .Input/output error.*the disk'):
        checkpoint.contents_of(tmp_path / 'a.pt')


def test_where_models_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opt = options(['--expname', 'cats'])
    with pytest.raises(UserError) as error:
        checkpoint.find_model(opt)
    for place in ('full_models/cats.pt', 'checkpoint/cats/full_pipeline/models_0300000.pt',
                  'pretrained_renderer/cats_vol_renderer.pt'):
        assert place in str(error.value)
    for path, name in (('pretrained_renderer/cats_vol_renderer.pt', 'vol_renderer'),
                       ('checkpoint/cats/full_pipeline/models_0300000.pt', 'iter_0300000'),
                       ('full_models/cats.pt', 'final_model')):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
        found, found_name = checkpoint.find_model(opt)
        assert (str(found), found_name) == (path, name)
    (tmp_path / 'full_models/cats.pt').unlink()
    with pytest.raises(UserError, match='--ckpt can be 300000'):  # not the stage-1 field in its stead
        checkpoint.find_model(options(['--expname', 'cats', '--ckpt', '200']))


def test_a_model_in_the_box_comes_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, 'DEMO_MODELS', tmp_path / 'box')
    (tmp_path / 'box').mkdir()
    (tmp_path / 'box' / 'cats.pt').touch()
    assert checkpoint.find_model(options(['--expname', 'cats'])) == (tmp_path / 'box' / 'cats.pt', 'final_model')
    with pytest.raises(UserError, match='no checkpoint'):  # not in the stead of what was asked for
        checkpoint.find_model(options(['--expname', 'cats', '--ckpt', '200']))
    (tmp_path / 'full_models').mkdir()
    (tmp_path / 'full_models' / 'cats.pt').touch()
    assert str(checkpoint.find_model(options(['--expname', 'cats']))[0]) == 'full_models/cats.pt'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_single(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    state = {name: tensor.to(dtype) for name, tensor in build_generator(options(TINY)).state_dict().items()}
    checkpoint.save('full_models/half.pt', {'g_ema': state})
    generator, *_ = load_generator(options([*TINY, '--expname', 'half']), torch.device('cpu'))
    for name, tensor in generator.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[name].float()), name


def test_an_interrupted_save_keeps_the_old_file(tiny, monkeypatch):
    path, _ = tiny
    before = path.read_bytes()

    def interrupted(data, target):
        target.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {})
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ['tiny.pt']


# ---------------------------------------------------------------------------------------------- files of others

def loaded(contents, tmp_path):
    """The generator that a file of these contents gives."""
    path = tmp_path / 'full_models' / 'other.pt'
    checkpoint.save(path, contents)
    generator, *_ = load_generator(options(['--expname', 'other', '--renderer_spatial_output_dim', '8']), 'cpu')
    return generator


@pytest.mark.parametrize('name, said', [
    ('g', "holds no averaged weights (g_ema): using those under 'g'"), ('bare', 'is a state dict without a key'),
    ('parallel', 'saved by DataParallel'), ('wrapped', 'saved by torch.compile'),
    ('counted', '2 entries left out that other tools count in')])
def test_what_is_plainly_meant_is_loaded_with_a_line(tiny, tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.chdir(tmp_path)
    state = tiny[1].state_dict()
    contents = {'g': {'g': state}, 'bare': dict(state),
                'parallel': {'g_ema': {f'module.{key}': value for key, value in state.items()}},
                'wrapped': {'g_ema': {f'module._orig_mod.{key}': value for key, value in state.items()}
                            | {'n_averaged': torch.tensor(7)}},  # as AveragedModel of torch.optim.swa_utils has it
                'counted': {'g_ema': state | {'decoder.num_batches_tracked': torch.tensor(7),
                                              'total_ops': torch.zeros(1, dtype=torch.float64)}}}[name]
    generator = loaded(contents, tmp_path)
    assert said in capsys.readouterr().out
    assert all(torch.equal(value, state[key]) for key, value in generator.state_dict().items())


@pytest.mark.parametrize('missing', [range(1, 2), range(7)])
def test_noise_maps_that_are_missing_are_drawn_anew(tiny, tmp_path, monkeypatch, capsys, missing):
    monkeypatch.chdir(tmp_path)
    state = tiny[1].state_dict()
    for i in missing:
        state.pop(f'decoder.noises.noise_{i}', None)
    generator = loaded({'g_ema': state}, tmp_path)
    assert 'noise maps are missing or of another size (noise_' in capsys.readouterr().out
    assert (generator.decoder.size, generator.renderer.resolution) == (32, 8)
    assert all(torch.equal(generator.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize('name, value, said', [
    ('style.0.weight', torch.zeros(1).expand(2 ** 36), 'style.0.weight is no plain tensor'),
    ('style.0.weight', torch.zeros(8, 8, dtype=torch.int64), 'style.0.weight is no plain tensor .*int64'),
    ('style.0.weight', torch.zeros(8, 8).to(torch.float8_e4m3fn), 'no plain tensor .*float8'),
    ('style.0.weight', torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), 'no plain tensor|damaged|refused'),
    ('style.0.weight', torch.zeros(8, 8).to_sparse(), 'no plain tensor'),
    ('style.0.weight', 'text', 'style.0.weight is no tensor'),
    ('style.0.weight', torch.zeros(10 ** 6, 1), 'does not fit this model|is not a StyleSDF'),
    ('renderer.network.sigma_linear.weight', torch.zeros(1, 10 ** 6), 'does not fit this model'),
    ('decoder.noises.noise_0', torch.zeros(1, 1, 1).expand(1, 1, 2 ** 15, 2 ** 17), 'noise_0 is no plain tensor'),
    ('decoder.conv1.conv.weight', torch.zeros(1, 2 ** 20, 1, 1, 1), 'does not fit this model'),
    ('\x1b[31mred\n', torch.zeros(1), r'unknown entry \\x1b\[31mred\\n'),
])
def test_a_strangers_file_costs_no_more_than_its_size(tiny, tmp_path, monkeypatch, name, value, said):
    """And ends in one sentence. Memory is bounded while it is read."""
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 ** 30, limits[1]))
    try:
        with pytest.raises(UserError, match=said) as refused:
            loaded({'g_ema': tiny[1].state_dict() | {name: value}}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert '\n' not in str(refused.value) and '\x1b' not in str(refused.value)


def test_entries_that_share_their_numbers_are_refused(tiny, tmp_path):
    """A file of one layer that is there many times would become a model many times its size; two may be the same."""
    state = {name: tensor.clone() for name, tensor in tiny[1].state_dict().items()}
    large = torch.zeros(512, 512)
    for count, allowed in ((2, True), (40, False)):
        path = tmp_path / f'{count}.pt'
        torch.save({'g_ema': state | {f'more.{i}': large for i in range(count)}}, path)
        if allowed:
            assert len(checkpoint.read(path)['g_ema']) == len(state) + count
        else:
            with pytest.raises(UserError, match='share their numbers'):
                checkpoint.read(path)


def test_options_that_describe_an_enormous_model_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    field = build_generator(options(), full_pipeline=False).state_dict()
    with pytest.raises(UserError, match='was trained with renderer_spatial_output_dim 32768, which must be'):
        checkpoint.save('full_models/other.pt', {'g_ema': field, 'options': {
            'model': {'renderer_spatial_output_dim': 2 ** 15}}})
        load_generator(options(['--expname', 'other']), 'cpu')


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tiny, tmp_path):
    path = tmp_path / 'bomb.pt'
    torch.save({'g_ema': {'style.0.weight': torch.zeros(2 ** 24)}}, tmp_path / 'plain.pt')
    with zipfile.ZipFile(tmp_path / 'plain.pt') as plain, zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert path.stat().st_size < 10 ** 6
    with pytest.raises(UserError, match='bomb.pt is compressed'):
        checkpoint.read(path)


def test_the_tar_format_is_named(tmp_path):
    with tarfile.open(tmp_path / 'old.pt', 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'), io.BytesIO())
    with pytest.raises(UserError, match='old.pt is in the tar format'):
        checkpoint.read(tmp_path / 'old.pt')


def test_what_is_there_is_said_where_it_is_no_checkpoint(tmp_path):
    torch.save({'epoch': 3, 'model\x1b': {}}, tmp_path / 'other.pt')
    with pytest.raises(UserError, match=r"under 'g_ema' \(but epoch, model\\x1b\)"):
        checkpoint.read(tmp_path / 'other.pt')


def test_what_cannot_be_written_is_named_with_what_helps(tmp_path):
    (tmp_path / 'taken.pt').mkdir()
    with pytest.raises(UserError, match=r'taken.pt \(Is a directory\); choose a name that no folder has'):
        checkpoint.save(tmp_path / 'taken.pt', {})
    assert [path.name for path in tmp_path.iterdir()] == ['taken.pt']

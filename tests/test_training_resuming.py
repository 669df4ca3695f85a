"""Where a run begins: resuming is exact, and what does not fit is refused."""
import errno

import pytest
import torch
from conftest import assert_close
from tiny_training import IMAGES, STAGES, differences, flags, make_data, newest, tiny, train

import checkpoint
from training import logs, resuming
from training.augmentation import Strength
from utils import UserError

BOTH = pytest.mark.parametrize('stage', ('volume_renderer', 'full_pipeline'))


@BOTH
@pytest.mark.parametrize('more', (
    '', '--augment --augment_images 300 --augment_target 0 --sphere_lambda 1 --sphere_fade --r1_every 2',
    '--adversarial_loss relativistic'))
def test_resuming_is_exact(stage, more, data, renderer, tmp_path, monkeypatch):
    monkeypatch.setattr(Strength, 'INTERVAL', 4)
    monkeypatch.setattr(Strength, 'FIRST', 0.5)
    text = f'--renderer_ckpt {renderer} {more}'
    train(stage, tmp_path / 'whole', flags(data, f'{text} --iter 5'))
    train(stage, tmp_path / 'parts', flags(data, f'{text} --iter 2'))
    train(stage, tmp_path / 'parts', flags(data, f'{text} --iter 5 --continue_training --num_workers 2'))
    (steps, whole), (_, parts) = newest(tmp_path / 'whole', stage), newest(tmp_path / 'parts', stage)
    assert steps == whole['iteration'] == 5 and whole['images'] == 20
    assert {'g', 'd', 'g_ema', 'g_optim', 'd_optim', 'options'} <= whole.keys()
    assert differences(whole, parts) == []
    assert differences(whole, newest(tmp_path / 'whole', stage)[1] | {'iteration': 4}) == ['.iteration']
    lines = logs.read_stats(tmp_path / 'parts' / 'checkpoint' / 'debug' / stage / 'stats.jsonl')
    assert [line['iteration'] for line in lines] == [1, 2, 3, 4, 5]
    assert 'augment' not in more or len({line['augment'] for line in lines}) > 1


def test_the_newest_whole_checkpoint_is_taken(data, tmp_path, capsys):
    train('volume_renderer', tmp_path, flags(data, '--iter 4 --save_every 1 --keep_checkpoints 3'))
    folder = tmp_path / 'checkpoint' / 'debug' / 'volume_renderer'
    assert sorted(path.name for path in folder.glob('models_*')) == [f'models_000000{i}.pt' for i in (2, 3, 4)]
    newest_path = folder / 'models_0000004.pt'
    newest_path.write_bytes(newest_path.read_bytes()[:5000])
    train('volume_renderer', tmp_path, flags(data, '--iter 5 --continue_training'))
    said = capsys.readouterr().out
    assert 'Passing over a checkpoint' in said and 'models_0000003.pt (3 steps done)' in said
    assert newest(tmp_path, 'volume_renderer')[0] == 5


def test_a_checkpoint_is_not_removed_for_a_damaged_one_with_a_higher_number(data, tmp_path):
    """However often the training is stopped before it has passed the damaged one."""
    train('volume_renderer', tmp_path, flags(data, '--iter 4 --save_every 2 --no_sphere_init'))
    damage(tmp_path, 4)
    for done in (3, 4):
        train('volume_renderer', tmp_path,
              flags(data, '--iter 9 --continue_training --keep_checkpoints 1 --max_minutes 1e-6 --no_sphere_init'))
        folder = tmp_path / 'checkpoint' / 'debug' / 'volume_renderer'
        assert checkpoint.read(folder / f'models_000000{done}.pt')['iteration'] == done


def test_a_checkpoint_that_another_run_removes_meanwhile_is_not_missed(data, tmp_path, monkeypatch, capsys):
    train('volume_renderer', tmp_path, flags(data, '--iter 2 --save_every 1 --no_sphere_init'))
    read = checkpoint.read

    def read_too_late(path):
        if checkpoint.iteration_of(path) == 2:
            path.rename(path.with_stem('models_0000003'))
        return read(path)

    monkeypatch.setattr(checkpoint, 'read', read_too_late)
    monkeypatch.chdir(tmp_path)
    path, _ = checkpoint.newest_whole(tiny('train_volume_renderer'), 'volume_renderer')
    assert path.stem == 'models_0000003' and 'Passing over' not in capsys.readouterr().out


def damage(folder, *iterations):
    """Cut checkpoints of stage 1 short."""
    for iteration in iterations:
        path = folder / 'checkpoint' / 'debug' / 'volume_renderer' / f'models_{iteration:07d}.pt'
        path.write_bytes(path.read_bytes()[:5000])


def test_no_training_begins_anew_beside_checkpoints_that_it_cannot_use(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 2 --save_every 1 --no_sphere_init'))
    damage(tmp_path, 1, 2)
    before = checkpoints_below(tmp_path)
    with pytest.raises(UserError, match='none of the checkpoints in checkpoint/debug/volume_renderer can be used'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2 --continue_training'))
    assert checkpoints_below(tmp_path) == before


def checkpoints_below(folder):
    return {path: path.read_bytes() for path in folder.rglob('*.pt')}


@pytest.mark.parametrize('more', ('', '--max_minutes 1e-6'))  # a checkpoint, or an unfinished sphere
def test_what_a_disk_does_not_give_is_not_taken_for_damaged(more, data, tmp_path, monkeypatch):
    def stale(*_, **__):
        raise OSError(errno.ESTALE, 'Stale file handle')

    train('volume_renderer', tmp_path, flags(data, f'--iter 2 --save_every 1 {more}'))
    before = checkpoints_below(tmp_path)
    monkeypatch.setattr(torch, 'load', stale)
    with pytest.raises(UserError, match='.pt cannot be read .Stale file handle.; check'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2 --continue_training'))
    assert checkpoints_below(tmp_path) == before


def test_what_a_kill_left_unfinished_is_removed(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --no_sphere_init'))
    folder, finished = tmp_path / 'checkpoint' / 'debug' / 'volume_renderer', tmp_path / 'pretrained_renderer'
    left = [folder / f'.{name}' for name in ('models_0000002-abc_1234.pt', 'sphere_init-abc_1234.pt',
                                             'stats-abc_1234.jsonl', 'progress-abc_1234.png')]
    left += [folder / 'samples' / '.0000001_shape-abc_1234.png', finished / '.debug_vol_renderer-abc_1234.pt']
    others = finished / '.debug_vol_renderer-2-abc_1234.pt'  # of an experiment that may be running
    for path in (*left, others):
        path.write_bytes(b'half a file')
    train('volume_renderer', tmp_path, flags(data, '--iter 2 --no_sphere_init --continue_training'))
    assert not any(path.exists() for path in left) and others.exists()


@BOTH
def test_an_official_checkpoint_to_start_from(stage, data, renderer, tmp_path, capsys):
    """Official files hold nothing but state dicts, some only the EMA, and noise maps of other sizes."""
    train(stage, tmp_path / 'first', flags(data, f'--renderer_ckpt {renderer} --iter 1'))
    saved = newest(tmp_path / 'first', stage)[1]
    official = {key: saved[key] for key in ('g', 'd', 'g_ema')}
    if stage == 'full_pipeline':
        for key in ('g', 'g_ema'):
            official[key]['decoder.noises.noise_1'] = torch.zeros(1, 1, 32, 32)
    folder = tmp_path / 'resumed' / 'checkpoint' / 'debug' / stage
    checkpoint.save(folder / 'models_0000007.pt', official)
    train(stage, tmp_path / 'resumed', flags(data, '--iter 9 --continue_training'))
    assert newest(tmp_path / 'resumed', stage)[0] == 9
    assert 'holds no g_optim' in capsys.readouterr().out

    checkpoint.save(tmp_path / 'only.pt', {'g_ema': official['g_ema']})
    train(stage, tmp_path / 'begun', flags(data, f'--iter 1 --init_ckpt {tmp_path / "only.pt"}'))
    begun = newest(tmp_path / 'begun', stage)[1]
    name = 'renderer.network.sigma_linear.weight'
    assert (begun['g_ema'][name] - official['g_ema'][name]).abs().max() < 1e-2
    assert not (tmp_path / 'begun' / 'checkpoint' / 'debug' / stage / 'models_0000000.pt').exists()  # no sphere


def test_stage_1_begins_with_the_field_of_a_full_model(data, renderer, tmp_path, capsys):
    train('full_pipeline', tmp_path, flags(data, f'--iter 1 --renderer_ckpt {renderer}'))
    full = tmp_path / 'full_models' / 'debug.pt'
    train('volume_renderer', tmp_path / 'field', flags(data, f'--iter 1 --lr_g 1e-9 --init_ckpt {full}'))
    assert 'holds no discriminator of these sizes' in capsys.readouterr().out
    for name, tensor in newest(tmp_path / 'field', 'volume_renderer')[1]['g'].items():
        assert_close(tensor, checkpoint.read(full)['g'][name], 1e-6, name)


def test_a_decoder_goes_on_above_another_renderer(data, renderer, tmp_path):
    train('full_pipeline', tmp_path / 'first', flags(data, f'--iter 1 --renderer_ckpt {renderer}'))
    full = tmp_path / 'first' / 'full_models' / 'debug.pt'
    other = torch.load(renderer, weights_only=True)
    for key in ('g', 'g_ema'):
        other[key] = {name: tensor * 1.5 for name, tensor in other[key].items()}
    other['options']['camera']['azim'] = 0.123
    torch.save(other, tmp_path / 'other.pt')
    train('full_pipeline', tmp_path / 'second', flags(data, f'--iter 1 --lr 1e-9 --init_ckpt {full} '
                                                            f'--renderer_ckpt {tmp_path / "other.pt"}'))
    found, decoder = newest(tmp_path / 'second', 'full_pipeline')[1], checkpoint.read(full)
    assert found['options']['camera']['azim'] == 0.123  # the renderer knows which cameras it learned with
    for key in ('g', 'g_ema'):
        for name, tensor in found[key].items():
            wanted = decoder[key][name] if name.startswith('decoder.') else other['g_ema'][name]
            assert (tensor - wanted).abs().max() < 1e-4, name


def test_a_field_goes_on_at_another_resolution(data, tmp_path, capsys):
    train('volume_renderer', tmp_path / 'a', flags(data, '--iter 1 --no_sphere_init'))
    path = tmp_path / 'a' / 'pretrained_renderer' / 'debug_vol_renderer.pt'
    train('volume_renderer', tmp_path / 'b', flags(data, f'--iter 1 --renderer_spatial_output_dim 16 --lr_g 1e-9 '
                                                         f'--init_ckpt {path}'))
    assert 'holds no discriminator of these sizes' in capsys.readouterr().out
    for name, tensor in newest(tmp_path / 'b', 'volume_renderer')[1]['g'].items():
        assert_close(tensor, checkpoint.read(path)['g'][name], 1e-6, name)

    train('volume_renderer', tmp_path / 'c', flags(data, '--iter 1 --lr_g 1e-9 --initial_beta 0.02 '
                                                         f'--init_ckpt {path}'))
    for key in ('g', 'g_ema'):
        assert abs(newest(tmp_path / 'c', 'volume_renderer')[1][key]['renderer.sigmoid_beta'] - 0.02) < 1e-6


def test_no_run_is_overwritten_and_none_goes_on_with_other_options(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 1'))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.pt')}
    with pytest.raises(UserError, match='holds checkpoints already; add --continue_training'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2'))
    with pytest.raises(UserError, match='debug_vol_renderer.pt is there already'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2 --checkpoints_dir elsewhere'))
    with pytest.raises(UserError, match='--lr_g 0.001 there, 0.1 here; --azim 0.3 there'):
        train('volume_renderer', tmp_path,
              flags(data, '--iter 2 --continue_training --batch 2 --lr_g 0.1 --azim 0.7 --save_every 7'))
    with pytest.raises(UserError, match='--width 9 contradicts'):
        train('volume_renderer', tmp_path, flags(data, '--iter 2 --continue_training --width 9'))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.pt')}


# ---------------------------------------------------------------------------------------------- the batch and the data

def resumed(stage, before, now, more=''):
    """(batch, chunk) with which `now` = (processes, --batch) go on with what `before` = (processes, --batch) began."""
    command = STAGES[stage]
    (old_processes, old_batch), (processes, batch) = before, now
    saved = {'step_images': resuming.images_of_step(tiny(command, old_batch), stage, old_processes)}
    start = resuming.Start('models.pt', saved, resumed=True)
    opt = resuming.same_batch(tiny(command, batch, more), stage, start, processes)
    return opt.training.batch, opt.training.chunk


@pytest.mark.parametrize('stage, before, now, expected', [
    ('volume_renderer', (2, 4), (2, 4), (4, 4)),
    ('volume_renderer', (2, 4), (1, 8), (8, 4)),  # the same already
    ('volume_renderer', (2, 4), (1, 4), (8, 4)),
    ('volume_renderer', (1, 8), (4, 8), (2, 2)),
    ('volume_renderer', (3, 4), (2, 4), (6, 3)),
    ('full_pipeline', (2, 4), (1, 4), (8, 4)),
    ('full_pipeline', (1, 16), (2, 4), (8, 4)),
    ('full_pipeline', (1, 2), (1, 8), (2, 2)),
])
def test_the_images_of_a_step_stay_the_same(stage, before, now, expected):
    assert resumed(stage, before, now) == expected


@pytest.mark.parametrize('stage, before, now', [
    ('volume_renderer', (2, 4), (3, 4)), ('volume_renderer', (1, 2), (2, 2)),
    ('full_pipeline', (1, 8), (4, 2)),  # the discriminator compared groups of four
])
def test_processes_that_cannot_share_the_images_are_refused(stage, before, now, capsys):
    with pytest.raises(UserError, match=f'was trained with {before[0] * before[1]} images a step.*--new_batch'):
        resumed(stage, before, now)
    assert resumed(stage, before, now, '--new_batch')[0] == now[1]
    assert f'and goes on with {now[0] * now[1]}' in capsys.readouterr().out


def test_older_checkpoints_tell_the_batch_by_their_images():
    start = resuming.Start('models.pt', {'images': 80, 'iteration': 10, 'options': {
        'training': {'batch': 4, 'path_batch_shrink': 2}}}, resumed=True)
    for stage in STAGES:
        assert resuming.same_batch(tiny(STAGES[stage], 4), stage, start, 1).training.batch == 8
        assert resuming.same_batch(tiny(STAGES[stage], 4), stage, start, 2).training.batch == 4
    official = resuming.Start('models.pt', {'g_ema': {}}, resumed=True)
    assert resuming.same_batch(tiny(STAGES['volume_renderer'], 6), 'volume_renderer', official, 1).training.batch == 6


def test_another_batch_is_written_into_the_log(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --no_sphere_init'))
    train('volume_renderer', tmp_path, flags(data, '--iter 2 --batch 2 --chunk 2 --continue_training --new_batch'))
    stats = tmp_path / 'checkpoint' / 'debug' / 'volume_renderer' / 'stats.jsonl'
    assert {'iteration': 1, 'images_per_step': 2} in logs.read_stats(stats)
    assert newest(tmp_path, 'volume_renderer')[1]['images'] == 6


def test_other_images_are_noticed(data, tmp_path, capsys):
    """A data set of equal length, and one that has grown: refused, and taken with --new_data."""
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --no_sphere_init'))
    others, grown = make_data(tmp_path, 'others', seed=1), make_data(tmp_path, 'grown', count=IMAGES + 2)
    for path, message in ((others, f'on other images than those of {others}, though on as many'),
                          (grown, f'was trained on {IMAGES} images, and {grown} has {IMAGES + 2}, the first of which '
                                  'are the same')):
        arguments = flags(path, '--iter 2 --continue_training')
        with pytest.raises(UserError, match='add --new_data') as refused:
            train('volume_renderer', tmp_path, arguments)
        assert message in str(refused.value)
    train('volume_renderer', tmp_path, [*arguments, '--new_data'])
    assert 'From here on their order is the one' in capsys.readouterr().out
    assert newest(tmp_path, 'volume_renderer')[1]['dataset']['length'] == IMAGES + 2


def test_an_unfinished_sphere_is_not_called_a_new_start(data, tmp_path, capsys):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --max_minutes 1e-6'))
    capsys.readouterr()
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --continue_training'))
    said = capsys.readouterr().out
    assert 'going on with its unfinished sphere_init.pt' in said and 'starting anew' not in said


def test_a_damaged_sphere_is_made_anew(data, tmp_path, capsys):
    train('volume_renderer', tmp_path / 'whole', flags(data, '--iter 1'))
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --max_minutes 1e-6'))
    sphere, = tmp_path.rglob('sphere_init.pt')
    sphere.write_bytes(sphere.read_bytes()[:1000])
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --continue_training'))
    assert 'Making the sphere anew' in capsys.readouterr().out
    assert differences(*(newest(path, 'volume_renderer')[1] for path in (tmp_path, tmp_path / 'whole'))) == []


def test_a_sphere_may_end_sooner_than_it_was_begun_for(data, tmp_path):
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --sphere_iters 5000 --max_minutes 1e-6'))
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --sphere_iters 5000 --max_minutes 1e-6 '
                                                   '--continue_training'))
    assert torch.load(*tmp_path.rglob('sphere_init.pt'), weights_only=True)['step'] == 2
    train('volume_renderer', tmp_path, flags(data, '--iter 1 --sphere_iters 1 --continue_training'))
    assert newest(tmp_path, 'volume_renderer')[0] == 1 and not list(tmp_path.rglob('sphere_init.pt'))


def test_a_decoder_keeps_the_rate_of_its_mapping(data, renderer, tmp_path, capsys):
    """Without it its latents would be others."""
    text = f'--iter 1 --lr 1e-9 --renderer_ckpt {renderer}'
    train('full_pipeline', tmp_path / 'a', flags(data, f'{text} --lr_mapping 0.5'))
    full = tmp_path / 'a' / 'full_models' / 'debug.pt'
    train('full_pipeline', tmp_path / 'b', flags(data, f'--iter 1 --init_ckpt {full}'))
    assert 'lr_mapping 0.5: using that' in capsys.readouterr().out
    train('full_pipeline', tmp_path / 'c', flags(data, f'{text} --init_ckpt {full}'))  # above another renderer
    train('full_pipeline', tmp_path / 'd', flags(data, f'--iter 1 --renderer_ckpt {full}'))  # a decoder of its own
    assert [newest(tmp_path / name, 'full_pipeline')[1]['options']['model']['lr_mapping'] for name in 'bcd'] == [
        0.5, 0.5, 0.01]


def test_another_precision_is_told(data, renderer, tmp_path, capsys):
    train('full_pipeline', tmp_path, flags(data, f'--iter 1 --renderer_ckpt {renderer}'))
    for precision, told in (('fp32', False), ('bf16', True)):
        train('full_pipeline', tmp_path, flags(data, f'--iter 1 --continue_training --precision {precision}'))
        assert ('was trained with --precision fp32, and goes on with bf16.' in capsys.readouterr().out) == told

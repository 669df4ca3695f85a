"""The frame of training: an orderly end, bad input, what is written."""
import errno
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_training import IMAGES, differences, flags, newest, tiny, train

import checkpoint
import losses
from dataset import make_loader
from training import logs, run
from utils import UserError

BOTH = pytest.mark.parametrize('stage', ('volume_renderer', 'full_pipeline'))


def test_a_spent_time_saves_and_goes_on(data, tmp_path, capsys):
    two = '--iter 2 --sphere_iters 2'
    train('volume_renderer', tmp_path / 'whole', flags(data, two))
    train('volume_renderer', tmp_path / 'parts', flags(data, f'{two} --max_minutes 1e-6'))
    assert not list(tmp_path.glob('parts/checkpoint/debug/volume_renderer/models_*'))  # still making the sphere
    for _ in range(3):
        train('volume_renderer', tmp_path / 'parts', flags(data, f'{two} --max_minutes 1e-6 --continue_training'))
    assert 'Stopped; --continue_training goes on from' in capsys.readouterr().out
    whole, parts = newest(tmp_path / 'whole', 'volume_renderer'), newest(tmp_path / 'parts', 'volume_renderer')
    assert whole[0] == parts[0] == 2
    assert differences(whole[1], parts[1]) == []
    assert (tmp_path / 'parts' / 'pretrained_renderer' / 'debug_vol_renderer.pt').exists()


BAD = {
    'no data set': ('volume_renderer', '--dataset_path nowhere', 'nowhere does not exist'),
    'no such size': ('volume_renderer', '--size 32', 'size 32'),
    'batch of one': ('volume_renderer', '--batch 1', '--batch 1 is too small'),
    'chunks that leave a rest': ('full_pipeline', '--batch 6 --chunk 4', '--batch 6 is not divisible by --chunk 4'),
    'enlarged photos': ('volume_renderer', '--iter 1 --renderer_spatial_output_dim 32', '--size 16 is less than'),
    'too many workers': ('volume_renderer', f'--num_workers {IMAGES + 1}', f'more than the {IMAGES} images'),
    'a file in the way': ('volume_renderer', '--checkpoints_dir file', '--checkpoints_dir file/debug/volume_renderer'),
    'no stage 1': ('full_pipeline', '', 'no stage-1 result pretrained_renderer/debug_vol_renderer.pt'),
    'no such renderer': ('full_pipeline', '--renderer_ckpt none.pt', 'none.pt does not exist'),
    'no such start': ('volume_renderer', '--init_ckpt none.pt', 'none.pt does not exist'),
    'half precision': ('volume_renderer', '--precision fp16', '--precision fp16'),
}


def test_photos_are_mirrored_unless_told(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(run, 'make_loader', lambda images, sampler, *rest: seen.append(
        [sampler[i][1] for i in range(40)]) or make_loader(images, sampler, *rest))
    for name, more in (('a', ''), ('b', '--no_mirror')):
        train('volume_renderer', tmp_path / name, flags(data, f'--iter 1 --no_sphere_init {more}'))
    assert 5 < sum(seen[0]) < 35 and not any(seen[1])


def test_a_long_phase_says_how_long_it_takes(monkeypatch, capfd):
    clock = iter(range(0, 10 ** 6, 60))  # a minute from one look at it to the next
    monkeypatch.setattr('training.run.time.perf_counter', lambda: next(clock) * 10)
    owner = SimpleNamespace(is_first=True, stopping=False)
    list(run.Run.progress(owner, 0, 100, 'sphere', 'less of it is quicker'))
    said = 'sphere: 89 more steps take about 89 minutes at this pace; less of it is quicker.'
    assert said in capfd.readouterr().err
    list(run.Run.progress(owner, 0, 5, 'sphere', 'less of it is quicker'))
    assert 'take about' not in capfd.readouterr().err
    monkeypatch.setattr('training.run.LONG_SECONDS', 10 ** 9)
    list(run.Run.progress(owner, 0, 100, 'sphere', 'less of it is quicker'))
    assert 'take about' not in capfd.readouterr().err


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, data, tmp_path):
    stage, text, message = BAD[name]
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError) as refused:
        train(stage, tmp_path, flags(data, text))
    assert message in str(refused.value)
    assert not list(tmp_path.rglob('*.pt'))


@pytest.mark.parametrize('saved', (False, True))
def test_nan_stops_before_any_weight_changes(saved, data, tmp_path, monkeypatch):
    true_loss, calls = losses.minimal_surface_loss, []

    def diverging(sdf, beta):
        calls.append(1)
        return true_loss(sdf, beta) * (float('inf') if len(calls) == 4 else 1)

    monkeypatch.setattr(losses, 'minimal_surface_loss', diverging)
    text = '--iter 9 --no_sphere_init' + (' --save_every 2' if saved else '')
    with pytest.raises(UserError) as stopped:
        train('volume_renderer', tmp_path, flags(data, text))
    assert 'step 3: g_minimal_surface' in str(stopped.value)
    good = 'the last good checkpoint is checkpoint/debug/volume_renderer/models_0000002.pt'
    assert (good if saved else 'there is no checkpoint yet') in str(stopped.value)
    assert len(list(tmp_path.rglob('models_*.pt'))) == saved


@BOTH
def test_logs_and_samples(stage, data, renderer, tmp_path):
    train(stage, tmp_path, flags(data, f'--renderer_ckpt {renderer} --iter 5 --log_every 2 --sample_every 4 '
                                       '--val_n_sample 2'), plot=True)
    folder = tmp_path / 'checkpoint' / 'debug' / stage
    lines = logs.read_stats(folder / 'stats.jsonl')
    assert [line['iteration'] for line in lines] == [2, 4, 5]
    names = {'iteration', 'd', 'g', 'r1', 'real_score', 'fake_score', 'd_gradient', 'g_gradient', 'beta',
             'seconds_per_step', 'images_per_second', 'peak_memory_gib', 'real_sign'}
    names |= {'path', 'path_length', 'path_gradient'} if stage == 'full_pipeline' else \
        {'d_view', 'g_view', 'g_eikonal', 'g_minimal_surface', 'surface', 'fog'}
    assert lines[0].keys() == names
    assert all(value > 0 for name, value in lines[0].items()
               if 'score' not in name and name not in ('real_sign', 'surface', 'fog'))
    assert Image.open(folder / 'progress.png').size[0] > 500
    side = 8 if stage == 'volume_renderer' else 16
    grids = {path.name: Image.open(path).size for path in (folder / 'samples').iterdir()}
    wanted = {f'{step:07d}.png' for step in (0, 4, 5)}
    wanted |= {name.replace('.', '_shape.') for name in wanted} if stage == 'volume_renderer' else set()
    assert grids == dict.fromkeys(wanted, (8 * side, 2 * side))


# ---------------------------------------------------------------------------------------------- mishaps

def test_what_is_not_the_training_does_not_end_it(data, tmp_path, monkeypatch, capsys):
    """Plots, samples, log lines and measurements that fail, as on a full disk, are told once and left out."""
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')

    for owner, name in ((logs, 'plot_progress'), (run, 'save_image_row'), (run, 'quick_evaluation'),
                        (logs.Log, 'note')):
        monkeypatch.setattr(owner, name, full)
    train('volume_renderer', tmp_path, flags(data, '--iter 3 --no_sphere_init --sample_every 1 --eval_every 1'),
          plot=True)
    assert newest(tmp_path, 'volume_renderer')[0] == 3
    said = capsys.readouterr().err
    for what in ('the plot', 'a sample', 'the log', 'a measurement'):
        assert said.count(f'{what} failed (OSError: [Errno 28] No space left on device); the training goes on') == 1


def test_a_log_line_is_whole_or_missing(tmp_path, monkeypatch):
    log = logs.Log(tmp_path, tiny('train_volume_renderer'), 0)
    log.note({'iteration': 1})

    class Full:
        def __init__(self, *arguments):
            self.file = open(*arguments)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(errno.ENOSPC, 'No space left on device')

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr(logs, 'open', Full, raising=False)
        with pytest.raises(OSError, match='No space'):
            log.note({'iteration': 2})
    log.note({'iteration': 3})
    assert [line['iteration'] for line in logs.read_stats(log.stats)] == [1, 3]


def failing_saves(monkeypatch, *iterations):
    """Let the checkpoints of some iterations fail once each, as on a disk that is full for a moment."""
    true_save, left = checkpoint.save, list(iterations)

    def save(path, contents):
        if checkpoint.iteration_of(path) in left:
            left.remove(checkpoint.iteration_of(path))
            raise UserError(f'cannot write {path} (No space left on device); free some space.')
        true_save(path, contents)

    monkeypatch.setattr(checkpoint, 'save', save)


def test_a_checkpoint_that_cannot_be_written_is_tried_again(data, tmp_path, monkeypatch, capsys):
    failing_saves(monkeypatch, 2)
    monkeypatch.setattr(run, 'RETRY_STEPS', 1)
    train('volume_renderer', tmp_path, flags(data, '--iter 4 --no_sphere_init --save_every 2'))
    assert {path.stem for path in tmp_path.rglob('models_*')} == {'models_0000003', 'models_0000004'}
    assert 'tries again after step 3; the newest checkpoint is none' in capsys.readouterr().err


def test_the_sphere_stays_until_its_checkpoint_is_written(data, tmp_path, monkeypatch, capsys):
    text = '--sphere_iters 2 --save_every 1 --iter 2'
    failing_saves(monkeypatch, 0)
    train('volume_renderer', tmp_path / 'full', flags(data, text))
    assert 'the newest checkpoint is checkpoint/debug/volume_renderer/sphere_init.pt' in capsys.readouterr().err
    assert not list(tmp_path.rglob('sphere_init.pt'))  # there are checkpoints of later steps

    failing_saves(monkeypatch, 0)
    train('volume_renderer', tmp_path / 'stopped', flags(data, f'{text} --max_minutes 1e-6'))
    with pytest.raises(UserError, match='cannot write .*models_0000000.pt .* is .*sphere_init.pt'):
        train('volume_renderer', tmp_path / 'stopped', flags(data, f'{text} --max_minutes 1e-6 --continue_training'))
    train('volume_renderer', tmp_path / 'stopped', flags(data, f'{text} --continue_training'))
    monkeypatch.undo()
    train('volume_renderer', tmp_path / 'whole', flags(data, text))
    assert differences(*(newest(tmp_path / name, 'volume_renderer')[1] for name in ('stopped', 'whole'))) == []


def test_several_failures_in_a_row_end_the_training(data, tmp_path, monkeypatch):
    failing_saves(monkeypatch, 1, 2, 3)
    monkeypatch.setattr(run, 'MAX_FAILURES', 3)
    with pytest.raises(UserError, match='cannot write .* The newest checkpoint of this training is none'):
        train('volume_renderer', tmp_path, flags(data, '--iter 9 --no_sphere_init --save_every 1'))


def test_a_lack_of_memory_is_one_sentence_and_loses_nothing(data, tmp_path, monkeypatch):
    true_loss, calls = losses.logistic_loss, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 1 GiB.')
        return true_loss(*arguments)

    monkeypatch.setattr(losses, 'logistic_loss', fail)
    with pytest.raises(UserError) as refused:
        train('volume_renderer', tmp_path, flags(data, '--iter 9 --no_sphere_init --chunk 4'))
    said = str(refused.value)
    assert said.startswith('memory ran out (CUDA out of memory. Tried to allocate 20.00 MiB) with --chunk 4, ')
    assert '--renderer_spatial_output_dim 8' in said and 'use a smaller --chunk' in said
    assert newest(tmp_path, 'volume_renderer')[0] == 3  # the three steps that were done
    train('volume_renderer', tmp_path, flags(data, '--iter 5 --no_sphere_init --continue_training'))
    train('volume_renderer', tmp_path / 'whole', flags(data, '--iter 5 --no_sphere_init'))
    assert differences(*(newest(path, 'volume_renderer')[1] for path in (tmp_path, tmp_path / 'whole'))) == []


def test_an_error_in_the_middle_of_a_step_leaves_no_half_step(data, tmp_path, monkeypatch):
    """The discriminator has had its update, the generator has not: that is not saved."""
    true_loss, calls = losses.minimal_surface_loss, []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError('something else')
        return true_loss(*arguments)

    monkeypatch.setattr(losses, 'minimal_surface_loss', fail)
    with pytest.raises(RuntimeError, match='something else'):
        train('volume_renderer', tmp_path, flags(data, '--iter 9 --no_sphere_init --save_every 1'))
    assert newest(tmp_path, 'volume_renderer')[0] == 2

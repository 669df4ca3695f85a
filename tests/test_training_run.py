"""The frame of training: an orderly end, bad input, what is written."""
import pytest
from PIL import Image
from tiny_training import IMAGES, differences, flags, newest, train

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
                                       '--val_n_sample 2'))
    folder = tmp_path / 'checkpoint' / 'debug' / stage
    lines = logs.read_stats(folder / 'stats.jsonl')
    assert [line['iteration'] for line in lines] == [2, 4, 5]
    names = {'iteration', 'd', 'g', 'r1', 'real_score', 'fake_score', 'd_gradient', 'g_gradient', 'beta',
             'seconds_per_step', 'images_per_second', 'peak_memory_gib'}
    names |= {'path', 'path_length', 'path_gradient'} if stage == 'full_pipeline' else \
        {'d_view', 'g_view', 'g_eikonal', 'g_minimal_surface'}
    assert lines[0].keys() == names
    assert all(value > 0 for name, value in lines[0].items() if 'score' not in name)
    assert Image.open(folder / 'progress.png').size[0] > 500
    side = 8 if stage == 'volume_renderer' else 16
    grids = {path.name: Image.open(path).size for path in (folder / 'samples').iterdir()}
    wanted = {f'{step:07d}.png' for step in (0, 4, 5)}
    wanted |= {name.replace('.', '_shape.') for name in wanted} if stage == 'volume_renderer' else set()
    assert grids == dict.fromkeys(wanted, (8 * side, 2 * side))

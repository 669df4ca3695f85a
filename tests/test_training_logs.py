"""The log of training: its lines, its curves, Weights & Biases."""
import errno
import json
import sys
import types

import pytest
from matplotlib.figure import Figure
from tiny_training import flags, newest, tiny, train

from training import logs


def test_progress_shows_beta_and_its_line(tmp_path, monkeypatch):
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *rest, **more: (drawn.append(self),
                                                                        savefig(self, *rest, **more)))
    logs.plot_progress([{'iteration': i, 'd': 1., 'beta': 0.1 / i, 'new_name': 3} for i in range(1, 1000)],
                           tmp_path / 'progress.png')
    titles = {axes.get_title(): axes for axes in drawn[0].axes}
    assert set(titles) == {'adversarial losses', 'beta'}
    curve, line = titles['beta'].lines
    assert list(line.get_ydata()) == [3e-3, 3e-3]
    assert len(curve.get_xdata()) == logs.CURVE_POINTS
    assert curve.get_ydata()[-1] == pytest.approx(1e-4, rel=0.01)


def test_stats_of_steps_that_are_done_again_are_cut_off(tmp_path):
    path = tmp_path / 'stats.jsonl'
    path.write_text(''.join(json.dumps({'iteration': i}) + '\n' for i in range(1, 8)) + '{"iteration": 8, "d"')
    logs.Log(tmp_path, tiny('train_volume_renderer'), iteration=5)
    assert [line['iteration'] for line in logs.read_stats(path)] == [1, 2, 3, 4, 5]


def test_lines_of_another_kind_are_left_out(tmp_path):
    path = tmp_path / 'stats.jsonl'
    path.write_bytes(b'{"iteration": 1}\n[1]\n7\nnull\n{"d": 1}\n{"iteration": "2"}\n\xff\n{"iteration": 3}\n')
    logs.Log(tmp_path, tiny('train_volume_renderer'), iteration=5)
    assert logs.read_stats(path) == [{'iteration': 1}, {'iteration': 3}]


def test_of_a_line_for_which_there_is_no_room_nothing_stays(tmp_path):
    """A limit on the size of files lets a part of the line through, as a disk does that gets full."""
    resource = pytest.importorskip('resource', reason='needs limits for processes')
    log = logs.Log(tmp_path, tiny('train_volume_renderer'), iteration=0)
    log.note({'iteration': 1})
    before, limits = log.stats.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError) as refused:
            log.note({'iteration': 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.errno == errno.EFBIG and log.stats.read_bytes() == before
    log.note({'iteration': 3})
    assert [line['iteration'] for line in logs.read_stats(log.stats)] == [1, 3]


@pytest.mark.parametrize('fault', ('import', 'init', 'log', None))
def test_wandb_never_stops_training(fault, data, tmp_path, monkeypatch):
    logged = []

    def fail(name, result):
        if fault == name:
            raise ConnectionError('no network')
        return result

    class Wandb(types.ModuleType):
        Image = staticmethod(str)

        def init(self, **settings):
            return fail('init', types.SimpleNamespace(log=lambda values, **_: fail('log', logged.append(values))))

    monkeypatch.setitem(sys.modules, 'wandb', None if fault == 'import' else Wandb('wandb'))
    train('volume_renderer', tmp_path, flags(data, '--iter 3 --wandb --sample_every 2'))
    assert newest(tmp_path, 'volume_renderer')[0] == 3
    if fault is None:
        assert [values['iteration'] for values in logged if 'd' in values] == [1, 2, 3]
        assert any('samples' in values for values in logged)

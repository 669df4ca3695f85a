"""training/turn_hollow_faces.py: the hollow faces of a field are turned inside out."""
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import checkpoint
import options
from model import build_generator
from training import turn_hollow_faces as turning
from utils import UserError


class Surface:
    """Stands in for a renderer: everywhere the same surface, whose relief is `relief`; remembers its viewpoints."""
    resolution = 64

    def __init__(self, relief):
        self.relief, self.seen = relief, []

    def __call__(self, w, cameras, resolution, samples, **_):
        self.seen.append(cameras.viewpoint)
        y, x = torch.meshgrid(*[torch.linspace(-0.1, 0.1, resolution)] * 2, indexing='ij')
        height = self.relief * (0.09 ** 2 - x ** 2 - y ** 2).clamp(min=0).sqrt()
        points = torch.einsum('bij,jhw->bihw', cameras.extrinsics[:, :, :3], torch.stack([x, y, height]))
        flat = torch.zeros(len(w), 3, resolution, resolution)
        return SimpleNamespace(xyz=points, features=flat, thumbnail=flat,
                               sdf=torch.ones(len(w), resolution, resolution, samples, 1),
                               eikonal=torch.ones(len(w), resolution, resolution, samples, 3) / 3 ** 0.5)


@pytest.mark.parametrize('relief', [1.2, -1.2])
def test_hollow_faces_are_learned_from_mirrored_views(relief):
    opt = options.parse(options.GENERATE, '', ['--expname', 'cats_demo'])
    given, new = Surface(relief), Surface(1.2)
    found = turning.terms(given, new, torch.zeros(3, 64), opt)
    front, taught = given.seen
    shown, = new.seen
    assert not front.any() and shown.any() and torch.equal(taught, shown if relief > 0 else -shown)
    assert found['relief'] < 1e-3 and found['far'] == 0  # as far as the given one is deep
    assert turning.terms(given, Surface(-1.2), torch.zeros(3, 64), opt)['relief'] == pytest.approx(2.4, abs=1e-3)
    assert turning.terms(given, Surface(0.5), torch.zeros(3, 64), opt)['relief'] == pytest.approx(0.7, abs=1e-3)


def test_it_writes_a_field_to_train_on(tmp_path, monkeypatch):
    out = tmp_path / 'turned.pt'
    monkeypatch.setattr('sys.argv', ['turn', str(ROOT / 'demo' / 'cats_demo.pt'), '--out', str(out), '--steps', '2'])
    monkeypatch.setattr(turning, 'RAYS', 8)
    turning.main(turning.read_flags())
    given, written = checkpoint.read(ROOT / 'demo' / 'cats_demo.pt'), checkpoint.read(out)
    assert written['options'] == given['options']  # training goes on with them
    given, written = given['g_ema'], written['g_ema']
    assert set(written) == set(checkpoint.without_decoder(given))
    moved = {name for name in written if not torch.equal(written[name], given[name].float())}
    assert 'renderer.network.sigma_linear.weight' in moved and not any(name.startswith('style') for name in moved)


def test_the_rate_falls_and_surfaces_become_sharp():
    rates, betas = zip(*(turning.progress(step, 1000) for step in range(1000)), strict=True)
    assert max(rates) == pytest.approx(turning.RATE, rel=0.02)
    assert rates[-1] == pytest.approx(turning.LAST_RATE, rel=0.01)
    assert betas[0] == turning.COARSEST_BETA and betas[-1] == turning.FINEST_BETA


def test_a_missing_model_is_one_sentence(tmp_path):
    ended = subprocess.run([sys.executable, '-m', 'training.turn_hollow_faces', tmp_path / 'none.pt', '--out',
                            tmp_path / 'out.pt'], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 2 and 'Traceback' not in ended.stderr and 'none.pt' in ended.stderr
    assert not (tmp_path / 'out.pt').exists()


def test_what_cannot_be_turned_is_refused_before_the_work(tmp_path, monkeypatch):
    opt = options.parse('train_volume_renderer', '', ['--no_sdf', '--width', '8', '--depth', '2', '--style_dim', '8'])
    checkpoint.save(tmp_path / 'fog.pt', {'g_ema': build_generator(opt, full_pipeline=False).state_dict(),
                                          'options': checkpoint.saved_options(opt)})
    for model, out, said in ((tmp_path / 'fog.pt', 'out.pt', 'no signed distances'),
                             (ROOT / 'demo' / 'cats_demo.pt', '.', 'is a folder')):
        monkeypatch.setattr('sys.argv', ['turn', str(model), '--out', str(tmp_path / out)])
        with pytest.raises(UserError, match=said):
            turning.main(turning.read_flags())


def test_an_error_leaves_an_earlier_result(tmp_path, monkeypatch):
    out = tmp_path / 'turned.pt'
    out.write_bytes(b'two hours of work')

    def failing(*_):
        raise RuntimeError('no')

    monkeypatch.setattr('sys.argv', ['turn', str(ROOT / 'demo' / 'cats_demo.pt'), '--out', str(out)])
    monkeypatch.setattr(turning, 'terms', failing)
    with pytest.raises(RuntimeError, match='no'):
        turning.main(turning.read_flags())
    assert out.read_bytes() == b'two hours of work'


def test_an_interruption_writes_what_there_is(tmp_path, monkeypatch):
    out = tmp_path / 'turned.pt'

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('sys.argv', ['turn', str(ROOT / 'demo' / 'cats_demo.pt'), '--out', str(out)])
    monkeypatch.setattr(turning, 'terms', interrupted)
    with pytest.raises(KeyboardInterrupt):
        turning.main(turning.read_flags())
    assert checkpoint.read(out)['g_ema']

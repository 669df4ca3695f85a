"""training/distillation.py: what the commands that mend a field have in common."""
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import checkpoint
import options
from model import build_generator
from training import distillation, join_loose_pieces, turn_hollow_faces
from utils import UserError

DEMO = ROOT / 'demo' / 'cats_demo.pt'
COMMANDS = pytest.mark.parametrize('command', (turn_hollow_faces, join_loose_pieces))
LESSONS = {turn_hollow_faces: turn_hollow_faces.Turning, join_loose_pieces: join_loose_pieces.Joining}


def mend(command, monkeypatch, out, model=DEMO, steps=1):
    monkeypatch.setattr('sys.argv', ['mend', str(model), '--out', str(out), '--steps', str(steps)])
    for name, value in (('RAYS', 8), ('GRID', 16), ('IDENTITIES', 12)):
        monkeypatch.setattr(command, name, value, raising=False)
    command.main(distillation.read_flags('', 5))


@COMMANDS
def test_it_writes_a_field_to_train_on(tmp_path, monkeypatch, command):
    out = tmp_path / 'mended.pt'
    mend(command, monkeypatch, out, steps=2)
    given, written = checkpoint.read(DEMO), checkpoint.read(out)
    assert written['options'] == given['options']  # training goes on with them
    given, written = given['g_ema'], written['g_ema']
    # Above turned faces the decoder does not fit any more.
    assert set(written) == set(checkpoint.without_decoder(given) if command is turn_hollow_faces else given)
    moved = {name for name in written if not torch.equal(written[name], given[name].float())}
    assert 'renderer.network.sigma_linear.weight' in moved
    assert not any(name.startswith(('style', 'decoder')) for name in moved)


def test_the_rate_rises_and_falls():
    rates = [distillation.falling_rate(step, 1000, 2., 0.5) for step in range(1000)]
    assert rates[0] == 2 / distillation.WARM_UP and max(rates) == pytest.approx(2, rel=0.02)
    assert rates[-1] == pytest.approx(0.5, rel=0.01)


@COMMANDS
def test_a_missing_model_is_one_sentence(tmp_path, command):
    ended = subprocess.run([sys.executable, '-m', command.__name__, tmp_path / 'none.pt', '--out',
                            tmp_path / 'out.pt'], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 2 and 'Traceback' not in ended.stderr and 'none.pt' in ended.stderr
    assert not (tmp_path / 'out.pt').exists()


@COMMANDS
def test_what_cannot_be_mended_is_refused_before_the_work(tmp_path, monkeypatch, command):
    opt = options.parse('train_volume_renderer', '', ['--no_sdf', '--width', '8', '--depth', '2', '--style_dim', '8'])
    checkpoint.save(tmp_path / 'fog.pt', {'g_ema': build_generator(opt, full_pipeline=False).state_dict(),
                                          'options': checkpoint.saved_options(opt)})
    for model, out, said in ((tmp_path / 'fog.pt', 'out.pt', 'no signed distances'), (DEMO, '.', 'is a folder')):
        with pytest.raises(UserError, match=said):
            mend(command, monkeypatch, tmp_path / out, model)


@COMMANDS
@pytest.mark.parametrize('error', (RuntimeError, KeyboardInterrupt))
def test_an_interruption_writes_what_there_is_and_an_error_leaves_an_earlier_result(tmp_path, monkeypatch, command,
                                                                                   error):
    out = tmp_path / 'mended.pt'
    out.write_bytes(b'two hours of work')

    def failing(*_):
        raise error

    monkeypatch.setattr(LESSONS[command], 'terms', failing)
    with pytest.raises(error):
        mend(command, monkeypatch, out)
    if error is RuntimeError:
        assert out.read_bytes() == b'two hours of work'
    else:
        assert checkpoint.read(out)['g_ema']

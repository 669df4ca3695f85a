"""training/distillation.py: what the commands that mend a part of a model have in common."""
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image

import checkpoint
import options
from model import build_generator
from training import distillation, join_loose_pieces, match_tones, turn_hollow_faces
from training.command_line import read_flags
from utils import UserError

DEMO = ROOT / 'demo' / 'cats_demo.pt'
COMMANDS = pytest.mark.parametrize('command', (turn_hollow_faces, join_loose_pieces, match_tones))
LESSONS = {turn_hollow_faces: turn_hollow_faces.Turning, join_loose_pieces: join_loose_pieces.Joining,
           match_tones: match_tones.Toning}


@pytest.fixture
def mend(tmp_path, monkeypatch):
    """mend(command, out, model, steps): run a command on small pictures and a folder of four gray photos."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for shade in (0, 80, 160, 240):
        Image.new('L', (128, 128), shade).save(folder / f'{shade}.png')

    def run(command, out, model=DEMO, steps=1):
        monkeypatch.setattr('sys.argv', ['mend', str(model), '--out', str(out), '--steps', str(steps),
                                         *(['--dataset_path', str(folder)] if command is match_tones else [])])
        for name, value in (('RAYS', 8), ('GRID', 16), ('IDENTITIES', 12), ('PICTURES', 4), ('FEWEST', 4),
                            ('BATCH', 2)):
            monkeypatch.setattr(command, name, value, raising=False)
        more = {'dataset_path': {'required': True}} if command is match_tones else {}
        command.main(read_flags('', 5, **more))

    return run


@COMMANDS
def test_it_writes_a_model_of_which_one_part_has_changed(tmp_path, mend, command):
    out = tmp_path / 'mended.pt'
    mend(command, out, steps=2)
    given, written = checkpoint.read(DEMO), checkpoint.read(out)
    assert written['options'] == given['options']  # training goes on with them
    assert ('d' in written) == (command is not turn_hollow_faces)
    given, written = given['g_ema'], written['g_ema']
    # Above turned faces the decoder does not fit any more.
    assert set(written) == set(checkpoint.without_decoder(given) if command is turn_hollow_faces else given)
    moved = {name for name in written if not torch.equal(written[name], given[name].float())}
    part, weight = (('decoder', 'decoder.to_rgb1.bias') if command is match_tones else
                    ('renderer', 'renderer.network.sigma_linear.weight'))
    assert weight in moved and all(name.startswith(part) for name in moved)
    assert not any(name.startswith('decoder.style') for name in moved)  # mean latents stay


def test_the_rate_rises_and_falls():
    rates = [distillation.falling_rate(step, 1000, 2., 0.5) for step in range(1000)]
    assert rates[0] == 2 / distillation.WARM_UP and max(rates) == pytest.approx(2, rel=0.02)
    assert rates[-1] == pytest.approx(0.5, rel=0.01)


@COMMANDS
def test_a_missing_model_is_one_sentence(tmp_path, command):
    more = ['--dataset_path', tmp_path] if command is match_tones else []
    ended = subprocess.run([sys.executable, '-m', command.__name__, tmp_path / 'none.pt', '--out',
                            tmp_path / 'out.pt', *more], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 2 and 'Traceback' not in ended.stderr and 'none.pt' in ended.stderr
    assert not (tmp_path / 'out.pt').exists()


@COMMANDS
def test_what_cannot_be_mended_is_refused_before_the_work(tmp_path, mend, command):
    opt = options.parse('train_volume_renderer', '', ['--no_sdf', '--width', '8', '--depth', '2', '--style_dim', '8'])
    checkpoint.save(tmp_path / 'fog.pt', {'g_ema': build_generator(opt, full_pipeline=False).state_dict(),
                                          'options': checkpoint.saved_options(opt)})
    lack = 'has no decoder' if command is match_tones else 'no signed distances'
    with pytest.raises(UserError, match=lack):
        mend(command, tmp_path / 'out.pt', tmp_path / 'fog.pt')


@COMMANDS
@pytest.mark.parametrize('error', (RuntimeError, KeyboardInterrupt))
def test_an_interruption_writes_what_there_is_and_an_error_nothing(tmp_path, monkeypatch, mend, command, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(LESSONS[command], 'terms', failing)
    with pytest.raises(error):
        mend(command, tmp_path / 'mended.pt')
    if error is RuntimeError:
        assert not (tmp_path / 'mended.pt').exists()
    else:
        assert checkpoint.read(tmp_path / 'mended.pt')['g_ema']


@COMMANDS
def test_a_loss_that_is_no_number_ends_the_work_and_says_when(tmp_path, monkeypatch, mend, command):
    terms = LESSONS[command].terms
    monkeypatch.setattr(LESSONS[command], 'terms', lambda self, step: {
        name: value / (1 - step) for name, value in terms(self, step).items()})
    with pytest.raises(UserError, match='loss of step 1 '):
        mend(command, tmp_path / 'mended.pt', steps=3)
    assert not (tmp_path / 'mended.pt').exists()


def test_a_model_may_have_any_name(tmp_path, mend):
    model = tmp_path / 'cats.pth'
    model.write_bytes(DEMO.read_bytes())
    mend(turn_hollow_faces, tmp_path / 'mended.pt', model)
    assert checkpoint.read(tmp_path / 'mended.pt')['g_ema']


class Counting(distillation.Lesson):
    """A number that each step moves by 1 (the sign of Adam's steps)."""

    part, memory = 'number', 0.5

    def learning(self):
        return self.new.parameters()

    def rate(self, step):
        return 1.

    def terms(self, step):
        return {'number': -self.new.weight.sum()}


def test_what_is_kept_is_the_moving_average():
    number = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(number.weight)
    model, average = SimpleNamespace(generator=SimpleNamespace(number=None)), {'weight': torch.zeros(1, 1)}
    distillation.teach(Counting(model, number, SimpleNamespace(steps=3)), average)
    assert number.weight.item() == pytest.approx(3, abs=1e-4)
    # The memory grows from 1/10 over 2/11 and 3/12 (at most 0.5): each value moves the average by what is left of 1.
    expected = 0.
    for step, value in enumerate((1., 2., 3.)):
        memory = min(0.5, (step + 1) / (step + 10))
        expected = memory * expected + (1 - memory) * value
    assert average['weight'].item() == pytest.approx(expected, abs=1e-4)

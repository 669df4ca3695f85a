"""training/command_line.py: the flags of the commands that mend a part of a model."""
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from training.command_line import read_flags
from utils import UserError


def read(monkeypatch, *argv, **more):
    monkeypatch.setattr('sys.argv', ['mend', *argv])
    return read_flags('What it does.', 7, **more)


def test_flags_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = read(monkeypatch, 'a.pt', '--out', 'b.pt')
    assert vars(flags) == {'model': 'a.pt', 'out': Path('b.pt'), 'steps': 7}
    flags = read(monkeypatch, 'a.pt', '--out', 'b.pt', '--steps', '3', '--photos', 'c', photos={'required': True})
    assert (flags.steps, flags.photos) == (3, 'c')


@pytest.mark.parametrize('argv, said', ((('a.pt',), '--out'), (('a.pt', '--out', 'b.pt', '--steps', '0'), '--steps'),
                                        (('a.pt', '--out', 'b.pt'), '--photos')))
def test_wrong_flags_are_one_sentence(monkeypatch, argv, said):
    with pytest.raises(UserError, match=said):
        read(monkeypatch, *argv, photos={'required': True})


@pytest.mark.parametrize('out, said', (('old.pt', 'exists already'), ('.', 'exists already'), ('x' * 250, 'too long'),
                                       ('old.pt/new.pt', 'cannot write there')))
def test_the_result_has_to_be_a_new_file(tmp_path, monkeypatch, out, said):
    monkeypatch.chdir(tmp_path)
    Path('old.pt').write_bytes(b'two hours of work')
    with pytest.raises(UserError, match=said):
        read(monkeypatch, 'a.pt', '--out', out)
    assert Path('old.pt').read_bytes() == b'two hours of work'


@pytest.mark.parametrize('command', ('turn_hollow_faces', 'join_loose_pieces', 'match_tones'))
def test_help_does_not_wait_for_pytorch(command):
    shown = subprocess.run([sys.executable, '-X', 'importtime', '-m', f'training.{command}', '--help'],
                           capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert shown.returncode == 0 and '--steps' in shown.stdout
    imported = {line.rpartition('|')[2].strip() for line in shown.stderr.splitlines()}
    assert 'argparse' in imported and 'torch' not in imported

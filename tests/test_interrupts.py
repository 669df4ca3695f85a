"""Signals that arrive while a command still imports what it needs."""
import interrupts

import itertools
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

COMMANDS = sorted(str(path.relative_to(ROOT)) for folder in (ROOT, ROOT / 'benchmarks', ROOT / 'scripts')
                  for path in folder.glob('*.py') if '\n    run_command(main)' in path.read_text())
# In place of PyTorch: it takes long, and like some packages' imports it goes on after an exception.
SLOW = '''
import time
for wait in (0, 60):
    try:
        print('importing', flush=True)
        time.sleep(wait)
    except BaseException:
        raise ImportError('swallowed')
'''


@pytest.mark.parametrize('command, stop', list(zip(COMMANDS, itertools.cycle((
    (signal.SIGINT, 130), (signal.SIGTERM, 143))), strict=False)))
def test_a_command_stopped_while_it_imports_says_one_line(tmp_path, command, stop):
    (tmp_path / 'torch.py').write_text(SLOW)
    number, code = stop
    process = subprocess.Popen([sys.executable, ROOT / command], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, env=os.environ | {'PYTHONPATH': str(tmp_path)},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == 'importing\n'
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert error == f'\n{os.path.basename(command)}: stopped; whatever was finished is on disk.\n'


def test_background_jobs_of_shell_scripts_go_on_ignoring_ctrl_c(tmp_path):
    (tmp_path / 'torch.py').write_text('import signal\nprint(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)\n')
    result = subprocess.run([sys.executable, ROOT / 'export_model.py'], cwd=tmp_path, capture_output=True, text=True,
                            env=os.environ | {'PYTHONPATH': str(tmp_path)},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert result.stdout == 'True\n'


def test_other_programs_keep_their_handlers():
    assert len(COMMANDS) >= 13
    assert interrupts.leave not in (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

"""The lock on a training's folder: one run at a time, taken over from a process that is dead."""
import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

from training import lock
from utils import UserError

HOLD = '''
import sys
from pathlib import Path
from training.lock import only_run
from utils import UserError
try:
    with only_run(Path(sys.argv[1])):
        print('held', flush=True)
        sys.stdin.read()
except UserError as error:
    print(error)
'''


def hold(folder):
    """Start a process that takes the lock; returns it and what it says."""
    process = subprocess.Popen([sys.executable, '-c', HOLD, folder], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_a_second_run_is_refused_and_a_dead_one_is_taken_over(tmp_path):
    first, said = hold(tmp_path)
    try:
        assert said == 'held'
        _, refused = hold(tmp_path)
        assert refused.startswith(f'{tmp_path} is in use: process {first.pid} on {socket.gethostname()}, since 20')
        first.kill()  # it cannot tidy up
        first.wait()
        third, said = hold(tmp_path)
        assert said == 'held'
        third.communicate('', timeout=30)
        assert hold(tmp_path)[1] == 'held'
    finally:
        first.kill()


def test_where_the_file_system_has_no_locks(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'lockf', refuse)
    with lock.only_run(tmp_path):
        assert 'without locks (No locks available)' in capsys.readouterr().out
    for process, refused in ((os.getppid(), True), (2 ** 22 + 5, False)):
        (tmp_path / lock.NAME).write_text(json.dumps({'host': socket.gethostname(), 'process': process, 'since': 'x'}))
        if refused:
            with pytest.raises(UserError, match=f'process {process} on'), lock.only_run(tmp_path):
                pass
        else:
            with lock.only_run(tmp_path):
                pass

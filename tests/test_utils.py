"""utils.py: how commands start and end, files that appear whole or not at all, memory that is kept."""
import errno
import itertools
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from utils import UserError, atomic_path, duration, run_command, writable_file

# The commands that read their flags before they import what is slow, and the arguments that they cannot do without.
# Those that import PyTorch, and so can be stopped meanwhile.
COMMANDS = sorted(path.name for path in ROOT.glob('*.py') if path.name != 'download_models.py'
                  and re.search(r"^    (options\.run|run_command)\('", path.read_text(), re.MULTILINE))
ARGUMENTS = {'prepare_data.py': 'photos --out_path out --size 64'}

# In place of PyTorch: it takes long, and like some packages' imports it goes on after an exception.
SLOW_TORCH = '''
import time
for wait in (0, 60):
    try:
        print('importing', flush=True)
        time.sleep(wait)
    except BaseException:
        raise ImportError('swallowed')
'''


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_a_stream_that_the_parent_has_closed_ends_no_command(tmp_path, monkeypatch, stream):
    (tmp_path / 'prints_much.py').write_text(
        'import sys\ndef main(flags):\n    sys.stdout.write("a")\n    sys.stderr.write("b")\n')
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, stream, None)
    with pytest.raises(SystemExit) as ended:
        run_command('prints_much', dict)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert ended.value.code == 0


def test_names_that_are_no_text_can_be_printed(tmp_path):
    """Files may have such names, and what is printed of them after the work must not end the command."""
    (tmp_path / 'torch.py').write_text('import sys\nprint(sys.argv[2])\nraise MemoryError\n')
    done = subprocess.run([sys.executable, ROOT / 'find_directions.py', '--out', b'\xff.pt'], cwd=tmp_path, text=True,
                          capture_output=True, check=False,
                          env=os.environ | {'PYTHONPATH': str(tmp_path), 'PYTHONIOENCODING': 'utf-8:strict'})
    assert done.stdout == '\\udcff.pt\n' and 'memory ran out' in done.stderr and done.returncode == 2


@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc, and is for glibc')
def test_freed_memory_is_kept_unless_the_user_decides(fresh_process):
    found, _ = fresh_process
    assert found['MiB kept'] > 200 > found['MiB kept where the user decides']


def test_a_failed_file_leaves_nothing_and_is_named_as_the_user_knows_it(tmp_path):
    path = tmp_path / 'mesh.obj'
    path.write_text('before')
    for named in (None, 'temporary', 'other.txt'):
        with pytest.raises(OSError) as failed, atomic_path(path) as temporary:
            temporary.write_text('half')
            raise OSError(errno.ENOSPC, 'full', str(temporary) if named == 'temporary' else named)
        assert failed.value.filename == ('other.txt' if named == 'other.txt' else str(path))
    assert path.read_text() == 'before' and list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as temporary:
        temporary.write_text('after')
    assert path.read_text() == 'after' and list(tmp_path.iterdir()) == [path]


def start_command(script, folder, torch, at_interrupt, arguments=''):
    """Start a command with other code in PyTorch's place, and with this handler of SIGINT."""
    (folder / 'torch.py').write_text(torch)
    return subprocess.Popen([sys.executable, ROOT / script, *arguments.split()], cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {'PYTHONPATH': str(folder)},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, at_interrupt))


@pytest.mark.parametrize('script, stop', list(zip(COMMANDS, itertools.cycle((
    (signal.SIGINT, 130), (signal.SIGTERM, 143))), strict=False)))
def test_a_command_that_is_stopped_while_it_imports_says_one_line(tmp_path, script, stop):
    number, code = stop
    process = start_command(script, tmp_path, SLOW_TORCH, signal.SIG_DFL, ARGUMENTS.get(script, ''))
    assert process.stdout.readline() == 'importing\n'
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert error == f'\n{os.path.basename(script)}: stopped; whatever was finished is on disk.\n'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_ends_makes_no_traceback(tmp_path, number):
    """Found by random faults: libraries register work that Python does at its end."""
    torch = f'import atexit, os, time\natexit.register(lambda: (os.kill(os.getpid(), {int(number)}), time.sleep(10)))\n'
    process = start_command('train_volume_renderer.py', tmp_path, torch + 'raise MemoryError\n', signal.SIG_DFL)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -number and 'memory ran out' in error and 'Traceback' not in error


def test_background_jobs_of_shell_scripts_go_on_ignoring_ctrl_c(tmp_path):
    torch = 'import signal\nprint(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)\n'
    said, _ = start_command('train_volume_renderer.py', tmp_path, torch, signal.SIG_IGN).communicate(timeout=30)
    assert said == 'True\n'


@pytest.mark.parametrize('arguments, code, said', [('--help', 0, '--help_all'), ('--sise 3', 2, 'did you mean --size')])
def test_flags_are_read_before_anything_slow_is_imported(tmp_path, arguments, code, said):
    process = start_command('train_full_pipeline.py', tmp_path, "print('importing')", signal.SIG_DFL, arguments)
    out, error = process.communicate(timeout=30)
    assert process.returncode == code and said in out + error and 'importing' not in out
    assert 'Traceback' not in error


def test_importing_the_modules_changes_no_handler(fresh_process):
    assert fresh_process[0]['handlers are kept']


def test_a_place_that_cannot_be_written_is_named_with_its_flag(tmp_path):
    assert writable_file(tmp_path / 'new' / 'a.pt', '--out') == tmp_path / 'new' / 'a.pt'
    assert list((tmp_path / 'new').iterdir()) == []
    with pytest.raises(UserError, match='--out .*new: this is a folder; give the name of a file'):
        writable_file(tmp_path / 'new', '--out')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--out .*file: cannot write there .*; choose another folder'):
        writable_file(tmp_path / 'file' / 'a.pt', '--out')


def test_errors_name_the_file_that_the_user_knows(tmp_path):
    """Not the hidden one under which it is written first."""
    path = tmp_path / ('x' * 250 + '.png')
    with pytest.raises(OSError, match='x.png') as error, atomic_path(path):
        pass
    assert error.value.filename == str(path) and error.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError, match='a.png') as error, atomic_path(tmp_path / 'a.png') as temporary:
        raise OSError(errno.ENOSPC, 'No space left on device', str(temporary))
    assert error.value.filename == str(tmp_path / 'a.png') and not list(tmp_path.iterdir())


def test_another_target_at_the_end(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    with atomic_path(tmp_path / 'a.txt', lambda: tmp_path / 'b.txt') as temporary:
        temporary.write_text('new')
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'a.txt': 'old', 'b.txt': 'new'}


def test_durations_are_words():
    assert [duration(seconds) for seconds in (5, 700, 7300, 3600 * 40, 3600 * 100)] == [
        '1 minute', '12 minutes', '2 hours', '40 hours', '4.2 days']

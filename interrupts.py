"""What Ctrl-C and SIGTERM do while a command still imports what it needs: they end it with one line, as they do later.

PyTorch alone takes seconds to import. A signal in these seconds would end in a traceback from somewhere inside it,
since `run_command` (utils.py) is not there yet. So every command imports this module before any that is slow
(pyproject.toml sorts it first). It acts for commands only, not in tests, notebooks and other programs.
"""
import os
import signal
import sys


def say_stopped(number):
    """Print the line that a command stopped by signal `number` ends with; returns its exit code, 128 + number."""
    print(f'\n{os.path.basename(sys.argv[0])}: stopped; whatever was finished is on disk.', file=sys.stderr, flush=True)
    return 128 + number


def leave(number, _):
    """A signal handler: end the process at once. There is nothing to save yet, and imports may swallow exceptions."""
    os._exit(say_stopped(number))


def is_command():
    """Whether the program that runs is one of this folder's, or of benchmarks/ and scripts/ in it."""
    script = getattr(sys.modules['__main__'], '__file__', None)
    here = os.path.dirname(os.path.realpath(__file__))
    return bool(script) and os.path.dirname(os.path.realpath(script)) in (
        here, os.path.join(here, 'benchmarks'), os.path.join(here, 'scripts'))


if is_command():
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in background jobs of shell scripts
            signal.signal(number, leave)

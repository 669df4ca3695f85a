"""A lock on a folder, so that two runs never write into it at the same time, also from two machines."""
import contextlib
import datetime
import errno
import json
import os
import socket

from utils import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = '.running.json'  # the locked file, which says who holds the lock


@contextlib.contextmanager
def only_run(folder):
    """Inside, no other process can hold this lock. Raises UserError that names the process that does.

    The system gives the lock up when its process ends, however that happens. It is a record lock, which NFS passes on
    between machines and which worker processes do not inherit. Where the file system has no locks one line says so; a
    run on the same machine is noticed even then.
    """
    path = folder / NAME
    with open(path, 'a+') as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) or _alive_here(path):
                raise UserError(f'{folder} is in use: {_holder(path)} is training there; wait for its end, or choose '
                                'another --expname.') from None
            print(f'{folder} is on a file system without locks ({error.strerror}): nothing will notice a second run of '
                  'this experiment on another machine, so do not start one.')
        _write(file, {'host': socket.gethostname(), 'process': os.getpid(),
                      'since': f'{datetime.datetime.now():%Y-%m-%d %H:%M:%S}'})
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                _write(file, {})


def _write(file, contents):
    file.truncate(0)
    file.write(json.dumps(contents))
    file.flush()


def _read(path):
    try:
        contents = json.loads(path.read_text())
        return contents if isinstance(contents, dict) else {}
    except (OSError, ValueError):
        return {}


def _holder(path):
    """The process that holds the lock, in words."""
    holder = _read(path)
    if not holder:
        return 'another process'
    return f'process {holder.get("process")} on {holder.get("host")}, since {holder.get("since")},'


def _alive_here(path):
    """Whether the process that the file names is one of this machine, and still runs."""
    holder = _read(path)
    process = holder.get('process')
    if holder.get('host') != socket.gethostname() or not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True

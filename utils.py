"""Helpers that every command shares: how it starts and ends, which device it uses, how it writes a file.

Importing this file is quick: PyTorch and Pillow are imported by the functions that need them.
"""
import contextlib
import ctypes
import errno
import gc
import importlib
import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
import zlib
from pathlib import Path

MAX_SENTENCE = 10_000  # characters of an error that are shown
MAX_REASON = 200  # characters of what another library says
SPINS = 1000  # rounds of waiting, some microseconds, before a thread of OpenMP goes to sleep
# How Pillow writes a PNG quickly: it looks for runs of one value only. After PNG's prediction from neighboring pixels
# these are most of what can be found in a picture, so it takes a quarter of the usual time, for a fifth more bytes.
QUICK_PNG = {'compress_level': 1, 'compress_type': zlib.Z_RLE}
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # mallopt(3)

# An operating-system error of these kinds is the user's to mend (a full disk, a read-only folder, a disk that fails, a
# network disk that has gone), not a bug.
USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
               errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENOTCONN}


class UserError(Exception):
    """Bad input. The message is one sentence that names the file or flag and says what to do."""


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C's arrived: handled like that, so that the work so far is saved on the same path."""

    def __init__(self, number=signal.SIGTERM):
        super().__init__()
        self.number = number


def shortened(error):
    """What an error of another program or library says, as one line of at most 200 characters, for a sentence of ours.
    """
    return textwrap.shorten(str(error), MAX_REASON, placeholder=' …')


def run_command(module, read_flags):
    """Run a command: read its flags, import its file as a module, call main(flags) there, and end the process.

    module: the name of the command's file as a module. read_flags(): reads the command line. It runs before the module
    is imported, so that --help and mistyped flags need not wait for PyTorch. Every command ends in the same way: with
    exit code 2 and one sentence on stderr for bad input (UserError, or an OSError that the user can mend), 130 after
    Ctrl-C and 143 after SIGTERM. Anything else is a bug and keeps its traceback.
    """
    _prepare_streams()
    _prepare_for_pytorch()
    name = Path(sys.argv[0]).name
    interruptible = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # shells start background jobs that ignore it
    try:
        _handle_signals(_leave, interruptible)
        flags = read_flags()
        main = _imported(module).main
        _handle_signals(_raise, interruptible)
        main(flags)
        sys.exit(0)  # what follows in the command's file has run already, as the module
    except UserError as error:
        sys.exit(_fail(name, str(error)))
    except (MemoryError, RuntimeError) as error:
        if not (lack := lack_of_memory(error)):
            raise
        sys.exit(_fail(name, f'memory ran out ({lack}); compute less at a time (--chunk, --eval_batch), use '
                             '--precision bf16, smaller sizes, or another --device, if it has such flags.'))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        what = error.filename or 'a file'
        sys.exit(_fail(name, f'cannot read or write {what}: {error.strerror}; {remedy(error)}.'))
    except KeyboardInterrupt as stop:
        sys.exit(_say_stopped(stop.number if isinstance(stop, Terminated) else signal.SIGINT))
    finally:  # nothing is left to save, and an exception in what Python does at its end would be a traceback
        _handle_signals(signal.SIG_DFL, interruptible)


def _imported(module):
    """Import a module by its name, without Python's search for garbage meanwhile and in what was imported.

    PyTorch makes 180,000 objects that stay. To search them takes a quarter of a second while it is imported, and as
    long again when the process ends.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _prepare_streams():
    """See to it that whatever is printed ends no command.

    Where a parent process has closed stdout or stderr Python has None instead of a stream; then it goes nowhere. A file
    that the command opens later must not get the number of one of them. The name of a file may hold bytes that are no
    text, and a terminal may lack characters: these are spelled out, as Python does on stderr anyway.
    """
    for stream in ('stdout', 'stderr'):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115 (it stays open)
        if getattr(sys, stream).errors == 'strict':
            getattr(sys, stream).reconfigure(errors='backslashreplace')


def _prepare_for_pytorch():
    """Set what PyTorch and its libraries read from the environment when they are loaded, unless the user has."""
    # Large pages for PyTorch's CPU memory: fresh large tensors cost more in page faults than in arithmetic
    # (docs/performance.md). PyTorch reads this at its first large allocation.
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
    # OpenMP's threads wait for each other by spinning for milliseconds, which takes the cores from other processes.
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', str(SPINS))


def _handle_signals(handler, interruptible):
    signal.signal(signal.SIGTERM, handler)
    if interruptible:
        signal.signal(signal.SIGINT, handler)


def _raise(number, _):
    """A signal handler: an exception in the main thread, so that the work so far can be saved."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _leave(number, _):
    """A signal handler for the seconds of importing: it ends the process at once.

    There is nothing to save yet, and an exception would end in a traceback from somewhere inside a package, or be
    swallowed there.
    """
    os._exit(_say_stopped(number))


def _say_stopped(number):
    """Print the line that a command stopped by signal `number` ends with; returns its exit code, 128 + number."""
    print(f'\n{Path(sys.argv[0]).name}: stopped; whatever was finished is on disk.', file=sys.stderr, flush=True)
    return 128 + number


def remedy(error):
    """What helps against an OSError that the user can mend."""
    if error.errno == errno.ENAMETOOLONG:
        return 'choose a shorter name'
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return 'free some space, or choose another folder'
    if error.errno == errno.EISDIR:
        return 'choose a name that no folder has'
    return 'check the place and its permissions'


def lack_of_memory(error):
    """What an error says was lacking, if it says that memory ran out, on a GPU or here; otherwise an empty string."""
    text = ' '.join(str(error).split())
    if isinstance(error, MemoryError):
        return text or 'in this process'
    found = re.search(r"(CUDA|MPS\S*) out of memory(\. Tried to allocate [\d.]+ \w+)?|can't allocate memory: [^.]*|"
                      r'not enough memory: [^.]*|std::bad_alloc', text)
    return found[0] if found else ''


def _fail(name, sentence):
    # A sentence may quote what a stranger wrote; a terminal would obey some characters of it.
    print(f'{name}: error: {printable(sentence, MAX_SENTENCE)}', file=sys.stderr)
    return 2


def select_device(name='auto'):
    """The torch.device that `--device` names: auto (CUDA if there is one, else the CPU), cpu, cuda, cuda:N or mps.

    Raises UserError where this machine has no such device.
    """
    import torch

    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    device = torch.device(name)
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise UserError(f'--device {name}: PyTorch finds no CUDA device here; use --device cpu.')
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f'--device {name}: there are only {torch.cuda.device_count()} CUDA devices here.')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('--device mps: PyTorch finds no Metal device here; use --device cpu.')
    return device


@contextlib.contextmanager
def atomic_path(path, target=None):
    """Yield a temporary path beside `path` (same suffix); it takes the place of `path` when the block succeeds.

    target: a function that is asked at the end for another path to take. A block that fails or is interrupted leaves
    neither the temporary file nor a changed `path`.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f'.{path.stem}-', suffix=path.suffix, dir=path.parent)
        os.close(handle)
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would lock colleagues out
        os.replace(temporary, target() if target else path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and _is_hidden_name_of(error.filename, path):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None  # the name that the user knows
        raise


def _is_hidden_name_of(name, path):
    """Whether an error's file name is that of a temporary file of atomic_path, or of none at all."""
    return name is None or Path(os.fsdecode(name)).name.startswith(f'.{path.stem}-')


def writable_folder(path, flag):
    """Make the folder that a flag names, and check before long work begins that files can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f'{flag} {path}: cannot write there ({error.strerror}); choose another folder.') from None
    return path


def writable_file(path, flag):
    """Make the folder of the file that a flag names, and check before long work begins that it can be written."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{flag} {path}: this is a folder; give the name of a file.')
    writable_folder(path.parent, flag)
    return path


def held_lock(path, busy):
    """A filelock.FileLock of the file `path` that this process holds from now on; the system releases that of a process
    which is killed. None where the folder or the disk has no locks; there, runs must not overlap.

    busy: a function called where another process holds it. If it raises nothing, the other one is waited for.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    for timeout in (0, -1):  # at once, or whenever it becomes free
        try:
            lock.acquire(timeout)
            break
        except Timeout:
            busy()
        except (OSError, NotImplementedError):  # the latter is how older versions of filelock put ENOSYS
            return None
    return lock


_asking_for_umask = threading.Lock()


def _umask():
    """The process's umask. It can only be read by setting it, so that two threads must not do so at once."""
    with _asking_for_umask:
        mask = os.umask(0)
        os.umask(mask)
        return mask


def duration(seconds):
    """A length of time in words, to two digits or so: '12 minutes', '3.5 hours', '4.1 days'."""
    if seconds < 7200:
        minutes = max(1, round(seconds / 60))
        return f'{minutes} minute' + 's' * (minutes > 1)
    return f'{seconds / 3600:.2g} hours' if seconds < 48 * 3600 else f'{seconds / 86400:.2g} days'


def printable(text, most=80):
    """Text from a file (a name, or a value) made harmless: what does not print is spelled out, and long text is cut."""
    text = str(text)[:most + 1]
    text = ''.join(char if char.isprintable() else char.encode('unicode_escape').decode() for char in text)
    return text if len(text) <= most else f'{text[:most]}…'


def number(value, low, high):
    """A number from a file, as it is. Raises ValueError where it is none or does not lie between low and high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f'{value!r} is no number from {low} to {high}')
    return value


def to_uint8(image):
    """(…,C,H,W) floats in [-1, 1] (clamped) to a uint8 numpy array (…,H,W,C), rounding to nearest."""
    return ((image.clamp(-1, 1) + 1) * 127.5 + 0.5).clamp(0, 255).byte().movedim(-3, -1).cpu().numpy()


def save_image_row(path, images):
    """Write uint8 images (H,W,3), or (H,W,4) with alpha, of one size side by side as one PNG, atomically."""
    from PIL import Image

    height, width, channels = images[0].shape
    row = Image.new('RGBA' if channels == 4 else 'RGB', (width * len(images), height))
    for i, image in enumerate(images):
        row.paste(Image.fromarray(image), (i * width, 0))
    with atomic_path(path) as temporary:
        row.save(temporary, **QUICK_PNG)


def keep_freed_memory():
    """Have the C library keep freed memory, for a process that soon needs as much again on the CPU.

    glibc hands blocks of 32 MB and more back to the system at once, and the next one costs page faults: a seventh of a
    step of stage 2 (docs/performance.md). No effect with another C library, nor where MALLOC_MMAP_MAX_ is set.
    """
    if sys.platform == 'linux' and 'MALLOC_MMAP_MAX_' not in os.environ:
        with contextlib.suppress(AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)
            mallopt(M_ARENA_MAX, 1)  # else each thread (op/threads.py) would keep what it alone needs

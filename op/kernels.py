"""Builds, keeps and calls the CUDA kernels in kernels.cu.

They are compiled by nvcc through PyTorch's extension builder (ninja) when a CUDA tensor first needs them, into
PyTorch's per-user extension cache (TORCH_EXTENSIONS_DIR moves it), one file for each kind of GPU. The library has a C
interface and is called with raw pointers: it needs no PyTorch or Python headers, so it builds in seconds.
"""
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from utils import UserError

SOURCE = Path(__file__).with_name('kernels.cu')
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # `enum Dtype` in kernels.cu
POINTER, LONG, INT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
ARGUMENTS = {  # after the dtype, before the stream; the order of the functions in kernels.cu
    'leaky_relu': [POINTER] * 4 + [LONG] * 3 + [DOUBLE] * 2,
    'upfirdn2d': [POINTER] * 3 + [LONG] * 2 + [INT] * 11,
}


def memory_format(x):
    """torch.channels_last where the 4-D tensor x is dense in that order and in no other, else contiguous_format."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def library(x):
    """The loaded kernels for tensor x, or None where the plain definition is to run.

    Obeys STYLESDF_OPS (auto, plain, cuda). A failed build is said once on stderr, or is a UserError with `cuda`.
    """
    if not wanted(x) or x.dtype not in DTYPES:
        return None
    loaded, failure = _load(_capability(x.device))
    if loaded is None:
        unusable('the CUDA kernels cannot be built', failure)
    return loaded


def plain():
    """Whether STYLESDF_OPS asks for the plain definitions, on every device."""
    return _mode() == 'plain'


def wanted(x):
    """Whether a kernel is to be tried on tensor x: it is on a CUDA device, and STYLESDF_OPS allows it."""
    return not plain() and x.is_cuda


def unusable(what, failure):
    """Say once on stderr that plain PyTorch goes on because of a failure; a UserError with STYLESDF_OPS=cuda."""
    if _mode() == 'cuda':
        raise UserError(f'STYLESDF_OPS=cuda: {what}: {failure}; mend that, or set STYLESDF_OPS=plain.')
    _warn_once(f'warning: {what}, so plain PyTorch does its work: {failure}')


def _mode():
    mode = os.environ.get('STYLESDF_OPS', 'auto')
    if mode not in ('auto', 'plain', 'cuda'):
        raise UserError(f'STYLESDF_OPS={mode}: choose auto, plain or cuda.')
    return mode


def launch(name, x, *arguments):
    """Run the kernel `name`, for tensors like x, which `library` has kernels for, on x's device and current stream.

    Tensors among the arguments go as pointers.
    """
    loaded, _ = _load(_capability(x.device))
    arguments = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        error = getattr(loaded, f'stylesdf_{name}')(DTYPES[x.dtype], *arguments, stream)
    if error:
        raise RuntimeError(f'CUDA kernel {name}: {loaded.stylesdf_error_string(error).decode()}')


_capability = functools.cache(torch.cuda.get_device_capability)


@functools.cache
def _warn_once(message):
    print(message, file=sys.stderr, flush=True)


@functools.cache
def _load(capability):
    """(library, None), or (None, the first line of why not and where the whole of it is)."""
    try:
        return declare(ctypes.CDLL(str(build(capability)))), None
    except Exception as error:  # whatever a compiler, linker, loader or file system may do: plain PyTorch goes on
        handle, log = tempfile.mkstemp(prefix='stylesdf-kernels-', suffix='.log')
        with open(handle, 'w') as file:
            file.write(f'{type(error).__name__}: {error}\n')
        return None, f'{_first_reason(str(error))} (full log: {log})'


def declare(loaded):
    """Tell ctypes the argument types of a library of these kernels, and return it."""
    for name, types in ARGUMENTS.items():
        getattr(loaded, f'stylesdf_{name}').argtypes = [INT, *types, POINTER]
    loaded.stylesdf_error_string.argtypes, loaded.stylesdf_error_string.restype = [INT], ctypes.c_char_p
    return loaded


def build(capability):
    """Path of the shared library for GPUs of `capability` (major, minor), compiled first where the cache has none.

    Needs no GPU. Processes may build at once: each works in a folder of its own and renames the finished file. Raises
    whatever goes wrong: no nvcc, no ninja, a compiler's message.
    """
    from torch.utils import cpp_extension  # slow to import, and only CUDA needs it
    if torch.version.cuda is None:
        raise RuntimeError('this PyTorch is built without CUDA')
    arch = '{}{}'.format(*capability)
    contents = b''.join(path.read_bytes() for path in (SOURCE, SOURCE.with_suffix('.h')))
    key = hashlib.sha256(contents + torch.version.cuda.encode()).hexdigest()[:12]
    root = Path(os.environ.get('TORCH_EXTENSIONS_DIR') or cpp_extension.get_default_build_root())
    path = root / f'stylesdf_kernels_sm{arch}_{key}.so'
    if not path.exists():
        if cpp_extension.CUDA_HOME is None:
            raise RuntimeError('nvcc is not found; install the CUDA toolkit, or set CUDA_HOME to where it is')
        if not shutil.which('ninja'):  # its Python may run without the environment being active
            os.environ['PATH'] += os.pathsep + str(Path(sys.executable).parent)
        root.mkdir(parents=True, exist_ok=True)
        print('building the CUDA kernels, once for this kind of GPU (under a minute)', file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix='stylesdf_', dir=root) as folder:
            cpp_extension.load('stylesdf_kernels', [str(SOURCE)], build_directory=folder, is_python_module=False,
                               extra_cuda_cflags=[f'-gencode=arch=compute_{arch},code=sm_{arch}'],
                               extra_ldflags=_runtime_folders(cpp_extension.CUDA_HOME))
            os.replace(next(Path(folder).glob('*.so')), path)
    return path


def _runtime_folders(cuda_home):
    """-L flags for where nvcc itself would look for libcudart: PyTorch looks beside the nvcc on the PATH, which may be
    a wrapper or a link that lies elsewhere than the toolkit."""
    nvcc = Path(cuda_home, 'bin', 'nvcc')
    dryrun = subprocess.run([nvcc, '--dryrun', '-x', 'cu', os.devnull], capture_output=True, text=True)
    return re.findall(r'-L[^"\s]+', dryrun.stderr)


def _first_reason(text):
    """The first line of a build's output that says what is wrong, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['unknown']
    telling = (line for line in lines if re.search(r'\berror\b|\bfatal\b|cannot find|not found', line)
               and not line.startswith(('Error building', '[')))
    return next(telling, lines[0])[:300]

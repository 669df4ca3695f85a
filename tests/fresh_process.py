"""What a Python that has imported nothing yet finds, as JSON. The fixture fresh_process runs this file, outside of the
checkout, once for all tests that ask for something of it: most of its seconds go into importing PyTorch.

    python fresh_process.py TESTS HEAD     TESTS: this folder; HEAD: where the golden head is written
"""
import json
import os
import runpy
import signal
import sys

NUMBERS = signal.SIGINT, signal.SIGTERM


def write_head(tests, path):
    sys.argv = ['golden_head.py', path]
    runpy.run_path(f'{tests}/golden_head.py', run_name='__main__')  # the project's modules are found from here on


def op_imports_compilers():
    import op  # noqa: F401
    return 'torch.utils.cpp_extension' in sys.modules


def modules_after_rendering():
    import torch

    from camera import cameras_at
    from op.tiles import TiledRenderer
    renderer = TiledRenderer(8, 4, 4, depth=1, width=16).requires_grad_(False)
    renderer(torch.ones(1, 8), cameras_at(torch.zeros(1, 2), 4))
    return [name for name in ('op.siren', 'op.siren_kernel') if name in sys.modules]


def loading_imports_compiler():
    """Of PyTorch: it takes seconds, which every command would lose before it begins."""
    import checkpoint
    import options
    from model import build_generator
    sizes = '--size 16 --style_dim 8 --width 8 --depth 2 --channel_multiplier 1 --channel_max 4'
    opt = options.parse('generate_shapes_and_images', '', sizes.split())
    checkpoint.check_fits(opt, build_generator(opt).state_dict(), 'model.pt')
    return 'torch._dynamo' in sys.modules


def handlers_are_kept(before):
    import train_full_pipeline  # noqa: F401
    import train_volume_renderer  # noqa: F401
    return before == [*map(signal.getsignal, NUMBERS)]


def kept():
    """How many MiB of 256 freed ones the process still holds."""
    import torch

    import utils

    def resident():
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGESIZE') / 2 ** 20

    utils.keep_freed_memory()
    before = resident()
    torch.ones(1 << 26)
    return resident() - before


def main(tests, head):
    sys.path.pop(0)  # the folder of this file
    before = [*map(signal.getsignal, NUMBERS)]
    write_head(tests, head)
    found = {'op imports compilers': op_imports_compilers(), 'modules after rendering': modules_after_rendering(),
             'loading imports the compiler': loading_imports_compiler(),
             'handlers are kept': handlers_are_kept(before)}
    if sys.platform == 'linux':
        os.environ['MALLOC_MMAP_MAX_'] = '65536'
        found['MiB kept where the user decides'] = kept()
        del os.environ['MALLOC_MMAP_MAX_']
        found['MiB kept'] = kept()
    print(json.dumps(found))


if __name__ == '__main__':
    main(*sys.argv[1:])

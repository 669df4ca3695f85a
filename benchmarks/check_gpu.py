"""Check on a GPU what was written without one: the GPU tests, then tables of speed against plain PyTorch.

    python benchmarks/check_gpu.py                          everything: some minutes, of which a minute compiles kernels
    python benchmarks/check_gpu.py --parts field,decoder    some of: tests, kernels, field, decoder, picture

Exit code 1 if a part fails (the others still run), 2 without a CUDA device. Tables give medians in milliseconds.

    kernels   the decoder's, bound by memory: the rate at which they move input and output; a copy's is the most
    field     bound by arithmetic: its rate, a large matrix product's being the most, and its largest difference from
              float64 beside that of the plain way in float32
    decoder   1024 pixels, batch 1, one latent: number format, layout of the features, what cuDNN chooses by rule or by
              trying all (tuned: torch.backends.cudnn.benchmark), called or as a CUDA graph (--cuda_graphs)
    picture   a whole picture, its rays, its decoder, called or as CUDA graphs

A borrowed GPU, half an hour, ten minutes a command: nothing is fetched, but requirements.txt, pytest, nvcc and gcc have
to be there. Then, in this order:

    python benchmarks/check_gpu.py 2>&1 | tee check_gpu.txt
    python benchmarks/speed.py --rows surface,image,rays,decoder --json pictures.json
    python benchmarks/speed.py --rows stage1,stage2,stage2_regularized --json training.json
    python benchmarks/speed.py --rows video --frames 10 --json video.json
    python benchmarks/speed.py --rows image,decoder --precision fp16 --json half.json

What the decoder's table decides: whether --cuda_graphs and tuning are worth being the default, and the layout of each
number format (op.bands.works_channels_last). The numbers belong into docs/performance.md.
"""
import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import options
from utils import UserError, run_command


def read_flags():
    parser = options.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', help='what to do, some of the parts above, such as field,decoder (default: all)')
    return parser.parse_args()


if __name__ == '__main__':
    run_command('check_gpu', read_flags)

import torch

import model
from camera import cameras_of
from op import bands, fused_leaky_relu, graphs, siren, upfirdn2d
from op.fast import fast_parts
from op.folded_field import FoldedField, fold
from op.graphs import Graphed
from volume_renderer import SirenField

BLUR = torch.outer(torch.tensor([1., 3, 3, 1]), torch.tensor([1., 3, 3, 1])) / 64


def median_ms(call, repeats=30):
    """Median time of one call on the GPU, in milliseconds, after a warm-up."""
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def forward(operation, x):
    """The operation alone."""
    with torch.no_grad():
        return operation(x)


def backward(operation, x):
    """The operation and its gradient by x."""
    x = x.detach().requires_grad_()
    y = operation(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))


def time_operations():
    """Print the table: the shapes are those of the 256 to 1024 pixel decoder and of the discriminator's blur."""
    blur = BLUR.cuda()
    bias = torch.randn(512, device='cuda')
    operations = {
        'blur': (lambda x: upfirdn2d(x, blur, pad=(1, 1)),
                 [(4, 256, 129, 129), (4, 64, 513, 513), (4, 32, 1025, 1025)]),
        'upsample RGB': (lambda x: upfirdn2d(x, blur * 4, up=2, pad=(2, 1)), [(4, 3, 128, 128), (4, 3, 512, 512)]),
        'leaky ReLU': (lambda x: fused_leaky_relu(x, bias[:x.shape[1]]), [(4, 256, 128, 128), (4, 32, 1024, 1024)]),
    }
    source = torch.randn(1 << 28, device='cuda')
    target = torch.empty_like(source)
    print(f'copy: {2 * source.nbytes / median_ms(lambda: target.copy_(source)) / 1e9:.2f} TB/s')
    print(f'{"operation":13} {"shape":16} {"dtype":9} {"layout":6} {"pass":9} {"plain ms":>9} {"kernel ms":>9}   TB/s')
    for name, (operation, shapes) in operations.items():
        for shape in shapes:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                for layout, order in ((torch.contiguous_format, 'NCHW'), (torch.channels_last, 'NHWC')):
                    x = torch.randn(shape, device='cuda', dtype=dtype).contiguous(memory_format=layout)
                    for work in (forward, backward):
                        milliseconds = {}
                        for mode in ('plain', 'cuda'):
                            os.environ['STYLESDF_OPS'] = mode
                            milliseconds[mode] = median_ms(lambda work=work, op=operation, x=x: work(op, x))
                        moved = x.nbytes + operation(x).nbytes
                        rate = f'{moved / milliseconds["cuda"] / 1e9:6.2f}' if work is forward else ''
                        print(f'{name:13} {"x".join(map(str, shape)):16} {str(dtype)[6:]:9} {order:6} '
                              f'{work.__name__:9} {milliseconds["plain"]:9.3f} {milliseconds["cuda"]:9.3f} {rate}',
                              flush=True)


@torch.no_grad()
def time_field(points=1 << 19, per_ray=32, depth=8, width=256):
    """Print the table of the field at default size, distances alone and with features and colors."""
    if torch.cuda.get_device_capability()[0] != siren.CAPABILITY:
        print("the field's kernel is for Hopper GPUs (compute capability 9): the plain way runs here")
        return
    side = 8192
    a, b = torch.randn(2, side, side, device='cuda').half()
    limit = 2 * side ** 3 / median_ms(lambda: a @ b) / 1e9
    print(f'matrix product of halves: {limit:.0f} TFLOP/s')
    torch.manual_seed(0)
    field = fold(SirenField(depth, width).cuda(), torch.randn(1, 256, device='cuda'))
    x = 2 * torch.rand(1, points, 3, device='cuda') - 1
    viewdirs = torch.nn.functional.normalize(torch.randn(1, points // per_ray, 3, device='cuda'), dim=-1)
    print(f'{"field":26} {"plain ms":>9} {"kernel ms":>9} {"plain err":>9} {"kernel err":>10}  TFLOP/s, share')
    for name, layers, arguments in (('distances', depth - 1, (field, x)),
                                    ('and features, colors', depth, (field, x, viewdirs))):
        ways = FoldedField.steps, siren.fused
        times = [median_ms(lambda way=way, given=arguments: way(*given), repeats=10) for way in ways]
        errors = [siren.disagreement(way(*arguments), *arguments) for way in ways]
        rate = 3 * 2 * points * layers * width ** 2 / times[1] / 1e9  # three products of halves for one of float32
        print(f'{name:26} {times[0]:9.2f} {times[1]:9.2f} {errors[0]:9.1e} {errors[1]:10.1e}  {rate:.0f}, '
              f'{rate / limit:.0%}', flush=True)


def graph_ms(work):
    """median_ms of work by CUDA graphs; not a number, and a line that says why, where they fail."""
    try:
        return median_ms(work)
    except UserError as error:
        print(error, flush=True)
        graphs._failures.clear()  # the next one may work
        return math.nan


@torch.no_grad()
def time_decoder(size=1024):
    """Print the table of the decoder. Its differences are from float32, as a share of the largest value."""
    torch.manual_seed(0)
    decoder = bands.BandedDecoder(size).requires_grad_(False).cuda()
    for layer in (decoder.conv1, *decoder.convs):
        layer.noise.weight.fill_(0.1)
    weights = decoder.modulate(decoder.map(torch.randn(1, 256, device='cuda')))
    features, noise = torch.randn(1, 256, 64, 64, device='cuda'), decoder.random_noise(1)
    exact = None
    print(f'{"decoder":8} {"layout":6} {"call ms":>9} {"graph ms":>9} {"tuned":>9} {"and graph":>9} {"MiB":>6} '
          f'{"difference":>10}   ({size} px; MiB: the most that tensors take, in a call)')
    for name, dtype, tf32 in (('fp32', torch.float32, False), ('tf32', torch.float32, True),
                              ('fp16', torch.float16, True), ('bf16', torch.bfloat16, True)):
        for layout, order in ((torch.contiguous_format, 'NCHW'), (torch.channels_last, 'NHWC')):
            decoder.dtype, torch.backends.cudnn.allow_tf32 = dtype, tf32
            work = partial(decoder.synthesize, features.contiguous(memory_format=layout), weights, noise)
            times = []
            with mock.patch.object(bands, 'works_channels_last', lambda *_: False):  # in the layout that is given
                for tuned in (False, True):
                    torch.backends.cudnn.benchmark = tuned
                    image = work()
                    exact = image if exact is None else exact
                    torch.cuda.reset_peak_memory_stats()
                    times.append(median_ms(work))
                    memory = torch.cuda.max_memory_allocated()
                    times.append(graph_ms(partial(Graphed(decoder.synthesize, decoder), *work.args)))
            print(f'{name:8} {order:6} ' + ' '.join(f'{ms:9.3f}' for ms in times) + f' {memory / 2 ** 20:6.0f} '
                  f'{(image - exact).abs().max() / exact.abs().max():10.1e}', flush=True)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False  # as PyTorch has them


@torch.no_grad()
def time_picture(size=1024):
    """Print the table of a whole picture, as the commands make it: 64x64 rays of 24 samples, then the decoder."""
    print(f'{"picture":8} {"part":10} {"calls ms":>9} {"graphs ms":>9}   ({size} px)')
    for name in model.PRECISIONS:
        columns = []
        for flags in ([], ['--cuda_graphs']):
            opt = options.parse('generate_shapes_and_images', '', ['--size', str(size), '--precision', name, *flags])
            torch.manual_seed(0)
            generator = model.build_generator(opt, **fast_parts(opt, graphs=True)).requires_grad_(False).cuda()
            z, camera = torch.randn(1, 256, device='cuda'), cameras_of(opt, torch.zeros(1, 2, device='cuda'))
            w, decoder = generator.map(z), generator.decoder
            features = generator.render(w, camera).features
            parts = {'rays': partial(generator.render, w, camera),
                     'decoder': partial(decode, decoder, features, w),
                     'everything': partial(generator, z, camera)}
            columns.append([(graph_ms if flags else median_ms)(work) for work in parts.values()])
        for part, calls, graphed in zip(parts, *columns, strict=True):
            print(f'{name:8} {part:10} {calls:9.3f} {graphed:9.3f}', flush=True)


def decode(decoder, features, w):
    """An image from features and the renderer's latents."""
    return decoder(features, decoder.map(w), decoder.random_noise(1))


def run_tests():
    """The tests that need a GPU. Only files with some: others may need packages that are not there."""
    files = [path for path in sorted((ROOT / 'tests').glob('test_*.py'))
             if 'pytest.mark.gpu' in path.read_text(encoding='utf-8')]
    command = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', '--durations=5', *files]
    if subprocess.run(command, cwd=ROOT, env={**os.environ, 'STYLESDF_OPS': 'auto'}).returncode:
        raise UserError('a test failed.')


PARTS = {'tests': run_tests, 'kernels': time_operations, 'field': time_field, 'decoder': time_decoder,
         'picture': time_picture}


def main(flags):
    parts = flags.parts.split(',') if flags.parts else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise UserError(f'--parts: there is no {min(unknown)!r}; choose from {",".join(PARTS)}.')
    if not torch.cuda.is_available():
        raise UserError('PyTorch finds no CUDA device here; run this on a machine with an NVIDIA GPU.')
    print(f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN '
          f'{torch.backends.cudnn.version()}', flush=True)
    failed = []
    for part in parts:
        started = time.perf_counter()
        os.environ['STYLESDF_OPS'] = 'cuda'  # a kernel or graph that does not work is an error here
        try:
            PARTS[part]()
        except Exception as error:  # the other parts may still say something
            failed.append(part)
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f'FAILED: {part}: {error}', flush=True)
        torch.cuda.empty_cache()
        print(f'({part}: {time.perf_counter() - started:.0f} s)\n', flush=True)
    sys.exit(1 if failed else 0)

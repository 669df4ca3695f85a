"""Check op/'s kernels on a GPU, for the rare session that has one: the GPU tests, then tables of speed against plain.

python scripts/check_gpu.py [--skip-tests]: exit code 1 if a test fails, 2 without a CUDA device. The tables give
medians in milliseconds; of the decoder's kernels, which are bound by memory, the rate at which they move their input
and output, a copy's being the most there is; of the field's, which is bound by arithmetic, its rate, a large matrix
product's being the most, and its largest difference from float64 beside that of the plain way in float32.
"""
import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from op import fused_leaky_relu, siren, upfirdn2d  # noqa: E402
from utils import UserError, run_command  # noqa: E402
from volume_renderer import SirenField  # noqa: E402

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
    """Print the table of the field at default size, distances alone and with features and colours."""
    side = 8192
    a, b = torch.randn(2, side, side, device='cuda').half()
    most = 2 * side ** 3 / median_ms(lambda: a @ b) / 1e9
    print(f'matrix product of halves: {most:.0f} TFLOP/s')
    torch.manual_seed(0)
    field = SirenField(depth, width).cuda().fold(torch.randn(1, 256, device='cuda'))
    x = 2 * torch.rand(1, points, 3, device='cuda') - 1
    viewdirs = torch.nn.functional.normalize(torch.randn(1, points // per_ray, 3, device='cuda'), dim=-1)
    print(f'{"field":26} {"plain ms":>9} {"kernel ms":>9} {"plain err":>9} {"kernel err":>10}  TFLOP/s, share')
    for name, layers, arguments in (('distances', depth - 1, (field, x)),
                                    ('and features, colours', depth, (field, x, viewdirs))):
        ways = siren.plain, siren.fused
        times = [median_ms(lambda way=way, given=arguments: way(*given), repeats=10) for way in ways]
        errors = [siren.disagreement(way(*arguments), *arguments) for way in ways]
        rate = 3 * 2 * points * layers * width ** 2 / times[1] / 1e9  # three products of halves for one of float32
        print(f'{name:26} {times[0]:9.2f} {times[1]:9.2f} {errors[0]:9.1e} {errors[1]:10.1e}  {rate:.0f}, '
              f'{rate / most:.0%}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--skip-tests', action='store_true', help='only print the tables')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError('PyTorch finds no CUDA device here; run this on a machine with an NVIDIA GPU.')
    failed = not args.skip_tests and subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', 'tests'], cwd=ROOT).returncode
    print(f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}')
    time_operations()
    if torch.cuda.get_device_capability()[0] == siren.CAPABILITY:
        time_field()
    else:
        print("the field's kernel is for Hopper GPUs (compute capability 9): the plain way runs here")
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    run_command(main)

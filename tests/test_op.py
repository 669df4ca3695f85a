"""op/: golden values, derivatives, dtypes and layouts; the kernels against the plain definition; builds and fallbacks.

The kernels are tested twice: on a GPU, and without one as a twin for the CPU, in which
loops call the functions of op/kernels.h in the threads' place. Everything but the launch itself is the same there.
"""
import contextlib
import ctypes
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close

import op.upfirdn
from op import fused_leaky_relu, kernels, upfirdn2d
from utils import UserError

BLUR = torch.outer(torch.tensor([1., 3, 3, 1]), torch.tensor([1., 3, 3, 1])) / 64
LOPSIDED = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))  # no product of a column and a row
SEPARABLE = torch.outer(torch.tensor([1., -2, 0, .5, 3]), torch.tensor([.25, 1, -1]))
# kernel, up, down, pad
FILTERS = [(BLUR, 1, 1, (2, 1)), (BLUR, 1, 1, (1, 1)), (BLUR, 1, 1, (2, 2)), (BLUR * 4, 2, 1, (2, 1)),
           (BLUR, 1, 2, (1, 1)), (BLUR, 1, 1, (4, -1, 0, 5)), (LOPSIDED, 2, 3, (3, 2)), (LOPSIDED, 3, 2, (0, 4)),
           (LOPSIDED, 1, 1, (-1, 2)), (SEPARABLE, 3, 2, (1, 2, 6, -1)), (SEPARABLE, 2, 4, (5, 6))]
# As a share of the largest value: the half types round the result once, here against unrounded values.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(TOLERANCE)


def rand(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(**options)


def definition(x, kernel, up, down, pad):
    """upfirdn2d step by step in float64: the plain definition, differentiated by autograd."""
    return op.upfirdn._plain(x.double(), kernel, up, down, pad * 2 if len(pad) == 2 else pad, False)


def activation(x, bias, slope=.2, scale=2 ** .5):
    bias = 0 if bias is None else bias.double().view(-1, *[1] * (x.dim() - 2))
    return F.leaky_relu(x.double() + bias, slope) * scale


def derivatives(y, x):
    """y, the gradient of sum(y^2) by x, and the gradient of sum of its square: as the golden files have them."""
    dx, = torch.autograd.grad((y ** 2).sum(), x, create_graph=True)
    return y, dx, torch.autograd.grad((dx ** 2).sum(), x, retain_graph=True)[0]


# ------------------------------------------------------------------------------------------------- plain definitions

@pytest.mark.parametrize('i', range(7))
def test_upfirdn2d_equals_the_original(golden, i):
    numbers = golden('ops')
    blur, asymmetric = numbers['kernel_1331'], numbers['asymmetric_kernel']
    kernel, *settings = [(blur, 1, 1, (2, 1)), (blur, 2, 1, (2, 1)), (blur, 1, 2, (1, 1)), (blur, 2, 1, (1, 1)),
                         (asymmetric, 2, 3, (3, 2)), (asymmetric, 3, 2, (0, 4)), (asymmetric, 1, 1, (-1, 2))][i]
    x = numbers['x'].requires_grad_()
    for name, value in zip(('y', 'dx', 'ddx'), derivatives(upfirdn2d(x, kernel, *settings), x), strict=True):
        assert_close(value, numbers[f'upfirdn2d_{i}_{name}'], 1e-6, name)


@pytest.mark.parametrize('i', range(3))
def test_fused_leaky_relu_equals_the_original(golden, i):
    numbers = golden('ops')
    x = numbers['x'].requires_grad_()
    bias = [numbers['bias'], numbers['bias'], None][i]
    scale = [2 ** .5, 1, 2 ** .5][i]
    if bias is not None:
        bias.requires_grad_()
    y = fused_leaky_relu(x, bias, scale=scale)
    for name, value in zip(('y', 'dx', 'ddx'), derivatives(y, x), strict=True):
        assert_close(value, numbers[f'lrelu_{i}_{name}'], 1e-6, name)
    if bias is not None:
        assert_close(torch.autograd.grad((y ** 2).sum(), bias)[0], numbers[f'lrelu_{i}_db'], 1e-6, 'db')


@pytest.mark.parametrize('settings', FILTERS)
@pytest.mark.parametrize('block', [1, 40, op.upfirdn.BLOCK])
def test_cpu_evaluation_equals_the_definition(monkeypatch, settings, block):
    monkeypatch.setattr(op.upfirdn, 'BLOCK', block)  # one row at a time, a few rows or images, all at once
    x = rand(2, 3, 9, 6)
    expected = definition(x, *settings)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert_close(upfirdn2d(x.contiguous(memory_format=layout), *settings), expected, 1e-14)


def test_definition_against_a_loop():
    x, kernel, up, down, pad = rand(1, 1, 5, 4), LOPSIDED, 2, 3, (3, 2)
    height, width = [n * up + sum(pad) for n in x.shape[2:]]
    padded = [[0.] * width for _ in range(height)]
    for i in range(5):
        for j in range(4):
            padded[i * up + pad[0]][j * up + pad[0]] = x[0, 0, i, j].item()
    expected = [[sum(padded[r + a][c + b] * kernel[3 - a, 2 - b].item() for a in range(4) for b in range(3))
                 for c in range(0, width - 2, down)] for r in range(0, height - 3, down)]
    assert_close(definition(x, kernel, up, down, pad)[0, 0], torch.tensor(expected, dtype=torch.float64), 1e-14)


@pytest.mark.parametrize('settings', FILTERS[::2])
def test_upfirdn2d_gradcheck(settings):
    x = rand(1, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: upfirdn2d(x, *settings), x)
    assert torch.autograd.gradgradcheck(lambda x: upfirdn2d(x, *settings), x)


def test_fused_leaky_relu_gradcheck():
    x, bias = rand(2, 3, 4).requires_grad_(), rand(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: fused_leaky_relu(*a) ** 2, (x, bias))
    assert torch.autograd.gradgradcheck(lambda *a: fused_leaky_relu(*a) ** 2, (x, bias))


def test_inplace_saves_the_allocation_and_never_harms_a_gradient():
    x, bias = rand(2, 3, 4, 5, dtype=torch.float32), rand(3, seed=1, dtype=torch.float32)
    expected = fused_leaky_relu(x, bias)
    parameter = x.clone().requires_grad_()
    assert fused_leaky_relu(parameter, bias, inplace=True).data_ptr() != parameter.data_ptr()
    assert torch.equal(parameter, x)
    with torch.no_grad():
        assert fused_leaky_relu(x, bias).data_ptr() != x.data_ptr()
        y = fused_leaky_relu(x, bias, inplace=True)
    assert y.data_ptr() == x.data_ptr() and torch.equal(y, expected)


def test_autocast_keeps_the_dtype():
    x, bias = rand(1, 3, 8, 8, dtype=torch.bfloat16), rand(3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert upfirdn2d(x, BLUR, pad=(2, 1)).dtype == fused_leaky_relu(x, bias).dtype == torch.bfloat16
        exact = rand(1, 3, 8, 8, dtype=torch.float32)
        assert_close(upfirdn2d(exact, LOPSIDED), definition(exact, LOPSIDED, 1, 1, (0, 0)), 1e-6)


def test_compiled_without_a_graph_break():
    def layer(x):
        return fused_leaky_relu(upfirdn2d(x, BLUR, up=2, pad=(2, 1)), x.new_ones(3))
    x = rand(1, 3, 8, 8, dtype=torch.float32)
    assert_close(torch.compile(layer, backend='eager', fullgraph=True)(x), layer(x), 1e-6)


@pytest.mark.parametrize('call', [
    lambda x: upfirdn2d(x[0], BLUR), lambda x: upfirdn2d(x, BLUR[0]), lambda x: upfirdn2d(x, BLUR, up=0),
    lambda x: upfirdn2d(x, BLUR, pad=(-2, -2)), lambda x: upfirdn2d(x, BLUR, pad=(1, 1, 1)),
    lambda x: fused_leaky_relu(x, x.new_ones(4)), lambda x: fused_leaky_relu(x[0, 0, 0]),
    lambda x: fused_leaky_relu(x, scale=0), lambda x: fused_leaky_relu(x, negative_slope=-.1)])
def test_impossible_arguments(call):
    with pytest.raises(ValueError, match='needs|does not fit'):
        call(rand(1, 3, 5, 5))


# ------------------------------------------------------------- every way to compute them: plain, twin and CUDA kernel

TWIN = r"""
#include "kernels.h"
template <class T> int filter(const Filter &op) {
    bool strips = op.up == 1 && op.down == 1 && op.kh == 4 && op.kw == 4;
    for (int64_t m = 0; m < op.major; m++)
        for (int y = 0; y < op.out_height; y += strips ? 3 : 1)
            for (int64_t q = 0; q < op.out_width * op.minor; q++)
                if (strips) blur_strip<T, 4, 3>(op, m, y, q); else filter_point<T>(op, m, y, q);
    return 0;
}
template <class T> int activate(const LeakyRelu &op, int64_t count) {
    const int most = 16 / sizeof(T);
    bool vectors = vector_length<T>(op, count) == most;
    for (int64_t i = 0; i < count / (vectors ? most : 1); i++)
        if (vectors) leaky_relu_vector<T, most>(op, i); else leaky_relu_vector<T, 1>(op, i);
    return 0;
}
#define BY_DTYPE(F, ...) dtype == 0 ? F<float>(__VA_ARGS__) : dtype == 1 ? F<double>(__VA_ARGS__) : \
    dtype == 2 ? F<__half>(__VA_ARGS__) : F<__nv_bfloat16>(__VA_ARGS__)
extern "C" int stylesdf_leaky_relu(int dtype, void *out, const void *x, const void *bias, const void *sign, int64_t n,
                                   int64_t inner, int64_t channels, double slope, double scale, void *) {
    return BY_DTYPE(activate, {x, bias, sign, out, inner, channels, scale, slope * scale}, n);
}
extern "C" int stylesdf_upfirdn2d(int dtype, void *out, const void *x, const void *taps, int64_t major, int64_t minor,
                                  int h, int w, int oh, int ow, int kh, int kw, int up, int down, int left, int top,
                                  int flip, void *) {
    return BY_DTYPE(filter, {x, taps, out, major, minor, h, w, oh, ow, kh, kw, up, down, left, top, flip != 0});
}
extern "C" const char *stylesdf_error_string(int) { return "none"; }
"""


@pytest.fixture(scope='module')
def twin(tmp_path_factory):
    """The arithmetic of the kernels as a library for the CPU."""
    if not shutil.which('nvcc'):
        pytest.skip('needs nvcc')
    folder = tmp_path_factory.mktemp('twin')
    (folder / 'twin.cu').write_text(TWIN)
    subprocess.run(['nvcc', '-O1', '-std=c++17', '-shared', '-Xcompiler', '-fPIC', '-I', kernels.SOURCE.parent,
                    folder / 'twin.cu', '-o', folder / 'twin.so'], check=True)
    return kernels.declare(ctypes.CDLL(str(folder / 'twin.so')))


@pytest.fixture(params=['plain', 'twin', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where the tensors live, for each way to compute. Outputs start as NaN: kernels must write every value."""
    if request.param == 'plain':
        return 'cpu'
    if request.param == 'twin':
        library = request.getfixturevalue('twin')
        monkeypatch.setattr(kernels, 'library', lambda x: library)
        monkeypatch.setattr(kernels, '_capability', lambda device: (0, 0))
        monkeypatch.setattr(kernels, '_load', lambda capability: (library, None))
        monkeypatch.setattr(torch.cuda, 'device', lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, 'current_stream', lambda: type('Stream', (), {'cuda_stream': None}))
    elif not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    else:
        monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    launch = kernels.launch

    def poisoned(name, x, out, source, *rest):
        if out is not source:
            out.fill_(float('nan'))
        launch(name, x, out, source, *rest)
    monkeypatch.setattr(kernels, 'launch', poisoned)
    return 'cuda' if request.param == 'cuda' else 'cpu'


@pytest.mark.parametrize('settings', FILTERS)
def test_upfirdn2d_and_derivatives(device, settings):
    x = rand(2, 3, 9, 7).to(device).requires_grad_()
    expected = derivatives(definition(x.cpu(), settings[0], *settings[1:]), x)
    for kernel in (settings[0], settings[0].to(device)):
        for value, reference in zip(derivatives(upfirdn2d(x, kernel, *settings[1:]), x), expected, strict=True):
            assert_close(value.cpu(), reference.cpu(), 1e-13)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('settings', FILTERS[2:5] + FILTERS[-1:])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_upfirdn2d_dtypes_and_layouts(device, dtype, settings, layout):
    x = rand(2, 5, 13, 37, dtype=dtype, device=device).contiguous(memory_format=layout).requires_grad_()
    y = upfirdn2d(x, settings[0].to(device), *settings[1:])
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    expected = definition(x.cpu(), settings[0], *settings[1:])
    assert_close(y.cpu(), expected, TOLERANCE[dtype])
    weight = rand(*y.shape, seed=1, dtype=dtype)
    dx, = torch.autograd.grad(y, x, weight.to(device))
    assert dx.dtype == dtype
    assert_close(dx.cpu(), torch.autograd.grad(expected, x, weight.double())[0].cpu(), TOLERANCE[dtype])


@pytest.mark.parametrize('shape', [(2, 3), (4, 8), (2, 8, 4, 4), (3, 5, 7, 9), (2, 3, 2, 3, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize('scale', [1, 2 ** .5])
def test_fused_leaky_relu_and_derivatives(device, shape, scale):
    x = rand(*shape).to(device).requires_grad_()
    for bias in (None, rand(shape[1], seed=1).to(device).requires_grad_()):
        y, reference = fused_leaky_relu(x, bias, .3, scale), activation(x, bias, .3, scale)
        for value, expected in zip(derivatives(y, x), derivatives(reference, x), strict=True):
            assert_close(value, expected, 1e-14)
        if bias is not None:
            for value, expected in zip(derivatives(y, bias), derivatives(reference, bias), strict=True):
                assert_close(value, expected, 1e-13)
            mixed, expected = (torch.autograd.grad(torch.autograd.grad((z ** 3).sum(), x, create_graph=True)[0].sum(),
                                                   bias)[0] for z in (y, reference))
            assert_close(mixed, expected, 1e-13)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(2, 8, 6, 4), (1, 5, 7, 9)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_fused_leaky_relu_dtypes_and_layouts(device, dtype, shape, layout):
    x = rand(*shape, dtype=dtype, device=device).contiguous(memory_format=layout)
    bias = rand(shape[1], seed=1, dtype=dtype, device=device)
    inputs = x.requires_grad_(), bias.requires_grad_()
    y, expected = fused_leaky_relu(*inputs), activation(*inputs)
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
    assert_close(y, expected, TOLERANCE[dtype])
    weight = rand(*shape, seed=2, dtype=dtype, device=device)  # in the other layout, half the time
    for value, reference in zip(torch.autograd.grad(y, inputs, weight),
                                torch.autograd.grad(expected, inputs, weight.double()), strict=True):
        assert value.dtype == dtype
        assert_close(value, reference, TOLERANCE[dtype])
    with torch.no_grad():
        overwritten = x.detach().clone(memory_format=torch.preserve_format)
        assert torch.equal(fused_leaky_relu(overwritten, bias, inplace=True), y)
        assert torch.equal(overwritten, y)


@pytest.mark.parametrize('view', [lambda x: x[:, ::2], lambda x: x.transpose(2, 3), lambda x: x[:, :, 1:, 1:],
                                  lambda x: x[:, :, ::2, ::3], lambda x: x[:1].expand(3, -1, -1, -1),
                                  lambda x: x[:, 1:].to(memory_format=torch.channels_last)[:, :, 1:]])
def test_views(device, view):
    whole = rand(2, 6, 12, 8, dtype=torch.float32)
    x, expected = view(whole.to(device)), view(whole)
    for settings in FILTERS[:4:3] + FILTERS[6:7]:
        assert_close(upfirdn2d(x, settings[0].to(device), *settings[1:]).cpu(), definition(expected, *settings), 1e-6)
    bias = rand(x.shape[1], seed=1, dtype=torch.float32)
    assert_close(fused_leaky_relu(x, bias.to(device)).cpu(), activation(expected, bias), 1e-6)
    y = fused_leaky_relu(x.clone(memory_format=torch.preserve_format), bias.to(device), inplace=True)
    assert_close(y.cpu(), activation(expected, bias), 1e-6)


def test_empty_batch(device):
    x = torch.zeros(0, 3, 8, 6, device=device, requires_grad=True)
    bias = torch.ones(3, device=device, requires_grad=True)
    y = fused_leaky_relu(upfirdn2d(x, BLUR.to(device), 2, 1, (2, 1)), bias)
    assert y.shape == (0, 3, 16, 12)
    y.sum().backward()
    assert x.grad.shape == x.shape and torch.equal(bias.grad, torch.zeros(3, device=device))


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (70, 2), (65, 129)])
def test_sizes(device, size):
    x = rand(1, 2, *size, dtype=torch.float32)
    for kernel, up, down, pad in [(BLUR, 1, 1, (2, 1)), (BLUR, 2, 1, (2, 1)), (BLUR, 1, 2, (2, 2))]:
        assert_close(upfirdn2d(x.to(device), kernel.to(device), up, down, pad).cpu(),
                     definition(x, kernel, up, down, pad), 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_streams_large_and_auto(monkeypatch, capfd):
    monkeypatch.setenv('STYLESDF_OPS', 'auto')
    x, bias = torch.randn(3, 40, 257, 255, device='cuda'), torch.randn(40, device='cuda')
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = fused_leaky_relu(upfirdn2d(x, BLUR.cuda(), pad=(1, 1)), bias)
    stream.synchronize()
    monkeypatch.setenv('STYLESDF_OPS', 'plain')
    assert_close(y, fused_leaky_relu(upfirdn2d(x, BLUR.cuda(), pad=(1, 1)), bias), 1e-6)
    assert 'warning' not in capfd.readouterr().err
    with torch.autocast('cuda', dtype=torch.float16):
        for mode in ('auto', 'plain'):
            monkeypatch.setenv('STYLESDF_OPS', mode)
            assert upfirdn2d(x.half(), BLUR.cuda()).dtype == fused_leaky_relu(x.half(), bias).dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_cuda_second_device(monkeypatch):
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    x = rand(2, 3, 9, 7, dtype=torch.float32)
    assert_close(upfirdn2d(x.to('cuda:1'), BLUR.to('cuda:1')).cpu(), definition(x, BLUR, 1, 1, (0, 0)), 1e-6)


# --------------------------------------------------------------------------------------------- building, and failing

@pytest.mark.skipif(not shutil.which('nvcc'), reason='needs nvcc')
@pytest.mark.skipif(torch.version.cuda is None, reason="needs PyTorch's CUDA build")
def test_kernels_compile_link_and_load(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    path = kernels.build((9, 0))
    assert [path] == list((tmp_path / 'cache').iterdir()), 'only the finished library stays'
    loaded = kernels.declare(ctypes.CDLL(str(path)))
    assert loaded.stylesdf_leaky_relu(0, None, None, None, None, 0, 1, 3, .2, 1., None) == 0  # nothing to do
    assert b'invalid' in loaded.stylesdf_error_string(loaded.stylesdf_leaky_relu(9, *[None] * 4, 1, 1, 1, .2, 1., None))
    assert 'building' in capfd.readouterr().err
    assert kernels.build((9, 0)) == path
    assert 'building' not in capfd.readouterr().err, 'the second time it comes from the cache'


@pytest.fixture
def cuda_tensor(monkeypatch):
    """Stands in for a tensor on a GPU; nothing was loaded or warned of before."""
    caches = kernels._load, kernels._warn_once
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(kernels, '_capability', lambda device: (9, 0))
    monkeypatch.setattr(kernels.tempfile, 'tempdir', None)
    yield type('CudaTensor', (), {'is_cuda': True, 'device': torch.device('cuda', 0), 'dtype': torch.float32})
    for cache in caches:
        cache.cache_clear()


def test_failed_build_is_one_line_and_a_log(cuda_tensor, monkeypatch, tmp_path, capsys):
    output = 'Error building extension: [1/2] nvcc -c kernels.cu\nkernels.cu(7): error: no such thing\nninja: stopped.'

    def fail(capability):
        raise RuntimeError(output)
    monkeypatch.setattr(kernels, 'build', fail)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setenv('STYLESDF_OPS', 'auto')
    assert kernels.library(cuda_tensor) is None and kernels.library(cuda_tensor) is None
    log, = tmp_path.iterdir()
    assert output in log.read_text()
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith('warning: ') and str(log) in said
    assert 'kernels.cu(7): error: no such thing' in said
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    with pytest.raises(UserError, match='STYLESDF_OPS=cuda.*no such thing.*log'):
        kernels.library(cuda_tensor)


def test_real_compile_errors_reach_the_log(cuda_tensor, monkeypatch, tmp_path, capsys):
    """A source that does not compile, or no compiler at all: either way the plain definition goes on."""
    source = tmp_path / 'kernels.cu'
    source.write_text('this is not CUDA\n')
    source.with_suffix('.h').write_text('')
    (tmp_path / 'logs').mkdir()
    monkeypatch.setattr(kernels, 'SOURCE', source)
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'logs'))
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('STYLESDF_OPS', 'auto')
    assert kernels.library(cuda_tensor) is None
    log, = (tmp_path / 'logs').iterdir()
    assert str(log) in capsys.readouterr().err and 'Error' in log.read_text()
    cache = tmp_path / 'cache'
    assert not cache.exists() or not list(cache.iterdir())


def test_plain_and_the_cpu_never_build(cuda_tensor, monkeypatch):
    def fail(capability):
        raise AssertionError('must not build')
    monkeypatch.setattr(kernels, '_load', fail)
    monkeypatch.setenv('STYLESDF_OPS', 'plain')
    assert kernels.library(cuda_tensor) is None
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    x = rand(1, 3, 8, 8)
    assert_close(upfirdn2d(x, BLUR), definition(x, BLUR, 1, 1, (0, 0)), 1e-14)
    assert_close(fused_leaky_relu(x), activation(x, None), 1e-14)


@pytest.mark.parametrize('call', [lambda x: upfirdn2d(x, BLUR), fused_leaky_relu])
def test_unknown_mode_is_an_error(monkeypatch, call):
    monkeypatch.setenv('STYLESDF_OPS', 'fast')
    with pytest.raises(UserError, match='STYLESDF_OPS=fast: choose auto, plain or cuda'):
        call(rand(1, 3, 8, 8))


def test_import_compiles_nothing(fresh_process):
    assert fresh_process[0]['op imports compilers'] is False

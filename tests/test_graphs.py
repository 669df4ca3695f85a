"""op/graphs.py: CUDA graphs on a stand-in for a GPU, and on one where there is one; what they are used for.

The stand-in captures as the driver does: what a capture launches is noted with the memory that it reads and writes and
computes nothing; a replay computes that, in that memory, and runs no Python of the function.
"""
import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_model import TINY, save_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import generate_shapes_and_images as generate
import op.upfirdn
from camera import cameras_at
from inference.frames import render_frames
from inference.latents import latents_of_w
from model import build_generator
from op import graphs, kernels
from op.bands import BandedDecoder
from op.fast import fast_parts
from op.graphs import Graphed
from options import parse
from utils import UserError

aten = torch.ops.aten
WAITING = aten._local_scalar_dense.default, aten.nonzero.default  # they read a value back


class FakeGraph(TorchDispatchMode):
    """Stands in for torch.cuda.CUDAGraph, on CPU tensors. `made` and `replays` count, for all of them."""
    capturing, made, replays = False, 0, 0

    def __init__(self):
        super().__init__()
        self.launched = []
        FakeGraph.made += 1

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in WAITING:
            raise RuntimeError('operation not permitted when\nstream is capturing')
        result = operation(*args, **kwargs or {})
        if not any(a.alias_info and not a.alias_info.is_write for a in operation._schema.returns):  # a view is no work
            self.launched.append((operation, args, kwargs or {}, result))
            for out in tree_leaves(result):
                out.fill_(torch.nan) if out.is_floating_point() else out.zero_()
        return result

    def replay(self):
        FakeGraph.replays += 1
        for operation, args, kwargs, result in self.launched:
            again = operation(*args, **kwargs)
            if not operation._schema.is_mutable:
                for out, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    out.copy_(value)


@contextlib.contextmanager
def fake_capture(graph, pool=None, stream=None, capture_error_mode='global'):
    """Stands in for torch.cuda.graph."""
    FakeGraph.capturing = True
    try:
        with graph:
            yield
    except RuntimeError:
        raise RuntimeError('operation failed due to a previous error during capture')  # noqa: B904
    finally:
        FakeGraph.capturing = False


@pytest.fixture
def gpu(monkeypatch):
    """CPU tensors pass for a GPU's; fresh memory is NaN. Has the list of what a failed capture is tidied up with."""
    tidied, stream = [], SimpleNamespace(wait_stream=lambda other: None)
    generator = SimpleNamespace(clone_state=lambda: 'before', graphsafe_set_state=tidied.append)
    for name, value in {
            'CUDAGraph': FakeGraph, 'graph': fake_capture, 'graph_pool_handle': lambda: 'pool',
            'Stream': lambda device: stream, 'current_stream': lambda device: stream,
            'stream': lambda stream: contextlib.nullcontext(), 'default_generators': {None: generator},
            'is_current_stream_capturing': lambda: FakeGraph.capturing}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', lambda index, pool: tidied.append(pool), raising=False)
    monkeypatch.setattr(graphs, 'kernels', SimpleNamespace(wanted=lambda x: True, unusable=kernels.unusable))
    monkeypatch.setattr(op.upfirdn, '_evaluate', op.upfirdn._plain)  # the CPU's own way reads the filter's values
    monkeypatch.setattr('op.sines._suits', lambda x: False)  # NumPy's operations are not recorded
    monkeypatch.setattr('op.tiles.for_each', lambda work, items, *_, **__: [work(item) for item in items])  # in here
    monkeypatch.setattr(graphs, '_failures', [])
    monkeypatch.setenv('STYLESDF_OPS', 'auto')
    kernels._warn_once.cache_clear()
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    with torch.no_grad():
        yield tidied
    torch.use_deterministic_algorithms(False)
    kernels._warn_once.cache_clear()


class Layer(torch.nn.Linear):
    """A function with weights, that counts its calls."""

    def __init__(self, function=lambda y, **_: y):
        super().__init__(4, 4)
        self.function, self.calls = function, 0

    def forward(self, x, more=(), **constants):
        self.calls += 1
        y = F.linear(x, self.weight, self.bias).relu_()
        for tensor in more:
            y = y + tensor[:, :4]
        return {'y': self.function(y, **constants), 'none': None}


def test_one_capture_for_each_kind_of_arguments(gpu):
    layer = Layer(lambda y, scale=1, shift=0: y * scale + shift)
    graphed = Graphed(layer.forward, layer)
    captured = 0
    for arguments, constants in [((3,), {}), ((5,), {}), ((3,), {'scale': 2}), ((3,), {'scale': 2.}),
                                 ((3,), {'shift': 2}), ((3, 3), {})]:
        for n in range(4):
            x, *more = (torch.randn(count, 4) for count in arguments)
            found = graphed(x, more, **constants)
            captured += n == 0
            # The plain call, one to warm up, one to capture; from then on none.
            assert layer.calls == 3 * captured == 3 * len(graphed.captures)
            assert found['none'] is None
            assert torch.equal(found['y'], layer(x, more, **constants)['y'])
            layer.calls -= 1
    assert captured == 6


def test_a_result_is_its_own_and_arguments_are_read_at_each_call(gpu):
    layer = Layer()
    graphed = Graphed(layer.forward, layer)
    x = torch.randn(3, 4)
    results = []
    for _ in range(4):
        x.normal_()
        results.append((graphed(x)['y'], layer(x)['y']))
    assert len({result.data_ptr() for result, _ in results}) == 4
    assert all(torch.equal(*both) for both in results)
    results[-1][0].zero_()
    assert torch.equal(graphed(x)['y'], results[-1][1])


def test_any_layout_of_the_arguments(gpu):
    layer = Layer()
    graphed = Graphed(layer.forward, layer)
    for x in (torch.randn(3, 4), torch.randn(4, 3).T, torch.randn(1, 4).expand(3, 4), torch.randn(6, 8)[::2, ::2]):
        torch.testing.assert_close(graphed(x)['y'], layer(x)['y'])
    assert len(graphed.captures) == 1


def test_weights_may_change_and_move(gpu):
    layer = Layer()
    graphed = Graphed(layer.forward, layer)
    x = torch.randn(3, 4)
    graphed(x)
    layer.weight.normal_()
    assert torch.equal(graphed(x)['y'], layer(x)['y']) and len(graphed.captures) == 1
    layer.weight.data = torch.randn(4, 4)
    assert torch.equal(graphed(x)['y'], layer(x)['y']) and len(graphed.captures) == 2


def test_captures_are_bounded(gpu, monkeypatch):
    monkeypatch.setattr(graphs, 'LARGEST_COUNT', 2)
    layer = Layer()
    graphed = Graphed(layer.forward, layer)
    for count in (1, 2, 3, 1, 2, 3):
        x = torch.randn(count, 4)
        assert torch.equal(graphed(x)['y'], layer(x)['y'])
    assert len(graphed.captures) == 2


def test_inside_another_capture_it_is_the_plain_call(gpu):
    layer = Layer()
    inner = Graphed(layer.forward, layer)
    outer = Graphed(lambda x: inner(x)['y'] + 1, layer)
    for _ in range(3):
        x = torch.randn(3, 4)
        assert torch.equal(outer(x), layer(x)['y'] + 1)
    assert len(inner.captures) == len(outer.captures) == 1


def wrong_from_the_third_call(layer):
    return lambda y: y if layer.calls < 3 else y * 1.02


def not_a_number(layer):
    return lambda y: y if layer.calls < 3 else y * torch.nan


@pytest.mark.parametrize('broken, reason', [
    (lambda layer: lambda y: y * (1 if y.sum().item() > 1e9 else 2), 'not permitted when stream is capturing'),
    (lambda layer: lambda y: y[(y.sum(1) < 1e9).nonzero()[:, 0]], 'not permitted when stream is capturing'),
    (wrong_from_the_third_call, 'differ from the plain ones'), (not_a_number, 'differ from the plain ones')])
def test_what_goes_wrong_is_said_once_and_ends_it(gpu, monkeypatch, capsys, broken, reason):
    layer = Layer()
    layer.function = broken(layer)
    graphed, good = Graphed(layer.forward, layer), Layer()
    x = torch.randn(3, 4)
    expected = layer(x)['y']
    layer.calls = 0
    assert torch.equal(graphed(x)['y'], expected)
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith('warning: CUDA graphs do not work here') and reason in said
    assert gpu == (['before', 'pool'] if 'capturing' in reason else [])
    for count in (3, 5):
        Graphed(good.forward, good)(torch.randn(count, 4))
        layer.calls = 0
        graphed(torch.randn(count, 4))
    assert good.calls == 2 and layer.calls == 1 and not graphed.captures and not capsys.readouterr().err
    monkeypatch.setattr(graphs, '_failures', [])
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    layer.calls = 0
    with pytest.raises(UserError, match=f'STYLESDF_OPS=cuda: CUDA graphs.*{reason}'):
        graphed(x)


def test_a_function_that_overwrites_its_argument_is_found_out(gpu, capsys):
    graphed = Graphed(lambda x, y: (x + 1, y.add_(1))[0], Layer())
    graphed(torch.randn(3, 4), torch.randn(3))
    assert 'warning: CUDA graphs' in capsys.readouterr().err and not graphed.captures


def test_errors_of_the_function_are_its_own(gpu, capsys):
    graphed = Graphed(Layer().forward, Layer())
    with pytest.raises(RuntimeError, match='shapes'):
        graphed(torch.randn(3, 5))
    assert not graphs._failures and not capsys.readouterr().err


@pytest.mark.parametrize('case', ['cpu', 'gradients', 'object', 'devices', 'no tensor', 'plain'])
def test_elsewhere_it_is_the_plain_call(request, monkeypatch, case):
    if case not in ('cpu', 'plain'):
        request.getfixturevalue('gpu')
    if case == 'plain':  # a tensor of a GPU, but no kernels are wanted
        monkeypatch.setenv('STYLESDF_OPS', 'plain')
        assert not kernels.wanted(SimpleNamespace(is_cuda=True))

    def fail(*_, **__):
        raise AssertionError('must not capture')
    monkeypatch.setattr(torch.cuda, 'graph', fail)
    monkeypatch.setattr(graphs, '_capture', fail)
    layer = Layer(lambda y, **_: y)
    graphed = Graphed(layer.forward, layer)
    x = torch.randn(3, 4)
    with torch.set_grad_enabled(case == 'gradients'):
        if case == 'no tensor':
            assert Graphed(lambda: 5, layer)() == 5
        elif case == 'devices':
            assert torch.equal(Graphed(lambda x, y: x + 1, layer)(x, x.to('meta')), x + 1)
        else:
            y = graphed(x, random=torch.Generator() if case == 'object' else None)['y']
            assert torch.equal(y, layer(x)['y']) and y.requires_grad == (case == 'gradients')
    assert not graphed.captures and not graphs._failures


# ---------------------------------------------------------------------------------------------- what they are used for

def lively(generator):
    """With noise and biases that count."""
    for name, parameter in generator.named_parameters():
        if name.endswith(('noise.weight', 'activate.bias')) or 'to_rgb' in name and name.endswith('bias'):
            parameter.normal_()
    return generator


def test_images_and_frames_are_the_same(gpu):
    opts = [parse('render_video', '', [*TINY, '--dense', *flags]) for flags in ([], ['--cuda_graphs'])]
    plain, graphed = (build_generator(opt, **fast_parts(opt, graphs=True)).requires_grad_(False) for opt in opts)
    graphed.load_state_dict(lively(plain).state_dict())
    means = plain.mean_latents(50)
    cameras = cameras_at(torch.tensor([[0.3, -0.1], [-0.2, 0.2], [0., 0.]]), 8)
    z = torch.randn(1, 8)
    noises = [plain.decoder.random_noise(1) for _ in range(3)]

    def everything(generator):
        psi = opts[0].inference.truncation_ratio
        one, several = (latents_of_w(generator, generator.map(of), psi, means)
                        for of in (z, torch.cat([z, -z, z + 1])))
        frames = render_frames(generator, one, cameras, lambda camera, left=list(noises): left.pop(0), opts[0],
                               surfaces=False)
        walk = render_frames(generator, several, cameras, lambda camera: noises[0], opts[0], surfaces=False)
        images = [generator(z, cameras[i:i + 1], psi=0.7, means=means, noise=noises[2]) for i in range(3)]
        return [frame['video'] for frame in (*frames, *walk)], [*tree_leaves([tuple(image) for image in images])]

    expected, captures = everything(plain), FakeGraph.made
    for _ in range(2):  # what the first time captures, the second replays
        found, replays = everything(graphed), FakeGraph.replays
        assert all(np.array_equal(*both) for both in zip(expected[0], found[0], strict=True))
        for one, other in zip(expected[1], found[1], strict=True):
            assert one is other is None or torch.equal(one, other)
    # A frame's rendering names fewer arguments than an image's; modulate and synthesize have one kind of arguments.
    assert FakeGraph.made - captures == 4
    everything(graphed)
    assert FakeGraph.replays - replays == 3 * 3 + 1 + 3 + 3 + 3 * 3  # of frames, walk and images
    assert not graphs._failures


def test_surfaces_are_no_graphs(gpu):
    opt = parse('render_video', '', [*TINY, '--dense', '--cuda_graphs'])
    generator = build_generator(opt, **fast_parts(opt, graphs=True)).requires_grad_(False)
    made = FakeGraph.made
    generator.renderer(torch.randn(1, 8), cameras_at(torch.zeros(1, 2), 8), color=False, sdf=True)
    assert FakeGraph.made == made


def test_the_flag_changes_nothing_on_a_cpu(command, tmp_path):
    save_tiny_model(tmp_path)
    pictures = []
    for flags in ((), ('--cuda_graphs',)):
        code, _, said = command(generate, '--expname', 'tiny', '--identities', 1, '--num_views_per_id', 2,
                                '--no_surface_renderings', '--truncation_mean', 50, '--device', 'cpu', *flags)
        assert code == 0 and 'warning' not in said
        picture, = tmp_path.glob('evaluations/tiny/*/*/images/0000000.png')
        pictures.append(np.asarray(Image.open(picture)))
    assert np.array_equal(*pictures)


# ---------------------------------------------------------------------------------------------- on a GPU

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@pytest.fixture
def fresh(monkeypatch):
    """No failure so far, and none allowed."""
    monkeypatch.setattr(graphs, '_failures', [])
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    with torch.no_grad():
        yield


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_decoder_on_a_gpu(fresh, dtype, tolerance):
    torch.manual_seed(0)
    decoder = lively(BandedDecoder(256, style_dim=64, dtype=dtype).requires_grad_(False).cuda())
    graphed = Graphed(decoder.synthesize, decoder)
    for batch in (1, 3):
        for _ in range(3):
            weights = decoder.modulate(decoder.map(torch.randn(1, 64, device='cuda')))
            for _ in range(2):
                features, noise = torch.randn(batch, 256, 64, 64, device='cuda'), decoder.random_noise(batch)
                image, expected = graphed(features, weights, noise), decoder.synthesize(features, weights, noise)
                assert (image - expected).abs().max() <= tolerance * expected.abs().max()
    assert len(graphed.captures) == 2


@pytest.mark.gpu
@on_a_gpu
def test_generator_on_a_gpu(fresh):
    torch.manual_seed(0)
    opts = [parse('generate_shapes_and_images', '', ['--size', '128', *flags]) for flags in ([], ['--cuda_graphs'])]
    generator, graphed = (build_generator(opt, **fast_parts(opt, graphs=True)).requires_grad_(False).cuda()
                          for opt in opts)
    graphed.load_state_dict(lively(generator).state_dict())
    cameras = cameras_at(torch.tensor([[0.3, -0.1], [-0.2, 0.2], [0., 0.]], device='cuda'))
    latents = torch.randn(3, 256, device='cuda')
    noise = generator.decoder.random_noise(1)
    plain = [generator(latents[i:i + 1], cameras[i:i + 1], noise=noise) for i in range(3)]
    for i, expected in enumerate(plain):
        found = graphed(latents[i:i + 1], cameras[i:i + 1], noise=noise)
        for name in ('thumbnail', 'features', 'xyz', 'background'):
            value, reference = getattr(found.rendering, name), getattr(expected.rendering, name)
            assert (value - reference).abs().max() <= 1e-4 * reference.abs().max(), name
        assert (found.image - expected.image).abs().max() <= 1e-3 * expected.image.abs().max()


@pytest.mark.gpu
@on_a_gpu
def test_a_broken_capture_on_a_gpu_leaves_pytorch_as_it_was(fresh, monkeypatch, capfd):
    monkeypatch.setenv('STYLESDF_OPS', 'auto')
    kernels._warn_once.cache_clear()
    layer, x = Layer().cuda(), torch.randn(3, 4, device='cuda')
    graphed = Graphed(lambda x: x * (1 if x.sum().item() > 1e9 else 2), layer)
    assert torch.equal(graphed(x), 2 * x) and torch.equal(graphed(x), 2 * x)
    assert 'warning: CUDA graphs do not work here' in capfd.readouterr().err
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.randn(1 << 20, device='cuda').sum().item()  # random numbers, memory, kernels
    torch.cuda.empty_cache()
    monkeypatch.setattr(graphs, '_failures', [])
    graphed = Graphed(layer.forward, layer)
    for _ in range(3):
        x.normal_()
        assert torch.equal(graphed(x)['y'], layer(x)['y'])
    assert len(graphed.captures) == 1

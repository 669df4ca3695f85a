"""op/products.py, op/sines.py and op/threads.py: what the definitions give, by quicker libraries and on all threads."""
import os
import time

import pytest
import torch
from conftest import assert_close, formula

from camera import cameras_at
from op import products, sines
from op.products import definition, product
from op.sines import sine
from op.threads import for_each
from op.tiles import TiledRenderer

X86 = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
CPU = torch.device('cpu')


def matrices(rows, inputs, outputs, images=1):
    x, weight, bias = (formula(name, shape) for name, shape in (
        ('x', (images, rows, inputs)), ('weight', (images, outputs, inputs)), ('bias', (images, 1, outputs))))
    return x, weight.transpose(1, 2), bias


@pytest.mark.parametrize('rows, inputs, outputs, images', [
    (1, 32, 32, 1), (1000, 256, 256, 1), (77, 16, 48, 1), (100, 3, 64, 1), (100, 64, 3, 1), (0, 32, 32, 1),
    (50, 32, 32, 2)])
@pytest.mark.parametrize('with_bias', [True, False])
def test_a_product_is_the_definition(rows, inputs, outputs, images, with_bias):
    found = []
    for multiply in (product, definition):
        given = [tensor.clone().requires_grad_() for tensor in matrices(rows, inputs, outputs, images)]
        x, weight, bias = given
        result = multiply(x, weight, bias if with_bias else None)
        slopes = torch.autograd.grad(result.square().sum(), given[:3 if with_bias else 2], create_graph=True)
        found.append((result, *slopes, torch.autograd.grad(slopes[0].square().sum(), weight)[0]))  # of second order too
    for values, expected in zip(*found, strict=True):
        assert values.shape == expected.shape
        if values.numel():
            assert_close(values, expected, 1e-5)


@torch.no_grad()
def test_a_product_of_parts_of_tensors():
    """As the layer that sees the view direction: of a part of the weights; and of points that lie apart."""
    x, weight, _ = matrices(200, 70, 64)
    assert_close(product(x[:, ::2, :64], weight[:, :64]), definition(x[:, ::2, :64], weight[:, :64]), 1e-5)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others():
    """So a sample is the same to the last bit, whichever samples are evaluated with it."""
    x, weight, bias = matrices(3000, 64, 64)
    whole = product(x, weight, bias)
    for part in (slice(0, 1), slice(17, 18), slice(5, 205), slice(100, 3000)):
        assert torch.equal(product(x[:, part], weight, bias), whole[:, part])


@pytest.mark.skipif(not X86, reason='not for this processor')
def test_onednn_multiplies(monkeypatch):
    calls, convolve = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, 'mkldnn_convolution',
                        lambda *args, **more: (calls.append(1), convolve(*args, **more))[1])
    renderer = TiledRenderer(style_dim=16, resolution=8, samples=4, depth=3, width=32)
    with torch.no_grad():
        renderer.sdf_at(renderer.field(formula('w', (1, 16))), formula('points', (10, 3), 0.1), cameras(renderer))
    assert len(calls) == 2  # the first of three layers has three inputs
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not products._suits(*matrices(10, 32, 32)[:2])


def cameras(renderer):
    return cameras_at(torch.zeros(1, 2), resolution=renderer.resolution)


@pytest.mark.parametrize('quick', [True, False])
def test_sines_are_pytorchs(quick, monkeypatch):
    monkeypatch.setattr(sines, '_suits', lambda x: quick)
    x = formula('x', (500, 64), 100.)
    assert (sine(x.clone()) - x.double().sin()).abs().max() < 2e-7


def test_a_sine_overwrites_only_where_no_gradient_is_wanted():
    x = formula('x', (4, 4))
    with torch.no_grad():
        assert sine(x) is x
    given = formula('x', (4, 4)).requires_grad_()
    slope, = torch.autograd.grad(sine(given).sum(), given)
    assert torch.equal(slope, given.cos()) and torch.equal(given, formula('x', (4, 4)))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures('two_threads')
def test_each_item_once_with_a_thread_of_its_own():
    done = []
    for_each(lambda item: done.append((item, torch.get_num_threads(), torch.is_grad_enabled())), list(range(20)), CPU)
    assert sorted(done) == [(item, 1, False) for item in range(20)]
    assert torch.get_num_threads() == 2
    for_each(lambda item: done.append(item), [1, 2, 3], CPU, in_order=True)
    assert done[20:] == [1, 2, 3]


@pytest.mark.usefixtures('two_threads')
def test_what_an_item_raises_reaches_the_caller_and_ends_the_work():
    done = []

    def work(item):
        if item == 3:
            raise ValueError('three')
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(ValueError, match='three'):
        for_each(work, list(range(500)), CPU)
    for_each(done.append, ['a', 'b'], CPU)  # the threads are free again
    assert len(done) < 250


@pytest.mark.usefixtures('two_threads')
def test_items_within_items():
    done = []
    for_each(lambda item: for_each(lambda inner: done.append((item, inner)), [0, 1], CPU), [0, 1, 2], CPU)
    assert sorted(done) == [(item, inner) for item in range(3) for inner in range(2)]


@pytest.mark.usefixtures('two_threads')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_forked_process_has_its_own_threads():
    for_each(lambda item: None, [0, 1], CPU)
    child = os.fork()
    if not child:
        done = []
        for_each(done.append, [0, 1], CPU)
        os._exit(0 if sorted(done) == [0, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures('two_threads')
@torch.no_grad()
def test_the_number_of_threads_changes_nothing():
    torch.manual_seed(0)
    renderer = TiledRenderer(style_dim=16, resolution=24, samples=30, depth=3, width=128, perturb=0.)
    w, points = formula('w', (1, 16)), formula('points', (20000, 3), 0.1)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append((renderer.sdf_at(renderer.field(w), points, cameras(renderer)),
                      renderer(w, cameras(renderer), sdf=True).sdf))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)

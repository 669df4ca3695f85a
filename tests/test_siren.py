"""op/siren.py: the kernel's arithmetic in Triton's interpreter, what its compiler makes of it, when it is used.

The interpreter runs the kernel's own code on a CPU, program by program. It is chosen when Triton is imported, so it has
a process of its own.
"""
import os
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT

from camera import cameras_at
from op import kernels, siren
from op.folded_field import FoldedField, fold
from op.tiles import TiledRenderer
from utils import UserError
from volume_renderer import SirenField

# images, hidden layers, channels, rays, samples a ray, whether features and colors are wanted
CASES = [(1, 1, 16, 7, 5, True), (1, 1, 20, 131, 1, False), (2, 3, 40, 23, 3, True), (1, 8, 32, 65, 1, True),
         (3, 2, 64, 5, 13, True), (2, 8, 64, 1, 67, False), (1, 2, 100, 3, 1, True), (1, 3, 256, 13, 5, True)]
EVALUATE = 'import sys, torch, test_siren as t; torch.save([t.evaluate(*case) for case in t.CASES], sys.argv[1])'


def problem(images, depth, width, rays, samples, view):
    """(field, points, view directions or None) with random numbers that depend on the arguments alone."""
    torch.manual_seed(depth * width + rays)
    field = fold(SirenField(depth, width, style_dim=8).requires_grad_(False), torch.randn(images, 8))
    points = 2.4 * torch.rand(images, rays * samples, 3) - 1.2
    viewdirs = torch.nn.functional.normalize(torch.randn(images, rays, 3), dim=-1)
    return field, points, viewdirs if view else None


def evaluate(*case):
    """The kernel's values for a case. The results start as NaN: it must write every one of them."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    return siren.fused(*problem(*case))


@pytest.fixture(scope='module')
def interpreted(tmp_path_factory):
    """{case: the kernel's values} from Triton's interpreter."""
    pytest.importorskip('triton')
    path = tmp_path_factory.mktemp('siren') / 'values.pt'
    run = subprocess.run([sys.executable, '-c', EVALUATE, path], cwd=ROOT / 'tests', capture_output=True, text=True,
                         env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': str(ROOT)})
    assert run.returncode == 0, run.stderr
    return dict(zip(CASES, torch.load(path, weights_only=True), strict=True))


@pytest.mark.parametrize('case', CASES, ids=str)
def test_kernel_in_the_interpreter_equals_the_definition(interpreted, case):
    field, points, viewdirs = problem(*case)
    images, _, width, rays, samples, view = case
    values = interpreted[case]
    shapes = [tuple(value.shape) for value in values if value is not None]
    assert shapes == [(images, rays * samples, channels) for channels in ((1, width, 3) if view else (1,))]
    kernel, plain = (siren.disagreement(given, field, points, viewdirs, most=points.shape[1])
                     for given in (values, field.steps(points, viewdirs)))
    assert kernel < 4 * plain, 'three products of halves are about as good as float32; one is not by far'


def test_disagreement_sees_one_wrong_number():
    field, points, viewdirs = problem(2, 3, 40, 23, 3, True)
    assert siren.disagreement(field.steps(points, viewdirs), field, points, viewdirs) < 1e-5
    for i in range(3):
        values = field.steps(points, viewdirs)
        values[i][1, 0, -1] += 0.01 * values[i].abs().max()
        assert siren.disagreement(values, field, points, viewdirs) == pytest.approx(0.01, rel=0.1)
        values[i][1, 0, -1] = torch.nan
        assert not siren.disagreement(values, field, points, viewdirs) <= siren.AGREEMENT


@pytest.mark.parametrize('view', [False, True])
def test_kernel_compiles_for_hopper_without_spilling(view):
    kernel = pytest.importorskip('op.siren_kernel', reason='needs Triton', exc_type=ImportError)
    made = kernel.compiled(kernel.settings(8, view, 256, 1 / 64))
    assert made['spilled'] == 0 and made['registers'] <= 255
    assert made['shared'] <= 227 * 1024, 'what a block may have there'
    assert 'wgmma.mma_async' in made['ptx'] and 'cp.async' in made['ptx']
    assert 'sin.approx' not in made['ptx']


# ------------------------------------------------------------------------------------------------------ when it is used

@pytest.fixture
def hopper(monkeypatch):
    """CPU tensors pass for those of a Hopper GPU that has not been used yet; `fused` then is the test's to replace."""
    monkeypatch.setenv('STYLESDF_OPS', 'auto')
    monkeypatch.setattr(kernels, 'wanted', lambda x: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr(siren, '_failures', {})
    kernels._warn_once.cache_clear()
    yield
    kernels._warn_once.cache_clear()


def count_calls(monkeypatch, function):
    """Put `function` in the kernel's place; returns the list that grows by one with each call."""
    calls = []
    monkeypatch.setattr(siren, 'fused', lambda *a: calls.append(a) or function(*a))
    return calls


def fail(*_):
    raise RuntimeError('no such\ninstruction')


@pytest.mark.parametrize('broken, reason', [
    (fail, 'RuntimeError: no such instruction'),
    (lambda *a: tuple(value * 1.01 for value in FoldedField.steps(*a)), 'differ'),
    (lambda *a: tuple(value * torch.nan for value in FoldedField.steps(*a)), 'differ')])
def test_kernel_that_fails_or_is_wrong_is_said_once_and_not_used(hopper, monkeypatch, capsys, broken, reason):
    calls = count_calls(monkeypatch, broken)
    field, points, viewdirs = problem(2, 3, 40, 23, 3, True)
    for _ in range(3):
        for value, expected in zip(siren.fused_field(field, points, viewdirs),
                                   field.steps(points, viewdirs), strict=True):
            assert torch.equal(value, expected)
    assert len(calls) == 1
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith('warning: ') and reason in said
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    with pytest.raises(UserError, match=f'STYLESDF_OPS=cuda.*{reason}'):
        siren.fused_field(field, points, viewdirs)


def test_kernel_that_agrees_is_used_and_checked_once(hopper, monkeypatch, capsys):
    calls = count_calls(monkeypatch, FoldedField.steps)
    checks = []
    check = siren.disagreement
    monkeypatch.setattr(siren, 'disagreement', lambda *a: checks.append(a) or check(*a))
    field, points, viewdirs = problem(2, 3, 40, 23, 3, True)
    for _ in range(3):
        siren.fused_field(field, points, viewdirs)
    assert (len(calls), len(checks)) == (3, 1)
    siren.fused_field(field, points)
    assert (len(calls), len(checks)) == (4, 2), 'another variant of the kernel'
    assert capsys.readouterr().err == ''


def test_only_calls_that_the_kernel_is_made_for_reach_it(hopper, monkeypatch):
    calls = count_calls(monkeypatch, FoldedField.steps)
    field, points, viewdirs = problem(2, 3, 40, 23, 3, True)
    siren.fused_field(field, points, viewdirs)
    assert len(calls) == 1
    siren.fused_field(field, points[:, :0])
    siren.fused_field(*problem(1, 1, 264, 2, 1, False)[:2])
    network = SirenField(2, 16, style_dim=8)
    field = fold(network, torch.randn(1, 8))
    sdf, _, _ = siren.fused_field(field, points[:1])
    sdf.sum().backward()
    assert network.pts_linears[0].weight.grad.abs().sum() > 0
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    with torch.no_grad():
        siren.fused_field(field, points[:1])
        assert len(calls) == 1
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
        siren.fused_field(field, points[:1])
    assert len(calls) == 2


def test_rendering_on_a_cpu_imports_no_kernel(fresh_process):
    assert fresh_process[0]['modules after rendering'] == ['op.siren']


def test_plain_mode_and_cpu_never_reach_it(monkeypatch):
    calls = count_calls(monkeypatch, fail)
    on_gpu = types.SimpleNamespace(is_cuda=True)
    monkeypatch.setenv('STYLESDF_OPS', 'plain')
    assert not kernels.wanted(on_gpu)
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    assert kernels.wanted(on_gpu)
    siren.fused_field(*problem(1, 1, 16, 7, 5, True))
    assert not calls


@pytest.mark.parametrize('color', [False, True])
def test_renderer_hands_its_points_to_the_kernel(hopper, monkeypatch, color):
    torch.manual_seed(0)
    renderer = TiledRenderer(style_dim=8, resolution=6, samples=5, depth=2, width=16)
    w, camera = torch.randn(1, 8), cameras_at(torch.tensor([[0.2, 0.1]]), 6)
    places = torch.rand(7, 3) * 0.1
    viewdirs = torch.nn.functional.normalize(torch.randn(7, 3), dim=-1)
    seen = []
    for capability in ((8, 0), (9, 0)):
        calls = count_calls(monkeypatch, FoldedField.steps)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, found=capability: found)
        with torch.no_grad():
            rendering = renderer(w, camera, color=color, sdf=True, rng=torch.Generator().manual_seed(1))
            sdf = renderer.sdf_at(renderer.field(w), places, camera)
            colors = renderer.color_at(w, places, viewdirs, camera)
        assert len(calls) == (0 if capability == (8, 0) else 3)
        seen.append([value for value in (*rendering, sdf, colors) if value is not None])
    assert all(torch.equal(plain, fused) for plain, fused in zip(*seen, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != siren.CAPABILITY,
                    reason='needs a Hopper GPU')
@pytest.mark.parametrize('case', [*CASES, (2, 8, 256, 1000, 24, True), (1, 8, 256, 1, 70001, False)], ids=str)
def test_kernel_on_a_gpu_equals_the_definition(monkeypatch, case):
    monkeypatch.setenv('STYLESDF_OPS', 'cuda')
    field, points, viewdirs = problem(*case)
    field = field.to('cuda')
    points, viewdirs = points.cuda(), None if viewdirs is None else viewdirs.cuda()
    values = siren.fused_field(field, points, viewdirs)
    kernel, plain = (siren.disagreement(given, field, points, viewdirs, most=points.shape[1])
                     for given in (values, field.steps(points, viewdirs)))
    assert kernel < 6 * plain

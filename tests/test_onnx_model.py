"""ONNX graphs run by onnxruntime give what the plain definitions give."""
import sys

import numpy as np
import pytest
import torch
from tiny_model import TINY, save_tiny_model

import export_model
import options
from camera import cameras_at
from inference.loading import load_generator
from inference.onnx_model import (
    compare_with,
    decoder_graph,
    field_graphs,
    latents_graphs,
    session_of,
    synthesis_graph,
)
from model import build_generator

pytest.importorskip('onnx', reason='needs onnx (requirements-onnx.txt)')
pytest.importorskip('onnxruntime', reason='needs onnxruntime (requirements-onnx.txt)')

VIEWS = torch.tensor([[0., 0.], [0.5, -0.3], [-2.5, 0.9]])
KINDS = {'full': ['--size', '32', '--channel_max', '12'],
         'raw density': ['--no_sdf', '--no_z_normalize', '--size', '8'], 'stage 1': []}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_near(found, expected):
    """Within 1e-4 of the largest number, which is what docs/generate.md promises."""
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < 1e-4 * expected.abs().max()


@pytest.fixture(scope='module', params=KINDS)
def model(request):
    """(generator, its MeanLatents, its option tree) of the plain definitions, in the formats that models have."""
    opt = options.parse('export_model', '', [*TINY, *KINDS[request.param], '--N_samples', '7', '--fov', '9'])
    torch.manual_seed(0)
    generator = build_generator(opt, full_pipeline=request.param != 'stage 1').requires_grad_(False).eval()
    if generator.full_pipeline:  # biases and strengths of the noise begin as zeros
        for name, tensor in generator.decoder.named_parameters():
            if tensor.abs().max() == 0:
                tensor.copy_(random(*tensor.shape, seed=len(name)))
    return generator, generator.mean_latents(100, torch.Generator().manual_seed(1)), opt


def run(graph, tmp_path, outputs=None, **inputs):
    session = session_of(graph.save(tmp_path / 'graph.onnx'))
    return session.run(outputs, {name: value.numpy() for name, value in inputs.items()})


def test_latents(model, tmp_path):
    generator, means, _ = model
    graphs = latents_graphs(generator, means)
    z, truncation = random(5, 8), torch.tensor([0.6])
    w = generator.map(z, 0.6, means)
    found = run(graphs['mapping'], tmp_path, z=z, truncation=truncation)
    assert_near(found[0], w)
    assert_near(run(graphs['latents'], tmp_path, z=z, truncation=truncation)[0], w)
    if not generator.full_pipeline:
        assert len(found) == 1 and 'style' not in graphs
        return
    w_prime = generator.decoder.map(w, 0.6, means.w_prime)
    assert_near(found[1], w_prime)
    assert_near(run(graphs['style'], tmp_path, w=w, truncation=truncation)[0], w_prime)


@pytest.mark.parametrize('batch', [1, 3])
def test_synthesis(model, tmp_path, batch):
    """Image, thumbnail and depth, with maps of noise for each image, and with those of the checkpoint."""
    generator, means, opt = model
    views, w = VIEWS[:batch], generator.map(random(batch, 8))
    cameras = cameras_at(views, 8, 9., 0.12)
    rendering = generator.render(w, cameras)
    camera = cameras.extrinsics
    depth = torch.einsum('bi,bihw->bhw', camera[:, :, 2], camera[:, :, 3, None, None] - rendering.xyz)
    inputs = {'w': w, 'viewpoint': views}
    if generator.full_pipeline:
        inputs['w_prime'] = generator.decoder.map(w) + random(batch, generator.decoder.num_layers, 16, seed=3)
    graph = synthesis_graph(generator, opt)
    *image, thumbnail, found = run(graph, tmp_path, **inputs)
    assert_near(thumbnail, rendering.thumbnail)
    assert_near(found[:, 0], depth)
    if generator.full_pipeline:
        decoder = generator.decoder
        assert_near(image[0], decoder(rendering.features, inputs['w_prime'], decoder.fixed_noise()))
        noise = decoder.random_noise(batch, torch.Generator().manual_seed(4))
        inputs |= {f'noise_{i}': one for i, one in enumerate(noise)}
        assert_near(run(graph, tmp_path, ['image'], **inputs)[0],
                    decoder(rendering.features, inputs['w_prime'], noise))


def test_parts(model, tmp_path):
    """The other graphs of the page: the field anywhere, and the decoder by itself."""
    generator, _, _ = model
    renderer, w = generator.renderer, generator.map(random(2, 8))
    points, viewdirs = 0.1 * random(2, 30, 3), torch.nn.functional.normalize(random(2, 30, 3, seed=1), dim=-1)
    distances, features, logits = renderer.field(w)(renderer.scale(points, cameras_at(VIEWS[1:], 8)), viewdirs)
    graphs = field_graphs(renderer, 0.12)
    for found, expected in zip(run(graphs['field'], tmp_path, w=w, points=points, viewdirs=viewdirs),
                               (distances[..., 0], features, torch.sigmoid(logits)), strict=True):
        assert_near(found, expected)
    assert_near(run(graphs['distance'], tmp_path, w=w, points=points)[0], distances[..., 0])
    if generator.full_pipeline:
        features, w_prime = random(2, 8, 8, 8), generator.decoder.map(w)
        found, = run(decoder_graph(generator.decoder), tmp_path, features=features, w_prime=w_prime)
        assert_near(found, generator.decoder(features, w_prime, generator.decoder.fixed_noise()))


def test_weights_that_are_exact_in_half_precision_are_stored_so(model, tmp_path):
    generator, _, opt = model
    sizes = []
    for half in (False, True):
        if half:
            for tensor in generator.state_dict().values():
                tensor.copy_(tensor.half().float())
        sizes.append(synthesis_graph(generator, opt).save(tmp_path / 'one.onnx').stat().st_size)
    assert sizes[1] < sizes[0]


# ---------------------------------------------------------------------------------------------- the command

def test_the_command_writes_both_files(tmp_path, command):
    save_tiny_model(tmp_path)
    code, out, _ = command(export_model, '--expname', 'tiny', '--out', 'new/cat.onnx', '--format', 'onnx')
    files = [tmp_path / 'new' / name for name in ('cat.onnx', 'cat_mapping.onnx')]
    assert code == 0 and "differs from PyTorch's by" in out
    assert sorted((tmp_path / 'new').iterdir()) == files
    generator, opt, *_ = load_generator(options.parse('export_model', '', ['--expname', 'tiny']), torch.device('cpu'))
    means = generator.mean_latents(10_000, torch.Generator().manual_seed(1234))
    assert compare_with(generator, opt, means, *files) < 1e-4
    generator.decoder.to_rgb1.bias += 0.1
    assert compare_with(generator, opt, means, *files) > 1e-3, 'the comparison sees no difference'


@pytest.mark.parametrize('flags, sentence', [
    ('--out cat.pt --format onnx', 'ends in .onnx'), ('--format onnx', '--out is missing'),
    ('--out a.onnx --format gif', "invalid choice: 'gif'"), ('--out a.pt --onnxruntime_web .', 'only the page')])
def test_bad_input_is_one_sentence(tmp_path, command, flags, sentence):
    save_tiny_model(tmp_path)
    code, _, error = command(export_model, '--expname', 'tiny', *flags.split())
    assert code == 2 and sentence in error and not (tmp_path / 'a.onnx').exists()


def test_without_onnx_one_sentence_says_what_to_install(tmp_path, command, monkeypatch):
    save_tiny_model(tmp_path)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    code, _, error = command(export_model, '--expname', 'tiny', '--out', 'a.onnx', '--format', 'onnx')
    assert code == 2 and 'pip install -r requirements-onnx.txt' in error and not (tmp_path / 'a.onnx').exists()

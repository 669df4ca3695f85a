"""The generator as ONNX graphs, which run without Python and PyTorch: by onnxruntime, in browsers, on phones.

    mapping      z, truncation             -> w, w_prime
    synthesis    w, w_prime, viewpoint,    -> image, thumbnail, depth
                 noise_0, noise_1, …

The page that runs in a browser (web/browser) chooses the samples of a picture itself, so its graphs are smaller parts:

    latents      z, truncation             -> w
    style        w, truncation             -> w_prime
    distance     w, points                 -> signed distances
    field        w, points, viewdirs       -> signed distances, features, colors
    decoder      features, w_prime         -> image

The definitions are model.py, volume_renderer.py and camera.py, and tests hold the graphs to them. The graphs are
written out rather than traced, because a definition that is good for PyTorch is not always good for ONNX: modulated
convolutions become ordinary ones between two products (an ONNX convolution cannot have as many groups as there are
images), the cumulative product, which ONNX lacks, becomes a sum of logarithms, and latents are folded into the
field's weights (op/folded_field.py). Shapes in the comments: B images, R rays, N samples a ray, C channels.
"""
import math
from pathlib import Path

import numpy as np
import torch

from camera import cameras_of
from inference.onnx_graph import Graph, import_onnx, joined
from volume_renderer import LAST_SPACING, camera_directions, sample_depths

TINY = 1e-10  # as in volume_renderer.ray_weights


# ---------------------------------------------------------------------------------------------- latents

def linear(x, weight, bias):
    """x (B,in) through a linear layer; weight (out,in)."""
    return x @ weight.T + bias


def equalized(layer, x):
    """EqualLinear without its activation. The weights are stored as they are, in half precision if they fit."""
    return x @ layer.weight.T * layer.scale + layer.bias * layer.lr_multiplier


def leaky(x):
    return x.unary('LeakyRelu', alpha=0.2)


def mapped(generator, means, z, psi):
    """Truncated w (B,style_dim) from z (B,style_dim) (Generator.map). means: the MeanLatents that psi pulls towards."""
    w = z
    for layer in generator.style:
        w = leaky(linear(w, layer.weight, layer.bias))
    return (w - means.w) * psi + means.w


def styled_latents(generator, means, w, psi):
    """Truncated w_prime (B,L,2*style_dim) from w (B,style_dim) (Decoder.map)."""
    style = w * (w.square().mean(-1) + 1e-8).rsqrt()
    for layer in generator.decoder.style[1:]:
        style = leaky(equalized(layer, style)) * math.sqrt(2)
    w_prime = ((style - means.w_prime) * psi + means.w_prime).unsqueeze(1)
    return joined(*[w_prime] * generator.decoder.num_layers, axis=1)


def latents_graphs(generator, means):
    """{name: graph} of mapping, latents and, with a decoder, style."""
    size, graphs = generator.style_dim, {}

    def begun(name, entry):
        graphs[name] = Graph(name)
        return graphs[name], graphs[name].input(entry, ('batch', size)), graphs[name].input('truncation', (1,))

    for name in ('mapping', 'latents', *['style'] * generator.full_pipeline):
        graph, given, psi = begun(name, 'w' if name == 'style' else 'z')
        w = given if name == 'style' else mapped(generator, means, given, psi)
        if name != 'style':
            graph.output('w', w, ('batch', size))
        if name != 'latents' and generator.full_pipeline:
            w_prime = styled_latents(generator, means, w, psi)
            graph.output('w_prime', w_prime, ('batch', generator.decoder.num_layers, 2 * size))
    return graphs


# ---------------------------------------------------------------------------------------------- field

def folded(layer, w):
    """The weight (B,in,out) and the bias (B,1,out) of a FiLM-SIREN layer for latents w: sin(x weight + bias)."""
    gain = (linear(w, layer.gamma.weight, layer.gamma.bias) * 15 + 30).unsqueeze(1)
    shift = (linear(w, layer.beta.weight, layer.beta.bias) * 0.25).unsqueeze(1)
    return gain * layer.weight.T, gain * layer.bias + shift


def hidden_and_distances(network, w, points):
    """Activations (B,P,C) of the last hidden layer and its first output (B,P,1) at points (B,P,3) in its units."""
    hidden = points
    for layer in network.pts_linears:
        weight, bias = folded(layer, w)
        hidden = (hidden @ weight + bias).unary('Sin')
    return hidden, linear(hidden, network.sigma_linear.weight, network.sigma_linear.bias)


def scaled(renderer, points, dist_radius):
    """World points in the field's units (VolumeRenderer.scale)."""
    return points * (1 / dist_radius) if renderer.z_normalize else points


def field_graphs(renderer, dist_radius):
    """{name: graph} of distance and field: w (B,style_dim) and world points (B,P,3) to signed distances (B,P) in the
    field's units, and with unit view directions (B,P,3) to features (B,P,C) and colors (B,P,3) in [0, 1]."""
    network, graphs = renderer.network, {}
    for name in ('distance', 'field'):
        graph = graphs[name] = Graph(name)
        w, points = graph.input('w', ('batch', style_dim_of(renderer))), graph.input('points', ('batch', 'points', 3))
        hidden, distances = hidden_and_distances(network, w, scaled(renderer, points, dist_radius))
        graph.output('distances', distances.reshape(0, -1), ('batch', 'points'))
        if name == 'field':
            weight, bias = folded(network.views_linears, w)
            seen = joined(hidden, graph.input('viewdirs', ('batch', 'points', 3)))
            features = (seen @ weight + bias).unary('Sin')
            colors = linear(features, network.rgb_linear.weight, network.rgb_linear.bias).unary('Sigmoid')
            graph.output('features', features, ('batch', 'points', network.width))
            graph.output('colors', colors, ('batch', 'points', 3))
    return graphs


def style_dim_of(renderer):
    return renderer.network.views_linears.gamma.in_features


# ---------------------------------------------------------------------------------------------- renderer

def ray_weights(renderer, raw, spacing):
    """Weights (B,R,N) of samples from the field's first output and the spacing between them, both (B,R,N)."""
    if renderer.has_sdf:
        beta = renderer.sigmoid_beta.item()
        density = (raw * (-1 / beta)).unary('Sigmoid') * (1 / beta)
    else:
        density = raw.unary('Softplus')
    clear = (-(density * spacing)).unary('Exp')                                             # (B,R,N) 1 - alpha
    logarithms = (clear + TINY).unary('Log')
    before = raw.graph.add('CumSum', logarithms, raw.graph.constant([2]), exclusive=1).unary('Exp')
    weights = (1 - clear) * before
    if renderer.force_background:
        front = weights.cut(0, -1)
        weights = joined(front, 1 - front.sum(-1))
    return weights


def rendered(renderer, w, rotation, local, t, dist_radius):
    """(thumbnail (B,R,3), features (B,R,C), depth (B,R,1), background (B,R,1)) of rays (VolumeRenderer.march).

    w: (B,style_dim). rotation: (B,3,3) of the cameras; its third column is also their place. local: (B,R,3) directions
    in the camera frame. t: (B,R,N) samples. The depth is that of the expected surface point, along the viewing
    direction.
    """
    graph, network = w.graph, renderer.network
    by_samples = graph.add('Concat', t.unary('Shape'), [network.width], axis=0)             # B, R, N, C
    directions = local @ rotation.transpose(0, 2, 1)                                        # (B,R,3)
    viewdirs = (local if renderer.static_viewdirs else directions).normalized()
    origin = rotation.cut(2, 3).transpose(0, 2, 1).unsqueeze(1)                             # (B,1,1,3)
    points = origin + directions.unsqueeze(2) * t.unsqueeze(3)                              # (B,R,N,3)
    points = scaled(renderer, points, dist_radius).reshape(0, -1, 3)                        # (B,R*N,3)
    hidden, raw = hidden_and_distances(network, w, points)
    raw = graph.add('Reshape', raw, t.unary('Shape'))                                       # (B,R,N)

    weight, bias = folded(network.views_linears, w)                                         # (B,C+3,C)
    from_point = graph.add('Reshape', hidden @ weight.cut(0, network.width, axis=1), by_samples)
    from_ray = viewdirs @ weight.cut(network.width, None, axis=1) + bias                    # (B,R,C)
    features = (from_point + from_ray.unsqueeze(2)).unary('Sin')                            # (B,R,N,C)
    colors = linear(features, network.rgb_linear.weight, network.rgb_linear.bias).unary('Sigmoid')

    spacing = joined(t.cut(1, None) - t.cut(0, -1), t.cut(-1, None) * 0 + LAST_SPACING)
    weights = ray_weights(renderer, raw, spacing * local.square().sum(-1).unary('Sqrt'))
    by_ray = weights.unsqueeze(2)                                                           # (B,R,1,N)
    thumbnail, features = ((by_ray @ values).squeeze(2) for values in (colors, features))
    return thumbnail * 2 - 1, features, (weights * t).sum(-1), weights.cut(-1, None)


def rotation_of(viewpoint):
    """The rotation (B,3,3) of cameras at viewpoints (B,2), azimuth and elevation in radians (camera.cameras_at)."""
    sine, cosine = viewpoint.unary('Sin'), viewpoint.unary('Cos')
    (sin_a, sin_e), (cos_a, cos_e) = ((both.cut(0, 1), both.cut(1, 2)) for both in (sine, cosine))
    rows = (cos_a, -(sin_e * sin_a), cos_e * sin_a,
            cos_a * 0, cos_e, sin_e,
            -sin_a, -(sin_e * cos_a), cos_e * cos_a)
    return joined(*rows).reshape(0, 3, 3)


# ---------------------------------------------------------------------------------------------- decoder

def convolved(layer, x, w_prime):
    """ModulatedConv2d: x (B,in,h,w) times the style, through the shared weights, times the demodulation (Karras et al.
    2020, section 2.2: the same as modulated weights)."""
    weight = layer.weight[0]                                                                # (out,in,k,k)
    style = equalized(layer.modulation, w_prime) * layer.scale                              # (B,in)
    x = x * style.unsqueeze(2, 3)
    if layer.up:
        x = x.graph.add('ConvTranspose', x, weight.transpose(0, 1), strides=[2, 2])
        kernel = layer.blur.kernel.flip(0, 1).expand(len(weight), 1, -1, -1)
        (before, after) = layer.blur.pad
        x = x.graph.add('Conv', x, kernel, group=len(weight), pads=[before, before, after, after])
    else:
        x = x.graph.add('Conv', x, weight, pads=[layer.padding] * 4)
    if layer.demodulate:
        x = x * (style.square() @ weight.square().sum(dim=(2, 3)).T + 1e-8).rsqrt().unsqueeze(2, 3)
    return x


def styled(layer, x, w_prime, noise):
    """StyledConv."""
    x = convolved(layer.conv, x, w_prime) + noise * layer.noise.weight.item()
    return leaky(x + layer.activate.bias[:, None, None]) * layer.activate.gain


def upsampled(blur, x):
    """Blur that inserts zeros: a transposed convolution of each channel by itself, cut to twice the size."""
    (before, after), taps = blur.pad, len(blur.kernel)
    # Uncut, the result would be taps - 2 longer than twice the input; padding before and after sets where it begins.
    first, last = taps - 1 - before, taps - 2 - after
    kernel = blur.kernel.expand(3, 1, -1, -1)
    return x.graph.add('ConvTranspose', x, kernel, strides=[2, 2], group=3, pads=[first, first, last, last])


def to_rgb(layer, x, w_prime, skip=None):
    """ToRGB."""
    rgb = convolved(layer.conv, x, w_prime) + layer.bias
    return rgb if skip is None else rgb + upsampled(layer.upsample, skip)


def decoded(decoder, features, w_prime, noise):
    """The image (B,3,size,size) from features (B,C,h,w), w_prime (B,L,2*style_dim) and a list of noise maps (Decoder).
    """
    def layer_of(index):
        return w_prime.cut(index, index + 1, axis=1).squeeze(1)

    x = styled(decoder.conv1, features, layer_of(0), noise[0])
    rgb = to_rgb(decoder.to_rgb1, x, layer_of(1))
    for k, rgb_layer in enumerate(decoder.to_rgbs):
        x = styled(decoder.convs[2 * k], x, layer_of(2 * k + 1), noise[2 * k + 1])
        x = styled(decoder.convs[2 * k + 1], x, layer_of(2 * k + 2), noise[2 * k + 2])
        rgb = to_rgb(rgb_layer, x, layer_of(2 * k + 3), rgb)
    return rgb


def decoder_graph(decoder):
    """Features (B,C,h,w) and w_prime to the image (B,3,size,size), with the noise maps of the checkpoint."""
    graph = Graph('decoder')
    features = graph.input('features', ('batch', decoder.conv1.conv.weight.shape[2], *[decoder.resolution] * 2))
    w_prime = graph.input('w_prime', ('batch', decoder.num_layers, decoder.style[-1].weight.shape[0]))
    noise = [graph.constant(one) for one in decoder.fixed_noise()]
    graph.output('image', decoded(decoder, features, w_prime, noise), ('batch', 3, decoder.size, decoder.size))
    return graph


# ---------------------------------------------------------------------------------------------- both

def synthesis_graph(generator, opt):
    """w (B,style_dim), w_prime, viewpoint (B,2) and noise to image, thumbnail (B,3,h,w) and depth (B,1,h,w).

    Noise is one map of each size for all images, or one for each; the checkpoint's where none is given. A generator
    without decoder has neither w_prime nor noise nor image.
    """
    renderer, radius, side = generator.renderer, opt.camera.dist_radius, generator.renderer.resolution
    graph = Graph('synthesis')
    w = graph.input('w', ('batch', generator.style_dim))
    if generator.full_pipeline:
        decoder = generator.decoder
        w_prime = graph.input('w_prime', ('batch', decoder.num_layers, decoder.style[-1].weight.shape[0]))
        noise = [graph.input(f'noise_{i}', ('noise_batch', 1, *own.shape[2:]), own)
                 for i, own in enumerate(decoder.fixed_noise())]
    viewpoint = graph.input('viewpoint', ('batch', 2))
    camera = cameras_of(opt, torch.zeros(1, 2))
    ones = viewpoint.cut(0, 1).unsqueeze(2) * 0 + 1                                         # (B,1,1)
    local = ones * camera_directions(side, camera.focal)                                    # (B,R,3)
    t = local.cut(0, 1) * 0 + sample_depths(camera.near, camera.far, renderer.samples,
                                            offset_sampling=renderer.offset_sampling)       # (B,R,N)
    found = rendered(renderer, w, rotation_of(viewpoint), local, t, radius)
    thumbnail, features, depth, _ = (value.transpose(0, 2, 1).reshape(0, 0, side, side) for value in found)
    if generator.full_pipeline:
        graph.output('image', decoded(decoder, features, w_prime, noise), ('batch', 3, decoder.size, decoder.size))
    graph.output('thumbnail', thumbnail, ('batch', 3, side, side))
    graph.output('depth', depth, ('batch', 1, side, side))
    return graph


# ---------------------------------------------------------------------------------------------- files

def save_onnx(generator, opt, means, out):
    """Write synthesis to the file `out`, and mapping beside it; returns both paths. means: the MeanLatents."""
    out = Path(out)
    note = (f'StyleSDF, {opt.experiment.expname}. viewpoint: azimuth and elevation in radians. Colors lie in [-1, 1]; '
            'depth is in units of the distance from the camera to the center.')
    return (synthesis_graph(generator, opt).save(out, note),
            latents_graphs(generator, means)['mapping'].save(out.with_name(f'{out.stem}_mapping.onnx'),
                                                 'StyleSDF. z: normally distributed. truncation: from 0 to 1.'))


def session_of(path):
    """An onnxruntime session on the CPU for a file of `Graph.save`. Raises UserError without onnxruntime."""
    runtime = import_onnx('onnxruntime')
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3  # errors
    return runtime.InferenceSession(str(path), settings, providers=['CPUExecutionProvider'])


@torch.no_grad()
def compare_with(generator, opt, means, synthesis, mapping):
    """By how much the pictures of two files differ from the generator's own at most, relative to their range."""
    psi, viewpoint = opt.inference.truncation_ratio, torch.tensor([[0.2, -0.1]])
    z = torch.randn(1, generator.style_dim, generator=torch.Generator().manual_seed(opt.experiment.seed))
    names = ['w', 'w_prime'] if generator.full_pipeline else ['w']
    latents = session_of(mapping).run(names, {'z': z.numpy(), 'truncation': np.float32([psi])})
    found, = session_of(synthesis).run(['image' if generator.full_pipeline else 'thumbnail'],
                                       dict(zip(names, latents, strict=True)) | {'viewpoint': viewpoint.numpy()})
    expected = generator(z, cameras_of(opt, viewpoint), psi=psi, means=means, noise='fixed').picture
    return ((torch.from_numpy(found) - expected).abs().max() / (expected.max() - expected.min())).item()

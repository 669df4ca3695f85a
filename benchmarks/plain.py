"""StyleSDF as the paper's formulas say it, with nothing done for speed: what benchmarks/speed.py compares with.

    with plain():
        generator(z, cameras)   # the same weights, the same numbers, the long way

`plain()` replaces methods of the model's classes; `surface` and `video_frames` are the long ways of what has functions
of its own. Formulas stand here a second time on purpose: what is made faster elsewhere must not make this faster. Only
the definitions in op/ and the placing of rays and samples, which cost nothing, are shared. Shapes: B images, R rays an
image, N samples a ray, C channels.
"""
import contextlib
from unittest import mock

import torch
import torch.nn.functional as F

import model
from op.leaky_relu import _plain as leaky_relu_definition
from op.upfirdn import _plain as upfirdn_definition
from surfaces.meshes import SURFACE_RESOLUTION
from surfaces.shading import draw_surface
from training import run
from training.state import EMA_DECAY, State
from utils import to_uint8
from volume_renderer import LAST_SPACING, Rendering, VolumeRenderer, camera_directions, sample_depths


@contextlib.contextmanager
def plain():
    """Inside, models render, decode and train the long way. They must be float32 models."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
                (VolumeRenderer, 'forward', render), (model.Decoder, 'forward', decode),
                (model, 'upfirdn2d', upfirdn), (model, 'fused_leaky_relu', leaky_relu),
                (run, 'adam', adam), (State, 'update_ema', update_ema)):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


# ---------------------------------------------------------------------------------------------- the field and its rays

def film_siren(layer, x, w):
    """sin(g (W x + b) + h) at x (B,R,N,in), with g and h from w (B,style_dim) (paper, equation 1)."""
    gain, shift = 15 * layer.gamma(w) + 30, 0.25 * layer.beta(w)
    return torch.sin(gain[:, None, None] * F.linear(x, layer.weight, layer.bias) + shift[:, None, None])


def render(self, w, cameras, *, resolution=None, samples=None, color=True, features=True, sdf=False, eikonal=False,
           rng=None):
    """VolumeRenderer.forward: all points of all rays at once, with colors and features whether wanted or not."""
    resolution, samples = resolution or self.resolution, samples or self.samples
    local = camera_directions(resolution, cameras.focal)
    directions = local @ cameras.extrinsics[:, :, :3].transpose(1, 2)
    viewdirs = F.normalize(local if self.static_viewdirs else directions, dim=-1)
    t = sample_depths(cameras.near, cameras.far, samples, offset_sampling=self.offset_sampling, perturb=self.perturb,
                      rays=resolution ** 2, rng=rng).expand(-1, resolution ** 2, -1)
    points = cameras.extrinsics[:, None, None, :, 3] + directions[:, :, None] * t[..., None]  # (B,R,N,3)
    points.requires_grad_(eikonal)

    network = self.network
    depth = (cameras.far - cameras.near)[..., None]
    hidden = points * 2 / depth if self.z_normalize else points
    for layer in network.pts_linears:
        hidden = film_siren(layer, hidden, w)
    raw = F.linear(hidden, network.sigma_linear.weight, network.sigma_linear.bias)
    gradient = None
    if eikonal:
        gradient, = torch.autograd.grad(raw.sum(), points, create_graph=torch.is_grad_enabled())
    hidden = film_siren(network.views_linears,
                        torch.cat([hidden, viewdirs[:, :, None].expand(-1, -1, samples, -1)], dim=-1), w)
    rgb = torch.sigmoid(F.linear(hidden, network.rgb_linear.weight, network.rgb_linear.bias))

    weights = ray_weights(self, raw[..., 0], directions, t, rng)

    def image(values):  # (B,R,N,C) -> (B,C,H,W)
        return (weights[..., None] * values).sum(dim=2).transpose(1, 2).unflatten(2, (resolution, resolution))

    def volume(values):  # (B,R,N,C) -> (B,H,W,N,C)
        return values.unflatten(1, (resolution, resolution))

    return Rendering(2 * image(rgb) - 1 if color else None, image(hidden) if color and features else None,
                     image(points), weights[..., -1].unflatten(1, (resolution, resolution))[:, None],
                     volume(raw) if sdf else None, volume(gradient) if eikonal else None)


def ray_weights(renderer, raw, directions, t, rng):
    """Weights (B,R,N) of the samples by the density of raw (B,R,N) and the paper's quadrature (equations 4 and 5)."""
    if renderer.has_sdf:
        density = torch.sigmoid(-raw / renderer.sigmoid_beta) / renderer.sigmoid_beta
    else:
        density = renderer.density(raw, rng)
    spacing = torch.cat([t.diff(dim=-1), torch.full_like(t[..., :1], LAST_SPACING)], dim=-1)
    alpha = 1 - torch.exp(-density * spacing * directions.norm(dim=-1, keepdim=True))
    transmittance = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], dim=-1), dim=-1)
    weights = alpha * transmittance[..., :-1]
    if renderer.force_background:
        weights = torch.cat([weights[..., :-1], 1 - weights[..., :-1].sum(dim=-1, keepdim=True)], dim=-1)
    return weights


# ---------------------------------------------------------------------------------------------- the decoder

def upfirdn(x, kernel, up=1, down=1, pad=(0, 0)):
    """op.upfirdn2d by its definition: zeros inserted, padding, one depthwise convolution."""
    return upfirdn_definition(x, kernel, up, down, (*pad, *pad) if len(pad) == 2 else pad, False)


def leaky_relu(x, bias=None, negative_slope=0.2, scale=2 ** 0.5, inplace=False):
    """op.fused_leaky_relu by its definition, never in place."""
    return leaky_relu_definition(x, bias, negative_slope, scale)


def modulated_conv(conv, x, latent):
    """ModulatedConv2d as one grouped convolution, a group for each image; x (B,in,H,W), latent (B,style_dim)."""
    batch, channels, height, width = x.shape
    style = conv.modulation(latent)
    weight = conv.scale * conv.weight * style[:, None, :, None, None]  # (B,out,in,k,k)
    if conv.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, batch * channels, height, width)
    if conv.up:
        x = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
    else:
        x = F.conv2d(x, weight.flatten(0, 1), padding=conv.kernel_size // 2, groups=batch)
    x = x.view(batch, -1, *x.shape[2:])
    return upfirdn(x, conv.blur.kernel, pad=conv.blur.pad) if conv.up else x


def styled_conv(layer, x, latent, noise):
    """StyledConv: convolution, noise, bias and leaky ReLU, one after the other."""
    x = modulated_conv(layer.conv, x, latent) + layer.noise.weight * noise
    return leaky_relu(x, layer.activate.bias)


def to_rgb(layer, x, latent, skip=None):
    """ToRGB: a convolution too, and the RGB of the resolution below upsampled and added."""
    rgb = modulated_conv(layer.conv, x, latent) + layer.bias
    return rgb if skip is None else rgb + upfirdn(skip, layer.upsample.kernel, up=2, pad=(2, 1))


def decode(self, features, latents, noise):
    """Decoder.forward, with weights of their own for every image."""
    latents = latents.expand(len(features), -1, -1)
    x = styled_conv(self.conv1, features, latents[:, 0], noise[0])
    rgb = to_rgb(self.to_rgb1, x, latents[:, 1])
    for k, rgb_layer in enumerate(self.to_rgbs):
        i = 2 * k + 1
        x = styled_conv(self.convs[i - 1], x, latents[:, i], noise[i])
        x = styled_conv(self.convs[i], x, latents[:, i + 1], noise[i + 1])
        rgb = to_rgb(rgb_layer, x, latents[:, i + 2], rgb)
    return rgb


# ---------------------------------------------------------------------------------------------- surfaces and videos

@torch.no_grad()
def surface(renderer, w, camera):
    """render_surface of one view, with the SDF: every sample, colors and features too. Call it inside plain()."""
    camera = camera.magnified(SURFACE_RESOLUTION / renderer.resolution)
    return renderer(w, camera, resolution=SURFACE_RESOLUTION, samples=SURFACE_RESOLUTION, sdf=True)


@torch.no_grad()
def video_frames(generator, z, cameras, opt, means):
    """render_video.render_frames of one identity z (1,style_dim): each frame begins with z. Call it inside plain()."""
    for i in range(len(cameras)):
        camera = cameras[i:i + 1]
        image = generator(z, camera, psi=opt.inference.truncation_ratio, means=means, noise='fixed').image
        view = surface(generator.renderer, generator.map(z, opt.inference.truncation_ratio, means), camera)
        drawn = draw_surface(view.xyz[0], view.background[0], camera, opt.video.depth_style)
        yield {'video': to_uint8(image)[0], 'depth_video': to_uint8(drawn)}


# ---------------------------------------------------------------------------------------------- training

def adam(parameters, lr, betas):
    """training.adam as PyTorch has it by default."""
    return torch.optim.Adam(parameters, lr, betas)


def update_ema(state):
    """training.State.update_ema, one parameter after the other."""
    with torch.no_grad():
        for mean, new in zip(state.g_ema.parameters(), state.g.parameters(), strict=True):
            if new.requires_grad:
                mean.mul_(EMA_DECAY).add_(new, alpha=1 - EMA_DECAY)

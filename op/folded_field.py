"""A field with its latents folded into its weights: what is done once for a latent leaves the work for every point.

The definition is SirenField.forward (volume_renderer.py). A FiLM-SIREN layer sin(g (W x + b) + h), whose gain g and
shift h depend on the latent alone, is the plain layer sin(W' x + b') with W' = g W and b' = g b + h. The layer that
sees the view direction splits likewise into a part for each point and a part for each ray.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from op.products import product
from op.sines import sine
from op.siren import fused_field


class Scratch:
    """Memory that one piece of work after the other uses: to touch fresh pages takes half as long as the work on them.
    """

    def __init__(self):
        self.buffers = {}

    def tensor(self, name, shape, like):
        """An uninitialized tensor of `shape`, of the dtype and device of `like`; the next one of this name overwrites
        it."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = like.new_empty(size)
        return self.buffers[name][:size].view(shape)


class FoldedField(NamedTuple):
    """A SirenField with B latents folded into its weights, to be called with points (B,P,3) and view directions.

    With a Scratch it works there, which is for work without gradients: the next call then overwrites the features of
    the last one. B images, R rays, P points, C channels.
    """
    points: list   # for each hidden layer: weight (B,in,C), bias (B,1,C)
    views: tuple   # weight (B,C+3,C), bias (B,1,C)
    sigma: tuple   # weight (1,C), bias (1,)
    rgb: tuple     # weight (3,C), bias (3,)
    scratch: Scratch | None = None

    def __call__(self, points, viewdirs=None):
        """SirenField.forward of the folded latents, by a kernel where there is one for it."""
        return fused_field(self, points, viewdirs)

    def steps(self, points, viewdirs=None):
        """The same, step by step: the definition of the kernel."""
        return self.heads(self.hidden(points), viewdirs)

    def with_slope(self, points, viewdirs=None):
        """What a call gives, and the gradient (B,P,3) of the first output by the points, written out by the chain rule.

        With it the eikonal loss needs a derivative of first order only, and each sine and cosine is computed once.
        """
        hidden, slope = self.hidden_and_slope(points)
        return *self.heads(hidden, viewdirs), slope

    def images(self, index):
        """The field of a slice of the images."""
        return self._replace(points=[(weight[index], bias[index]) for weight, bias in self.points],
                             views=tuple(tensor[index] for tensor in self.views))

    def to(self, *to):
        """The same field in another number format or on another device."""
        return FoldedField([tuple(tensor.to(*to) for tensor in layer) for layer in self.points],
                           *(tuple(tensor.to(*to) for tensor in pair) for pair in (self.views, self.sigma, self.rgb)))

    # -- its steps

    def hidden(self, points):
        """Activations (B,P,C) of the last hidden layer."""
        for i, (weight, bias) in enumerate(self.points):
            out = self.scratch and self.scratch.tensor(i % 2, (*points.shape[:2], weight.shape[2]), points)
            points = sine(product(points, weight, bias, out))
        return points

    def hidden_and_slope(self, points):
        """What `hidden` gives, and the gradient (B,P,3) of the first output by the points."""
        cosines = []
        for weight, bias in self.points:
            points, cosine = _SinCos.apply(product(points, weight, bias))
            cosines.append(cosine)
        slope = self.sigma[0]  # (1,C), then (B,P,C) and at last (B,P,3)
        for (weight, _), cosine in zip(reversed(self.points), reversed(cosines), strict=True):
            slope = product(slope * cosine, weight.transpose(1, 2))
        return points, slope

    def heads(self, hidden, viewdirs=None):
        """Distances (B,P,1), features (B,P,C) and color logits (B,P,3) from the last hidden activations (B,P,C)."""
        if viewdirs is None:
            return F.linear(hidden, *self.sigma), None, None
        features = self.features(hidden, viewdirs)
        return F.linear(hidden, *self.sigma), features, F.linear(features, *self.rgb)

    def features(self, hidden, viewdirs):
        """Features (B,P,C) from activations (B,P,C); viewdirs (B,R,3), each for P / R points in a row."""
        weight, bias = self.views
        from_view = torch.baddbmm(bias, viewdirs, weight[:, -3:])  # once a ray, not once a sample
        out = self.scratch and self.scratch.tensor('features', hidden.shape, hidden)
        from_point = product(hidden, weight[:, :-3], out=out)
        batch, rays, width = from_view.shape
        samples = from_point.view(batch, rays, hidden.shape[1] // max(1, rays), width)
        return sine(samples + from_view[:, :, None] if samples.requires_grad
                    else samples.add_(from_view[:, :, None])).view(hidden.shape)


def fold(network, w):
    """The FoldedField of a SirenField for latents w, as SirenField.forward takes them."""
    *latents, view_latents = network.of_layers(w)
    return FoldedField([_fold_layer(*pair) for pair in zip(network.pts_linears, latents, strict=True)],
                       _fold_layer(network.views_linears, view_latents),
                       (network.sigma_linear.weight, network.sigma_linear.bias),
                       (network.rgb_linear.weight, network.rgb_linear.bias))


def _fold_layer(layer, w):
    """W' (B,in,out) and b' (B,1,out), so that the FiLM-SIREN layer is sin(x W' + b')."""
    gain, shift = layer.gain_and_shift(w)
    return ((gain[:, :, None] * layer.weight).transpose(1, 2),
            torch.addcmul(shift, gain, layer.bias)[:, None])


class _SinCos(torch.autograd.Function):
    """(sin x, cos x): each is what the other's derivative needs."""

    @staticmethod
    def forward(ctx, x):
        sine, cosine = x.sin(), x.cos()
        ctx.save_for_backward(sine, cosine)
        return sine, cosine

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_sine, d_cosine):
        sine, cosine = ctx.saved_tensors
        return (d_sine * cosine).addcmul_(d_cosine, sine, value=-1)

"""The cumulative product whose derivative a GPU computes without the host waiting for it."""
import torch

from op import kernels


def cumulative_product(x):
    """torch.cumprod of positive numbers (…,N) along the last axis; differentiable once.

    PyTorch's own derivative asks whether a number is zero, and so makes the host wait for a GPU.
    """
    return x.cumprod(dim=-1) if kernels.plain() else _CumulativeProduct.apply(x)


class _CumulativeProduct(torch.autograd.Function):
    """torch.cumprod with the derivative that holds where no factor is zero."""

    @staticmethod
    def forward(ctx, x):
        product = x.cumprod(dim=-1)
        ctx.save_for_backward(x, product)
        return product

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_product):
        x, product = ctx.saved_tensors
        return (d_product * product).flip(-1).cumsum(dim=-1).flip(-1) / x

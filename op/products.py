"""Matrix products of float32 on a CPU, by oneDNN.

On x86 processors PyTorch multiplies matrices by Intel's MKL, which on AMD's processors does not use their widest
registers (AVX-512). oneDNN, which PyTorch takes for convolutions, does, and a product is a convolution with a kernel of
one pixel. For a field's layers it is 2.3 times as fast there, and 1.15 times with AVX2 (docs/notes/performance.md).
`definition` says what is computed.
"""
import torch

PROCESSORS = 'AVX2', 'AVX512'  # of x86, as torch.backends.cpu.get_cpu_capability names them
NARROWEST = 16  # inputs and outputs; with fewer, such as the coordinates of a point, convolutions have no fast way


def product(x, weight, bias=None, out=None):
    """x W + b (B,P,N) of x (B,P,K), W (B,K,N) and b (B,1,N), which may be left out. Differentiable.

    out: a tensor (B,P,N) that may be used for the result, where no gradient is wanted.
    """
    if not _suits(x, weight):
        return definition(x, weight, bias, out)
    if torch.is_grad_enabled() and any(given is not None and given.requires_grad for given in (x, weight, bias)):
        return _Product.apply(x, weight, bias)
    return _convolution(x, weight, bias)


def definition(x, weight, bias=None, out=None):
    """What `product` computes."""
    return torch.bmm(x, weight, out=out) if bias is None else torch.baddbmm(bias, x, weight, out=out)


def _suits(x, weight):
    """Whether these matrices are for oneDNN: those of one image, since each has weights of its own."""
    return (x.device.type == 'cpu' and x.dtype == weight.dtype == torch.float32 and len(x) == 1 and x.shape[1] > 0
            and min(weight.shape[1:]) >= NARROWEST and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled and torch.backends.cpu.get_cpu_capability() in PROCESSORS)


def _convolution(x, weight, bias):
    """The product as a convolution: the rows of x are pixels, its columns channels, channels last."""
    pixels = x.contiguous()[:, None].permute(0, 3, 1, 2)  # (1,K,1,P)
    result = torch.mkldnn_convolution(pixels, weight[0].T[:, :, None, None], None if bias is None else bias[0, 0],
                                      padding=(0, 0), stride=(1, 1), dilation=(1, 1), groups=1)
    return result.permute(0, 2, 3, 1)[0]


class _Product(torch.autograd.Function):
    """The product with gradients; that of a convolution by its input takes 1.7 times as long as another product."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _convolution(x, weight, bias)

    @staticmethod
    def backward(ctx, slope):
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (product(slope, weight.transpose(1, 2)) if by_x else None,
                torch.bmm(x.transpose(1, 2), slope) if by_weight else None,
                slope.sum(1, keepdim=True) if by_bias else None)

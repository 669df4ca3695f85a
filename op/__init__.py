"""The custom operations, the decoder's two and the field's: a plain PyTorch definition each, and a kernel for GPUs.

On a CUDA tensor the kernels are built at first use and kept for later runs (the decoder's: kernels.py; the field's, by
Triton: siren.py). The environment variable STYLESDF_OPS chooses: auto (the default: the kernel, or the plain definition
where it cannot be built), plain (never build anything), cuda (a kernel that cannot be built is an error). Tensors on
other devices take the plain way always. graphs.py launches the kernels of a whole function as one.
"""
from op.leaky_relu import fused_leaky_relu
from op.siren import fused_field
from op.upfirdn import upfirdn2d

__all__ = ['fused_field', 'fused_leaky_relu', 'upfirdn2d']

"""Every faster way to the same numbers. Each names the plain definition that it must equal, and tests hold it to that.

Operations with a plain PyTorch definition, and mostly a kernel for GPUs: leaky_relu.py, upfirdn.py, cumprod.py, and the
field's (siren.py). Subclasses of the method's classes, with the same parameters and calls: tiles.py and sparse.py of
VolumeRenderer, bands.py of Decoder; graphs.py launches the kernels of a whole picture as one. fast.py chooses among
them.

On a CUDA tensor the kernels are built at first use and kept for later runs (the decoder's: kernels.py; the field's, by
Triton: siren.py). The environment variable STYLESDF_OPS chooses: auto (the default: the fast ways, and plain PyTorch
where a kernel cannot be built), plain (the definitions alone, on every device), cuda (a kernel that cannot be built is
an error).
"""
from op.cumprod import cumulative_product
from op.leaky_relu import fused_leaky_relu
from op.upfirdn import upfirdn2d

__all__ = ['cumulative_product', 'fused_leaky_relu', 'upfirdn2d']

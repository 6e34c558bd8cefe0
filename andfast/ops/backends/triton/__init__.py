"""The operations' Triton kernels, for CUDA devices.

To be imported only where triton can be: it comes with torch's CUDA builds. Whether the kernels are compiled, or run in
Triton's interpreter on tensors of any device, is decided by TRITON_INTERPRET when this package is imported (and triton
itself must not have been imported before that variable was set).
"""

from andfast.ops.backends.triton.backend import TritonKernels
from andfast.ops.backends.triton.common import interpreting
from andfast.ops.backends.triton.generator import TritonGenerator
from andfast.ops.backends.triton.noise import gaussian_field
from andfast.ops.backends.triton.pool import blur_pool, blur_pool_grad
from andfast.ops.backends.triton.projected_step import projected_step

__all__ = [
    "TritonGenerator",
    "TritonKernels",
    "blur_pool",
    "blur_pool_grad",
    "gaussian_field",
    "interpreting",
    "projected_step",
]

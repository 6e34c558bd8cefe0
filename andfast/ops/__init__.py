"""The operations that make the attack fast: one a file, each with a plain PyTorch reference beside it."""

from andfast.ops._extension import ExtensionWarning
from andfast.ops.backends.triton import operators  # noqa: F401  registers Triton's operators
from andfast.ops.degradation_block import degradation_block
from andfast.ops.degradation_forward import degradation_forward
from andfast.ops.dispatch import use_backend
from andfast.ops.projected_step import projected_step, projected_step_reference, scaled_norm

__all__ = [
    "ExtensionWarning",
    "degradation_block",
    "degradation_forward",
    "projected_step",
    "projected_step_reference",
    "scaled_norm",
    "use_backend",
]

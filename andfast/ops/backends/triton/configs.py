"""How the kernels are launched: one table, chosen by hand.

Not measured yet on a device: the numbers follow from the sizes of Hopper's register files and shared memory alone.
(Triton's autotuner would need a driver, and would choose anew in every process.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """A launch.

    Attributes:
        tile: rows and columns of the patch of pixels that a program (or a step of its loop) handles; powers of 2.
        warps, stages: Triton's num_warps and num_stages (the depth of the pipeline of asynchronous copies).
    """

    tile: tuple[int, int]
    warps: int
    stages: int


# (kernel, type class, channel class) -> launch. "half": float16 and bfloat16. "wide": more than 32 channels on both
# sides of the convolution.
#
# Convolutions of half types, 64 -> 64: 128 pixels x 64 channels of float32 sums are 64 registers a thread of 4 warps;
# a stage holds 128 x 64 pixels and 64 x 64 weights, 24 KiB, so that three programs of three stages share an SM and
# one computes while another is in its epilogue. Weight gradients: 3 sums of 64 x 64, 96 registers a thread; a stage
# holds 64 pixels of dz and three times of x, 32 KiB.
# float32 stages are twice as large and their products take the plain cores, so shallow pipelines do.
_TABLE = {
    ("conv", "half", "wide"): Config((8, 16), 4, 3),
    ("conv", "half", "narrow"): Config((8, 16), 4, 3),
    ("conv", "float32", "wide"): Config((8, 8), 4, 2),
    ("conv", "float32", "narrow"): Config((8, 8), 4, 2),
    ("input_grad", "half", "wide"): Config((8, 16), 4, 3),
    ("input_grad", "half", "narrow"): Config((8, 16), 4, 3),
    ("input_grad", "float32", "wide"): Config((8, 8), 4, 2),
    ("input_grad", "float32", "narrow"): Config((8, 8), 4, 2),
    **{
        ("block_grad", kind, width): Config((8, 8), 4, 1)
        for kind in ("half", "float32")
        for width in ("wide", "narrow")
    },
    ("weight_grad", "half", "wide"): Config((4, 16), 4, 3),
    ("weight_grad", "half", "narrow"): Config((8, 16), 4, 3),
    ("weight_grad", "float32", "wide"): Config((2, 16), 8, 2),
    ("weight_grad", "float32", "narrow"): Config((4, 16), 4, 2),
}


def config(kernel: str, dtype: torch.dtype, in_channels: int, out_channels: int) -> Config:
    """The launch of a kernel ("conv", "input_grad", "block_grad", "weight_grad") for a type and widths."""
    kind = "float32" if dtype == torch.float32 else "half"
    return _TABLE[kernel, kind, "wide" if min(in_channels, out_channels) > 32 else "narrow"]

"""How the kernels are launched: one table for each class of GPUs, chosen by hand.

Not measured yet on a device: the numbers follow from the sizes of register files and shared memory, and from what the
compiler makes of them: `python -m bench.triton_resources` shows which launches fit, and which spill.
(Triton's autotuner would need a driver, and would choose anew in every process.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """A launch.

    Attributes:
        tile: rows and columns of the patch of pixels that a program (or a step of its loop) handles; powers of 2.
        warps, stages: Triton's num_warps and num_stages (the depth of the pipeline of asynchronous copies).
        registers: the most that a thread may take, on NVIDIA's GPUs. By default ptxas chooses, and may spill a few so
            that one more program fits; this keeps it from that.
    """

    tile: tuple[int, int]
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton's launcher takes besides the kernel's arguments."""
        options = {"num_warps": self.warps, "num_stages": self.stages, **_FUSION}
        return options if self.registers is None or torch.version.hip else {**options, "maxnreg": self.registers}


# Products and sums become one instruction: Triton's default until 3.8, no longer from 3.9 on. Without it, float32
# convolutions take twice as long, and results would depend on Triton's version.
_FUSION = {"enable_fp_fusion": True}

#: The options of kernels that need no `Config`.
FOUR_WARPS = {"num_warps": 4, **_FUSION}
EIGHT_WARPS = {"num_warps": 8, **_FUSION}

# (kernel, type class, channel class) -> launch. "half": float16 and bfloat16. "wide": more than 32 channels on both
# sides of the convolution.
#
# Convolutions of half types, 64 -> 64: 128 pixels x 64 channels of float32 sums are 64 registers a thread of 4 warps;
# a stage holds 128 x 64 pixels and 64 x 64 weights, 24 KiB, so that three programs of three stages share an SM and
# one computes while another is in its epilogue. Weight gradients: 3 sums of 64 x 64, 96 registers a thread; a stage
# holds 64 pixels of dz and three times of x, 32 KiB.
# float32 stages are twice as large and their products take the plain cores, so shallow pipelines do.
# Four warps would not have the registers for the wide convolutions of a dense block, its last, with five loops, nor for
# float32's wide convolutions, whose products the compiler unrolls.
_EVERYWHERE = {
    **{
        (kernel, *key): launch
        for kernel in ("conv", "input_grad", "conv_act", "dense")
        for key, launch in {
            ("half", "wide"): Config((8, 16), 4, 3),
            ("half", "narrow"): Config((8, 16), 4, 3),
            ("float32", "wide"): Config((8, 8), 8, 2),
            ("float32", "narrow"): Config((8, 8), 4, 2),
        }.items()
    },
    ("dense", "half", "wide"): Config((8, 16), 8, 3),
    ("dense", "float32", "narrow"): Config((8, 8), 8, 2),
    **{
        ("block_grad", kind, width): Config((8, 8), 4, 1)
        for kind in ("half", "float32")
        for width in ("wide", "narrow")
    },
    ("weight_grad", "half", "wide"): Config((4, 16), 4, 3),
    ("weight_grad", "half", "narrow"): Config((4, 16), 4, 3),
    ("weight_grad", "float32", "wide"): Config((2, 16), 8, 2),
    ("weight_grad", "float32", "narrow"): Config((4, 16), 4, 2),
}

# Hopper and the large Blackwell, whose tensor cores are fastest for their caches, and take operands from shared memory:
# 80 KiB of weights and 24 of x, two programs to a multiprocessor. No pipeline: copies of x would let only one fit.
_HOPPER = _EVERYWHERE | {
    ("conv_rows", "half", "wide"): Config((1, 64), 4, 1),
    ("conv", "float32", "wide"): Config((8, 8), 8, 2, registers=255),
    ("input_grad", "float32", "wide"): Config((8, 8), 8, 2, registers=255),
    ("input_grad", "float32", "narrow"): Config((8, 8), 4, 2, registers=255),
    ("conv_act", "float32", "wide"): Config((8, 8), 8, 2, registers=255),
    ("conv_act", "float32", "narrow"): Config((8, 8), 4, 2, registers=255),
    ("dense", "half", "wide"): Config((8, 16), 8, 3, registers=255),
    ("weight_grad", "float32", "narrow"): Config((4, 16), 8, 2),
}

# Before Hopper (and on the small Blackwell) operands of products pass through registers, too. Weight gradients: half
# as many pixels a step, and one stage more. Dense blocks: twice the warps, as backward they have up to five loops, and
# two stages: with three or four, some compilers spill.
_AMPERE = _EVERYWHERE | {
    ("conv", "half", "wide"): Config((8, 16), 4, 3, registers=255),
    ("input_grad", "half", "wide"): Config((8, 16), 4, 3, registers=255),
    ("input_grad", "half", "narrow"): Config((8, 16), 4, 3, registers=255),
    ("input_grad", "float32", "wide"): Config((8, 8), 8, 2, registers=255),
    ("input_grad", "float32", "narrow"): Config((8, 8), 8, 2),
    ("conv_act", "float32", "wide"): Config((8, 8), 8, 2, registers=255),
    ("dense", "half", "narrow"): Config((8, 16), 8, 2),
    ("dense", "float32", "wide"): Config((8, 8), 8, 1, registers=255),
    ("weight_grad", "half", "wide"): Config((2, 16), 4, 4),
    ("weight_grad", "half", "narrow"): Config((4, 16), 4, 3, registers=255),
}

# Turing (7.5) has no table: Triton does not use its tensor cores, so that `andfast.ops.selection` chooses others there.


def config(kernel: str, like: Tensor, in_channels: int, out_channels: int) -> Config:
    """The launch of a kernel for a tensor's type and device, and the widths of the convolution.

    Args:
        kernel: "conv", "input_grad", "block_grad", "weight_grad", "conv_act" or "dense".
    """
    kind = "float32" if like.dtype == torch.float32 else "half"
    return table(like.device)[kernel, kind, "wide" if min(in_channels, out_channels) > 32 else "narrow"]


def rows_config(like: Tensor, in_channels: int, out_channels: int) -> Config | None:
    """The launch of `conv_rows_kernel`, or None where a convolution goes by patches."""
    if like.dtype == torch.float32 or not 32 < in_channels <= 64 or out_channels <= 32:
        return None
    return table(like.device).get(("conv_rows", "half", "wide"))


def table(device: torch.device) -> dict[tuple[str, str, str], Config]:
    """The launches on a device; its shared memory tells the class: 227 KiB a program, or 163 and 99 KiB."""
    return _HOPPER if shared_memory(device) >= 200 * 1024 else _AMPERE


@lru_cache
def shared_memory(device: torch.device) -> int:
    """The shared memory that a program may take, in bytes; outside CUDA, in Triton's interpreter, Hopper's."""
    if device.type != "cuda":
        return 227 * 1024
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin

"""What a backend provides for the generators' convolutions (`conv_act`, `dense_block`).

Images are contiguous tensors (B, H, W, C), weights (out, in, 3, 3), all of the compute type; borders are zero. `signs`
are bits, packed as in `network_kernels.Kernels`: set where the LeakyReLU's slope counts, which PyTorch has it do at
zero, too.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

#: The factors of ESRGAN's dense block (Wang et al., 2018): the slope of its LeakyReLUs, the share that it adds to x.
SLOPE, GAIN = 0.2, 0.2


class GeneratorKernels(Protocol):
    """The pieces. `slope` (C,) is float32; None stands for no activation."""

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """LeakyReLU(conv(x) + bias), and, to `keep`, its signs (B, H, W, ceil(out / 8)), else nothing (B = 0)."""

    def tail_grad(self, dy: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        """dz: back through the LeakyReLU."""

    def input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        """dx: back through the convolution."""

    def weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight, which lies in memory as the weight does."""

    def dense(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y; `grown` (B, H, W, 4 growth), what the first four convolutions gave; to `keep`, its signs.

        The signs are (B, H, W, 4, ceil(growth / 8)), else nothing (B = 0).
        """

    def dense_input_grad(self, dy: Tensor, weights: list[Tensor], signs: Tensor) -> tuple[Tensor, Tensor]:
        """dx, and dz of the first four convolutions, (B, H, W, 4 growth), the fourth one's first."""

    def dense_weight_grad(
        self, x: Tensor, grown: Tensor, dy: Tensor, dgrown: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        """The gradients of the weights, which lie in memory as the weights do."""


@lru_cache
def generator_kernels_of(backend: str, dtype: torch.dtype) -> GeneratorKernels:
    """The pieces of a backend that has them, imported when they are first asked for: Triton takes seconds."""
    module, name = {
        "cpu": ("andfast.ops.backends.generator_library", "CpuGenerator"),
        "cuda": ("andfast.ops.backends.generator_library", "LibraryGenerator"),
        "triton": ("andfast.ops.backends.triton.generator", "TritonGenerator"),
    }[backend]
    if backend == "cpu" and dtype == torch.float32:
        module, name = "andfast.ops.backends.generator_winograd", "WinogradGenerator"
    return getattr(importlib.import_module(module), name)()

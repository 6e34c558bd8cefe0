"""What a backend provides for the degradation network: the fused pieces of its forward and backward pass.

`degradation_forward` and `degradation_block` put them together, once for all backends. All activations are in
channels-last order, contiguous tensors (B, H, W, C) in the compute type. Image b belongs to network b // (B / N). Sums
and everything of theta are float32.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """What one noise injection adds.

    Attributes:
        values: float32, contiguous. Without a seed (N, H, W): a map, the same in all channels and in all images of a
            network. With a seed (N, C): a strength a channel, times the field of `gaussian_field`.
        seed: (N,) int64, or None.
        layer: which injection this is: the field depends on it.
    """

    values: Tensor
    seed: Tensor | None = None
    layer: int = 0


class Kernels(Protocol):
    """The pieces.

    Attributes:
        one_network: whether a call does one network (N = 1); the bank is then looped over.
        border: how many pixels of replicated border the activations carry.

    Shapes: x, y, z, dz and so on as above; `bend` (N,) float32: a LeakyReLU's slope minus one.

    `signs` is (B, H, W, ceil(C / 8)) uint8: bit c % 8 of byte c // 8 says whether the convolution's result was
    negative in channel c; bits past C are 0.

    A block is z = conv(x), y = z + bend min(z, 0) + noise. The convolution is the sum of a 1x1 one with the identity's
    centre taps and a 3x3 one with the deviation (see `split_conv`), with replicated borders. A backend may keep the
    replicated border with its activations: the x and y that it is given were made by itself.
    """

    one_network: bool
    border: int

    def enter(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, C, H, W) of any type and layout -> an activation (B, H, W, C), with this backend's border.

        Without a border it may share its memory with the image.
        """

    def pack(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        """The weights of one convolution as this backend wants them, for the forward or the backward pass.

        `centre` (N, out, in) and `deviation` (N, out, in, 9) are float32, the deviation's taps in row-major order.
        """

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        """y and signs; y with this backend's border, unless it shall have none."""

    def block_grad(
        self, dy: Tensor, y: Tensor, signs: Tensor, bend: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Back through a block down to z: dz, and dbend and dnoise as in `input_grad_block`. No borders."""

    def block_pool(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A block and the pooling after it: the pooled y (with border), the pooled min(z, 0) (without), signs.

        y itself is never kept: the pooled negative part is enough for the gradient of the slope.
        """

    def conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The last convolution: z, without border."""

    def weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        """The gradient of the deviation's taps, (N, out, in, 9) float32."""

    def input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The gradient of a convolution's input, (B, H, W, in), without border."""

    def input_grad_block(
        self, dz: Tensor, weights: tuple[Tensor, ...], y: Tensor, signs: Tensor, bend: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`input_grad`, then back through the block that made that input y: its dz, and dbend and dnoise in float32.

        dbend has the shape of `bend`, dnoise that of `noise.values`.
        """

    def pool_grad(self, dpooled: Tensor, signs: Tensor, bend: Tensor, scale: int) -> Tensor:
        """Back through the pooling and the block before it, from the pooled y's gradient (without border) to dz."""


def merged(centre: Tensor, deviation: Tensor) -> Tensor:
    """The two weights of a convolution as one, for where their sum may be rounded (see `split_conv`).

    Args:
        centre: (N, out, in) float32.
        deviation: (N, out, in, 9) float32.

    Returns:
        (N, out, in, 9) float32, contiguous.
    """
    taps = deviation.clone(memory_format=torch.contiguous_format)
    taps[..., 4] += centre
    return taps


#: The types that each device's kernels compute in.
CPU_TYPES = (torch.float32, torch.bfloat16)
GPU_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@lru_cache
def kernels_of(backend: str, dtype: torch.dtype) -> Kernels:
    """The pieces of a backend that has them, imported when they are first asked for: Triton takes seconds."""
    module, name = {
        "cpu": ("andfast.ops.backends.library_kernels", "LibraryKernels"),
        "cuda": ("andfast.ops.backends.library_kernels", "LibraryKernels"),
        "triton": ("andfast.ops.backends.triton", "TritonKernels"),
    }[backend]
    if backend == "cpu" and dtype == torch.float32:
        module, name = "andfast.ops.backends.winograd_kernels", "WinogradKernels"
    return getattr(importlib.import_module(module), name)()

"""The degradation network on the CPU in float32: our own convolutions (csrc/cpu/conv.cpp), all networks at once."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops import conv  # noqa: F401  registers its operators
from andfast.ops.backends.library_kernels import LibraryKernels
from andfast.ops.backends.network_kernels import Noise, merged

_ops = torch.ops.andfast


class WinogradKernels(LibraryKernels):
    """`andfast.ops.backends.network_kernels.Kernels`; see there."""

    one_network = False

    def pack(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        return (merged(centre, deviation),)  # float32 can hold the sum

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        if noise.seed is not None:  # drawn four pixels at a time, which are not those of a tile
            return super().block(x, weights, bend, noise, bordered)
        return _ops.conv_block(x, *weights, bend, noise.values, int(bordered))

    def _conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        return _ops.conv(x, *weights, 0, False), None

    def weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        if x.shape[3] < 16:  # too few to fill the vectors with: the library's does better (bench/test_conv.py)
            pairs = zip(x.chunk(num_networks), dz.chunk(num_networks), strict=True)
            return torch.cat([super(WinogradKernels, self).weight_grad(*pair, 1) for pair in pairs])
        return _ops.conv_weight_grad(x, dz, num_networks)

    def _bordered_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return _ops.conv(dz, *weights, 2, True)

"""The degradation network's pieces (andfast/ops/backends/network_kernels.py) from the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops.backends.network_kernels import Noise
from andfast.ops.backends.triton import conv, conv_input_grad, conv_weight_grad, pool, tail_grad


class TritonKernels:
    """`andfast.ops.backends.network_kernels.Kernels` in Triton: float16, bfloat16 and float32, any number of channels.

    Activations have no border: the kernels clamp coordinates instead. Packed weights are one tensor; see
    `pack_weights`.
    """

    one_network = False
    border = 0

    def enter(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        return image.to(dtype).permute(0, 2, 3, 1).contiguous()

    def pack(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        return (conv.pack_weights(centre, deviation, dtype, backward),)

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        return conv.conv_block(x, *weights, bend, noise)

    def block_grad(
        self, dy: Tensor, y: Tensor, signs: Tensor, bend: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tail_grad.tail_grad(dy, y, signs, bend, noise)

    def block_pool(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return pool.block_pool(x, *weights, bend, noise, scale)

    def conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return conv.conv(x, *weights)

    def weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        return conv_weight_grad.weight_grad(x, dz, num_networks)

    def input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return conv_input_grad.input_grad(dz, *weights)

    def input_grad_block(
        self, dz: Tensor, weights: tuple[Tensor, ...], y: Tensor, signs: Tensor, bend: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        return conv_input_grad.input_grad_block(dz, *weights, y, signs, bend, noise)

    def pool_grad(self, dpooled: Tensor, signs: Tensor, bend: Tensor, scale: int) -> Tensor:
        return pool.pool_grad(dpooled, signs, bend, scale)

"""All convolutional operations by Triton: float16, bfloat16 and float32, any number of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops.backends.base import Epilogue
from andfast.ops.backends.library import LibraryBackend
from andfast.ops.backends.triton import (
    block_grad,
    conv,
    conv_input_grad,
    conv_weight_grad,
    generator,
    noise,
    pool,
)
from andfast.ops.backends.triton.bank import PackedBank


class TritonBackend(LibraryBackend):
    """Triton kernels for everything but the generators' weight gradients, which are the library's; see `Backend`.

    Activations have no border: the kernels clamp coordinates instead. Packed weights are one tensor; see
    `andfast.ops.backends.triton.conv.pack_weights`.
    """

    loops_over_bank = False
    border = 0
    bank_type = PackedBank

    def to_nhwc(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        return image.to(dtype).permute(0, 2, 3, 1).contiguous()

    def pack_weights(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        return (conv.pack_weights(centre, deviation, dtype, backward),)

    def conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return conv.conv(x, *weights)

    def conv_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return conv_input_grad.input_grad(dz, *weights)

    def conv_weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        return conv_weight_grad.weight_grad(x, dz, num_networks)

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        return conv.conv_block(x, *weights, epilogue)

    def block_grad(self, dy: Tensor, y: Tensor, sign_mask: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
        return block_grad.block_grad(dy, y, sign_mask, epilogue)

    def block_input_grad(
        self, dz: Tensor, weights: tuple[Tensor, ...], y: Tensor, sign_mask: Tensor, epilogue: Epilogue
    ) -> tuple[Tensor, Tensor, Tensor]:
        return conv_input_grad.block_input_grad(dz, *weights, y, sign_mask, epilogue)

    def block_pool(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return pool.block_pool(x, *weights, epilogue, scale)

    def block_pool_grad(self, dpooled: Tensor, sign_mask: Tensor, slope_minus_one: Tensor, scale: int) -> Tensor:
        return pool.block_pool_grad(dpooled, sign_mask, slope_minus_one, scale)

    def gaussian_field(self, seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
        return noise.gaussian_field(seed, layer, images, size)

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, save_for_backward: bool
    ) -> tuple[Tensor, Tensor]:
        return generator.conv_act(x, weight, bias, slope, save_for_backward)

    def leaky_relu_backward(self, dy: Tensor, sign_mask: Tensor, slope: Tensor) -> Tensor:
        return generator.leaky_relu_backward(dy, sign_mask, slope)

    def conv_act_input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        return generator.conv_act_input_grad(dz, weight)

    def dense_block(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return generator.dense_block(x, weights, biases, save_for_backward)

    def dense_block_input_grad(self, dy: Tensor, weights: list[Tensor], sign_mask: Tensor) -> tuple[Tensor, Tensor]:
        return generator.dense_block_input_grad(dy, weights, sign_mask)

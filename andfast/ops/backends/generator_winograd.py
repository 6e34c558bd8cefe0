"""The generators' convolutions on the CPU in float32: our own (csrc/cpu/conv.cpp, csrc/cpu/dense_block.cpp).

`torch.ops.andfast.*` on contiguous float32 images (B, H, W, C); weights (out, in, 3, 3) contiguous or channels_last.
What they compute is said in `andfast.ops.backends.generator_kernels`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops import dispatch, large_tiles
from andfast.ops.backends.generator_kernels import GAIN, SLOPE
from andfast.ops.backends.generator_library import CpuGenerator

_ops = torch.ops.andfast

# Fewer channels do not fill the vectors: there the library's weight gradient does better (bench/test_conv.py).
_FEW = 16


class WinogradGenerator(CpuGenerator):
    """`GeneratorKernels`; see there."""

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        if not keep and large_tiles.allowed():
            return _ops.large_chain(x, [weight], [bias], [slope], [1]), x.new_empty(0, dtype=torch.uint8)
        return _ops.conv_act(x, weight, bias, bias.new_ones(bias.shape) if slope is None else slope, keep)

    def input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        return _ops.conv_act_input_grad(dz, weight)

    def weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        if min(weight.shape[:2]) < _FEW:
            return super().weight_grad(x, dz, weight)
        return _ops.conv_act_weight_grad(x, dz, weight)

    def dense(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not keep and large_tiles.allowed():
            nothing = x.new_empty(0)
            return _ops.large_dense_block(x, weights, biases, SLOPE, GAIN), nothing, nothing
        return _ops.dense_block(x, weights, biases, SLOPE, GAIN, keep)

    def dense_input_grad(self, dy: Tensor, weights: list[Tensor], signs: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.dense_block_input_grad(dy, weights, signs, SLOPE, GAIN)

    def dense_weight_grad(
        self, x: Tensor, grown: Tensor, dy: Tensor, dgrown: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        return _ops.dense_block_weight_grad(x, grown, dy, dgrown, weights, GAIN)


if "cpu" not in dispatch.unavailable:

    def _signs(like: Tensor, channels: int, keep: bool, *parts: int) -> Tensor:
        batch, height, width, _ = like.shape
        return like.new_empty(batch if keep else 0, height, width, *parts, (channels + 7) // 8, dtype=torch.uint8)

    @torch.library.register_fake("andfast::conv_act")
    def _(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        return x.new_empty(*x.shape[:3], weight.shape[0]), _signs(x, weight.shape[0], keep)

    @torch.library.register_fake("andfast::conv_act_input_grad")
    def _(dz: Tensor, weight: Tensor) -> Tensor:
        return dz.new_empty(*dz.shape[:3], weight.shape[1])

    @torch.library.register_fake("andfast::conv_act_weight_grad")
    def _(x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        return torch.empty_like(weight)

    @torch.library.register_fake("andfast::dense_block")
    def _(
        x: Tensor, weights: list[Tensor], biases: list[Tensor], slope: float, gain: float, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        growth = weights[0].shape[0]
        return torch.empty_like(x), x.new_empty(*x.shape[:3], 4 * growth), _signs(x, growth, keep, 4)

    @torch.library.register_fake("andfast::dense_block_input_grad")
    def _(dy: Tensor, weights: list[Tensor], signs: Tensor, slope: float, gain: float) -> tuple[Tensor, Tensor]:
        return torch.empty_like(dy), dy.new_empty(*dy.shape[:3], 4 * weights[0].shape[0])

    @torch.library.register_fake("andfast::dense_block_weight_grad")
    def _(x: Tensor, grown: Tensor, dy: Tensor, dgrown: Tensor, weights: list[Tensor], gain: float) -> list[Tensor]:
        return [torch.empty_like(weight) for weight in weights]

"""The generators' convolutions by the vendor's library (oneDNN, cuDNN).

It takes no part of a wider image: the parts are laid side by side anew for each convolution. Kept for the backward pass
is only what `dense_block` says. Compiled operators for what stands between, `torch.ops.andfast.*` on the CPU, in
float32 or bfloat16:

* `leaky(z, slope, keep) -> (y, signs)`: z (B, H, W, C), slope (C,) float32.
* `leaky_grad(dy, signs, slope) -> dz`.
* `turn_weights(weights, first, count, gain) -> turned`: of several weights (out, in, 3, 3) those that read `count`
  inputs from `first` on, the first weight times `gain`, as one that gives the gradient of these inputs from that of all
  outputs side by side: (count, 3, 3, sum of out), the taps turned round.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.generator_kernels import GAIN, SLOPE


def _nchw(image: Tensor) -> Tensor:
    """The same memory as PyTorch calls it: (B, C, H, W) in channels_last."""
    return image.permute(0, 3, 1, 2)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(_nchw(x), weight, bias, padding=1).permute(0, 2, 3, 1).contiguous()


def pack_signs(values: Tensor) -> Tensor:
    """A bit for each of `values` (..., C) that is not positive: (..., ceil(C / 8)) uint8."""
    negative = F.pad((values <= 0).to(torch.uint8), (0, -values.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (negative << torch.arange(8, dtype=torch.uint8, device=values.device)).sum(-1, dtype=torch.uint8)


def unpack_signs(signs: Tensor, channels: int) -> Tensor:
    """What was not positive, (..., channels) bool."""
    bits = signs.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=signs.device)
    return (bits & 1).flatten(-2)[..., :channels].bool()


class LibraryGenerator:
    """`GeneratorKernels`; see there."""

    def activate(self, z: Tensor, slope: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """LeakyReLU(z), and, to `keep`, its signs, else nothing."""
        return torch.where(z > 0, z, (z * slope).to(z.dtype)), pack_signs(z if keep else z[:0])

    def tail_grad(self, dy: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        return torch.where(unpack_signs(signs, dy.shape[3]), (dy * slope).to(dy.dtype), dy)

    def turn_weights(self, weights: list[Tensor], first: int, count: int, gain: float) -> Tensor:
        """As the operator of this name, but (count, sum of out, 3, 3)."""
        weights = [weights[0] * gain, *weights[1:]]
        return torch.cat([weight[:, first : first + count] for weight in weights]).transpose(0, 1).flip(2, 3)

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        z = _conv(x, weight, bias)
        return (z, pack_signs(z[:0])) if slope is None else self.activate(z, slope, keep)

    def input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        return _conv(dz, self.turn_weights([weight], 0, weight.shape[1], 1.0))

    def weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        grad = torch.ops.aten.convolution_backward(
            _nchw(dz), _nchw(x), weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]
        return grad if grad.stride() == weight.stride() else torch.empty_like(weight).copy_(grad)

    def dense(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope = biases[0].new_full(biases[0].shape, SLOPE, dtype=torch.float32)
        parts, signs = [x], []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            part, sign = self.activate(_conv(torch.cat(parts, 3), weight, bias), slope, keep)
            parts.append(part)
            signs.append(sign)
        y = torch.add(x, _conv(torch.cat(parts, 3), weights[-1], biases[-1]), alpha=GAIN)
        return y, torch.cat(parts[1:], 3), torch.stack(signs, 3)

    def dense_input_grad(self, dy: Tensor, weights: list[Tensor], signs: Tensor) -> tuple[Tensor, Tensor]:
        features, growth = dy.shape[3], weights[0].shape[0]
        slope = dy.new_full((growth,), SLOPE, dtype=torch.float32)
        parts = [dy]
        for part in (3, 2, 1, 0):
            read_by = weights[:part:-1]  # by the last convolution first
            weight = self.turn_weights(read_by, features + part * growth, growth, GAIN)
            dpart = _conv(torch.cat(parts, 3), weight)
            parts.append(self.tail_grad(dpart, signs[:, :, :, part].contiguous(), slope))
        weight = self.turn_weights(weights[::-1], 0, features, GAIN)
        return dy + _conv(torch.cat(parts, 3), weight), torch.cat(parts[1:], 3)

    def dense_weight_grad(
        self, x: Tensor, grown: Tensor, dy: Tensor, dgrown: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        growth = weights[0].shape[0]
        dzs = [*reversed(dgrown.split(growth, 3)), dy * GAIN]
        read = [torch.cat([x, grown[..., : part * growth]], 3) for part in range(5)]
        return [
            self.weight_grad(images, dz.contiguous(), weight)
            for images, dz, weight in zip(read, dzs, weights, strict=True)
        ]


class CpuGenerator(LibraryGenerator):
    """`GeneratorKernels` on the CPU, in float32 or bfloat16."""

    def activate(self, z: Tensor, slope: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.andfast.leaky(z, slope, keep)

    def tail_grad(self, dy: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        return torch.ops.andfast.leaky_grad(dy, signs, slope)

    def turn_weights(self, weights: list[Tensor], first: int, count: int, gain: float) -> Tensor:
        return torch.ops.andfast.turn_weights(weights, first, count, gain).permute(0, 3, 1, 2)


if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::leaky")
    def _(z: Tensor, slope: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        batch, height, width, channels = z.shape
        signs = z.new_empty(batch if keep else 0, height, width, (channels + 7) // 8, dtype=torch.uint8)
        return torch.empty_like(z), signs

    @torch.library.register_fake("andfast::leaky_grad")
    def _(dy: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        return torch.empty_like(dy)

    @torch.library.register_fake("andfast::turn_weights")
    def _(weights: list[Tensor], first: int, count: int, gain: float) -> Tensor:
        return weights[0].new_empty(count, 3, 3, sum(len(weight) for weight in weights))

"""The generators' convolutions by the vendor's library (oneDNN, cuDNN), which takes no part of a wider image: the parts
are laid side by side anew for each convolution. Kept for the backward pass is only what `dense_block` says.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.generator_kernels import GAIN, SLOPE


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


def _turned(weight: Tensor) -> Tensor:
    """The weight of the convolution that gives the gradient of the input."""
    return weight.transpose(0, 1).flip(2, 3)


class LibraryGenerator:
    """`GeneratorKernels`; see there."""

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        z = _conv(x, weight, bias)
        signs = pack_signs(z if keep else z[:0])
        return (z if slope is None else torch.where(z > 0, z, z * slope)), signs

    def tail_grad(self, dy: Tensor, signs: Tensor, slope: Tensor) -> Tensor:
        return torch.where(unpack_signs(signs, dy.shape[3]), dy * slope, dy)

    def input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        return _conv(dz, _turned(weight))

    def weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        grad = torch.ops.aten.convolution_backward(
            _nchw(dz), _nchw(x), weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]
        return torch.empty_like(weight).copy_(grad)

    def dense(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts, signs = [x], []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            part = F.leaky_relu_(_conv(torch.cat(parts, 3), weight, bias), SLOPE)
            parts.append(part)
            signs.append(pack_signs(part if keep else part[:0]))
        y = torch.add(x, _conv(torch.cat(parts, 3), weights[-1], biases[-1]), alpha=GAIN)
        return y, torch.cat(parts[1:], 3), torch.stack(signs, 3)

    def dense_input_grad(self, dy: Tensor, weights: list[Tensor], signs: Tensor) -> tuple[Tensor, Tensor]:
        features, growth = dy.shape[3], weights[0].shape[0]
        parts, reading = [dy], [weights[4] * GAIN]
        for part in (3, 2, 1, 0):
            first = features + part * growth
            weight = torch.cat([other[:, first : first + growth] for other in reading])
            dpart = _conv(torch.cat(parts, 3), _turned(weight))
            negative = unpack_signs(signs[:, :, :, part], growth)
            parts.append(torch.where(negative, dpart * SLOPE, dpart))
            reading.append(weights[part])
        weight = torch.cat([other[:, :features] for other in reading])
        return dy + _conv(torch.cat(parts, 3), _turned(weight)), torch.cat(parts[1:], 3)

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

"""Convolutions by the vendor's library (cuDNN, oneDNN), what stands between them fused or in plain PyTorch.

F: one network at a time, since a loop over the bank is faster than grouped convolutions. Activations carry the
replicated border of one pixel that the next convolution reads, so that nothing is ever padded. Generators: the library
reads no part of a wider image, so the parts are concatenated anew for each convolution.

What stands between the convolutions are the functions of `epilogues`: in plain PyTorch, or compiled kernels with the
same arguments, `torch.ops.andfast.*`, for CPU and CUDA, which are called from inside our own operators alone, so that
torch.compile never meets them.

For the CPU alone:

* `leaky_relu(z, slope, save_for_backward) -> (y, sign_mask)`, slope (C,), and
  `leaky_relu_backward(dy, sign_mask, slope) -> dz`.
* `flip_transpose(weights, first, count, gain) -> flipped`: see `LibraryBackend.flip_transpose`.
* `rotate_taps(matrix, basis)`: see `Backend.rotate_taps`.
* `amx_dense_block(x, weights, biases, slope, gain, save_for_backward, emulate)` and `amx_dense_block_input_grad(dy,
  weights, sign_mask, slope, gain, emulate)`: `Backend`'s in bfloat16 by the processor's matrix tiles, which
  `amx_available()` tells; with `emulate` by plain products that give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.backends import epilogues
from andfast.ops.backends.bank import LayerBank
from andfast.ops.backends.base import GAIN, SLOPE, Backend, Epilogue, merge_taps
from andfast.ops.backends.epilogues import fold_border, pack_sign_mask, unpack_sign_mask

_ops = torch.ops.andfast


def _nchw(activation: Tensor) -> Tensor:
    """The same memory in PyTorch's order of dimensions: (B, C, H, W) in channels_last."""
    return activation.permute(0, 3, 1, 2)


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3x3 convolution with zeros around the image, channels last."""
    return _nhwc(F.conv2d(_nchw(x), weight, bias, padding=1))


def _rounds_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions round their arguments to fewer digits than float32 has: TF32 by default on GPUs."""
    settings = torch.backends.cudnn if device.type == "cuda" else torch.backends.mkldnn
    return dtype != torch.float32 or settings.conv.fp32_precision in ("tf32", "bf16")


def _weight_grad(x: Tensor, dz: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient of a 3x3 convolution's weight, of which the shape alone counts."""
    return torch.ops.aten.convolution_backward(
        _nchw(dz), _nchw(x), weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]


class LibraryBackend(Backend):
    """Convolutions by cuDNN or oneDNN, plain PyTorch between them: runs wherever PyTorch does.

    Attributes:
        epilogues: what stands between the convolutions of F.
    """

    loops_over_bank = True
    border = 1
    bank_type = LayerBank
    epilogues: Any = epilogues

    def to_nhwc(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        image = image.to(dtype, memory_format=torch.channels_last)
        return _nhwc(F.pad(image, (1, 1, 1, 1), mode="replicate"))

    def pack_weights(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        if not backward and _rounds_products(centre.device, dtype):  # which cannot hold the sum (see split_conv)
            return deviation[0].unflatten(-1, (3, 3)).to(dtype), centre[0].to(dtype)[:, :, None, None]
        # Float32 can; and backward, rounding a weight changes the gradient no more than rounding the gradient.
        summed = merge_taps(centre, deviation)[0].unflatten(-1, (3, 3))
        if backward:  # as the weights of the transposed convolution
            summed = summed.flip(2, 3).transpose(0, 1).contiguous()
        return (summed.to(dtype),)

    def _summands(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """F's convolution as one or two summands, for the epilogue to add."""
        image = _nchw(x)
        first = _nhwc(F.conv2d(image, weights[0]))
        second = _nhwc(F.conv2d(image[..., 1:-1, 1:-1], weights[1])) if len(weights) > 1 else None
        return first, second

    def conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        first, second = self._summands(x, weights)
        return first if second is None else first + second

    def _bordered_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The gradient of the bordered input."""
        return _nhwc(F.conv2d(_nchw(dz), weights[0], padding=2))

    def conv_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return fold_border(self._bordered_input_grad(dz, weights))

    def conv_weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        shape = (dz.shape[3], x.shape[3], 3, 3)
        return _weight_grad(x, dz, dz.new_empty(shape), 0).float().reshape(1, *shape[:2], 9)

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        return self.epilogues.block_epilogue(*self._summands(x, weights), *epilogue, int(bordered))

    def block_grad(self, dy: Tensor, y: Tensor, sign_mask: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
        return self.epilogues.block_epilogue_grad(dy, y, sign_mask, *epilogue, 0)

    def block_input_grad(
        self, dz: Tensor, weights: tuple[Tensor, ...], y: Tensor, sign_mask: Tensor, epilogue: Epilogue
    ) -> tuple[Tensor, Tensor, Tensor]:
        dy = self._bordered_input_grad(dz, weights)
        del dz  # frees the largest tensor here before more is allocated
        return self.epilogues.block_epilogue_grad(dy, y, sign_mask, *epilogue, self.border)

    def block_pool(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.epilogues.block_epilogue_pool(*self._summands(x, weights), *epilogue, scale, self.border)

    def block_pool_grad(self, dpooled: Tensor, sign_mask: Tensor, slope_minus_one: Tensor, scale: int) -> Tensor:
        return self.epilogues.block_epilogue_pool_grad(dpooled, sign_mask, slope_minus_one, scale)

    def gaussian_field(self, seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
        return self.epilogues.gaussian_field(seed, layer, images, *size)

    def leaky_relu(self, z: Tensor, slope: Tensor, save_for_backward: bool) -> tuple[Tensor, Tensor]:
        """LeakyReLU(z), and its sign mask, which is empty without `save_for_backward`."""
        y = F.prelu(_nchw(z), slope.to(z.dtype)).permute(0, 2, 3, 1)
        return y, pack_sign_mask((z if save_for_backward else z[:0]) <= 0)

    def leaky_relu_backward(self, dy: Tensor, sign_mask: Tensor, slope: Tensor) -> Tensor:
        return torch.where(unpack_sign_mask(sign_mask, dy.shape[3]), dy * slope.to(dy.dtype), dy)

    def flip_transpose(self, weights: list[Tensor], first: int, count: int, gain: float) -> Tensor:
        """The parts of several weights that read `count` inputs from `first` on, as one weight for their gradient.

        It goes from all outputs side by side to these inputs, with flipped taps: (count, sum of out, 3, 3). The first
        weight is multiplied by `gain`.
        """
        weights = [weights[0] * gain, *weights[1:]]
        return torch.cat([weight[:, first : first + count] for weight in weights]).transpose(0, 1).flip(2, 3)

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, save_for_backward: bool
    ) -> tuple[Tensor, Tensor]:
        z = _conv(x, weight, bias)
        return (z, pack_sign_mask(z[:0] <= 0)) if slope is None else self.leaky_relu(z, slope, save_for_backward)

    def conv_act_input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        return _conv(dz, self.flip_transpose([weight], 0, weight.shape[1], 1.0))

    def conv_act_weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        grad = _weight_grad(x, dz, weight, 1)
        return grad if grad.stride() == weight.stride() else torch.empty_like(weight).copy_(grad)

    def dense_block(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope = biases[0].new_full(biases[0].shape, SLOPE, dtype=torch.float32)
        parts, masks = [x], []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            part, mask = self.leaky_relu(_conv(torch.cat(parts, 3), weight, bias), slope, save_for_backward)
            parts.append(part)
            masks.append(mask)
        y = torch.add(x, _conv(torch.cat(parts, 3), weights[-1], biases[-1]), alpha=GAIN)
        return y, torch.cat(parts[1:], 3), torch.stack(masks, 3)

    def dense_block_input_grad(self, dy: Tensor, weights: list[Tensor], sign_mask: Tensor) -> tuple[Tensor, Tensor]:
        features, growth = dy.shape[3], weights[0].shape[0]
        slope = dy.new_full((growth,), SLOPE, dtype=torch.float32)
        parts = [dy]
        for part in (3, 2, 1, 0):
            read_by = weights[:part:-1]  # by the last convolution first
            weight = self.flip_transpose(read_by, features + part * growth, growth, GAIN)
            dpart = _conv(torch.cat(parts, 3), weight)
            parts.append(self.leaky_relu_backward(dpart, sign_mask[:, :, :, part].contiguous(), slope))
        weight = self.flip_transpose(weights[::-1], 0, features, GAIN)
        return dy + _conv(torch.cat(parts, 3), weight), torch.cat(parts[1:], 3)

    def dense_block_weight_grad(
        self, x: Tensor, intermediates: Tensor, dy: Tensor, dintermediates: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        # One product of all that is read with all gradients, of which the weights' are parts. Over a quarter of it is
        # not needed; but five products would each read, and concatenate anew, what the one before read, and a GPU's
        # tiles of 64 outputs or more would be half empty at the usual growth of 32.
        growth = weights[0].shape[0]
        read = torch.cat([x, intermediates], 3)
        dz = torch.cat([*reversed(dintermediates.split(growth, 3)), dy * GAIN], 3)
        grad = _weight_grad(read, dz, dz.new_empty(dz.shape[3], read.shape[3], 3, 3), 1)
        rows = grad.split([len(weight) for weight in weights])
        return [torch.empty_like(w).copy_(part[:, : w.shape[1]]) for w, part in zip(weights, rows, strict=True)]


class CudnnBackend(LibraryBackend):
    """Convolutions by cuDNN, our CUDA kernels between those of F, plain PyTorch between those of the generators."""

    epilogues = _ops


class OneDnnBackend(LibraryBackend):
    """Convolutions by oneDNN, our C++ kernels between them: on the CPU, in bfloat16.

    Where the processor has matrix tiles (AMX), a dense block is of our own convolutions, which concatenate nothing. Its
    weight gradients are computed one by one: on a CPU products, not launches, take the time.

    `WinogradBackend` replaces the convolutions in float32.
    """

    epilogues = _ops

    def rotate_taps(self, matrix: Tensor, basis: Tensor) -> Tensor:
        return _ops.rotate_taps(matrix, basis)

    def leaky_relu(self, z: Tensor, slope: Tensor, save_for_backward: bool) -> tuple[Tensor, Tensor]:
        return _ops.leaky_relu(z, slope, save_for_backward)

    def leaky_relu_backward(self, dy: Tensor, sign_mask: Tensor, slope: Tensor) -> Tensor:
        return _ops.leaky_relu_backward(dy, sign_mask, slope)

    def flip_transpose(self, weights: list[Tensor], first: int, count: int, gain: float) -> Tensor:
        return _ops.flip_transpose(weights, first, count, gain).permute(0, 3, 1, 2)

    def dense_block(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not _ops.amx_available():
            return super().dense_block(x, weights, biases, save_for_backward)
        return _ops.amx_dense_block(x, weights, biases, SLOPE, GAIN, save_for_backward, False)

    def dense_block_input_grad(self, dy: Tensor, weights: list[Tensor], sign_mask: Tensor) -> tuple[Tensor, Tensor]:
        if not _ops.amx_available():
            return super().dense_block_input_grad(dy, weights, sign_mask)
        return _ops.amx_dense_block_input_grad(dy, weights, sign_mask, SLOPE, GAIN, False)

    def dense_block_weight_grad(
        self, x: Tensor, intermediates: Tensor, dy: Tensor, dintermediates: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        growth = weights[0].shape[0]
        dzs = [*reversed(dintermediates.split(growth, 3)), dy * GAIN]
        read = [torch.cat([x, intermediates[..., : part * growth]], 3) for part in range(5)]
        return [
            self.conv_act_weight_grad(images, dz.contiguous(), weight)
            for images, dz, weight in zip(read, dzs, weights, strict=True)
        ]

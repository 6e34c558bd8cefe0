"""The degradation network with the vendor's convolutions (oneDNN, cuDNN) and everything between them fused.

One network at a time: a loop over the bank beats grouped convolutions. Activations carry the replicated border of one
pixel that the next convolution reads, so that nothing is ever padded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.backends.network_kernels import Noise, merged

_ops = torch.ops.andfast


def _nchw(activation: Tensor) -> Tensor:
    """The same memory as PyTorch calls it: (B, C, H, W) in channels_last."""
    return activation.permute(0, 3, 1, 2)


def _nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


class LibraryKernels:
    """`andfast.ops.backends.network_kernels.Kernels`; see there."""

    one_network = True
    border = 1

    def enter(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        image = image.to(dtype, memory_format=torch.channels_last)
        return _nhwc(F.pad(image, (1, 1, 1, 1), mode="replicate"))

    def pack(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        if not backward and dtype != torch.float32:  # half types cannot hold the sum (see split_conv)
            return deviation[0].unflatten(-1, (3, 3)).to(dtype), centre[0].to(dtype)[:, :, None, None]
        # In float32 they can; and backward, rounding a weight changes the gradient no more than rounding the gradient.
        summed = merged(centre, deviation)[0].unflatten(-1, (3, 3))
        if backward:  # as the weights of the transposed convolution
            summed = summed.flip(2, 3).transpose(0, 1).contiguous()
        return (summed.to(dtype),)

    def _conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """The convolution as one or two summands, for the tail to add."""
        image = _nchw(x)
        first = _nhwc(F.conv2d(image, weights[0]))
        second = _nhwc(F.conv2d(image[..., 1:-1, 1:-1], weights[1])) if len(weights) > 1 else None
        return first, second

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        return _ops.block_tail(*self._conv(x, weights), bend, noise.values, noise.seed, noise.layer, int(bordered))

    def block_grad(
        self, dy: Tensor, y: Tensor, signs: Tensor, bend: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.block_tail_grad(dy, y, signs, bend, noise.values, noise.seed, noise.layer, 0)

    def block_pool(
        self, x: Tensor, weights: tuple[Tensor, ...], bend: Tensor, noise: Noise, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        summands = self._conv(x, weights)
        return _ops.block_tail_pool(*summands, bend, noise.values, noise.seed, noise.layer, scale, self.border)

    def conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        first, second = self._conv(x, weights)
        return first if second is None else first + second

    def weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        shape = (dz.shape[3], x.shape[3], 3, 3)
        grad = torch.ops.aten.convolution_backward(
            _nchw(dz), _nchw(x), dz.new_empty(shape), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
            [False, True, False],
        )[1]  # fmt: skip
        return grad.float().reshape(1, *shape[:2], 9)

    def _bordered_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The gradient of the bordered input."""
        return _nhwc(F.conv2d(_nchw(dz), weights[0], padding=2))

    def input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        bordered = self._bordered_input_grad(dz, weights)
        rows = bordered[:, 1:-1].clone()
        rows[:, 0] += bordered[:, 0]
        rows[:, -1] += bordered[:, -1]
        grad = rows[:, :, 1:-1].clone(memory_format=torch.contiguous_format)
        grad[:, :, 0] += rows[:, :, 0]
        grad[:, :, -1] += rows[:, :, -1]
        return grad

    def input_grad_block(
        self, dz: Tensor, weights: tuple[Tensor, ...], y: Tensor, signs: Tensor, bend: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        dy = self._bordered_input_grad(dz, weights)
        del dz  # the largest thing here, and its memory is wanted
        return _ops.block_tail_grad(dy, y, signs, bend, noise.values, noise.seed, noise.layer, self.border)

    def pool_grad(self, dpooled: Tensor, signs: Tensor, bend: Tensor, scale: int) -> Tensor:
        return _ops.block_tail_pool_grad(dpooled, signs, bend, scale)

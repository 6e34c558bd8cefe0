"""The operations without convolutions by Triton, as operators that torch.compile treats as opaque.

The kernels, and with them triton, are imported when the first one runs: that takes seconds. The seed is read on the
device, so that a captured CUDA graph replays with new noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.blur_pool import in_channels_last, register_pooling


@torch.library.custom_op("andfast::projected_step_triton", mutates_args=())
def _projected_step(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    from andfast.ops.backends.triton.projected_step import projected_step

    return projected_step(delta, grad, inv_scale, step_size, epsilon)


@_projected_step.register_fake
def _(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    return torch.empty_like(delta)


@torch.library.custom_op("andfast::gaussian_field_triton", mutates_args=())
def _gaussian_field(seed: Tensor, layer: int, images: int, height: int, width: int) -> Tensor:
    from andfast.ops.backends.triton.noise import gaussian_field

    return gaussian_field(seed, layer, images, (height, width)).unsqueeze(1)


@_gaussian_field.register_fake
def _(seed: Tensor, layer: int, images: int, height: int, width: int) -> Tensor:
    return seed.new_empty(images, 1, height, width, dtype=torch.float32)


@torch.library.custom_op("andfast::blur_pool_triton", mutates_args=())
def _blur_pool(image: Tensor, scale: int) -> Tensor:
    from andfast.ops.backends.triton.pool import blur_pool

    return blur_pool(image, scale)


@torch.library.custom_op("andfast::blur_pool_grad_triton", mutates_args=())
def _blur_pool_grad(grad: Tensor, scale: int) -> Tensor:
    from andfast.ops.backends.triton.pool import blur_pool_grad

    return blur_pool_grad(grad, scale)


register_pooling("andfast::blur_pool_triton", "andfast::blur_pool_grad_triton")

dispatch.register("projected_step", "triton", _projected_step, "cuda", (torch.float32,))
dispatch.register(
    "gaussian_field",
    "triton",
    lambda seed, layer, images, size: _gaussian_field(seed.reshape(1), layer, images, *size),
    "cuda",
)
dispatch.register(
    "blur_pool",
    "triton",
    lambda image, scale: in_channels_last(_blur_pool, image, scale),
    "cuda",
    dispatch.GPU_TYPES,
)

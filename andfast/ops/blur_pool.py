"""Anti-aliased average pooling: the one place where the degradation network loses resolution (Sec 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch


@lru_cache
def pooling_taps(scale: int) -> tuple[float, ...]:
    """The pooling's taps in one direction: a box of `scale` convolved with [1, 2, 1] / 4; they sum to one.

    For scale 2 these are [1, 3, 3, 1] / 8 of Zhang, "Making convolutional networks shift-invariant again". The
    scale + 2 taps are symmetric around the middle of the `scale` pixels that become one, for every scale (that paper's
    own code shifts the image by one pixel at stride 4).
    """
    box = [1.0 / scale] * scale
    padded = [0.0, 0.0, *box, 0.0, 0.0]
    return tuple((padded[i] + 2 * padded[i + 1] + padded[i + 2]) / 4 for i in range(scale + 2))


def blur_pool_reference(image: Tensor, scale: int) -> Tensor:
    """`blur_pool` in plain PyTorch: any device and type, arguments not checked."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    return pool_by(image, pooling_kernel(scale, image.shape[1], dtype, image.device), scale)


def pooling_kernel(scale: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The pooling as the weight of a depthwise convolution, (channels, 1, scale + 2, scale + 2)."""
    taps = torch.tensor(pooling_taps(scale), dtype=dtype, device=device)
    return torch.outer(taps, taps).expand(channels, 1, -1, -1)


def pool_by(image: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """`blur_pool` with a `pooling_kernel`, in whose type it is computed."""
    padded = F.pad(image.to(kernel.dtype), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, kernel, stride=scale, groups=image.shape[1]).to(image.dtype)


def blur_pool(image: Tensor, scale: int) -> Tensor:
    """Blur and downsample by an integer factor.

    Equivalent to `blur_pool_reference`: a depthwise convolution of stride `scale` with the outer product of
    `pooling_taps(scale)`, the border reflected.

    Args:
        image: (B, C, H, W), floating point; H and W multiples of `scale`.
        scale: the downsampling factor; 1 neither blurs nor downsamples.

    Returns:
        (B, C, H/scale, W/scale) in the type and memory format of `image`; `image` itself at scale 1. Half types are
        computed in float32 and rounded once.

    Raises:
        ValueError: H or W is not a multiple of `scale`, or that is less than 1.
    """
    if scale < 1:
        raise ValueError(f"scale is {scale}; it must be at least 1")
    if scale == 1:
        return image
    height, width = image.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image is {height} x {width}; both must be multiples of the scale, {scale}")
    sizes = (image.shape[1], scale, image.shape[0], height, width)
    return dispatch.select("blur_pool", image, sizes)(image, scale)


def _blur_pool_compiled(image: Tensor, scale: int) -> Tensor:
    """The C++ operator (csrc/cpu/blur_pool.cpp, csrc/cuda/pool.cu), in the memory format of `image`."""
    return in_channels_last(torch.ops.andfast.blur_pool, image, scale)


def in_channels_last(operator: Callable[[Tensor, int], Tensor], image: Tensor, scale: int) -> Tensor:
    """`blur_pool` by an operator on (B, H, W, C) contiguous images; other memory formats are copied."""
    if image.is_contiguous(memory_format=torch.channels_last):
        return operator(image.permute(0, 2, 3, 1), scale).permute(0, 3, 1, 2)
    planes = image.contiguous().flatten(0, 1).unsqueeze(-1)  # each channel an image of one
    return operator(planes, scale).squeeze(-1).unflatten(0, image.shape[:2])


dispatch.register("blur_pool", "reference", blur_pool_reference)
dispatch.register("blur_pool", "cpu", _blur_pool_compiled, "cpu", dispatch.CPU_TYPES)
dispatch.register("blur_pool", "cuda", _blur_pool_compiled, "cuda", dispatch.GPU_TYPES)


def register_pooling(pool: str, grad: str) -> None:
    """Register the fakes and gradients of two operators on (B, H, W, C) images: a pooling, and its backward pass."""

    @torch.library.register_fake(pool)
    def _(image: Tensor, scale: int) -> Tensor:
        batch, height, width, channels = image.shape
        return image.new_empty(batch, height // scale, width // scale, channels)

    @torch.library.register_fake(grad)
    def _(grad: Tensor, scale: int) -> Tensor:
        batch, height, width, channels = grad.shape
        return grad.new_empty(batch, height * scale, width * scale, channels)

    def setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.scale = inputs[1]

    # The pooling is linear: each of the two is the other's gradient.
    for name, other in ((pool, grad), (grad, pool)):
        operator = getattr(torch.ops.andfast, other.removeprefix("andfast::"))

        def backward(
            ctx: torch.autograd.function.FunctionCtx, grad: Tensor, operator: Callable[..., Tensor] = operator
        ) -> tuple[Tensor, None]:
            return operator(grad.contiguous(), ctx.scale), None

        torch.library.register_autograd(name, backward, setup_context=setup)


if "cpu" not in dispatch.unavailable:
    register_pooling("andfast::blur_pool", "andfast::blur_pool_grad")

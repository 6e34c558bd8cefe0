"""What stands between F's convolutions where these are the vendor's library's, in plain PyTorch.

On contiguous images (B, H, W, C), image b of network b // (B / N); float32 are slopes, noise and sums. The compiled
kernels `torch.ops.andfast.*` (csrc/cpu/, csrc/cuda/) take the same arguments and compute the same, in float32 up to one
rounding; this also rounds z and gradients on the way, as plain PyTorch does, and so moves less memory in half types.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.blur_pool import pool_by, pooling_kernel
from andfast.ops.noise import gaussian_field_reference

_LEAST_SLOPE = 1 / 1024


def block_epilogue(
    a: Tensor,
    b: Tensor | None,
    slope_minus_one: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    border: int,
) -> tuple[Tensor, Tensor]:
    """The LeakyReLU and the noise after a convolution whose result z is the sum of `a` and, if given, `b`.

    y = z + slope_minus_one min(z, 0) + noise. Arguments are as in `Epilogue`.

    Returns:
        y with a replicated border of `border` (0 or 1) pixels, and the sign mask of z.
    """
    z = a if b is None else a + b
    y, _ = _activate(z, slope_minus_one, noise, seed, layer, border)
    return y, pack_sign_mask(z < 0)


def block_epilogue_grad(
    dy: Tensor,
    y: Tensor,
    sign_mask: Tensor,
    slope_minus_one: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    border: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of `block_epilogue`.

    min(z, 0) is not stored but recovered, (y - noise) / slope (Rota Bulo et al., "In-place activated BatchNorm", 2018);
    for slopes nearer to zero than 1/1024 the division is by 1/1024, and dslope comes out too small, down to 0 for a
    slope of 0.

    Args:
        dy: the gradient of y, both with a border of `border` pixels.

    Returns:
        dz; dslope and dnoise, in float32, like `slope_minus_one` and `noise`.
    """
    if border:
        dy, y = fold_border(dy), y[:, 1:-1, 1:-1]
    networks = len(slope_minus_one)
    dnegative = dy * unpack_sign_mask(sign_mask, dy.shape[3])
    dz = torch.addcmul(dy, _by_image(slope_minus_one, dy).to(dy.dtype), dnegative)
    slope = slope_minus_one + 1
    slope = torch.where(slope < 0, slope.clamp(max=-_LEAST_SLOPE), slope.clamp(min=_LEAST_SLOPE))
    terms = (y - _added(noise, seed, layer, y)).mul_(dnegative)  # the noise is float32, and with it all of this
    dslope = _by_network(terms, networks).sum((1, 2, 3, 4)) / slope
    by_network = _by_network(dy, networks)
    if seed is None:
        return dz, dslope, by_network.sum((1, 4), dtype=torch.float32)
    fields = gaussian_field(seed, layer, by_network.shape[1], *y.shape[1:3]).unflatten(0, by_network.shape[:2])
    return dz, dslope, torch.einsum("nbhw,nbhwc->nc", fields, by_network.float())


def block_epilogue_pool(
    a: Tensor,
    b: Tensor | None,
    slope_minus_one: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    scale: int,
    border: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`block_epilogue`, and the anti-aliased pooling of its result, which is not kept itself.

    Returns:
        y pooled, with border; min(z, 0) pooled, without; and the sign mask of z.
    """
    z = a if b is None else a + b
    y, negative = _activate(z, slope_minus_one, noise, seed, layer, border=0)
    kernel = _pooling_kernel(scale, z.shape[3], z.device)
    pooled, pooled_negative = (pool_by(_nchw(image), kernel, scale) for image in (y, negative))
    if border:
        pooled = F.pad(pooled, (1, 1, 1, 1), mode="replicate")
    return _nhwc(pooled), _nhwc(pooled_negative), pack_sign_mask(z < 0)


def block_epilogue_pool_grad(dpooled: Tensor, sign_mask: Tensor, slope_minus_one: Tensor, scale: int) -> Tensor:
    """The backward pass of `block_epilogue_pool` down to dz, from the gradient of the pooled y without border."""
    channels = dpooled.shape[3]
    kernel = _pooling_kernel(scale, channels, dpooled.device)
    reflected = F.conv_transpose2d(_nchw(dpooled).float(), kernel, stride=scale, groups=channels)
    dy = fold_border(_nhwc(reflected), to=1).to(dpooled.dtype)
    dnegative = dy * unpack_sign_mask(sign_mask, channels)
    return torch.addcmul(dy, _by_image(slope_minus_one, dy).to(dy.dtype), dnegative)


def gaussian_field(seed: Tensor, layer: int, images: int, height: int, width: int) -> Tensor:
    """`andfast.ops.noise.gaussian_field` for seeds (N,): (N * images, H, W) float32."""
    fields = [gaussian_field_reference(one, layer, images, (height, width)) for one in seed]
    return torch.cat(fields).squeeze(1)


def fold_border(bordered: Tensor, to: int = 0) -> Tensor:
    """The gradient of an image from that of the image with a border of one pixel (B, H + 2, W + 2, C).

    Args:
        to: the line that the border was copied from: 0 where it was replicated, 1 where it was reflected.
    """
    rows = bordered[:, 1:-1].clone()
    rows[:, to] += bordered[:, 0]
    rows[:, -1 - to] += bordered[:, -1]
    folded = rows[:, :, 1:-1].clone(memory_format=torch.contiguous_format)
    folded[:, :, to] += rows[:, :, 0]
    folded[:, :, -1 - to] += rows[:, :, -1]
    return folded


# Multiplies an integer whose bytes are 0 or 1 so that its highest byte holds them as bits, the first one lowest; and a
# byte so that each byte holds it. The masks leave bit k in byte k.
_GATHER, _SPREAD = 0x0102040810204080, 0x0101010101010101
_BITS = 0x8040201008040201 - 2**64  # as a signed integer


def pack_sign_mask(negative: Tensor) -> Tensor:
    """A bit for each of `negative` (..., C) bool: (..., ceil(C / 8)) uint8."""
    if negative.shape[-1] % 8:
        negative = F.pad(negative, (0, -negative.shape[-1] % 8))
    if not negative.numel():  # which counts as contiguous with any strides
        return negative.new_empty(*negative.shape[:-1], negative.shape[-1] // 8, dtype=torch.uint8)
    return (negative.view(torch.int64) * _GATHER >> 56).to(torch.uint8)


def unpack_sign_mask(sign_mask: Tensor, channels: int) -> Tensor:
    """What `pack_sign_mask` packed, (..., channels) bool."""
    bits = sign_mask.to(torch.int64) * _SPREAD & _BITS
    return (bits.view(torch.uint8) != 0)[..., :channels]


def _activate(
    z: Tensor, slope_minus_one: Tensor, noise: Tensor, seed: Tensor | None, layer: int, border: int
) -> tuple[Tensor, Tensor]:
    """y with its border, which is written into it, and min(z, 0)."""
    batch, height, width, channels = z.shape
    bordered = z.new_empty(batch, height + 2 * border, width + 2 * border, channels)
    y = bordered[:, border : border + height, border : border + width]
    negative = F.hardtanh(z, -math.inf, 0.0)
    # In float32 up to y, from which the backward pass recovers z.
    added = torch.addcmul(_added(noise, seed, layer, z), _by_image(slope_minus_one, z), negative)
    torch.add(z, added, out=y)
    if border:
        bordered[:, 0, 1:-1] = y[:, 0]
        bordered[:, -1, 1:-1] = y[:, -1]
        bordered[:, :, 0] = bordered[:, :, 1]
        bordered[:, :, -1] = bordered[:, :, -2]
    return bordered, negative


def _added(noise: Tensor, seed: Tensor | None, layer: int, image: Tensor) -> Tensor:
    """What is added to an image, float32, broadcastable to it."""
    batch, height, width, _ = image.shape
    images = batch // len(noise)
    if seed is None:
        return noise.repeat_interleave(images, 0).unsqueeze(3)
    strength = noise.repeat_interleave(images, 0)[:, None, None]
    return strength * gaussian_field(seed, layer, images, height, width).unsqueeze(3)


def _by_network(images: Tensor, networks: int) -> Tensor:
    """(B, H, W, C) -> (N, B / N, H, W, C)."""
    return images.unflatten(0, (networks, len(images) // networks))


def _by_image(slope_minus_one: Tensor, image: Tensor) -> Tensor:
    """(N,) -> (B, 1, 1, 1)."""
    return slope_minus_one.repeat_interleave(len(image) // len(slope_minus_one))[:, None, None, None]


@lru_cache
def _pooling_kernel(scale: int, channels: int, device: torch.device) -> Tensor:
    """Kept on the device: the host would wait for a copy."""
    return pooling_kernel(scale, channels, torch.float32, device)


def _nchw(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2)


def _nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).contiguous()

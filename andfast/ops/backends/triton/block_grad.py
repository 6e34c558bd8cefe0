"""The backward pass of a block's epilogue, LeakyReLU and noise: after an input gradient in one kernel, or alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.base import Epilogue
from andfast.ops.backends.triton.common import (
    block_of,
    check_activation,
    images_per_network,
    inverse_slope,
    load_sign_mask,
    on_device,
    patch,
    rounded,
)
from andfast.ops.backends.triton.configs import config
from andfast.ops.backends.triton.noise import gaussian


@triton.jit
def through_epilogue(
    dy, y_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr, dslope_ptr, dnoise_ptr, noise_row, layer,
    images, height, width, pixel, inside, channel,
    C: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """The gradient of z from that of a block's y; partial sums of those of its slope and noise are stored.

    For kernels with a grid of (patches, blocks of channels, B).

    Args:
        dy: (PIXELS, BLOCK) float32, zero at pixels not `inside` and past the channels.
        y_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr, layer: of the whole batch, as in `Backend`.
        dslope_ptr: (B, blocks of channels, patches) float32.
        dnoise_ptr: (B, blocks of channels, H, W) or, if GAUSSIAN, (B, patches, C) float32.
        noise_row: from one network's noise to the next one's.
        images: a network.
        pixel: (PIXELS,) their numbers in the image; those not `inside` are not touched.
        channel: (BLOCK,) their numbers; those from C on are not touched.
    """
    image = tl.program_id(2)
    network = image // images
    patches, blocks = tl.num_programs(0), tl.num_programs(1)
    mask = inside[:, None] & (channel < C)[None, :]
    noise_ptr += network.to(tl.int64) * noise_row
    if GAUSSIAN:
        field = gaussian(tl.load(seed_ptr + network), layer, image % images, pixel)[:, None]
        added = field * tl.load(noise_ptr + channel, mask=channel < C, other=0.0)[None, :]
        dnoise_ptr += (image.to(tl.int64) * patches + tl.program_id(0)) * C
        tl.store(dnoise_ptr + channel, tl.sum(dy * field, axis=0), mask=channel < C)
    else:
        added = tl.load(noise_ptr + pixel, mask=inside, other=0.0)[:, None]
        dnoise_ptr += (image.to(tl.int64) * blocks + tl.program_id(1)) * height * width
        tl.store(dnoise_ptr + pixel, tl.sum(dy, axis=1), mask=inside)
    offset = image.to(tl.int64) * height * width
    first = tl.program_id(1) * BLOCK
    negative = load_sign_mask(sign_mask_ptr + offset * ((C + 7) // 8), pixel, first, inside, PIXELS, BLOCK, C)
    y = tl.load(y_ptr + offset * C + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0)
    slope_minus_one = tl.load(slope_minus_one_ptr + network)
    z_grad = tl.sum(tl.sum(tl.where(negative, dy * (y.to(tl.float32) - added), 0.0), axis=1), axis=0)
    dslope_ptr += (image.to(tl.int64) * blocks + tl.program_id(1)) * patches + tl.program_id(0)
    tl.store(dslope_ptr, z_grad * inverse_slope(slope_minus_one))
    return tl.where(negative, dy * (1.0 + slope_minus_one), dy)


@triton.jit
def through_pooled_epilogue(
    dpooled, negative_ptr, field_ptr, dslope_ptr, dnoise_ptr, height, width, pixel, inside, channel,
    C: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """What `through_epilogue` stores, of a block with the pooling after it: here are the pooled pixels.

    Args:
        dpooled: as dy there, the gradient of the pooled y.
        negative_ptr: (B, H, W, C): the pooled min(z, 0).
        field_ptr: (B, H, W) float32: the pooled Gaussian field. Noise maps, and then dnoise_ptr, are the pooling's.
    """
    image = tl.program_id(2)
    patches, blocks = tl.num_programs(0), tl.num_programs(1)
    offset = image.to(tl.int64) * height * width
    if GAUSSIAN:
        field = tl.load(field_ptr + offset + pixel, mask=inside, other=0.0)[:, None]
        dnoise_ptr += (image.to(tl.int64) * patches + tl.program_id(0)) * C
        tl.store(dnoise_ptr + channel, tl.sum(dpooled * field, axis=0), mask=channel < C)
    mask = inside[:, None] & (channel < C)[None, :]
    negative = tl.load(negative_ptr + offset * C + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0)
    dslope_ptr += (image.to(tl.int64) * blocks + tl.program_id(1)) * patches + tl.program_id(0)
    tl.store(dslope_ptr, tl.sum(tl.sum(dpooled * negative.to(tl.float32), axis=1), axis=0))


@triton.jit(do_not_specialize=["layer"])
def block_grad_kernel(
    dy_ptr,  # (B, H, W, C)
    dz_ptr,  # like dy
    y_ptr,  # like dy
    sign_mask_ptr,  # (B, H, W, ceil(C / 8)) uint8
    slope_minus_one_ptr,  # (N,) float32
    noise_ptr,  # (N, H, W) or (N, C) float32
    seed_ptr,  # (N,) int64
    dslope_ptr,  # partial sums; see `through_epilogue`
    dnoise_ptr,
    noise_row,  # from one network's noise to the next one's
    layer,
    images,  # a network
    height,
    width,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    GAUSSIAN: tl.constexpr,
):
    """Grid: (patches, blocks of channels, B)."""
    rows, cols = patch(tl.program_id(0), height, width, TILE_H, TILE_W)
    inside = (rows < height) & (cols < width)
    pixel = rows * width + cols
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = inside[:, None] & (channel < C)[None, :]
    place = tl.program_id(2).to(tl.int64) * height * width * C + pixel[:, None] * C + channel[None, :]
    dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
    dz = through_epilogue(
        dy, y_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr, dslope_ptr, dnoise_ptr, noise_row, layer,
        images, height, width, pixel, inside, channel, C, TILE_H * TILE_W, BLOCK, GAUSSIAN,
    )  # fmt: skip
    tl.store(dz_ptr + place, rounded(dz, dz_ptr.dtype.element_ty), mask=mask)


def partial_shapes(
    shape: tuple[int, ...], tile: tuple[int, int], gaussian_noise: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the partial sums of dslope and dnoise that `through_epilogue` stores.

    `shape`: (B, H, W, C) of dz; `tile`: the kernel's.
    """
    batch, height, width, channels = shape
    patches = triton.cdiv(height, tile[0]) * triton.cdiv(width, tile[1])
    blocks = triton.cdiv(channels, block_of(channels))
    return (batch, blocks, patches), (batch, patches, channels) if gaussian_noise else (batch, blocks, height, width)


def new_partials(dz: Tensor, tile: tuple[int, int], gaussian_noise: bool) -> tuple[Tensor, ...]:
    """Memory for them."""
    shapes = partial_shapes(tuple(dz.shape), tile, gaussian_noise)
    return tuple(dz.new_empty(shape, dtype=torch.float32) for shape in shapes)


def sum_partials(dslope: Tensor, dnoise: Tensor, networks: int) -> tuple[Tensor, Tensor]:
    """dslope (N,) and dnoise in the shape of `Epilogue.noise`, summed in a fixed order."""
    # Over a network's images (and blocks of channels, or patches), then the shape of the noise.
    return (
        dslope.unflatten(0, (networks, -1)).flatten(1).sum(1),
        dnoise.unflatten(0, (networks, -1)).flatten(1, 2).sum(1),
    )


def block_grad(dy: Tensor, y: Tensor, sign_mask: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    """`Backend.block_grad`.

    Args:
        dy, y: (B, H, W, C) in the compute type.
        sign_mask, epilogue: see `Backend`.
    """
    check_activation("dy", dy)
    check_activation("y", y)
    batch, height, width, channels = dy.shape
    launch = config("block_grad", dy, channels, channels)
    block = block_of(channels)
    patches = triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
    blocks = triton.cdiv(channels, block)
    slope_minus_one, noise, seed, layer = epilogue
    dz = dy.new_empty(dy.shape)
    dslope, dnoise = new_partials(dy, launch.tile, seed is not None)
    with on_device(dy):
        block_grad_kernel[patches, blocks, batch](
            dy,
            dz,
            y,
            sign_mask,
            slope_minus_one,
            noise,
            seed,
            dslope,
            dnoise,
            noise.stride(0),
            layer,
            images_per_network(batch, len(slope_minus_one)),
            height,
            width,
            C=channels,
            BLOCK=block,
            TILE_H=launch.tile[0],
            TILE_W=launch.tile[1],
            GAUSSIAN=seed is not None,
            **launch.options,
        )
    return dz, *sum_partials(dslope, dnoise, len(noise))

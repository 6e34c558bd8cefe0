"""The 3x3 convolutions of N networks as implicit matrix products, with a block's LeakyReLU and noise as epilogue.

A program computes pixels of one image (rows of the product) for up to 64 output channels (its columns). The product's
depth is ten taps of all input channels: the deviation's nine, and the identity's centre once more at the middle, added
into the same float32 sums, because half types cannot hold the sum of the two weights.

There are two forms. `conv_kernel` computes a patch of 8 x 16 pixels and fetches the input and the weights anew for each
tap: 43 FLOP for each byte from the L2 cache. An H100 needs about 150 (790 TFLOP/s by the 5.5 TB/s that others report).
`conv_rows_kernel` rolls down a strip of the image and keeps all weights in shared memory: each row of the input is
fetched three times, once for each horizontal shift, and goes into the sums of three rows of the result: 211, by the
compiled code. No device has measured either yet. `configs` has where it runs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.base import Epilogue, merge_taps
from andfast.ops.backends.triton.common import (
    block_of,
    check_activation,
    images_per_network,
    load_block,
    multiply,
    on_device,
    patch,
    rounded,
    store_sign_mask,
)
from andfast.ops.backends.triton.configs import config, rows_config
from andfast.ops.backends.triton.noise import gaussian

#: What a convolution does with its sums z: write z; write z and its sign mask; write a block's y and the sign mask.
PLAIN, SIGN_MASK, BLOCK_MAP, BLOCK_GAUSSIAN = (tl.constexpr(i) for i in range(4))

# Programs of `conv_rows_kernel` that run at once: two, by their shared memory, on each multiprocessor of an H100.
_AT_ONCE = 264


def pack_weights(centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> Tensor:
    """The taps of a convolution as matrices, for the forward pass or for the input gradient.

    Args:
        centre: (N, out, in) float32.
        deviation: (N, out, in, 9) float32, taps in row-major order.
        dtype: the compute type.
        backward: for the input gradient, which goes from the output's to the input's channels. There the centre and
            the deviation are one weight: rounding it changes the gradient no more than rounding the gradient.

    Returns:
        (N, 10, in, out), the tenth tap the centre; backward (N, 9, out, in). In `dtype`, contiguous.
    """
    if backward:
        taps = merge_taps(centre, deviation).permute(0, 3, 1, 2)
    else:
        taps = torch.cat([deviation, centre.unsqueeze(-1)], dim=-1).permute(0, 3, 2, 1)
    return torch.empty(taps.shape, dtype=dtype, device=taps.device).copy_(taps)


@triton.jit
def _finish(
    z, out_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr, noise_row, layer, images, height, width, pixel,
    inside, C_OUT: tl.constexpr, PIXELS: tl.constexpr, BLOCK_OUT: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Do what `EPILOGUE` says with the sums z (PIXELS, BLOCK_OUT) and write the result, where `inside` (PIXELS,).

    For kernels with a grid of (.., blocks of output channels, B).
    """
    image = tl.program_id(2)
    network = image // images
    first_out = tl.program_id(1) * BLOCK_OUT
    out = first_out + tl.arange(0, BLOCK_OUT)
    before = image.to(tl.int64) * height * width
    if EPILOGUE != PLAIN:
        negative = z < 0
        sign_mask_ptr += before * ((C_OUT + 7) // 8)
        store_sign_mask(sign_mask_ptr, negative, pixel, first_out, inside, PIXELS, BLOCK_OUT, C_OUT)
    if EPILOGUE == BLOCK_MAP or EPILOGUE == BLOCK_GAUSSIAN:
        z += tl.load(slope_minus_one_ptr + network) * tl.where(negative, z, 0.0)
        if EPILOGUE == BLOCK_MAP:
            noise_ptr += network.to(tl.int64) * noise_row
            z += tl.load(noise_ptr + pixel, mask=inside, other=0.0)[:, None]
        else:
            field = gaussian(tl.load(seed_ptr + network), layer, image % images, pixel)
            strength = tl.load(noise_ptr + network.to(tl.int64) * noise_row + out, mask=out < C_OUT, other=0.0)
            z += field[:, None] * strength[None, :]
    out_ptr += before * C_OUT
    tl.store(
        out_ptr + (pixel[:, None] * C_OUT + out[None, :]),
        rounded(z, out_ptr.dtype.element_ty),
        mask=inside[:, None] & (out < C_OUT)[None, :],
    )


@triton.jit(do_not_specialize=["layer"])
def conv_kernel(
    x_ptr,  # (B, H, W, C_IN)
    weight_ptr,  # (N, 10, C_IN, C_OUT), like x
    out_ptr,  # (B, H, W, C_OUT), like x: z or y
    sign_mask_ptr,  # (B, H, W, ceil(C_OUT / 8)) uint8
    slope_minus_one_ptr,  # (N,) float32
    noise_ptr,  # (N, H, W) or (N, C_OUT) float32
    seed_ptr,  # (N,) int64
    noise_row,  # from one network's noise to the next one's
    layer,
    images,  # a network
    height,
    width,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Grid: (patches, blocks of output channels, B). Pointers that the epilogue does not use may be anything."""
    rows, cols = patch(tl.program_id(0), height, width, TILE_H, TILE_W)
    image = tl.program_id(2)
    network = image // images
    first_out = tl.program_id(1) * BLOCK_OUT
    out = first_out + tl.arange(0, BLOCK_OUT)
    x_ptr += image.to(tl.int64) * height * width * C_IN
    weight_ptr += network.to(tl.int64) * (10 * C_IN * C_OUT)

    WHOLE_IN: tl.constexpr = C_IN % BLOCK_IN == 0
    WHOLE_OUT: tl.constexpr = C_OUT % BLOCK_OUT == 0
    DEPTH: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN
    z = tl.zeros((TILE_H * TILE_W, BLOCK_OUT), tl.float32)
    for step in tl.range(0, 10 * DEPTH):
        tap = step // DEPTH
        moved = tl.where(tap == 9, 4, tap)
        # Clamped coordinates are the replicated border, and keep pixels past the image's end from being read.
        row = tl.minimum(tl.maximum(rows + (moved // 3 - 1), 0), height - 1)
        col = tl.minimum(tl.maximum(cols + (moved % 3 - 1), 0), width - 1)
        depth = step % DEPTH * BLOCK_IN + tl.arange(0, BLOCK_IN)
        x = load_block(x_ptr + (row * width + col)[:, None] * C_IN + depth[None, :], (depth < C_IN)[None, :], WHOLE_IN)
        weight = load_block(
            weight_ptr + (tap * C_IN + depth)[:, None] * C_OUT + out[None, :],
            (depth < C_IN)[:, None] & (out < C_OUT)[None, :],
            WHOLE_IN and WHOLE_OUT,
        )
        z = multiply(x, weight, z)

    _finish(
        z, out_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr, noise_row, layer, images, height, width,
        rows * width + cols, (rows < height) & (cols < width), C_OUT, TILE_H * TILE_W, BLOCK_OUT, EPILOGUE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["layer", "band"])
def conv_rows_kernel(
    x_ptr,  # as for `conv_kernel`, with C_IN <= BLOCK_IN
    weight_ptr,
    out_ptr,
    sign_mask_ptr,
    slope_minus_one_ptr,
    noise_ptr,
    seed_ptr,
    noise_row,
    layer,
    images,
    height,
    width,
    band,  # how many rows a program writes
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    STRIP: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Grid: (bands of rows times strips of STRIP columns, blocks of output channels, B)."""
    strips = (width + STRIP - 1) // STRIP
    first = tl.program_id(0) // strips * band
    end = tl.minimum(first + band, height)
    cols = tl.program_id(0) % strips * STRIP + tl.arange(0, STRIP)
    image = tl.program_id(2)
    out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    x_ptr += image.to(tl.int64) * height * width * C_IN
    weight_ptr += (image // images).to(tl.int64) * (10 * C_IN * C_OUT)

    # The pixels to the left and to the right lie side by side in one operand, twice as deep: fewer, larger products.
    WHOLE_IN: tl.constexpr = C_IN % BLOCK_IN == 0
    WHOLE: tl.constexpr = WHOLE_IN and C_OUT % BLOCK_OUT == 0
    TAP: tl.constexpr = C_IN * C_OUT
    depth = tl.arange(0, BLOCK_IN)
    known = depth < C_IN
    side = tl.arange(0, 2 * BLOCK_IN) // BLOCK_IN
    side_depth = tl.arange(0, 2 * BLOCK_IN) % BLOCK_IN
    side_known = side_depth < C_IN

    # As operands that do not change, the weights stay in shared memory during the loop.
    weight = weight_ptr + depth[:, None] * C_OUT + out[None, :]
    mask = known[:, None] & (out < C_OUT)[None, :]
    middle_0 = load_block(weight + TAP, mask, WHOLE)
    middle_1 = load_block(weight + 4 * TAP, mask, WHOLE)
    middle_2 = load_block(weight + 7 * TAP, mask, WHOLE)
    centre = load_block(weight + 9 * TAP, mask, WHOLE)
    weight = weight_ptr + (side * (2 * TAP) + side_depth * C_OUT)[:, None] + out[None, :]
    mask = side_known[:, None] & (out < C_OUT)[None, :]
    sides_0 = load_block(weight, mask, WHOLE)
    sides_1 = load_block(weight + 3 * TAP, mask, WHOLE)
    sides_2 = load_block(weight + 6 * TAP, mask, WHOLE)

    # Clamped coordinates are the replicated border, and keep pixels past the image's end from being read.
    at_middle = tl.minimum(cols, width - 1)[:, None] * C_IN + depth[None, :]
    at_sides = (
        tl.minimum(tl.maximum(cols[:, None] + (2 * side - 1)[None, :], 0), width - 1) * C_IN + side_depth[None, :]
    )
    row_step = width * C_IN
    next_middle = load_block(x_ptr + (tl.maximum(first - 1, 0) * row_step + at_middle), known[None, :], WHOLE_IN)
    zero = tl.zeros((STRIP, BLOCK_OUT), tl.float32)
    above, here = zero, zero  # the unfinished sums of the rows before this one, and of this one
    for row in tl.range(first - 1, end + 1):
        x_middle = next_middle
        at = tl.minimum(tl.maximum(row, 0), height - 1) * row_step
        x_sides = load_block(x_ptr + (at + at_sides), side_known[None, :], WHOLE_IN)
        # Sums go on from zero and are added to those of earlier rows afterwards: if they went on in the registers of
        # those, which rotate, ptxas would let each product wait for the one before.
        z = multiply(x_sides, sides_2, multiply(x_middle, middle_2, zero)) + above
        _finish(
            z, out_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr, noise_row, layer, images, height,
            width, (row - 1) * width + cols, cols < tl.where(row > first, width, 0), C_OUT, STRIP, BLOCK_OUT, EPILOGUE,
        )  # fmt: skip
        # In flight during the products that follow; the sides then lie in the L1 cache.
        at = tl.minimum(row + 1, height - 1) * row_step
        next_middle = load_block(x_ptr + (at + at_middle), known[None, :], WHOLE_IN)
        z = multiply(x_middle, centre, multiply(x_middle, middle_1, zero))
        above = multiply(x_sides, sides_1, z) + here
        here = multiply(x_sides, sides_0, multiply(x_middle, middle_0, zero))


@lru_cache
def band_of(height: int, strips: int) -> int:
    """How many rows a program of `conv_rows_kernel` writes, of `strips` strips in all images; results are the same.

    It takes three rows' time more, for the rows above and below and for the weights.
    """
    bands = range(1, max(height, 1) + 1)
    return min(bands, key=lambda band: triton.cdiv(strips * triton.cdiv(height, band), _AT_ONCE) * (band + 3))


def _convolve(
    x: Tensor, weights: Tensor, mode: tl.constexpr, epilogue: Epilogue | None = None
) -> tuple[Tensor, Tensor | None]:
    """Launch either kernel: z or y, and the sign mask where the epilogue writes them."""
    check_activation("x", x)
    batch, height, width, c_in = x.shape
    networks, _, _, c_out = weights.shape
    out = x.new_empty(batch, height, width, c_out)
    check_activation("the result", out)
    sign_mask = None
    if mode is not PLAIN:
        sign_mask = x.new_empty(batch, height, width, (c_out + 7) // 8, dtype=torch.uint8)
    slope_minus_one, noise, seed, layer = epilogue or (None, None, None, 0)
    block_in, block_out = block_of(c_in), block_of(c_out)
    blocks = triton.cdiv(c_out, block_out)
    rows = rows_config(x, c_in, c_out)
    if rows is not None:
        strips = triton.cdiv(width, rows.tile[1])
        band = band_of(height, batch * blocks * strips)
        kernel, launch, programs = conv_rows_kernel, rows, strips * triton.cdiv(height, band)
        sizes = {"band": band, "STRIP": rows.tile[1]}
    else:
        launch = config("conv", x, c_in, c_out)
        kernel, programs = conv_kernel, triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
        sizes = {"TILE_H": launch.tile[0], "TILE_W": launch.tile[1]}
    with on_device(x):
        kernel[programs, blocks, batch](
            x,
            weights,
            out,
            sign_mask,
            slope_minus_one,
            noise,
            seed,
            0 if noise is None else noise.stride(0),
            layer,
            images_per_network(batch, networks),
            height,
            width,
            C_IN=c_in,
            C_OUT=c_out,
            BLOCK_IN=block_in,
            BLOCK_OUT=block_out,
            EPILOGUE=mode.value,
            **sizes,
            **launch.options,
        )
    return out, sign_mask


def conv(x: Tensor, weights: Tensor) -> Tensor:
    """z (B, H, W, out) of x (B, H, W, in), both in the compute type, and weights from `pack_weights`."""
    return _convolve(x, weights, PLAIN)[0]


def conv_sign_mask(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """z as `conv`, and its sign mask, (B, H, W, ceil(out / 8)) uint8."""
    return _convolve(x, weights, SIGN_MASK)


def conv_block(x: Tensor, weights: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor]:
    """A block, y = z + slope_minus_one min(z, 0) + noise rounded once, and the sign mask of z.

    Args:
        x, weights: as for `conv`.
        epilogue: see `Epilogue`.
    """
    return _convolve(x, weights, BLOCK_MAP if epilogue.seed is None else BLOCK_GAUSSIAN, epilogue)

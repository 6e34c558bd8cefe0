"""The generators' convolutions as implicit matrix products.

As in `conv`, a program computes a patch of pixels of one image for up to 64 output channels. In a dense block it reads
x and the earlier parts in place and writes its own beside them, so that nothing is concatenated; backward it reads, for
one part, the gradients of all results that the part went into, each with its own weight. Weights are read in
channels_last, as training keeps them, without packing. Weight gradients are the library's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.base import GAIN, SLOPE
from andfast.ops.backends.triton.common import (
    block_of,
    check_activation,
    load_sign_mask,
    multiply,
    on_device,
    patch,
    rounded,
    store_sign_mask,
)
from andfast.ops.backends.triton.configs import FOUR_WARPS, config

#: What a convolution does with its sums: add the bias; LeakyReLU after it; LeakyReLU backward; add x.
BIAS, ACTIVATE, BACK, RESIDUAL = (tl.constexpr(i) for i in range(4))

_PIXELS = 128  # of a program of `leaky_grad_kernel`


@triton.jit
def accumulate(
    z,
    x_ptr,  # the image's first pixel
    weight_ptr,  # the first tap
    read_step,  # of the weight, from channel to channel that is read; and so on
    written_step,
    tap_step,
    rows,
    cols,
    height,
    width,
    out,  # the channels that are written
    X_STEP: tl.constexpr,  # from pixel to pixel
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """z + the convolution of C_IN channels, zeros around the image."""
    DEPTH: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN
    for step in tl.range(0, 9 * DEPTH):
        tap = step // DEPTH
        row = rows + (tap // 3 - 1)
        col = cols + (tap % 3 - 1)
        depth = step % DEPTH * BLOCK_IN + tl.arange(0, BLOCK_IN)
        exists = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        x = tl.load(
            x_ptr + (row * width + col)[:, None] * X_STEP + depth[None, :],
            mask=exists[:, None] & (depth < C_IN)[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + tap * tap_step + depth[:, None] * read_step + out[None, :] * written_step,
            mask=(depth < C_IN)[:, None] & (out < C_OUT)[None, :],
            other=0.0,
        )
        z = multiply(x, weight, z)
    return z


@triton.jit
def finish(
    z,
    out_ptr,  # the image's first pixel
    bias_ptr,  # (C_OUT,)
    slope_ptr,  # (C_OUT,) float32
    sign_mask_ptr,  # the image's: a row of bits at each index
    residual_ptr,  # the image's first pixel, (H, W, C_OUT)
    gain,
    index,  # of the pixels' rows of bits
    pixel,
    inside,
    first_out,
    out,
    OUT_STEP: tl.constexpr,
    C_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Do what `EPILOGUE` says and write the result."""
    exists = out < C_OUT
    where = inside[:, None] & exists[None, :]
    if EPILOGUE != BACK:
        z += tl.load(bias_ptr + out, mask=exists, other=0.0).to(tl.float32)[None, :]
    if EPILOGUE == ACTIVATE or EPILOGUE == BACK:
        if EPILOGUE == ACTIVATE:
            negative = (z <= 0) & exists[None, :]
            if SAVE:
                store_sign_mask(sign_mask_ptr, negative, index, first_out, inside, ROWS, BLOCK_OUT, C_OUT)
        else:
            negative = load_sign_mask(sign_mask_ptr, index, first_out, inside, ROWS, BLOCK_OUT, C_OUT)
        slope = tl.load(slope_ptr + out, mask=exists, other=0.0)
        z = tl.where(negative, z * slope[None, :], z)
    if EPILOGUE == RESIDUAL:
        share = tl.load(residual_ptr + pixel[:, None] * C_OUT + out[None, :], mask=where, other=0.0)
        z = share.to(tl.float32) + gain * z
    tl.store(out_ptr + pixel[:, None] * OUT_STEP + out[None, :], rounded(z, out_ptr.dtype.element_ty), mask=where)


@triton.jit
def conv_act_kernel(
    x_ptr,  # (B, H, W, C_IN)
    weight_ptr,  # (out, in, 3, 3) in channels_last, read from `out` to `in` if BACKWARD
    out_ptr,  # (B, H, W, C_OUT)
    bias_ptr,
    slope_ptr,
    sign_mask_ptr,  # (B, H, W, ceil(C_OUT / 8)) uint8
    height,
    width,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BACKWARD: tl.constexpr,
    EPILOGUE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Grid: (patches, blocks of output channels, B). Pointers that are not used may be anything."""
    rows, cols = patch(tl.program_id(0), height, width, TILE_H, TILE_W)
    first_out = tl.program_id(1) * BLOCK_OUT
    out = first_out + tl.arange(0, BLOCK_OUT)
    pixels = tl.program_id(2).to(tl.int64) * height * width
    z = tl.zeros((TILE_H * TILE_W, BLOCK_OUT), tl.float32)
    if BACKWARD:  # flipped taps
        z = accumulate(
            z, x_ptr + pixels * C_IN, weight_ptr + 8 * C_OUT, 9 * C_OUT, 1, -C_OUT,
            rows, cols, height, width, out, C_IN, C_IN, C_OUT, BLOCK_IN,
        )  # fmt: skip
    else:
        z = accumulate(
            z, x_ptr + pixels * C_IN, weight_ptr, 1, 9 * C_IN, C_IN,
            rows, cols, height, width, out, C_IN, C_IN, C_OUT, BLOCK_IN,
        )  # fmt: skip
    inside = (rows < height) & (cols < width)
    pixel = rows * width + cols
    SIGN_BYTES: tl.constexpr = (C_OUT + 7) // 8
    finish(
        z, out_ptr + pixels * C_OUT, bias_ptr, slope_ptr, sign_mask_ptr + pixels * SIGN_BYTES, x_ptr, 0.0,
        pixel, pixel, inside, first_out, out, C_OUT, C_OUT, TILE_H * TILE_W, BLOCK_OUT, EPILOGUE, SAVE,
    )  # fmt: skip


@triton.jit
def choose(NUMBER: tl.constexpr, p0, p1, p2, p3, p4):
    """The pointer of this number."""
    if NUMBER == 0:
        return p0
    elif NUMBER == 1:
        return p1
    elif NUMBER == 2:
        return p2
    elif NUMBER == 3:
        return p3
    else:
        return p4


@triton.jit
def dense_kernel(
    entry_ptr,  # (B, H, W, C): x, or dy
    intermediates_ptr,  # (B, H, W, 4 G): the parts that the block adds, in the order in which they are made
    last_ptr,  # (B, H, W, C): y, or dx; the fifth convolution's
    weight0_ptr,  # the five weights in channels_last
    weight1_ptr,
    weight2_ptr,
    weight3_ptr,
    weight4_ptr,
    bias_ptr,  # of this convolution
    slope_ptr,  # (G,) float32
    sign_mask_ptr,  # (B, H, W, 4, ceil(G / 8)) uint8
    gain,
    height,
    width,
    C: tl.constexpr,
    G: tl.constexpr,
    PART: tl.constexpr,  # how many parts there are already
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,  # of the parts' channels, forward
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BACKWARD: tl.constexpr,
    SAVE: tl.constexpr,
):
    """One convolution of a dense block, or of its backward pass. Grid: (patches, blocks of output channels, B)."""
    C_OUT: tl.constexpr = G if PART < 4 else C
    BLOCK_OUT: tl.constexpr = BLOCK_G if PART < 4 else BLOCK_C
    rows, cols = patch(tl.program_id(0), height, width, TILE_H, TILE_W)
    first_out = tl.program_id(1) * BLOCK_OUT
    out = first_out + tl.arange(0, BLOCK_OUT)
    pixels = tl.program_id(2).to(tl.int64) * height * width
    entry_ptr += pixels * C
    intermediates_ptr += pixels * (4 * G)
    z = tl.zeros((TILE_H * TILE_W, BLOCK_OUT), tl.float32)
    if BACKWARD:
        # The gradient of part 3 - PART, at last of x; it reads the gradients of convolutions 4, 3, ...
        FIRST: tl.constexpr = C + (3 - PART) * G if PART < 4 else 0
        ALL: tl.constexpr = C + 4 * G
        z = accumulate(
            z, entry_ptr, weight4_ptr + FIRST + 8 * ALL, 9 * ALL, 1, -ALL,
            rows, cols, height, width, out, C, C, C_OUT, BLOCK_C,
        )  # fmt: skip
        z *= gain
        for part in tl.static_range(PART):
            # Its convolution reads C + (3 - part) G channels.
            weight_ptr = choose(3 - part, weight0_ptr, weight1_ptr, weight2_ptr, weight3_ptr, weight4_ptr)
            z = accumulate(
                z, intermediates_ptr + part * G, weight_ptr + FIRST + 8 * (C + (3 - part) * G),
                9 * (C + (3 - part) * G), 1, -(C + (3 - part) * G),
                rows, cols, height, width, out, 4 * G, G, C_OUT, BLOCK_G,
            )  # fmt: skip
    else:
        weight_ptr = choose(PART, weight0_ptr, weight1_ptr, weight2_ptr, weight3_ptr, weight4_ptr)
        READ: tl.constexpr = C + PART * G
        z = accumulate(
            z, entry_ptr, weight_ptr, 1, 9 * READ, READ, rows, cols, height, width, out, C, C, C_OUT, BLOCK_C
        )
        if PART > 0:  # all parts together: they lie side by side
            z = accumulate(
                z, intermediates_ptr, weight_ptr + C, 1, 9 * READ, READ,
                rows, cols, height, width, out, 4 * G, PART * G, C_OUT, BLOCK_PARTS,
            )  # fmt: skip
    inside = (rows < height) & (cols < width)
    pixel = rows * width + cols
    SIGN_BYTES: tl.constexpr = (G + 7) // 8
    sign_mask_ptr += pixels * (4 * SIGN_BYTES)
    if PART == 4:
        finish(
            z, last_ptr + pixels * C, bias_ptr, slope_ptr, sign_mask_ptr, entry_ptr, 1.0 if BACKWARD else gain,
            pixel, pixel, inside, first_out, out, C, C, TILE_H * TILE_W, BLOCK_OUT, RESIDUAL, False,
        )  # fmt: skip
    else:
        MADE_BY: tl.constexpr = 3 - PART if BACKWARD else PART
        finish(
            z, intermediates_ptr + PART * G, bias_ptr, slope_ptr, sign_mask_ptr, entry_ptr, gain,
            pixel * 4 + MADE_BY, pixel, inside, first_out, out, 4 * G, G, TILE_H * TILE_W, BLOCK_OUT,
            BACK if BACKWARD else ACTIVATE, SAVE,
        )  # fmt: skip


@triton.jit
def leaky_grad_kernel(
    dy_ptr, sign_mask_ptr, slope_ptr, dz_ptr, pixels, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Grid: (cdiv(pixels, ROWS), blocks of channels)."""
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * BLOCK
    channel = first + tl.arange(0, BLOCK)
    inside = pixel < pixels
    mask = inside[:, None] & (channel < C)[None, :]
    negative = load_sign_mask(sign_mask_ptr, pixel, first, inside, ROWS, BLOCK, C)
    slope = tl.load(slope_ptr + channel, mask=channel < C, other=0.0)
    dy = tl.load(dy_ptr + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    dz = tl.where(negative, dy * slope[None, :], dy)
    tl.store(dz_ptr + pixel[:, None] * C + channel[None, :], rounded(dz, dz_ptr.dtype.element_ty), mask=mask)


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _run_conv(
    x: Tensor,
    weight: Tensor,
    backward: bool,
    epilogue: tl.constexpr,
    bias: Tensor,
    slope: Tensor | None = None,
    save_for_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """Launch `conv_act_kernel`: the result, and its sign mask, empty without `save_for_backward`."""
    check_activation("x", x)
    batch, height, width, c_in = x.shape
    c_out = weight.shape[1 if backward else 0]
    result = x.new_empty(batch, height, width, c_out)
    check_activation("the result", result)
    sign_mask = x.new_empty(batch if save_for_backward else 0, height, width, (c_out + 7) // 8, dtype=torch.uint8)
    launch = config("conv_act", x, c_in, c_out)
    block_out = block_of(c_out)
    patches = triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
    if batch:
        with on_device(x):
            conv_act_kernel[patches, triton.cdiv(c_out, block_out), batch](
                x,
                _channels_last(weight),
                result,
                bias,
                x if slope is None else slope,
                sign_mask if save_for_backward else x,
                height,
                width,
                C_IN=c_in,
                C_OUT=c_out,
                BLOCK_IN=block_of(c_in),
                BLOCK_OUT=block_out,
                TILE_H=launch.tile[0],
                TILE_W=launch.tile[1],
                BACKWARD=backward,
                EPILOGUE=epilogue.value,
                SAVE=save_for_backward,
                **launch.options,
            )
    return result, sign_mask


def _run_dense(
    entry: Tensor, weights: list[Tensor], biases: list[Tensor] | None, sign_mask: Tensor | None, save_for_backward: bool
) -> tuple[Tensor, Tensor]:
    """Launch `dense_kernel` for the five convolutions, or without biases those of the backward pass."""
    check_activation("x", entry)
    batch, height, width, features = entry.shape
    growth = weights[0].shape[0]
    last, intermediates = torch.empty_like(entry), entry.new_empty(batch, height, width, 4 * growth)
    check_activation("the results", intermediates)
    weights = [_channels_last(weight) for weight in weights]
    slope = weights[0].new_full((growth,), SLOPE, dtype=torch.float32)
    no_bias = weights[0].new_zeros(features)
    for part in range(5 if batch else 0):
        out = growth if part < 4 else features
        launch = config("dense", entry, features, out)
        patches = triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
        whole = part * growth > 0 and part * growth % 64 == 0
        with on_device(entry):
            dense_kernel[patches, triton.cdiv(out, block_of(out)), batch](
                entry,
                intermediates,
                last,
                *weights,
                no_bias if biases is None else biases[part],
                slope,
                entry if sign_mask is None else sign_mask,
                GAIN,
                height,
                width,
                C=features,
                G=growth,
                PART=part,
                BLOCK_C=block_of(features),
                BLOCK_G=block_of(growth),
                BLOCK_PARTS=64 if whole else block_of(growth),
                TILE_H=launch.tile[0],
                TILE_W=launch.tile[1],
                BACKWARD=biases is None,
                SAVE=save_for_backward,
                **launch.options,
            )
    return last, intermediates


def conv_act(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, save_for_backward: bool
) -> tuple[Tensor, Tensor]:
    """`Backend.conv_act`."""
    return _run_conv(x, weight, False, BIAS if slope is None else ACTIVATE, bias, slope, save_for_backward)


def conv_act_input_grad(dz: Tensor, weight: Tensor) -> Tensor:
    """`Backend.conv_act_input_grad`."""
    return _run_conv(dz, weight, True, BIAS, weight.new_zeros(weight.shape[1]))[0]


def leaky_relu_backward(dy: Tensor, sign_mask: Tensor, slope: Tensor) -> Tensor:
    """`Backend.leaky_relu_backward`."""
    dz = torch.empty_like(dy)
    channels, pixels = dy.shape[3], dy.shape[:3].numel()
    block = min(64, max(8, triton.next_power_of_2(channels)))
    if pixels:
        with on_device(dy):
            leaky_grad_kernel[triton.cdiv(pixels, _PIXELS), triton.cdiv(channels, block)](
                dy, sign_mask, slope, dz, pixels, C=channels, BLOCK=block, ROWS=_PIXELS, **FOUR_WARPS
            )
    return dz


def dense_block(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`Backend.dense_block`."""
    batch, height, width, _ = x.shape
    sign_bytes = (weights[0].shape[0] + 7) // 8
    sign_mask = x.new_empty(batch if save_for_backward else 0, height, width, 4, sign_bytes, dtype=torch.uint8)
    results = _run_dense(x, weights, biases, sign_mask if save_for_backward else None, save_for_backward)
    return *results, sign_mask


def dense_block_input_grad(dy: Tensor, weights: list[Tensor], sign_mask: Tensor) -> tuple[Tensor, Tensor]:
    """`Backend.dense_block_input_grad`."""
    return _run_dense(dy, weights, None, sign_mask, False)

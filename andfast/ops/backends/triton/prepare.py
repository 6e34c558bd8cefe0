"""All that the kernels of one pass of F read besides activations, in one launch.

A program does one of three things: it packs the weights of a square of channels of one convolution; or adds up the
slopes of a network; or copies a part of an image.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.bank import tap_basis
from andfast.ops.backends.triton.common import images_per_network, on_device, rounded
from andfast.ops.backends.triton.configs import FOUR_WARPS
from andfast.ops.theta_layout import ThetaLayout

_TILE = 16  # channels on each side of the square: whole sectors of memory, however the taps are ordered
_VALUES = 1024  # of an image, a program


@triton.jit
def load_basis(basis_ptr):
    """The basis of the taps, (16, 16) float32: a row a moment, zeros from 9 on."""
    nine = tl.arange(0, 16)
    inside = (nine < 9)[:, None] & (nine < 9)[None, :]
    return tl.load(basis_ptr + nine[:, None] * 9 + nine[None, :], mask=inside, other=0.0)


@triton.jit
def _pack_square(
    square, network, theta_id_ptr, delta_ptr, basis_ptr, weight_ptr,
    IMAGE: tl.constexpr, C: tl.constexpr, LAST: tl.constexpr, SIDE: tl.constexpr, TILE: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    layer = square // (SIDE * SIDE)
    c_in = tl.where(layer == 0, IMAGE, C)
    c_out = tl.where(layer == LAST, IMAGE, C)
    before = tl.where(layer == 0, 0, IMAGE * C + (layer - 1) * (C * C))  # kernels of the layers before
    out = (square // SIDE % SIDE * TILE + tl.arange(0, TILE))[:, None, None]
    in_ = (square % SIDE * TILE + tl.arange(0, TILE))[None, :, None]
    tap = tl.arange(0, 16)[None, None, :]
    exists = (out < c_out) & (in_ < c_in)
    column = (before + out * c_in + in_) * 9
    moments = tl.load(delta_ptr + column + tap, mask=exists & (tap < 9), other=0.0)
    taps = tl.dot(tl.reshape(moments, (TILE * TILE, 16)), load_basis(basis_ptr), input_precision="ieee")
    taps = tl.reshape(taps, (TILE, TILE, 16))
    centre = tl.load(theta_id_ptr + column + 4, mask=exists, other=0.0)
    start = before.to(tl.int64) * tl.num_programs(1) + network * c_in * c_out
    if BACKWARD:
        taps += tl.where(tap == 4, centre, 0.0)
        pointers = weight_ptr + start * 9 + (tap * c_out + out) * c_in + in_
        exists &= tap < 9
    else:
        taps = tl.where(tap == 9, centre, taps)
        pointers = weight_ptr + start * 10 + (tap * c_in + in_) * c_out + out
        exists &= tap < 10
    tl.store(pointers, rounded(taps, weight_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _add_slopes(
    network, theta_id_ptr, delta_ptr, slope_minus_one_ptr, column, SLOPES: tl.constexpr, LANES: tl.constexpr
):
    slope = tl.arange(0, LANES)
    exists = slope < SLOPES
    identity = tl.load(theta_id_ptr + column + slope, mask=exists, other=0.0)
    deviation = tl.load(delta_ptr + column + slope, mask=exists, other=0.0)
    tl.store(slope_minus_one_ptr + slope * tl.num_programs(1) + network, identity - 1.0 + deviation, mask=exists)


@triton.jit
def _copy_values(
    block, first_image, hr_ptr, image_ptr, hr_image, hr_channel, hr_row, hr_col, height, width,
    IMAGE: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    values = height * width * IMAGE
    blocks = (values + VALUES - 1) // VALUES
    image = first_image + block // blocks
    value = block % blocks * VALUES + tl.arange(0, VALUES)
    channel, pixel = (value % IMAGE).to(tl.int64), value // IMAGE
    row, col = (pixel // width).to(tl.int64), (pixel % width).to(tl.int64)
    place = image * hr_image + channel * hr_channel + row * hr_row + col * hr_col
    hr = tl.load(hr_ptr + place, mask=value < values, other=0.0).to(tl.float32)
    tl.store(image_ptr + image * values + value, rounded(hr, image_ptr.dtype.element_ty), mask=value < values)


@triton.jit
def prepare_kernel(
    hr_ptr,  # (B, IMAGE, H, W), any strides and floating-point type
    theta_id_ptr,  # (N, P) float32, each row contiguous
    delta_ptr,  # like theta_id
    basis_ptr,  # (9, 9) float32
    image_ptr,  # (B, H, W, IMAGE) in the compute type
    weight_ptr,  # of every convolution (N, 10, in, out), or BACKWARD (N, 9, out, in), one after the other, like image
    slope_minus_one_ptr,  # (SLOPES, N) float32
    hr_image,  # strides
    hr_channel,
    hr_row,
    hr_col,
    theta_id_row,
    delta_row,
    slopes_column,  # of theta
    images,  # a network
    height,
    width,
    IMAGE: tl.constexpr,  # channels
    C: tl.constexpr,
    SLOPES: tl.constexpr,
    LANES: tl.constexpr,  # the power of two from SLOPES on
    TILE: tl.constexpr,
    VALUES: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Grid: (squares of channels of all convolutions, 1, and blocks of values of a network's images; N)."""
    WIDEST: tl.constexpr = C if C > IMAGE else IMAGE
    SIDE: tl.constexpr = (WIDEST + TILE - 1) // TILE
    SQUARES: tl.constexpr = (SLOPES + 1) * SIDE * SIDE
    number = tl.program_id(0)
    network = tl.program_id(1).to(tl.int64)
    theta_id_ptr += network * theta_id_row
    delta_ptr += network * delta_row
    if number < SQUARES:
        _pack_square(
            number, network, theta_id_ptr, delta_ptr, basis_ptr, weight_ptr, IMAGE, C, SLOPES, SIDE, TILE, BACKWARD
        )
    elif number == SQUARES:
        _add_slopes(network, theta_id_ptr, delta_ptr, slope_minus_one_ptr, slopes_column, SLOPES, LANES)
    else:
        _copy_values(
            number - SQUARES - 1, network * images, hr_ptr, image_ptr, hr_image, hr_channel, hr_row, hr_col,
            height, width, IMAGE, VALUES,
        )  # fmt: skip


def prepare(
    layout: ThetaLayout, hr: Tensor, theta_id: Tensor, delta: Tensor, dtype: torch.dtype, backward: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The images, all weights and all slopes of a pass of N networks.

    Equivalent to `LayerBank`'s `image`, `weights` and `epilogue(...).slope_minus_one` of every layer.

    Args:
        layout: the columns of theta.
        hr: (B, C, H, W), floating point.
        theta_id, delta: (N, P) float32, each row contiguous.
        dtype: the compute type.
        backward: for the backward pass.

    Returns:
        (B, H, W, C) in `dtype`; for each convolution what `pack_weights` returns; slope_minus_one, (blocks, N) float32.
    """
    batch, image_channels, height, width = hr.shape
    networks, slopes, taps = len(delta), len(layout.slope), 9 if backward else 10
    images = images_per_network(batch, networks)
    image = hr.new_empty(batch, height, width, image_channels, dtype=dtype)
    packed = hr.new_empty(networks * taps * (layout.conv[-1].stop // 9), dtype=dtype)
    slope_minus_one = delta.new_empty(slopes, networks)
    squares = (slopes + 1) * triton.cdiv(max(layout.channels, image_channels), _TILE) ** 2
    blocks = images * triton.cdiv(height * width * image_channels, _VALUES)
    with on_device(hr):
        prepare_kernel[squares + 1 + blocks, networks](
            hr,
            theta_id,
            delta,
            tap_basis(hr.device),
            image,
            packed,
            slope_minus_one,
            *hr.stride(),
            theta_id.stride(0),
            delta.stride(0),
            layout.slope[0].start,
            images,
            height,
            width,
            IMAGE=image_channels,
            C=layout.channels,
            SLOPES=slopes,
            LANES=triton.next_power_of_2(slopes),
            TILE=_TILE,
            VALUES=_VALUES,
            BACKWARD=backward,
            **FOUR_WARPS,
        )
    shapes = [part.shape[:2] if backward else part.shape[1::-1] for part in layout.conv]
    parts = packed.split([networks * taps * rows * columns for rows, columns in shapes])
    weights = [part.view(networks, taps, *shape) for part, shape in zip(parts, shapes, strict=True)]
    return image, weights, slope_minus_one

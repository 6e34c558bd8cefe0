"""The gradient of the deviation's taps: products of dz with the convolution's input, summed over all pixels.

A program computes three taps of one row, for up to 64 x 64 channels, over a share of a network's patches: the pixels
are the depth of the product, and dz, once loaded, serves three taps. The shares' sums are written and then added in a
fixed order: nothing depends on which program ends first. How many shares there are depends on the shapes alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.triton.common import (
    block_of,
    check_activation,
    images_per_network,
    load_block,
    multiply,
    on_device,
    patch,
)
from andfast.ops.backends.triton.configs import config

# Enough programs for a few waves on every GPU of today; more would only make the second sum longer.
_PROGRAMS = 1024


@triton.jit
def weight_grad_kernel(
    x_ptr,  # (B, H, W, C_IN)
    dz_ptr,  # (B, H, W, C_OUT), like x
    partial_ptr,  # (N, shares, 9, C_OUT, C_IN) float32
    images,  # a network
    height,
    width,
    share,  # how many patches a program sums over
    shares,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Grid: (3 N shares, blocks of output channels times blocks of input channels).

    The three rows of taps of a share are neighbours, so that they read its pixels at about the same time, from cache.
    """
    tap_row = tl.program_id(0) % 3
    network_share = tl.program_id(0) // 3
    network = network_share // shares
    first = network_share % shares * share
    BLOCKS_IN: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN
    out = tl.program_id(1) // BLOCKS_IN * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_ = tl.program_id(1) % BLOCKS_IN * BLOCK_IN + tl.arange(0, BLOCK_IN)
    patches = ((height + TILE_H - 1) // TILE_H) * ((width + TILE_W - 1) // TILE_W)  # an image

    left = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    middle = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    right = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for number in tl.range(first, tl.minimum(first + share, images * patches)):
        offset = (network * images + number // patches).to(tl.int64) * height * width
        rows, cols = patch(number % patches, height, width, TILE_H, TILE_W)
        inside = (rows < height) & (cols < width)
        pixel = tl.where(inside, rows * width + cols, 0)
        mask = inside[:, None] & (out < C_OUT)[None, :]
        dz = tl.load(dz_ptr + offset * C_OUT + pixel[:, None] * C_OUT + out[None, :], mask=mask, other=0.0)
        dz = tl.trans(dz)
        row = tl.minimum(tl.maximum(rows + (tap_row - 1), 0), height - 1) * width
        x_image = x_ptr + offset * C_IN + in_[None, :]
        whole: tl.constexpr = C_IN % BLOCK_IN == 0
        known = (in_ < C_IN)[None, :]
        col = tl.minimum(tl.maximum(cols - 1, 0), width - 1)
        left = multiply(dz, load_block(x_image + (row + col)[:, None] * C_IN, known, whole), left)
        col = tl.minimum(cols, width - 1)
        middle = multiply(dz, load_block(x_image + (row + col)[:, None] * C_IN, known, whole), middle)
        col = tl.minimum(cols + 1, width - 1)
        right = multiply(dz, load_block(x_image + (row + col)[:, None] * C_IN, known, whole), right)

    partial_ptr += (network_share.to(tl.int64) * 9 + tap_row * 3) * (C_OUT * C_IN)
    pointers = partial_ptr + out[:, None] * C_IN + in_[None, :]
    mask = (out < C_OUT)[:, None] & (in_ < C_IN)[None, :]
    tl.store(pointers, left, mask=mask)
    tl.store(pointers + C_OUT * C_IN, middle, mask=mask)
    tl.store(pointers + 2 * C_OUT * C_IN, right, mask=mask)


def weight_grad(x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
    """The gradient of the deviation's taps of N networks.

    Args:
        x: (B, H, W, in) in the compute type, the convolution's input.
        dz: (B, H, W, out) like `x`, the gradient of its result.
        num_networks: N.

    Returns:
        (N, out, in, 9) float32. The same arguments always give the same bits.
    """
    check_activation("x", x)
    check_activation("dz", dz)
    batch, height, width, c_in = x.shape
    c_out = dz.shape[3]
    images = images_per_network(batch, num_networks)
    launch = config("weight_grad", x, c_in, c_out)
    block_in, block_out = block_of(c_in), block_of(c_out)
    blocks = triton.cdiv(c_out, block_out) * triton.cdiv(c_in, block_in)
    total = images * triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
    share = triton.cdiv(total, min(total, max(1, _PROGRAMS // (3 * blocks * num_networks))))
    shares = triton.cdiv(total, share)
    partial = x.new_empty(num_networks, shares, 9, c_out, c_in, dtype=torch.float32)
    with on_device(x):
        weight_grad_kernel[3 * num_networks * shares, blocks](
            x,
            dz,
            partial,
            images,
            height,
            width,
            share,
            shares,
            C_IN=c_in,
            C_OUT=c_out,
            BLOCK_IN=block_in,
            BLOCK_OUT=block_out,
            TILE_H=launch.tile[0],
            TILE_W=launch.tile[1],
            **launch.options,
        )
    return partial.sum(1).permute(0, 2, 3, 1).contiguous()

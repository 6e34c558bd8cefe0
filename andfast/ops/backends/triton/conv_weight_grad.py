"""The gradient of the deviation's taps: products of dz with the convolution's input, summed over all pixels.

A program computes three taps of one row, for up to 64 x 64 channels, over a share of a network's patches: the pixels
are the depth of the product, and dz, once loaded, serves three taps. The shares' sums are written and then added in a
fixed order (for F by `andfast.ops.backends.triton.gradient`, of all layers at once): nothing depends on which program
ends first. How many shares there are depends on the shapes alone.
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

# About four programs for each multiprocessor of the largest GPUs, and no share of fewer patches than four: for a
# 64 -> 64 convolution in a half type the sums of a share are as large as nine patches of its input and result.
_PROGRAMS, _PATCHES = 512, 4


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


def partials_shape(
    like: Tensor, networks: int, images: int, size: tuple[int, int], c_in: int, c_out: int
) -> tuple[int, ...]:
    """The shape of the sums of all shares, (N, shares, 9, out, in).

    Args:
        like: of the type and on the device of x.
        networks, images: N, and B / N.
        size: (H, W).
    """
    tile = config("weight_grad", like, c_in, c_out).tile
    blocks = triton.cdiv(c_out, block_of(c_out)) * triton.cdiv(c_in, block_of(c_in))
    total = images * triton.cdiv(size[0], tile[0]) * triton.cdiv(size[1], tile[1])
    share = max(_PATCHES, triton.cdiv(total, max(1, _PROGRAMS // (3 * blocks * networks))))
    return networks, triton.cdiv(total, share), 9, c_out, c_in


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
    images = images_per_network(len(x), num_networks)
    shape = partials_shape(x, num_networks, images, (x.shape[1], x.shape[2]), x.shape[3], dz.shape[3])
    partials = x.new_empty(shape, dtype=torch.float32)
    partial_weight_grad(x, dz, partials)
    return partials.sum(1).permute(0, 2, 3, 1).contiguous()


def partial_weight_grad(x: Tensor, dz: Tensor, partials: Tensor) -> None:
    """`weight_grad`, but the sums of all shares, of the shape `partials_shape`, into given memory."""
    check_activation("x", x)
    check_activation("dz", dz)
    batch, height, width, c_in = x.shape
    networks, shares, _, c_out, _ = partials.shape
    launch = config("weight_grad", x, c_in, c_out)
    block_in, block_out = block_of(c_in), block_of(c_out)
    images = images_per_network(batch, networks)
    patches = triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
    with on_device(x):
        weight_grad_kernel[3 * networks * shares, triton.cdiv(c_out, block_out) * triton.cdiv(c_in, block_in)](
            x,
            dz,
            partials,
            images,
            height,
            width,
            triton.cdiv(images * patches, shares),
            shares,
            C_IN=c_in,
            C_OUT=c_out,
            BLOCK_IN=block_in,
            BLOCK_OUT=block_out,
            TILE_H=launch.tile[0],
            TILE_W=launch.tile[1],
            **launch.options,
        )

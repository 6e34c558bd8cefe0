"""What several of the Triton kernels share: patches of pixels, dot products, sign bits, host-side checks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.dispatch import interpreting

#: Whether the kernels run in the interpreter: `triton.jit` decides that where a kernel is defined. The interpreter's
#: products and sums of bfloat16 are wrong, so they are computed in float32 there.
INTERPRET = tl.constexpr(interpreting())


def block_of(channels: int) -> int:
    """How many channels a program handles: all, padded to what tensor cores take, but no more than 64."""
    return min(64, max(16, triton.next_power_of_2(channels)))


def images_per_network(images: int, networks: int) -> int:
    """B / N.

    Raises:
        ValueError: N does not divide B.
    """
    if images % networks:
        raise ValueError(f"{images} images do not divide among {networks} networks")
    return images // networks


def check_activation(name: str, tensor: Tensor) -> None:
    """Raise a ValueError for what the kernels cannot index: not contiguous, or an image of 2^31 values or more.

    Only the offset of an image is computed in 64 bits.
    """
    if tensor.ndim != 4 or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous (B, H, W, C), got {tuple(tensor.shape)}, {tensor.stride()}")
    if tensor.shape[1:].numel() >= 2**31:
        values = tensor.shape[1:].numel()
        raise ValueError(f"an image of {name} has {values} values; the kernels take fewer than 2^31")


def on_device(tensor: Tensor) -> torch.cuda.device_of:
    """Triton launches on the current device: a context in which that is the tensor's (nothing for CPU tensors)."""
    return torch.cuda.device_of(tensor)


@triton.jit
def patch(tile, height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """The rows and columns of the pixels of patch `tile`, row-major, each (TILE_H TILE_W,); some may lie outside."""
    across = (width + TILE_W - 1) // TILE_W
    lane = tl.arange(0, TILE_H * TILE_W)
    rows = tile // across * TILE_H + lane // TILE_W
    cols = tile % across * TILE_W + lane % TILE_W
    return rows, cols


@triton.jit
def load_block(pointers, mask, WHOLE: tl.constexpr):
    """A load that has no mask where the whole block exists: then it is one wide asynchronous copy."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def multiply(a, b, acc):
    """acc + a b in float32; float32 operands are not rounded to TF32."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """A float32 value in the compute type, rounded to the nearest; the interpreter would cut it off to bfloat16."""
    if INTERPRET and tl.bfloat16 == DTYPE:
        bits = value.to(tl.int32, bitcast=True)
        value = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return value.to(DTYPE)


@triton.jit
def _sign_words(sign_mask_ptr, pixel, channel, mask, BLOCK: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr):
    """Pointers to the words of BITS sign bits, 8 or 32, of channels from `channel` on, and which of them exist."""
    word = channel // BITS + tl.arange(0, BLOCK // BITS)
    words_ptr = sign_mask_ptr.to(tl.pointer_type(tl.uint32)) if BITS == 32 else sign_mask_ptr
    pointers = words_ptr + (pixel[:, None] * ((C + BITS - 1) // BITS) + word[None, :])
    return pointers, mask[:, None] & (word * BITS < C)[None, :]


@triton.jit
def store_sign_mask(
    sign_mask_ptr, negative, pixel, channel, mask, ROWS: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr
):
    """Write the bits of `negative` (ROWS, BLOCK) of channels from `channel` on; where `mask` (ROWS,) holds.

    Channels past C must not be negative: their bits are 0.
    """
    BITS: tl.constexpr = 32 if C % 32 == 0 else 8  # a thread's bits of four bytes are joined first, with fewer shuffles
    pointers, exists = _sign_words(sign_mask_ptr, pixel, channel, mask, BLOCK, C, BITS)
    bits = tl.reshape(negative.to(tl.uint32), (ROWS, BLOCK // BITS, BITS)) << tl.arange(0, BITS)[None, None, :]
    tl.store(pointers, tl.sum(bits, axis=2).to(pointers.dtype.element_ty), mask=exists)


@triton.jit
def load_sign_mask(sign_mask_ptr, pixel, channel, mask, ROWS: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr):
    """Which values (ROWS, BLOCK) of channels from `channel` on were negative; where not `mask` (ROWS,), none."""
    BITS: tl.constexpr = 32 if C % 32 == 0 else 8
    pointers, exists = _sign_words(sign_mask_ptr, pixel, channel, mask, BLOCK, C, BITS)
    packed = tl.load(pointers, mask=exists, other=0).to(tl.uint32)
    bits = (packed[:, :, None] >> tl.arange(0, BITS)[None, None, :]) & 1
    return tl.reshape(bits, (ROWS, BLOCK)) != 0


@triton.jit
def inverse_slope(slope_minus_one):
    """What a backward pass multiplies with to recover a negative z from y: see csrc/math.h."""
    slope = 1.0 + slope_minus_one
    near_zero = tl.abs(slope) < 1.0 / 1024
    return tl.where(near_zero, tl.where(slope < 0, -1024.0, 1024.0), 1.0 / tl.where(near_zero, 1.0, slope))

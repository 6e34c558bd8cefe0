"""The Gaussian field of the noise injection (andfast/ops/noise.py) inside Triton kernels, and on its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.triton.common import on_device
from andfast.ops.backends.triton.configs import FOUR_WARPS

_QUADS = 256  # a program; four pixels each


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., 2011) of uint32 words, the counter's first a block."""
    for _ in tl.static_range(10):
        even_high, even_low = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        odd_high, odd_low = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0 = odd_high ^ c1 ^ k0
        c1 = odd_low
        c2 = even_high ^ c3 ^ k1
        c3 = even_low
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def radius_of(word):
    """Box and Muller's radius sqrt(-2 log u), u = (word + 0.5) / 2^32, in float32 to its last digits.

    From u near 1 the logarithm is taken by way of t = 1 - u, which is exact where u would be rounded:
    log(1 - t) = log(w) (-t) / (w - 1) with w = 1 - t as rounded (Kahan).
    """
    low = word < 0x80000000
    near = (tl.where(low, word, word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * (1.0 / 4294967296.0)  # u, or t
    rounded = 1.0 - near
    log = tl.log(tl.where(low, near, rounded))
    correction = -near / tl.where(low | (rounded == 1.0), 1.0, rounded - 1.0)
    return tl.sqrt_rn(-2.0 * tl.where(low, log, tl.where(rounded == 1.0, -near, log * correction)))


@triton.jit
def cosine_of(word, quarters):
    """cos(2 pi (word + 0.5) / 2^32 + quarters pi / 2), to the last digits.

    A turn of 2^32 is reduced to an eighth exactly, in integers, and Cephes' polynomials do the rest. (The library's
    functions take any angle: their branch for huge ones costs every kernel a stack frame.)
    """
    shifted = word + 0x20000000
    quadrant = ((shifted >> 30).to(tl.int32) + quarters) & 3
    x = (((shifted & 0x3FFFFFFF).to(tl.int32) - 0x20000000).to(tl.float32) + 0.5) * (6.283185307179586 / 4294967296.0)
    xx = x * x
    sine = x + x * xx * (-1.6666654611e-1 + xx * (8.3321608736e-3 + xx * -1.9515295891e-4))
    even = xx * xx * (4.166664568298827e-2 + xx * (-1.388731625493765e-3 + xx * 2.443315711809948e-5))
    value = tl.where(quadrant & 1 == 1, sine, 1.0 - 0.5 * xx + even)
    return tl.where((quadrant == 1) | (quadrant == 2), -value, value)


@triton.jit
def draw(seed, layer, image, quad):
    """The words of quad number `quad` (a block) of an image of a network, its seed as a scalar."""
    zero = quad.to(tl.uint32) * 0
    key0 = zero + (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = zero + (seed >> 32).to(tl.uint32)
    return philox(zero + quad.to(tl.uint32), zero + image.to(tl.uint32), zero + layer.to(tl.uint32), zero, key0, key1)


@triton.jit
def gaussian(seed, layer, image, pixel):
    """The field at `pixel` (a block of row-major numbers, >= 0) of an image of a network, in float32.

    Neighbours that share a draw each make it for themselves: in an epilogue that is cheaper than passing it on.
    """
    w0, w1, w2, w3 = draw(seed, layer, image, pixel // 4)
    second_pair = pixel % 4 >= 2
    # A pixel with an odd number takes the sine: the cosine three quarters of a turn further.
    return radius_of(tl.where(second_pair, w2, w0)) * cosine_of(tl.where(second_pair, w3, w1), pixel % 2 * 3)


@triton.jit(do_not_specialize=["layer", "images", "pixels"])
def field_kernel(seed_ptr, field_ptr, layer, images, pixels, QUADS: tl.constexpr):
    """field (N images, pixels). Grid: (blocks of quads, N images)."""
    number = tl.program_id(1)
    seed = tl.load(seed_ptr + number // images)
    quad = tl.program_id(0) * QUADS + tl.arange(0, QUADS)
    w0, w1, w2, w3 = draw(seed, layer, number % images, quad)
    pointers = field_ptr + number.to(tl.int64) * pixels + quad * 4
    radius = radius_of(w0)
    tl.store(pointers, radius * cosine_of(w1, 0), mask=quad * 4 < pixels)
    tl.store(pointers + 1, radius * cosine_of(w1, 3), mask=quad * 4 + 1 < pixels)
    radius = radius_of(w2)
    tl.store(pointers + 2, radius * cosine_of(w3, 0), mask=quad * 4 + 2 < pixels)
    tl.store(pointers + 3, radius * cosine_of(w3, 3), mask=quad * 4 + 3 < pixels)


def gaussian_field(seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
    """`Backend.gaussian_field`.

    Args:
        seed: (N,) int64, >= 0; read on the device.
        layer: which noise injection.
        images: how many images each network degrades.
        size: (H, W).

    Returns:
        (N * images, H, W) float32.
    """
    seed = seed.contiguous()
    count, pixels = seed.shape[0] * images, size[0] * size[1]
    field = torch.empty(count, *size, device=seed.device, dtype=torch.float32)
    if field.numel():
        grid = (triton.cdiv(pixels, 4 * _QUADS), count)
        with on_device(seed):
            field_kernel[grid](seed, field, layer, images, pixels, QUADS=_QUADS, **FOUR_WARPS)
    return field

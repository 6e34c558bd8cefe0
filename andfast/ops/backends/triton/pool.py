"""The anti-aliased pooling, channels last, forward and backward; also with a block's epilogue before it.

Pooling is linear, so the summands of a block's y = z + slope_minus_one min(z, 0) + noise are pooled one by one from the
z that the convolution wrote: y itself is never in memory, and the noise, the same in all channels up to a factor, is
pooled once a pixel, first. (Inside the pooling of z every thread would draw a pixel's field anew for its few channels.)
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.base import Epilogue
from andfast.ops.backends.triton.common import (
    block_of,
    check_activation,
    images_per_network,
    load_sign_mask,
    on_device,
    rounded,
)
from andfast.ops.backends.triton.configs import EIGHT_WARPS, FOUR_WARPS
from andfast.ops.backends.triton.conv import conv_sign_mask
from andfast.ops.backends.triton.noise import gaussian

# Pixels a program, of 4 warps; backward of 8, as with 4 some compilers spill. With channels: 16 bytes a load, two
# pixels (backward one) a thread at 64 channels of a half type. Not measured yet on a device.
_PIXELS = 32
_NOISE_PIXELS = 128

#: What is pooled: x; or x is a block's z, and its y and min(z, 0) are, with either kind of noise.
PLAIN, BLOCK_MAP, BLOCK_GAUSSIAN = (tl.constexpr(i) for i in range(3))


@triton.jit
def _in_box(i, SCALE: tl.constexpr):
    return tl.where((i >= 0) & (i < SCALE), 1.0, 0.0)


@triton.jit
def pooling_tap(i, SCALE: tl.constexpr):
    """Tap i of the pooling in one direction, zero outside 0 <= i < SCALE + 2: a box convolved with [1, 2, 1] / 4."""
    return (_in_box(i, SCALE) + 2 * _in_box(i - 1, SCALE) + _in_box(i - 2, SCALE)) * (0.25 / SCALE)


@triton.jit
def reflect(index, size):
    """Reflect an index that is outside [0, size) by one; the border pixel itself is not repeated."""
    index = tl.where(index < 0, -index, index)
    return tl.where(index >= size, 2 * size - 2 - index, index)


@triton.jit
def image_and_block(pixels, PIXELS: tl.constexpr):
    """The image of a program, and its block of the image's pixels.

    Both are in the grid's first axis, as the others end at 65535, and each channel may be an image: see `blur_pool`.
    """
    blocks = (pixels + PIXELS - 1) // PIXELS
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks


@triton.jit(do_not_specialize=["layer"])
def pool_noise_kernel(
    noise_ptr,  # (N, height SCALE, width SCALE) float32: the maps; or, GAUSSIAN, None
    seed_ptr,  # (N,) int64, or None
    pooled_ptr,  # (N, height, width) float32: the maps pooled; or (B, height, width): every image's field
    noise_row,  # from one map to the next one
    layer,
    images,  # a network
    height,
    width,
    SCALE: tl.constexpr,
    PIXELS: tl.constexpr,
    GAUSSIAN: tl.constexpr,
):
    """Grid: (blocks of pooled pixels, N or B)."""
    number = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = number < height * width
    window = tl.where(inside, number, 0)
    first_row, first_col = window // width * SCALE - 1, window % width * SCALE - 1
    image = tl.program_id(1)
    if GAUSSIAN:
        seed = tl.load(seed_ptr + image // images)
    else:
        noise_ptr += image.to(tl.int64) * noise_row
    pooled = tl.zeros((PIXELS,), tl.float32)
    for i in tl.range(0, SCALE + 2):
        row = reflect(first_row + i, height * SCALE) * (width * SCALE)
        for j in tl.range(0, SCALE + 2):
            pixel = row + reflect(first_col + j, width * SCALE)
            noise = gaussian(seed, layer, image % images, pixel) if GAUSSIAN else tl.load(noise_ptr + pixel)
            pooled += pooling_tap(i, SCALE) * pooling_tap(j, SCALE) * noise
    tl.store(pooled_ptr + image.to(tl.int64) * height * width + number, pooled, mask=inside)


@triton.jit
def pool_kernel(
    x_ptr,  # (B, height SCALE, width SCALE, C)
    pooled_ptr,  # (B, height, width, C), like x
    negative_ptr,  # like pooled: the pooled min(z, 0)
    slope_minus_one_ptr,  # (N,) float32
    noise_ptr,  # (N or B, height, width) float32: the pooled noise
    strength_ptr,  # (N, C) float32: what it is multiplied with, a channel
    strength_row,  # from one network's to the next one's
    images,  # a network
    height,
    width,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Grid: (B blocks of pooled pixels, blocks of channels). Pointers that EPILOGUE does not need may be anything."""
    image, block = image_and_block(height * width, PIXELS)
    number = block * PIXELS + tl.arange(0, PIXELS)
    inside = number < height * width
    window = tl.where(inside, number, 0)
    first_row, first_col = window // width * SCALE - 1, window % width * SCALE - 1
    network = image // images
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = inside[:, None] & (channel < C)[None, :]
    full_height, full_width = height * SCALE, width * SCALE
    x_ptr += image.to(tl.int64) * full_height * full_width * C
    pooled = tl.zeros((PIXELS, BLOCK), tl.float32)
    negative = tl.zeros((PIXELS, BLOCK), tl.float32)
    for i in tl.range(0, SCALE + 2):
        row = reflect(first_row + i, full_height) * full_width
        for j in tl.range(0, SCALE + 2):
            pixel = row + reflect(first_col + j, full_width)
            weight = pooling_tap(i, SCALE) * pooling_tap(j, SCALE)
            x = tl.load(x_ptr + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            pooled += weight * x
            if EPILOGUE != PLAIN:
                negative += weight * tl.where(x < 0, x, 0.0)

    offset = image.to(tl.int64) * height * width * C
    pointers = offset + number[:, None] * C + channel[None, :]
    if EPILOGUE != PLAIN:
        pooled += tl.load(slope_minus_one_ptr + network) * negative
        tl.store(negative_ptr + pointers, rounded(negative, negative_ptr.dtype.element_ty), mask=mask)
    if EPILOGUE == BLOCK_MAP:
        noise_ptr += network.to(tl.int64) * height * width
        pooled += tl.load(noise_ptr + number, mask=inside, other=0.0)[:, None]
    if EPILOGUE == BLOCK_GAUSSIAN:
        noise_ptr += image.to(tl.int64) * height * width
        noise = tl.load(noise_ptr + number, mask=inside, other=0.0)
        strength = tl.load(strength_ptr + network.to(tl.int64) * strength_row + channel, mask=channel < C, other=0.0)
        pooled += noise[:, None] * strength[None, :]
    tl.store(pooled_ptr + pointers, rounded(pooled, pooled_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _share(pixel, output, count, size, SCALE: tl.constexpr):
    """The weight of pixel `pixel` of `size` in output `output` of `count`, in one direction; 0 outside of both."""
    weight = pooling_tap(pixel + 1 - output * SCALE, SCALE)
    # The outermost taps, reflected, read the pixels next to the border ones.
    reflected = ((pixel == 1) & (output == 0)).to(tl.float32) + ((pixel == size - 2) & (output == count - 1)).to(
        tl.float32
    )
    return tl.where((output >= 0) & (output < count), weight + reflected * (0.25 / SCALE), 0.0)


@triton.jit
def pool_grad_kernel(
    grad_ptr,  # (B, height, width, C)
    out_ptr,  # (B, height SCALE, width SCALE, C), like grad
    sign_mask_ptr,  # (B, height SCALE, width SCALE, ceil(C / 8)) uint8
    slope_minus_one_ptr,  # (N,) float32
    dnoise_ptr,  # (B, blocks of channels, height SCALE, width SCALE) float32
    images,  # a network
    height,
    width,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Every pixel gathers from the two outputs, in each direction, that read it.

    With an EPILOGUE its gradient then goes through a block's LeakyReLU, for BLOCK_MAP after a sum over the channels.
    Grid: (B blocks of pixels, blocks of channels). Pointers that EPILOGUE does not need may be anything.
    """
    full_height, full_width = height * SCALE, width * SCALE
    image, block = image_and_block(full_height * full_width, PIXELS)
    number = block * PIXELS + tl.arange(0, PIXELS)
    inside = number < full_height * full_width
    row, col = number // full_width, number % full_width
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = inside[:, None] & (channel < C)[None, :]
    grad_ptr += image.to(tl.int64) * height * width * C

    total = tl.zeros((PIXELS, BLOCK), tl.float32)
    for i in tl.range(0, 2):
        from_row = (row + 1) // SCALE - i
        weight_row = _share(row, from_row, height, full_height, SCALE)
        for j in tl.range(0, 2):
            from_col = (col + 1) // SCALE - j
            weight = weight_row * _share(col, from_col, width, full_width, SCALE)
            reads = inside & (weight > 0)
            pixel = tl.where(reads, from_row * width + from_col, 0)
            taken = reads[:, None] & (channel < C)[None, :]
            grad = tl.load(grad_ptr + pixel[:, None] * C + channel[None, :], mask=taken, other=0.0)
            total += weight[:, None] * grad.to(tl.float32)

    offset = image.to(tl.int64) * full_height * full_width
    if EPILOGUE == BLOCK_MAP:
        dnoise_ptr += (image.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * full_height * full_width
        tl.store(dnoise_ptr + number, tl.sum(total, axis=1), mask=inside)
    if EPILOGUE != PLAIN:
        sign_mask_ptr += offset * ((C + 7) // 8)
        negative = load_sign_mask(sign_mask_ptr, number, tl.program_id(1) * BLOCK, inside, PIXELS, BLOCK, C)
        total = tl.where(negative, total * (1.0 + tl.load(slope_minus_one_ptr + image // images)), total)
    pointers = out_ptr + offset * C + number[:, None] * C + channel[None, :]
    tl.store(pointers, rounded(total, out_ptr.dtype.element_ty), mask=mask)


def pool_noise(epilogue: Epilogue, images: int, height: int, width: int, scale: int) -> Tensor:
    """The pooled noise maps, (N, height, width) float32; with a seed the pooled fields, (N images, height, width)."""
    _, noise, seed, layer = epilogue
    count = len(noise) if seed is None else len(noise) * images
    pooled = noise.new_empty(count, height, width)
    with on_device(noise):
        pool_noise_kernel[triton.cdiv(height * width, _NOISE_PIXELS), count](
            noise if seed is None else None,
            seed,
            pooled,
            noise.stride(0),
            layer,
            images,
            height,
            width,
            SCALE=scale,
            PIXELS=_NOISE_PIXELS,
            GAUSSIAN=seed is not None,
            **FOUR_WARPS,
        )
    return pooled


def _pool(x: Tensor, scale: int, epilogue: Epilogue | None = None) -> tuple[Tensor, Tensor | None]:
    """Launch `pool_kernel`: pooled, and, after a block, negative."""
    check_activation("x", x)
    batch, height, width, channels = x.shape
    if height % scale or width % scale:
        raise ValueError(f"x is {height} x {width}; both must be multiples of the scale, {scale}")
    height, width = height // scale, width // scale
    pooled = x.new_empty(batch, height, width, channels)
    mode, images, slope_minus_one, negative, pooled_noise, strength = PLAIN, batch, None, None, None, None
    if epilogue is not None:
        mode = BLOCK_MAP if epilogue.seed is None else BLOCK_GAUSSIAN
        slope_minus_one = epilogue.slope_minus_one
        images = images_per_network(batch, len(slope_minus_one))
        negative = x.new_empty(pooled.shape)
        pooled_noise = pool_noise(epilogue, images, height, width, scale)
        strength = None if epilogue.seed is None else epilogue.noise
    block = block_of(channels)
    with on_device(x):
        pool_kernel[batch * triton.cdiv(height * width, _PIXELS), triton.cdiv(channels, block)](
            x,
            pooled,
            negative,
            slope_minus_one,
            pooled_noise,
            strength,
            0 if strength is None else strength.stride(0),
            images,
            height,
            width,
            C=channels,
            SCALE=scale,
            PIXELS=_PIXELS,
            BLOCK=block,
            EPILOGUE=mode.value,
            **FOUR_WARPS,
        )
    return pooled, negative


def _pool_grad(
    grad: Tensor,
    scale: int,
    mode: tl.constexpr = PLAIN,
    sign_mask: Tensor | None = None,
    slope_minus_one: Tensor | None = None,
    dnoise: Tensor | None = None,
) -> Tensor:
    """Launch `pool_grad_kernel`, which for BLOCK_MAP fills `dnoise`."""
    check_activation("the pooled gradient", grad)
    batch, height, width, channels = grad.shape
    out = grad.new_empty(batch, height * scale, width * scale, channels)
    check_activation("the result", out)
    block = block_of(channels)
    grid = (batch * triton.cdiv(height * width * scale * scale, _PIXELS), triton.cdiv(channels, block))
    with on_device(grad):
        pool_grad_kernel[grid](
            grad,
            out,
            sign_mask,
            slope_minus_one,
            dnoise,
            images_per_network(batch, slope_minus_one.shape[0]) if slope_minus_one is not None else batch,
            height,
            width,
            C=channels,
            SCALE=scale,
            PIXELS=_PIXELS,
            BLOCK=block,
            EPILOGUE=mode.value,
            **EIGHT_WARPS,
        )
    return out


def blur_pool(x: Tensor, scale: int) -> Tensor:
    """`andfast.ops.blur_pool`, channels last: (B, H, W, C) -> (B, H/scale, W/scale, C) like `x`, rounded once."""
    return _pool(x, scale)[0]


def blur_pool_grad(grad: Tensor, scale: int) -> Tensor:
    """The gradient of `blur_pool`'s input, (B, h scale, w scale, C), from that of its result, (B, h, w, C)."""
    return _pool_grad(grad, scale)


def block_pool(x: Tensor, weights: Tensor, epilogue: Epilogue, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """A block and the pooling after it, in three launches: `Backend.block_pool`.

    z goes through memory once, rounded to the compute type; the sign mask is that before this rounding.
    """
    z, sign_mask = conv_sign_mask(x, weights)
    pooled, negative = _pool(z, scale, epilogue)
    return pooled, negative, sign_mask


def block_pool_grad(
    dpooled: Tensor, sign_mask: Tensor, slope_minus_one: Tensor, scale: int, dnoise: Tensor | None = None
) -> Tensor:
    """`Backend.block_pool_grad`; into `dnoise`, if given, goes the gradient of a noise map.

    Of each image, and summed over each block of channels (see `block_of`): (B, blocks, H, W) float32.
    """
    mode = BLOCK_GAUSSIAN if dnoise is None else BLOCK_MAP
    return _pool_grad(dpooled, scale, mode, sign_mask, slope_minus_one, dnoise)

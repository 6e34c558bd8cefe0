"""The gradient of a convolution's input, and the backward pass of the block that made that input, in one kernel.

With the replicated border, pixel p of the input was read by every output q with a tap t for which clamp(q + t) = p.
In each direction that is q = p - t inside the image, and on top of it, for the tap that points outwards at an edge
pixel, that edge pixel itself ("folded" back). The plain part is a convolution with the transposed weights, zeros
around; patches that touch the border go on to add the folded products.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.base import Epilogue
from andfast.ops.backends.triton.block_grad import (
    new_partials,
    sum_partials,
    through_epilogue,
    through_pooled_epilogue,
)
from andfast.ops.backends.triton.common import (
    block_of,
    check_activation,
    images_per_network,
    load_block,
    multiply,
    on_device,
    patch,
    rounded,
)
from andfast.ops.backends.triton.configs import config

#: What is done with the gradient of the input: write it; or run the backward pass of the block that made the input; or,
#: if that block's result was pooled, write it, and sum what of that block's backward pass can be summed here.
PLAIN, BLOCK_MAP, BLOCK_GAUSSIAN, POOLED_MAP, POOLED_GAUSSIAN = (tl.constexpr(i) for i in range(5))


@triton.jit
def _add_tap(
    acc, dz_ptr, weight_ptr, row, col, inside, width, tap, step, out,
    C_DZ: tl.constexpr, C_DX: tl.constexpr, BLOCK_DZ: tl.constexpr, BLOCK_DX: tl.constexpr,
):  # fmt: skip
    """acc plus dz at (row, col), zero where not `inside`, times the weights of a tap, for one step of the depth."""
    depth = step * BLOCK_DZ + tl.arange(0, BLOCK_DZ)
    pixel = tl.where(inside, row * width + col, 0)
    mask = inside[:, None] & (depth < C_DZ)[None, :]
    dz = tl.load(dz_ptr + pixel[:, None] * C_DZ + depth[None, :], mask=mask, other=0.0)
    weight = load_block(
        weight_ptr + (tap * C_DZ + depth)[:, None] * C_DX + out[None, :],
        (depth < C_DZ)[:, None] & (out < C_DX)[None, :],
        C_DZ % BLOCK_DZ == 0 and C_DX % BLOCK_DX == 0,
    )
    return multiply(dz, weight, acc)


@triton.jit(do_not_specialize=["layer"])
def input_grad_kernel(
    dz_ptr,  # (B, H, W, C_DZ)
    weight_ptr,  # (N, 9, C_DZ, C_DX), like dz
    out_ptr,  # (B, H, W, C_DX), like dz: the gradient of the input, or of the z of the block that made it
    y_ptr,  # (B, H, W, C_DX), like dz: the input; POOLED: the pooled negative part
    sign_mask_ptr,  # (B, H, W, ceil(C_DX / 8)) uint8
    slope_minus_one_ptr,  # (N,) float32
    noise_ptr,  # (N, H, W) or (N, C_DX) float32; POOLED_GAUSSIAN: (B, H, W), the pooled field
    seed_ptr,  # (N,) int64
    dslope_ptr,  # partial sums; see `through_epilogue`
    dnoise_ptr,
    noise_row,  # from one network's noise to the next one's
    layer,
    images,  # a network
    height,
    width,
    C_DZ: tl.constexpr,
    C_DX: tl.constexpr,
    BLOCK_DZ: tl.constexpr,
    BLOCK_DX: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Grid: (patches, blocks of the input's channels, B). Pointers that the epilogue does not use may be anything."""
    rows, cols = patch(tl.program_id(0), height, width, TILE_H, TILE_W)
    image = tl.program_id(2)
    network = image // images
    out = tl.program_id(1) * BLOCK_DX + tl.arange(0, BLOCK_DX)
    dz_ptr += image.to(tl.int64) * height * width * C_DZ
    weight_ptr += network.to(tl.int64) * (9 * C_DZ * C_DX)

    DEPTH: tl.constexpr = (C_DZ + BLOCK_DZ - 1) // BLOCK_DZ
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_DX), tl.float32)
    for step in tl.range(0, 9 * DEPTH):
        tap = step // DEPTH
        row, col = rows - (tap // 3 - 1), cols - (tap % 3 - 1)
        inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
        acc = _add_tap(
            acc, dz_ptr, weight_ptr, row, col, inside, width, tap, step % DEPTH, out, C_DZ, C_DX, BLOCK_DZ, BLOCK_DX
        )  # fmt: skip

    across = (width + TILE_W - 1) // TILE_W
    top, left = tl.program_id(0) // across * TILE_H, tl.program_id(0) % across * TILE_W
    if (top == 0) | (top + TILE_H >= height) | (left == 0) | (left + TILE_W >= width):
        for fold in tl.range(1, 4):  # 1: the row is folded back; 2: the column; 3: both
            for tap in tl.range(0, 9):
                down, right = tap // 3 - 1, tap % 3 - 1
                edge_row, edge_col = tl.where(down < 0, 0, height - 1), tl.where(right < 0, 0, width - 1)
                has_row = (down != 0) & (top <= edge_row) & (edge_row < top + TILE_H)
                has_col = (right != 0) & (left <= edge_col) & (edge_col < left + TILE_W)
                if ((fold == 2) | has_row) & ((fold == 1) | has_col):
                    row, col = tl.where(fold == 2, rows - down, rows), tl.where(fold == 1, cols - right, cols)
                    inside = (rows < height) & (row >= 0) & (row < height) & ((fold == 2) | (rows == edge_row))
                    inside &= (cols < width) & (col >= 0) & (col < width) & ((fold == 1) | (cols == edge_col))
                    for step in tl.range(0, DEPTH):
                        acc = _add_tap(
                            acc, dz_ptr, weight_ptr, row, col, inside, width, tap, step, out,
                            C_DZ, C_DX, BLOCK_DZ, BLOCK_DX,
                        )  # fmt: skip

    inside = (rows < height) & (cols < width)
    mask = inside[:, None] & (out < C_DX)[None, :]
    pixel = rows * width + cols
    if EPILOGUE == BLOCK_MAP or EPILOGUE == BLOCK_GAUSSIAN:
        acc = through_epilogue(
            tl.where(mask, acc, 0.0), y_ptr, sign_mask_ptr, slope_minus_one_ptr, noise_ptr, seed_ptr,
            dslope_ptr, dnoise_ptr, noise_row, layer, images, height, width, pixel, inside, out,
            C_DX, TILE_H * TILE_W, BLOCK_DX, EPILOGUE == BLOCK_GAUSSIAN,
        )  # fmt: skip
    elif EPILOGUE != PLAIN:
        through_pooled_epilogue(
            tl.where(mask, acc, 0.0), y_ptr, noise_ptr, dslope_ptr, dnoise_ptr, height, width, pixel, inside, out,
            C_DX, EPILOGUE == POOLED_GAUSSIAN,
        )  # fmt: skip
    out_ptr += image.to(tl.int64) * height * width * C_DX
    tl.store(out_ptr + pixel[:, None] * C_DX + out[None, :], rounded(acc, out_ptr.dtype.element_ty), mask=mask)


def _launch(
    dz: Tensor,
    weights: Tensor,
    mode: tl.constexpr,
    y: Tensor | None = None,
    sign_mask: Tensor | None = None,
    epilogue: Epilogue | tuple[None, Tensor | None, None, int] = (None, None, None, 0),
    dslope: Tensor | None = None,
    dnoise: Tensor | None = None,
) -> Tensor:
    """Launch `input_grad_kernel`, which fills `dslope` and `dnoise` with partial sums."""
    check_activation("dz", dz)
    batch, height, width, c_dz = dz.shape
    networks, _, _, c_dx = weights.shape
    out = dz.new_empty(batch, height, width, c_dx)
    check_activation("the result", out)
    launch = config("input_grad", dz, c_dz, c_dx)
    block_dz, block_dx = block_of(c_dz), block_of(c_dx)
    patches = triton.cdiv(height, launch.tile[0]) * triton.cdiv(width, launch.tile[1])
    slope_minus_one, noise, seed, layer = epilogue
    with on_device(dz):
        input_grad_kernel[patches, triton.cdiv(c_dx, block_dx), batch](
            dz,
            weights,
            out,
            y,
            sign_mask,
            slope_minus_one,
            noise,
            seed,
            dslope,
            dnoise,
            0 if noise is None else noise.stride(0),
            layer,
            images_per_network(batch, networks),
            height,
            width,
            C_DZ=c_dz,
            C_DX=c_dx,
            BLOCK_DZ=block_dz,
            BLOCK_DX=block_dx,
            TILE_H=launch.tile[0],
            TILE_W=launch.tile[1],
            EPILOGUE=mode.value,
            **launch.options,
        )
    return out


def input_grad(dz: Tensor, weights: Tensor) -> Tensor:
    """The gradient of a convolution's input.

    Args:
        dz: (B, H, W, out) in the compute type.
        weights: from `pack_weights`, for the backward pass.

    Returns:
        (B, H, W, in) like `dz`.
    """
    return _launch(dz, weights, PLAIN)


def pooled_input_grad(
    dz: Tensor, weights: Tensor, negative: Tensor, field: Tensor | None, dslope: Tensor, dnoise: Tensor
) -> Tensor:
    """`input_grad`, and partial sums of the backward pass of the block before the pooling that made that input.

    Args:
        dz, weights: as for `input_grad`.
        negative: (B, H, W, in) like `dz`: the pooled min(z, 0) of that block.
        field: (B, H, W) float32: the pooled Gaussian field of its noise; None for a noise map.
        dslope, dnoise: where the sums go, of `partial_shapes(..., gaussian_noise=True)`; dnoise for a field alone.
    """
    mode = POOLED_MAP if field is None else POOLED_GAUSSIAN
    return _launch(dz, weights, mode, negative, None, (None, field, None, 0), dslope, dnoise)


def block_input_grad(
    dz: Tensor, weights: Tensor, y: Tensor, sign_mask: Tensor, epilogue: Epilogue
) -> tuple[Tensor, Tensor, Tensor]:
    """`input_grad`, then the backward pass of the block that made that input: `Backend.block_input_grad`.

    The gradient of y stays in float32 from the products to all three results.

    Args:
        dz, weights: as for `input_grad`.
        y: (B, H, W, in) like `dz`: the convolution's input, which is the result of the block before it.
        sign_mask, epilogue: of that block; see `andfast.ops.backends.base`.

    Returns:
        The gradients of that block's z, (B, H, W, in) like `dz`; of its slope, (N,) float32; and of its noise, float32,
        of the shape of `epilogue.noise`.
    """
    tile = config("input_grad", dz, dz.shape[3], weights.shape[3]).tile
    partials = new_partials(y, tile, epilogue.seed is not None)
    out = partial_block_input_grad(dz, weights, y, sign_mask, epilogue, *partials)
    return out, *sum_partials(*partials, len(epilogue.noise))


def partial_block_input_grad(
    dz: Tensor, weights: Tensor, y: Tensor, sign_mask: Tensor, epilogue: Epilogue, dslope: Tensor, dnoise: Tensor
) -> Tensor:
    """`block_input_grad` with the sums of each patch, of the shapes `partial_shapes`, in given memory."""
    check_activation("y", y)
    mode = BLOCK_MAP if epilogue.seed is None else BLOCK_GAUSSIAN
    return _launch(dz, weights, mode, y, sign_mask, epilogue, dslope, dnoise)

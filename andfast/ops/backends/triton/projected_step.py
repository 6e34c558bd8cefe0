"""The adversary's projected step (andfast/ops/projected_step.py) in two launches.

Three sums over a row decide the whole step. The first launch writes them a chunk; in the second every program adds
its row's chunks, in the same order, and moves its part of the row. All in float64: a float32 gradient may be so small
or so large that its squares, in float32, would not exist.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.triton.common import on_device
from andfast.ops.backends.triton.configs import FOUR_WARPS

# Columns a program; and partial sums that a program of the second launch adds at a time.
_CHUNK = 2048
_PARTIALS = 256

_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _load_chunk(delta_ptr, grad_ptr, inv_scale_ptr, row, columns, CHUNK: tl.constexpr):
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    mask = column < columns
    offset = row.to(tl.int64) * columns + column
    delta = tl.load(delta_ptr + offset, mask=mask, other=0.0).to(tl.float64)
    grad = tl.load(grad_ptr + offset, mask=mask, other=0.0).to(tl.float64)
    inv_scale = tl.load(inv_scale_ptr + column, mask=mask, other=0.0).to(tl.float64)
    return offset, mask, delta, grad, inv_scale


@triton.jit
def sums_kernel(delta_ptr, grad_ptr, inv_scale_ptr, partial_ptr, columns, CHUNK: tl.constexpr):
    """partial (3, N, chunks) float64: sums of (r g)^2, of (d / r)^2 and of d g. Grid: (chunks, N)."""
    row = tl.program_id(1)
    _, _, delta, grad, inv_scale = _load_chunk(delta_ptr, grad_ptr, inv_scale_ptr, row, columns, CHUNK)
    free = inv_scale > 0
    # r g counts at r = 0 too, where a NaN must still spoil the row's gradient.
    scaled_grad = inv_scale * grad
    scaled_delta = tl.where(free, delta, 0.0) / tl.where(free, inv_scale, 1.0)
    product = tl.where(free, delta * grad, 0.0)
    chunks = tl.num_programs(0)
    partial_ptr += row * chunks + tl.program_id(0)
    stride = tl.num_programs(1) * chunks
    tl.store(partial_ptr, tl.sum(scaled_grad * scaled_grad, axis=0))
    tl.store(partial_ptr + stride, tl.sum(scaled_delta * scaled_delta, axis=0))
    tl.store(partial_ptr + 2 * stride, tl.sum(product, axis=0))


@triton.jit
def step_kernel(
    delta_ptr,
    grad_ptr,
    inv_scale_ptr,
    partial_ptr,
    out_ptr,
    columns,
    step_size: tl.float64,  # without this, floats are passed as float32
    epsilon: tl.float64,
    CHUNK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """out (N, columns) like delta. Grid: as that of `sums_kernel`."""
    row = tl.program_id(1)
    chunks = tl.num_programs(0)
    partial_ptr += row * chunks
    stride = tl.num_programs(1) * chunks
    grad_sums = tl.zeros((PARTIALS,), tl.float64)
    delta_sums = tl.zeros((PARTIALS,), tl.float64)
    dot_sums = tl.zeros((PARTIALS,), tl.float64)
    for first in tl.range(0, chunks, PARTIALS):
        chunk = first + tl.arange(0, PARTIALS)
        mask = chunk < chunks
        grad_sums += tl.load(partial_ptr + chunk, mask=mask, other=0.0)
        delta_sums += tl.load(partial_ptr + stride + chunk, mask=mask, other=0.0)
        dot_sums += tl.load(partial_ptr + 2 * stride + chunk, mask=mask, other=0.0)
    grad_norm = tl.sqrt(tl.sum(grad_sums, axis=0))
    squared = tl.sum(delta_sums, axis=0)
    dot = tl.sum(dot_sums, axis=0)

    moves = (grad_norm > 0) & (grad_norm < _INFINITY)  # false of NaN
    length = tl.where(moves, grad_norm, 1.0)
    # |d / r + step_size * r g / |r g||^2, multiplied out. This loses digits only where the terms cancel, that is,
    # where the moved row is far shorter than the row was, and then it is inside the ball anyway.
    squared += tl.where(moves, step_size * (2 * dot / length + step_size), 0.0)
    norm = tl.sqrt(tl.where(squared < 0, 0.0, squared))
    # Written so that a NaN in delta stays visible in the result.
    stays = (norm <= epsilon) | (epsilon == _INFINITY)
    shrink = tl.where(stays, 1.0, epsilon / tl.where(stays, 1.0, norm))

    offset, mask, delta, grad, inv_scale = _load_chunk(delta_ptr, grad_ptr, inv_scale_ptr, row, columns, CHUNK)
    moved = delta + tl.where(moves, step_size / length * inv_scale * inv_scale * grad, 0.0)
    result = tl.where(inv_scale > 0, moved * shrink, 0.0)
    tl.store(out_ptr + offset, result.to(out_ptr.dtype.element_ty), mask=mask)


def projected_step(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    """`andfast.ops.projected_step`: arguments checked by it, contiguous, float32 or float64."""
    rows, columns = delta.shape
    out = torch.empty(delta.shape, dtype=delta.dtype, device=delta.device)
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(columns, _CHUNK), rows)
    partial = torch.empty(3, rows, grid[0], dtype=torch.float64, device=delta.device)
    with on_device(delta):
        sums_kernel[grid](delta, grad, inv_scale, partial, columns, CHUNK=_CHUNK, **FOUR_WARPS)
        step_kernel[grid](
            delta, grad, inv_scale, partial, out, columns, step_size, epsilon,
            CHUNK=_CHUNK, PARTIALS=_PARTIALS, **FOUR_WARPS,
        )  # fmt: skip
    return out

"""The gradient of theta from the partial sums that the backward kernels of all layers leave, in one launch.

The layers' kernels write their sums side by side into one memory: what every share of pixels, every image or every
patch contributes. In the end each column of the gradient is added up in a fixed order, so that equal calls give equal
bits, and the taps are rotated to moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from andfast.ops.backends.bank import tap_basis
from andfast.ops.backends.triton.block_grad import partial_shapes
from andfast.ops.backends.triton.common import block_of, on_device
from andfast.ops.backends.triton.configs import FOUR_WARPS, config, shared_memory
from andfast.ops.backends.triton.conv_weight_grad import partials_shape
from andfast.ops.backends.triton.prepare import load_basis
from andfast.ops.theta_layout import Segment, ThetaLayout

#: What a program adds up: taps of some kernels; many columns of few terms; few columns of many terms.
TAPS, WIDE, LONG = (tl.constexpr(i) for i in range(3))
# Kernels, or columns, a program; and terms at once. Not measured yet on a device.
_KERNELS, _WIDE, _LONG, _TERMS = 32, 512, 4, 256
_JOB = tl.constexpr(6)  # numbers a job


@triton.jit
def _add_taps(partial_ptr, basis_ptr, grad_ptr, terms, stride, kernels, KERNELS: tl.constexpr):
    tap = tl.arange(0, 16)[:, None]
    kernel = tl.arange(0, KERNELS)[None, :]
    mask = (tap < 9) & (kernel < kernels)
    pointers = partial_ptr + tap * (stride // 9) + kernel
    taps = tl.zeros((16, KERNELS), tl.float32)
    for _ in tl.range(0, terms, loop_unroll_factor=4):
        taps += tl.load(pointers, mask=mask, other=0.0)
        pointers += stride
    moments = tl.dot(load_basis(basis_ptr), taps, input_precision="ieee")
    tl.store(grad_ptr + kernel * 9 + tap, moments, mask=mask)


@triton.jit
def _add_few(partial_ptr, grad_ptr, terms, stride, columns, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    pointers = partial_ptr + column
    total = tl.zeros((COLUMNS,), tl.float32)
    for _ in tl.range(0, terms, loop_unroll_factor=4):
        total += tl.load(pointers, mask=column < columns, other=0.0)
        pointers += stride
    tl.store(grad_ptr + column, total, mask=column < columns)


@triton.jit
def _add_many(partial_ptr, grad_ptr, terms, stride, columns, COLUMNS: tl.constexpr, TERMS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    term = tl.arange(0, TERMS)[:, None]
    pointers = partial_ptr + term * stride + column[None, :]
    totals = tl.zeros((TERMS, COLUMNS), tl.float32)
    for first in tl.range(0, terms, TERMS, loop_unroll_factor=4):
        totals += tl.load(pointers, mask=(first + term < terms) & (column < columns)[None, :], other=0.0)
        pointers += TERMS * stride
    tl.store(grad_ptr + column, tl.sum(totals, axis=0), mask=column < columns)


@triton.jit
def add_partials_kernel(
    jobs_ptr,  # (jobs, _JOB) int64; see `_jobs`
    partial_ptr,  # float32
    basis_ptr,  # (9, 9) float32
    grad_ptr,  # (N, P) float32, each row contiguous
    grad_row,
    KERNELS: tl.constexpr,
    WIDE_COLUMNS: tl.constexpr,
    LONG_COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Grid: (jobs, N)."""
    jobs_ptr += tl.program_id(0) * _JOB
    kind, terms, stride = tl.load(jobs_ptr), tl.load(jobs_ptr + 1), tl.load(jobs_ptr + 2)
    columns = tl.load(jobs_ptr + 5)
    network = tl.program_id(1).to(tl.int64)
    partial_ptr += tl.load(jobs_ptr + 3) + network * terms * stride
    grad_ptr += network * grad_row + tl.load(jobs_ptr + 4)
    if kind == TAPS:
        _add_taps(partial_ptr, basis_ptr, grad_ptr, terms, stride, columns, KERNELS)
    elif kind == WIDE:
        _add_few(partial_ptr, grad_ptr, terms, stride, columns, WIDE_COLUMNS)
    else:
        _add_many(partial_ptr, grad_ptr, terms, stride, columns, LONG_COLUMNS, TERMS)


@dataclass(frozen=True)
class _Plan:
    """Where the partial sums of a bank lie: `places` in a memory of `size` floats, by group and layer of theta.

    A place is an offset and a shape; `jobs` is for the kernel.
    """

    size: int
    places: dict[tuple[str, int], tuple[int, tuple[int, ...]]]
    jobs: Tensor


def _shape(layout: ThetaLayout, networks: int, images: int, like: Tensor, part: Segment) -> tuple[int, ...]:
    """The shape of a segment's partial sums: (..., one term's)."""
    height, width = layout.image_size
    low = height // layout.scale, width // layout.scale
    if part.group == "conv":
        out, into, _ = part.shape
        size = low if part.layer >= layout.blocks else (height, width)
        return partials_shape(like, networks, images, size, into, out)
    pooled = part.layer == layout.pooled_layer
    size = low if pooled or part.layer >= layout.blocks else (height, width)
    gaussian = layout.noise_kind == "gaussian"
    if part.group == "noise" and pooled and not gaussian:
        return networks * images, triton.cdiv(layout.channels, block_of(layout.channels)), height, width
    # By the kernel that runs the next convolution backward.
    tile = config("input_grad", like, layout.conv[part.layer + 1].shape[0], layout.channels).tile
    dslope, dnoise = partial_shapes((networks * images, *size, layout.channels), tile, gaussian)
    return dslope if part.group == "slope" else dnoise


def _jobs(part: Segment, offset: int, terms: int, stride: int) -> list[tuple[int, ...]]:
    """A job for each program: kind, terms, stride between them, offset of the first, column of theta, columns to do.

    For taps the columns are kernels, of nine columns each.
    """
    columns, each = prod(part.shape), 1
    kind, block = (WIDE, _WIDE) if columns >= terms else (LONG, _LONG)
    if part.group == "conv":
        columns, each, kind, block = columns // 9, 9, TAPS, _KERNELS
    return [
        (kind.value, terms, stride, offset + first, part.start + first * each, min(block, columns - first))
        for first in range(0, columns, block)
    ]


@cache  # without end: a CUDA graph may hold the memory of `jobs`
def _plan(
    layout: ThetaLayout, networks: int, images: int, dtype: torch.dtype, device: torch.device, shared: int
) -> _Plan:
    """`shared` memory chooses the launches; see `configs`."""
    like = torch.empty(0, dtype=dtype, device=device)
    size, places, jobs = 0, {}, []
    for part in layout.segments:
        shape = _shape(layout, networks, images, like, part)
        stride = prod(part.shape)
        places[part.group, part.layer] = size, shape
        jobs += _jobs(part, size, prod(shape) // (networks * stride), stride)
        size += (prod(shape) + 3) // 4 * 4  # the kernels read and write 16 bytes at once
    return _Plan(size, places, torch.tensor(jobs, dtype=torch.int64, device=device))


class Partials:
    """Memory for the partial sums of one backward pass of N networks.

    Args:
        layout: the columns of theta.
        networks, images: N, and B / N.
        dtype, device: of the activations.
    """

    def __init__(
        self, layout: ThetaLayout, networks: int, images: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._plan = _plan(layout, networks, images, dtype, device, shared_memory(device))
        self._memory = torch.empty(self._plan.size, dtype=torch.float32, device=device)

    def part(self, group: str, layer: int) -> Tensor:
        """The part for one segment of theta, in the shape in which its kernel writes it."""
        offset, shape = self._plan.places[group, layer]
        return self._memory[offset : offset + prod(shape)].view(shape)

    def add(self, grad: Tensor) -> None:
        """Add up all parts to the gradient, (N, P) float32, each row contiguous.

        Equivalent to what `LayerBank` writes into it, layer by layer.
        """
        with on_device(grad):
            add_partials_kernel[len(self._plan.jobs), len(grad)](
                self._plan.jobs,
                self._memory,
                tap_basis(grad.device),
                grad,
                grad.stride(0),
                KERNELS=_KERNELS,
                WIDE_COLUMNS=_WIDE,
                LONG_COLUMNS=_LONG,
                TERMS=_TERMS,
                **FOUR_WARPS,
            )

"""Whether the generators' convolutions may be computed in large tiles: faster, and rounded less finely.

Compiled operators, `torch.ops.andfast.*`, on the CPU in float32; images are contiguous (B, H, W, C):

* `large_chain(x, weights, biases, slopes, repeats) -> y`: see `andfast.ops.conv_chain`; a slope is (out,) or None.
* `large_dense_block(x, weights, biases, slope, gain) -> y`: see `andfast.ops.dense_block`.

They compute 36 results from 64 products (csrc/cpu/inference.cpp) and keep nothing for a backward pass. Results differ
by a few millionths from those of training's convolutions: nothing to an image, but an update would not be the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from andfast.ops import dispatch

_allowed = ContextVar("large_tiles_allowed", default=False)


def allowed() -> bool:
    """Whether an operation that keeps nothing for a backward pass may take them."""
    return _allowed.get()


@contextmanager
def allow() -> Iterator[None]:
    """Allow them in the `with` block, in this thread, for all that is computed on the CPU in float32."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::large_chain")
    def _(
        x: Tensor, weights: list[Tensor], biases: list[Tensor], slopes: list[Tensor | None], repeats: list[int]
    ) -> Tensor:
        factor = math.prod(repeats)
        return x.new_empty(len(x), factor * x.shape[1], factor * x.shape[2], len(weights[-1]))

    @torch.library.register_fake("andfast::large_dense_block")
    def _(x: Tensor, weights: list[Tensor], biases: list[Tensor], slope: float, gain: float) -> Tensor:
        return torch.empty_like(x)

"""From values of a batch to one number an image."""

from __future__ import annotations

import torch
from torch import Tensor


def per_image(values: Tensor) -> Tensor:
    """(B, ...) -> (B,), the mean over all else."""
    return values.mean(dim=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def widened(values: Tensor) -> Tensor:
    """The same in float32, or what is wider: sums and logarithms want more than half a type."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

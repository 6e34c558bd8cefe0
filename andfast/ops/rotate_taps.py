"""The nine taps of many 3x3 kernels in another basis: from moments to taps, and back (see `ThetaLayout`)."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops import dispatch


def rotate_taps_reference(matrix: Tensor, basis: Tensor) -> Tensor:
    """`rotate_taps` in plain PyTorch."""
    return (matrix.unflatten(1, (-1, 9)) @ basis).flatten(1)


def rotate_taps(matrix: Tensor, basis: Tensor) -> Tensor:
    """Every nine neighbours in a row of `matrix`, as a row vector, times `basis`. Carries no gradient.

    Args:
        matrix: (N, 9 K) float32; slices of the columns of a larger matrix are taken as they are.
        basis: (9, 9) float32, contiguous.

    Returns:
        (N, 9 K), contiguous.
    """
    if matrix.device.type == "cpu" and "cpu" not in dispatch.unavailable:
        return torch.ops.andfast.rotate_taps(matrix, basis)  # csrc/cpu/rotate_taps.cpp
    return rotate_taps_reference(matrix, basis)


if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::rotate_taps")
    def _(matrix: Tensor, basis: Tensor) -> Tensor:
        return matrix.new_empty(matrix.shape)

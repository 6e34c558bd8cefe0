"""Whether an LR image and its original show the same thing at the same place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from andfast.metrics import to_y

LEAST_CORRELATION = 0.3
"""Images whose details correlate less show something else; pairs of cameras reach 0.5 and more."""


class Alignment(NamedTuple):
    """How an enlarged LR image lies on its original.

    Attributes:
        down, right: by how many HR pixels its content stands lower and further to the right.
        correlation: of their details when laid so, at most 1.
    """

    down: float
    right: float
    correlation: float

    def wrong(self, scale: int) -> str | None:
        """What is wrong with it, if anything: more than half an LR pixel away, or something else."""
        if self.correlation < LEAST_CORRELATION:
            return f"not the same scene (correlation {self.correlation:.2f})"
        if max(abs(self.down), abs(self.right)) > scale / 2:
            return f"{self.down:+.1f} down, {self.right:+.1f} right"
        return None


def align(enlarged: Tensor, hr: Tensor, reach: int) -> Alignment:
    """Find how an enlarged LR image lies on its original.

    By the largest correlation of the two, less their surroundings, between shifts of whole pixels, and a parabola
    through it and its neighbours.

    Args:
        enlarged, hr: float (1, 3, H, W) in [0, 1].
        reach: the largest shift looked for, in pixels.

    Returns:
        The alignment; without any detail in either image, no shift and a correlation of 1.
    """
    a, b = (_details(image) for image in (enlarged, hr))
    energy = (a.square().sum() * b.square().sum()).sqrt()
    if energy == 0:
        return Alignment(0.0, 0.0, 1.0)
    size = [length + reach + 1 for length in a.shape]  # zeros between the image and its periodic copies
    product = torch.fft.rfft2(a, s=size) * torch.fft.rfft2(b, s=size).conj()
    correlation = torch.fft.irfft2(product, s=size).roll((reach + 1, reach + 1), dims=(0, 1)) / energy
    window = correlation[: 2 * reach + 3, : 2 * reach + 3]
    inner = window[1:-1, 1:-1]
    row, column = divmod(int(inner.argmax()), inner.shape[1])
    down = row - reach + _peak(window[row : row + 3, column + 1])
    right = column - reach + _peak(window[row + 1, column : column + 3])
    return Alignment(down, right, inner[row, column].item())


def _details(image: Tensor) -> Tensor:
    """Luma less its mean over 17 x 17 pixels, float64 (H, W), fading out towards the borders."""
    luma = to_y(image.double())[0]
    small = min(8, (min(luma.shape) - 1) // 2)
    mean = torch.nn.functional.avg_pool2d(luma[None, None], 2 * small + 1, 1, small, count_include_pad=False)[0, 0]
    fading = [torch.hann_window(length + 2, periodic=False, dtype=luma.dtype)[1:-1] for length in luma.shape]
    return (luma - mean) * torch.outer(*fading).to(luma.device)


def _peak(three: Tensor) -> float:
    """Where a parabola through three values is largest, from the middle one."""
    before, middle, behind = three.tolist()
    curvature = before - 2 * middle + behind
    return 0.0 if curvature >= 0 else min(max((before - behind) / (2 * curvature), -0.5), 0.5)

"""How two images differ: how much of it is a constant, and at which frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rings that a spectrum is divided into.
BANDS = 8


def dc_share(difference: Tensor) -> float:
    """(C, h, w): the share of the sum of squares that the colours' means are."""
    return (difference.mean(dim=(1, 2)).square().sum() / difference.square().mean(dim=(1, 2)).sum()).item()


def spectrum(difference: Tensor, bands: int = BANDS) -> Tensor:
    """(C, h, w) -> (bands,): the power without its mean in rings of equal width up to Nyquist, shares summing to one.

    Under a Hann window, so that what differs at opposite borders makes no high frequencies. What lies beyond Nyquist,
    in the corners, is left out.
    """
    height, width = difference.shape[1:]
    rows, columns = (torch.hann_window(size, periodic=False).to(difference) for size in (height, width))
    centred = difference - difference.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.fft2(centred * torch.outer(rows, columns)).abs().square().sum(0)
    y, x = torch.meshgrid(torch.fft.fftfreq(height), torch.fft.fftfreq(width), indexing="ij")
    radius = (x**2 + y**2).sqrt() / 0.5
    ring = (radius * bands).long()
    # The middle is the mean, which the window has smeared no further than the first ring.
    kept = (ring < bands) & (radius > 0)
    shares = torch.zeros(bands).to(power).index_add_(0, ring[kept], power[kept])
    return shares / shares.sum()

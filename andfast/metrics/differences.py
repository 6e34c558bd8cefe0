"""How LR images differ from the clean ones: by how much, by a constant, and at which frequencies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from andfast.metrics import psnr
from andfast.ops.blur_pool import blur_pool

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


class Differences:
    """What many LR images have in common, of which all, some or none have their HR images beside them.

    Args:
        scale: the super-resolution factor.

    Attributes:
        images: how many were added.
        values: by measure, of the images that have it.
    """

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.images = 0
        self.values: dict[str, list[float]] = {}

    def add(self, hr: Tensor | None, lr: Tensor) -> None:
        """Measure an image.

        Args:
            hr: (3, H, W) in [0, 1], or None: there is none.
            lr: (3, H/scale, W/scale) in [0, 1].
        """
        self.images += 1
        lr = lr.double()
        if hr is not None:
            clean = blur_pool(hr[None].double(), self.scale)[0]
            self._see("PSNR to the clean LR image, dB", psnr(lr, clean).item())
            if not torch.equal(lr, clean):
                self._see("DC share of the difference", dc_share(lr - clean))
                self._see_spectrum("difference", lr - clean)
        self._see_spectrum("image", lr)

    def _see_spectrum(self, what: str, values: Tensor) -> None:
        # Rounding leaves a trace of power where there is none.
        if (values - values.mean(dim=(1, 2), keepdim=True)).abs().max() > 1e-6:
            for ring, share in enumerate(spectrum(values).tolist(), start=1):
                self._see(f"{what}: power in ring {ring} of {BANDS}", share)

    def _see(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


def table(columns: Mapping[str, Differences]) -> str:
    """Several sets of images side by side, as Markdown: by measure the median, and 10 to 90%."""
    names = dict.fromkeys(name for column in columns.values() for name in column.values)
    lines = [
        f"| | {' | '.join(columns)} |",
        "|---|" + "--:|" * len(columns),
        f"| images | {' | '.join(str(column.images) for column in columns.values())} |",
    ]
    for name in names:
        cells = (f" {_spread(column.values[name])} |" if name in column.values else " |" for column in columns.values())
        lines.append(f"| {name} |" + "".join(cells))
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    # Values themselves and none between them: of an infinite PSNR there is no half.
    low, middle, high = (
        f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"
        for value in np.quantile(values, (0.1, 0.5, 0.9), method="nearest")
    )
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle

"""The linear kernel that maps an HR image to its LR image with the least error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.blur_pool import pooling_taps

# HR pixels on each side of the `scale` ones under an LR pixel. 16 x 16 taps at scale 4 include the dark rims that
# cameras' sharpening leaves.
MARGIN = 6
# In units of the windows' mean variance. Cameras' HR images have nearly no power at the highest frequencies, where the
# kernel stays that of the pooling instead of fitting noise. Much smaller values do not explain other images as well.
RIDGE = 0.03


@dataclass(frozen=True)
class Kernel:
    """LR = sum of taps x HR + offset, for every LR pixel and colour.

    Attributes:
        taps: (k, k) float64, k = scale + 2 * margin, centred on the LR pixel.
        offset: for values in [0, 1].
        scale: HR pixels an LR pixel.
    """

    taps: Tensor
    offset: float
    scale: int

    @property
    def margin(self) -> int:
        return (len(self.taps) - self.scale) // 2

    @property
    def gain(self) -> float:
        """The sum of the taps."""
        return self.taps.sum().item()

    @property
    def profile(self) -> Tensor:
        """(k,): the kernel with gain one, summed over one axis, the mean of both axes."""
        return (self.taps.sum(0) + self.taps.sum(1)) / (2 * self.gain)

    @property
    def shift(self) -> tuple[float, float]:
        """The kernel's centre of mass (x, y) from the LR pixel's middle, in HR pixels."""
        place = self._places()
        return tuple((self.taps.sum(axis) @ place).item() / self.gain for axis in (0, 1))  # type: ignore[return-value]

    @property
    def width(self) -> tuple[float, float]:
        """Standard deviation (x, y) in HR pixels: the root of the second moment about the centre of mass.

        Negative lobes count negatively: a kernel that sharpens is narrow. If the moment is negative, minus the root of
        its absolute value.
        """
        place = self._places()
        moments = []
        for axis, centre in enumerate(self.shift):
            moment = (self.taps.sum(axis) @ (place - centre) ** 2).item() / self.gain
            moments.append(math.copysign(math.sqrt(abs(moment)), moment))
        return moments[0], moments[1]

    def response(self, nyquist: float) -> float:
        """The contrast of stripes of this frequency, in units of the LR image's Nyquist; the mean of both axes."""
        phase = torch.pi * nyquist / self.scale * self._places().to(torch.complex128)
        waves = torch.exp(1j * phase)
        axes = [(self.taps.sum(axis).to(waves) @ waves).abs().item() for axis in (0, 1)]
        return sum(axes) / 2 / self.gain

    def __call__(self, hr: Tensor) -> Tensor:
        """(C, H, W) float64 -> (C, h, w): the LR pixels that `inside` keeps."""
        windows = _windows(hr, self.scale, self.margin)
        height, width = (size // self.scale - 2 * skipped(self.scale, self.margin) for size in hr.shape[1:])
        return (windows @ self.taps.flatten() + self.offset).view(len(hr), height, width)

    def _places(self) -> Tensor:
        count = len(self.taps)
        return torch.arange(count, dtype=torch.float64) - (count - 1) / 2


def pooling_kernel(scale: int, margin: int = MARGIN) -> Kernel:
    """The kernel of `blur_pool`, which makes the clean LR image."""
    taps = torch.zeros(scale + 2 * margin, dtype=torch.float64)
    taps[margin - 1 : margin + scale + 1] = torch.tensor(pooling_taps(scale), dtype=torch.float64)
    return Kernel(torch.outer(taps, taps), 0.0, scale)


def skipped(scale: int, margin: int = MARGIN) -> int:
    """The number of LR pixels at each border whose taps are partly outside the image."""
    return -(-margin // scale)


def inside(lr: Tensor, scale: int, margin: int = MARGIN) -> Tensor:
    """(..., h, w) without those pixels."""
    border = skipped(scale, margin)
    return lr[..., border : lr.shape[-2] - border, border : lr.shape[-1] - border]


class KernelFit:
    """Regularised least squares for the kernel of one pair, or of several pairs.

    Args:
        scale: HR pixels an LR pixel.
        margin: see `MARGIN`.
        ridge: the weight of the squared distance to the pooling's kernel, see `RIDGE`.
    """

    def __init__(self, scale: int, margin: int = MARGIN, ridge: float = RIDGE) -> None:
        self.scale, self.margin, self.ridge = scale, margin, ridge
        size = (scale + 2 * margin) ** 2 + 1  # the last one is the offset's
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.right = torch.zeros(size, dtype=torch.float64)

    def add(self, hr: Tensor, lr: Tensor) -> None:
        """Add a pair: (3, H, W) and (3, H/scale, W/scale) in [0, 1].

        Raises:
            ValueError: the sizes do not fit, or the images are too small.
        """
        if lr.shape[0] != hr.shape[0] or tuple(hr.shape[1:]) != tuple(self.scale * size for size in lr.shape[1:]):
            raise ValueError(f"HR {tuple(hr.shape)} is not {self.scale} times LR {tuple(lr.shape)}")
        if min(lr.shape[1:]) <= 2 * skipped(self.scale, self.margin):
            raise ValueError(f"an LR image of {tuple(lr.shape[1:])} is too small for taps of a margin of {self.margin}")
        windows = _windows(hr.double(), self.scale, self.margin).flatten(0, 1)
        rows = torch.cat([windows, torch.ones_like(windows[:, :1])], dim=1)
        self.gram += rows.T @ rows
        self.right += rows.T @ inside(lr.double(), self.scale, self.margin).flatten()

    def solve(self) -> Kernel:
        """The kernel.

        Raises:
            ValueError: no pair was added, or the images have no contrast at all.
        """
        count = self.gram[-1, -1]
        taps = len(self.gram) - 1
        variance = self.gram.diagonal()[:-1].sum() - self.gram[-1, :-1].square().sum() / count
        if not variance > 0:
            raise ValueError("no kernel can be found from images without any contrast")
        weight = torch.zeros_like(self.right)
        weight[:taps] = self.ridge * variance / taps
        prior = torch.cat([pooling_kernel(self.scale, self.margin).taps.flatten(), torch.zeros(1)])
        found = torch.linalg.solve(self.gram + weight.diag(), self.right + weight * prior)
        side = self.scale + 2 * self.margin
        return Kernel(found[:taps].view(side, side), found[taps].item(), self.scale)


def _windows(hr: Tensor, scale: int, margin: int) -> Tensor:
    """(C, H, W) -> (C, LR pixels, taps): the HR pixels under each LR pixel that `inside` keeps."""
    first = scale * skipped(scale, margin) - margin
    rows, columns = (scale * (size // scale - 2 * skipped(scale, margin)) + 2 * margin for size in hr.shape[1:])
    cut = hr[:, None, first : first + rows, first : first + columns]
    return F.unfold(cut, scale + 2 * margin, stride=scale).transpose(1, 2)

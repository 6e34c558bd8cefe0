"""Resizing with antialiasing, of an image that arrives from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Keys' cubic kernel as Pillow and MATLAB have it, and how far it reaches.
_A, _SUPPORT = -0.5, 2.0

_AT_ONCE = 64  # rows of the result


def resized_size(size: Sequence[int], factor: float) -> tuple[int, int]:
    """Height and width of an image after it was resized: rounded, and at least 1."""
    height, width = (max(round(length * factor), 1) for length in size)
    return height, width


def resized_rows(
    rows: Iterable[tuple[slice, Tensor]], size: tuple[int, int], wanted: tuple[int, int]
) -> Iterator[tuple[slice, Tensor]]:
    """Resize an image: what `F.interpolate(image, wanted, mode="bicubic", antialias=True)` gives, in rows.

    Args:
        rows: (rows, image[..., rows, :]) from top to bottom, without gaps; float (B, C, h, W).
        size, wanted: height and width before and after.

    Yields:
        The same of the result.
    """
    held: Tensor | None = None
    first = begin = 0  # of the rows held; of those still to be made
    for place, part in rows:
        part = F.interpolate(part, (part.shape[-2], wanted[1]), mode="bicubic", antialias=True)
        held = part if held is None else torch.cat([held, part], -2)
        while begin < wanted[0]:
            end = min(begin + _AT_ONCE, wanted[0])
            weights, top = _weights(begin, end, size[0], wanted[0])
            bottom = top + weights.shape[1]
            if bottom > place.stop:
                break
            window = held[..., top - first : bottom - first, :]
            yield slice(begin, end), torch.einsum("oh,bchw->bcow", weights.to(window), window)
            begin = end
        if begin < wanted[0]:
            unneeded = max(_weights(begin, begin + 1, size[0], wanted[0])[1], first)
            held, first = held[..., unneeded - first :, :], unneeded


def _weights(begin: int, end: int, size: int, wanted: int) -> tuple[Tensor, int]:
    """Of what rows `begin` to `end` of the result are made: (their number, rows of the image), and the first row."""
    scale = size / wanted
    stretch = max(scale, 1.0)
    centres = (torch.arange(begin, end, dtype=torch.float64) + 0.5) * scale
    reach = _SUPPORT * stretch
    top, bottom = max(int(centres[0] - reach), 0), min(int(centres[-1] + reach) + 1, size)
    distance = (torch.arange(top, bottom) + 0.5 - centres[:, None]).abs() / stretch
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = _A * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < _SUPPORT, far, 0))
    return (weights / weights.sum(1, keepdim=True)).float(), top

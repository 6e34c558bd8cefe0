"""Run a network over a large image in tiles, and resize the result, both row by row from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Tiles with their context begin and end at multiples of this, so that a model that moves 2x2 or 4x4 pixels into
# channels groups them as in the whole image.
ALIGN = 4

# Tiles are blended over 1 / _BLENDED of the overlap on each side of their border.
_BLENDED = 4

# Keys' cubic kernel with Pillow's and MATLAB's parameter, and its support.
_A, _SUPPORT = -0.5, 2.0

_AT_ONCE = 64  # rows that are handed on or resized at once


class NonFiniteError(ValueError):
    """The model's output holds NaN or infinity."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in input pixels.

    Attributes:
        begin, end: the kept part, with the blended pixels.
        context_begin, context_end: the computed part.
        fades_in, fades_out: kept pixels at the beginning and the end that are blended with the neighbours.
    """

    begin: int
    end: int
    context_begin: int
    context_end: int
    fades_in: int
    fades_out: int


def cut(size: int, tile: int, overlap: int, align: int = ALIGN) -> list[Span]:
    """Cut `size` pixels into equal tiles of at most `tile` pixels (0: one tile), with `overlap` pixels of context.

    With its context a tile begins and ends at multiples of `align`, except at the end of the image.
    """
    count = -(-size // tile) if tile else 1
    blend = min(overlap // _BLENDED, size // count // 2) if count > 1 else 0
    spans = []
    for i in range(count):
        first, last = i == 0, i == count - 1
        begin = i * size // count - (0 if first else blend)
        end = (i + 1) * size // count + (0 if last else blend)
        context_begin = max(begin - overlap, 0) // align * align
        context_end = min(-(-(end + overlap) // align) * align, size)
        spans.append(Span(begin, end, context_begin, context_end, 0 if first else 2 * blend, 0 if last else 2 * blend))
    return spans


def largest_patch(tile: int, overlap: int, align: int = ALIGN) -> int:
    """The largest height and width of a tile with its context, in pixels."""
    return tile + 2 * (overlap + overlap // _BLENDED) + 2 * (align - 1)


def upscaled_rows(
    run: Callable[[Tensor], Tensor],
    scale: int,
    image: Tensor,
    tile: int,
    overlap: int,
    align: int,
    working: Callable[[int], AbstractContextManager[None]],
    high: int | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Upscale an image (B, C, H, W), and yield (rows, result[..., rows, :]) from top to bottom, a few at a time.

    At most one row of tiles is held in memory. Neighbouring tiles are blended linearly.

    Args:
        run: (B, C, h, w) -> (B, C', scale * h, scale * w), on any device.
        tile, overlap, align: see `cut`.
        working: given the number of input pixels that a tile finishes, and entered while it is computed.
        high: height of the tiles, if it is another one than their width `tile`.

    Raises:
        NonFiniteError: the output holds NaN or infinity.
    """
    height, width = image.shape[-2:]
    above: Tensor | None = None  # the last rows of the tiles above, to be blended
    for row in cut(height, tile if high is None else high, overlap, align):
        columns = cut(width, tile, overlap, align)
        band: Tensor | None = None
        for column in columns:
            with working((row.end - row.fades_out - row.begin) * (column.end - column.fades_out - column.begin)):
                part = run(image[..., row.context_begin : row.context_end, column.context_begin : column.context_end])
                if not part.isfinite().all():
                    raise NonFiniteError("the model's output is not finite")
            part = part[..., _inner(row, scale), _inner(column, scale)].to(image.device, torch.float32)
            if band is None:
                band = part.new_empty(*part.shape[:-1], width * scale)
            fade = column.fades_in * scale
            target = band[..., column.begin * scale : column.end * scale]
            target[..., :fade].lerp_(part[..., :fade], _ramp(fade, band))
            target[..., fade:] = part[..., fade:]
        if above is not None:
            fade = row.fades_in * scale
            band[..., :fade, :] = above.lerp(band[..., :fade, :], _ramp(fade, band)[:, None])
        begin, count = row.begin * scale, (row.end - row.fades_out - row.begin) * scale
        for top in range(0, count, _AT_ONCE):
            end = min(top + _AT_ONCE, count)
            yield slice(begin + top, begin + end), band[..., top:end, :]
        above = band[..., count:, :].clone() if row.fades_out else None


def _inner(span: Span, scale: int) -> slice:
    return slice((span.begin - span.context_begin) * scale, (span.end - span.context_begin) * scale)


def _ramp(length: int, like: Tensor) -> Tensor:
    """Values from 0 to 1 at the centres of `length` pixels."""
    return (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length


def resized_size(size: Sequence[int], factor: float) -> tuple[int, int]:
    """Height and width of a resized image, rounded, at least 1."""
    height, width = (max(round(length * factor), 1) for length in size)
    return height, width


def resized_rows(
    rows: Iterable[tuple[slice, Tensor]], size: tuple[int, int], wanted: tuple[int, int]
) -> Iterator[tuple[slice, Tensor]]:
    """Resize an image that arrives row by row, as `F.interpolate(image, wanted, mode="bicubic", antialias=True)` does.

    Takes and yields (rows, image[..., rows, :]) from top to bottom, without gaps, float (B, C, h, W); `size` and
    `wanted` are height and width before and after.
    """
    held: Tensor | None = None
    first = begin = 0  # of the held rows; of the rows still to be resized
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
    """The weights of image rows in the result's rows `begin` to `end`, (end - begin, n), and the first image row."""
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

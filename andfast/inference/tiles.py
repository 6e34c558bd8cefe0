"""A large image through a network tile by tile: each with its surroundings, and blended into the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Tiles with their context begin and end at multiples of this, so that a model that moves 2x2 or 4x4 pixels
# into channels groups the pixels of a tile as it groups those of the whole image.
ALIGN = 4

# Of the overlap, the share by which tiles are blended into each other on either side of where they meet.
_BLENDED = 4


class NonFiniteError(ValueError):
    """The model's output holds NaN or infinity."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the input.

    Attributes:
        begin, end: what is kept of it, the blended parts included.
        context_begin, context_end: what is computed.
        fades_in, fades_out: how many of the kept pixels at its begin and at its end it shares with its neighbours.
    """

    begin: int
    end: int
    context_begin: int
    context_end: int
    fades_in: int
    fades_out: int


def cut(size: int, tile: int, overlap: int, align: int = ALIGN) -> list[Span]:
    """Cut `size` pixels into equal tiles of at most `tile`; 0: into one. All kept pixels see `overlap` around them."""
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
    """How many pixels high and wide what is computed at once is at most."""
    return tile + 2 * (overlap + overlap // _BLENDED) + 2 * (align - 1)


def upscaled_rows(
    run: Callable[[Tensor], Tensor],
    scale: int,
    image: Tensor,
    tile: int,
    overlap: int,
    align: int = ALIGN,
    done: Callable[[int], object] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Upscale an image, and yield the result from top to bottom: (rows, result[..., rows, :]) as they are finished.

    Nothing of the size of the result is allocated: at most a row of tiles. Where two tiles meet, either fades into
    the other over a quarter of the overlap to both sides.

    Args:
        run: (B, C, h, w) -> (B, C', scale * h, scale * w), on any device.
        scale: its factor.
        image: (B, C, H, W); its parts are given to `run` as they are.
        tile: height and width of a tile at most; 0 takes the image whole.
        overlap: how much of the image each kept pixel sees around it, at least.
        align: where the parts begin and end, but for the end of the image.
        done: is told after each tile how many pixels of the input are finished.

    Raises:
        NonFiniteError: the output holds NaN or infinity.
    """
    height, width = image.shape[-2:]
    above: Tensor | None = None  # the last rows of the tiles above, which fade into the next ones
    for row in cut(height, tile, overlap, align):
        columns = cut(width, tile, overlap, align)
        band: Tensor | None = None
        for column in columns:
            patch = image[..., row.context_begin : row.context_end, column.context_begin : column.context_end]
            part = run(patch)
            if not part.isfinite().all():
                raise NonFiniteError("the model's output is not finite")
            part = part[..., _inner(row, scale), _inner(column, scale)].to(image.device, torch.float32)
            if len(columns) == 1:
                band = part
            elif band is None:
                band = part.new_empty(*part.shape[:-1], width * scale)
            if part is not band:
                fade = column.fades_in * scale
                target = band[..., column.begin * scale : column.end * scale]
                target[..., :fade].lerp_(part[..., :fade], _ramp(fade, band))
                target[..., fade:] = part[..., fade:]
            if done is not None:
                done((row.end - row.fades_out - row.begin) * (column.end - column.fades_out - column.begin))
        if above is not None:
            fade = row.fades_in * scale
            mixed = above.lerp(band[..., :fade, :], _ramp(fade, band)[:, None])
            band = torch.cat([mixed, band[..., fade:, :]], -2)
        finished = row.end - row.fades_out
        yield slice(row.begin * scale, finished * scale), band[..., : (finished - row.begin) * scale, :]
        above = band[..., (finished - row.begin) * scale :, :].clone() if row.fades_out else None


def _inner(span: Span, scale: int) -> slice:
    return slice((span.begin - span.context_begin) * scale, (span.end - span.context_begin) * scale)


def _ramp(length: int, like: Tensor) -> Tensor:
    """From 0 to 1 at the middles of so many pixels."""
    return (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length

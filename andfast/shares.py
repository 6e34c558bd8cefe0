"""What one of several processes has of a whole batch, and of the random numbers that are drawn for it.

A run is the same on any number of processes. So each draws what a single one would, for the whole batch, and keeps what
is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class SharedGenerator(torch.Generator):
    """A generator that is in the same state in all processes, and knows which of them this one is.

    Attributes:
        rank: index of this process, 0 <= rank < size.
        size: number of processes.
        own: a generator of this process alone, for what cannot be drawn for all: choices that the host makes for a
            whole batch.
    """

    rank: int
    size: int
    own: torch.Generator


def draw_rows(draw: Callable[[int], Tensor], count: int, generator: torch.Generator | None, dim: int = 0) -> Tensor:
    """`draw(count)`, but from a `SharedGenerator` this process's rows of what is drawn for all.

    Args:
        draw: makes a tensor of as many rows from `generator`.
        count: rows of this process.
        generator: where they come from.
        dim: of the rows.
    """
    if not isinstance(generator, SharedGenerator):
        return draw(count)
    # A copy, so that the others' do not stay in memory.
    return draw(generator.size * count).narrow(dim, generator.rank * count, count).clone()


def own_places(parts: Sequence[int], rank: int, size: int) -> list[int]:
    """Where the images of a process stand in the whole batch.

    Args:
        parts: how many images the process has of each part of the batch, in the order of the parts: each part is
            divided evenly, so that the parts of all processes are those of a single one.
        rank, size: as for `SharedGenerator`.
    """
    places: list[int] = []
    start = 0
    for images in parts:
        places += range(start + rank * images, start + (rank + 1) * images)
        start += size * images
    return places

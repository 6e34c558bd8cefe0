"""What one of several processes has of a whole batch, and of the random numbers that are drawn for it.

A run is the same on any number of processes. So each draws what a single one would, for the whole batch, and keeps what
is its own.
"""

from __future__ import annotations

from collections.abc import Callable

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


def own_places(images: int, mixed: int, rank: int, size: int) -> list[int]:
    """Where the images of a process stand in the whole batch, whose last ones are mixed in.

    Args:
        images: of the process.
        mixed: how many of them are mixed in. Both parts of the batch are divided evenly, so that those of all processes
            together are those of a single one.
        rank, size: as for `SharedGenerator`.
    """
    searched = images - mixed
    own = range(rank * searched, (rank + 1) * searched)
    return [*own, *range(size * searched + rank * mixed, size * searched + (rank + 1) * mixed)]

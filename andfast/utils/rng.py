"""Random numbers as functions of the seed and the step, the same on any number of processes.

Each process draws what a single one would draw for the whole batch, and keeps its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

# Separates the generators of single processes from a step's other streams.
_LOCAL = 0


class SharedGenerator(torch.Generator):
    """A generator in the same state in all `size` processes, of which this one has the index `rank`.

    `local` differs between processes, for choices of the host that cannot be drawn for all processes.
    """

    rank: int
    size: int
    local: torch.Generator


def step_generator(
    seed: int, step: int, device: torch.device, *stream: int, rank: int = 0, size: int = 1
) -> torch.Generator:
    """The generator of a training step, from 0, as a function of the run's seed and the step, so that runs can resume.

    Args:
        stream: numbers of a further generator of the same step; the step's main one has none.
        rank, size: of several processes; with size above 1 the result is a `SharedGenerator`.
    """
    if size == 1:
        return torch.Generator(device).manual_seed(_seed(seed, step, *stream))
    generator = SharedGenerator(device)
    generator.manual_seed(_seed(seed, step, *stream))
    generator.rank, generator.size = rank, size
    generator.local = torch.Generator(device).manual_seed(_seed(seed, step, *stream, _LOCAL, rank))
    return generator


def seed_torch(seed: int, step: int, *stream: int) -> None:
    """Seed torch's own generators, which dropout draws from, as a function of the run's seed and the step."""
    torch.manual_seed(_seed(seed, step, *stream))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's own generator what follows from `seed` alone, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _seed(seed: int, step: int, *stream: int) -> int:
    number = np.random.SeedSequence((seed, step), spawn_key=stream).generate_state(1, np.uint64)[0]
    return int(number >> np.uint64(1))


def draw_rows(draw: Callable[[int], Tensor], count: int, generator: torch.Generator | None, dim: int = 0) -> Tensor:
    """Return `draw(count)`; from a `SharedGenerator`, this process's `count` rows of what is drawn for all processes.

    `draw` makes a tensor of as many rows along `dim` as it is given, from `generator`.
    """
    if not isinstance(generator, SharedGenerator):
        return draw(count)
    # A copy, so that the other processes' rows do not stay in memory.
    return draw(generator.size * count).narrow(dim, generator.rank * count, count).clone()


def batch_positions(images: int, mixed: int, rank: int, size: int) -> list[int]:
    """The positions of a process's images in the whole batch, which ends with all images that are mixed in.

    The process has `images` images, of which the last `mixed` are mixed in (`attack.mix`).
    """
    attacked = images - mixed
    first_mixed = size * attacked + rank * mixed
    return [*range(rank * attacked, (rank + 1) * attacked), *range(first_mixed, first_mixed + mixed)]

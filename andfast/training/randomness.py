"""Where the random numbers of a step come from."""

from __future__ import annotations

import numpy as np
import torch

from andfast.utils.rng import SharedGenerator

# Between a stream's numbers and the process that has one of its own.
_OWN = 0


def step_generator(
    seed: int, step: int, device: torch.device, *stream: int, rank: int = 0, size: int = 1
) -> torch.Generator:
    """The source of random choices of one step: a function of the seed and the step, so that a run can resume.

    Args:
        seed: of the run.
        step: from 0.
        device: of the generator.
        stream: numbers of a source of its own beside the step's main one, which has none.
        rank, size: of several processes which, and how many: it is a `SharedGenerator` then.
    """
    if size == 1:
        return torch.Generator(device).manual_seed(_number(seed, step, *stream))
    generator = SharedGenerator(device).manual_seed(_number(seed, step, *stream))
    generator.rank, generator.size = rank, size
    generator.own = torch.Generator(device).manual_seed(_number(seed, step, *stream, _OWN, rank))
    return generator


def _number(seed: int, step: int, *stream: int) -> int:
    number = np.random.SeedSequence((seed, step), spawn_key=stream).generate_state(1, np.uint64)[0]
    return int(number >> np.uint64(1))

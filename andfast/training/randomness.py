"""Where the random numbers of a step come from."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int, device: torch.device, *stream: int) -> torch.Generator:
    """The source of random choices of one step: a function of the seed and the step, so that a run can resume.

    Args:
        seed: of the run.
        step: from 0.
        device: of the generator.
        stream: numbers of a source of its own beside the step's main one, which has none.
    """
    number = np.random.SeedSequence((seed, step), spawn_key=stream).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(number >> np.uint64(1)))

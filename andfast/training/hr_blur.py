"""HR patches as sharp as cameras' photographs are: most cameras' pixels are finer than what their lenses draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from andfast.degradation.filters import gaussian_blur
from andfast.utils.rng import step_generator

# The stream of each step's random numbers; the adversary and `Mixer` have others.
_SOFTEN = 2


def soften_patches(
    hr: Tensor, widths: tuple[float, float], seed: int, step: int, places: Sequence[int] | None = None, batch: int = 0
) -> Tensor:
    """Blur by widths drawn uniformly from a range, each step's the same whenever it is made.

    Args:
        hr: (B, C, H, W).
        widths: (low, high), standard deviations in pixels.
        seed: of the run.
        step: from 0.
        places: where the images stand in the whole batch, of `batch` images; None: they are all of it.
    """
    low, high = widths
    random = step_generator(seed, step, torch.device("cpu"), _SOFTEN)
    drawn = torch.rand(len(hr), generator=random) if places is None else torch.rand(batch, generator=random)[places]
    return gaussian_blur(hr, (low + (high - low) * drawn).to(hr.device), high)

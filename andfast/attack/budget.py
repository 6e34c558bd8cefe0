"""The inputs of a search, and how far it may go: a least PSNR of the degraded LR image against the clean one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from andfast.degradation.network import DegradationNetwork
from andfast.metrics import psnr
from andfast.utils.rng import draw_rows

# How far a shrunk LR image may stay inside its budget: closer costs more passes through F than it is worth.
BUDGET_SLACK_DB = 1.0
SHRINK_TRIES = 10


@dataclass(frozen=True)
class SearchInputs:
    """The inputs of a search.

    Attributes:
        network, hr, rng: as in `Attack.__call__` (`andfast/attack/base.py`).
        input: (B, 3, H, W), the network's input: `hr`, or `hr` through a lens.
        clean: (B, 3, h, w), the clean LR images.
        budget_db: (N,), the least PSNR in dB of an LR image against the clean one.
    """

    network: DegradationNetwork
    hr: Tensor
    input: Tensor
    clean: Tensor
    budget_db: Tensor
    rng: torch.Generator | None


def draw_budget(
    psnr_range: tuple[float, float] | None,
    count: int,
    margin_db: float,
    device: torch.device,
    rng: torch.Generator | None,
) -> Tensor:
    """Draw the least PSNR allowed, in dB, for each of `count` networks: uniform in the range, plus the margin."""
    if psnr_range is None:
        return torch.full((count,), -math.inf, device=device)
    low, high = psnr_range
    drawn = draw_rows(lambda rows: torch.rand(rows, device=device, generator=rng), count, rng)
    return low + margin_db + (high - low) * drawn


def check_range(psnr_range: tuple[float, float] | None) -> None:
    """Raise ValueError for an invalid range of PSNR."""
    if psnr_range is not None and not 0 < psnr_range[0] <= psnr_range[1] < math.inf:
        raise ValueError(f"psnr_range is {psnr_range}; it must be (low, high) in dB with 0 < low <= high")


def network_psnr(lr: Tensor, clean: Tensor, num_networks: int) -> Tensor:
    """PSNR in dB of all images of a network taken together, (N,) float32."""
    height, width = lr.shape[-2:]
    return psnr(lr.reshape(num_networks, -1, height, width), clean.reshape(num_networks, -1, height, width)).float()


@torch.no_grad()
def within_budget(
    inputs: SearchInputs, delta: Tensor, first: Tensor | None = None, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Shrink each network's deviation until its LR image is no further from the clean one than the budget.

    The gain of ten layers compounds, so a radius in parameter space is a poor control; how far the image moves is one
    that people can read.

    Args:
        delta: (N, P), the wanted deviations.
        first: (N,), the multiples to try first, in (0, 1]; None: 1. A good guess saves passes through F.
        graph: return LR images that carry the graph to the returned deviations, which are then a leaf, so that the
            next gradient needs no further forward pass.

    Returns:
        The deviations, (N, P), each a multiple in [0, 1] of its row of `delta`, and their LR images: at most
        `BUDGET_SLACK_DB` inside the budget, further only where `SHRINK_TRIES` tries did not suffice. The deviation is
        zero where rounding alone exceeds the budget, or `delta` is more than ten orders of magnitude too large.
    """

    def degrade(scale: Tensor) -> tuple[Tensor, Tensor]:
        tried = (delta * scale[:, None]).requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            return tried, inputs.network(inputs.input, tried)

    budget_db = inputs.budget_db
    scale = torch.ones_like(budget_db) if first is None else first
    inside, outside = torch.zeros_like(scale), torch.full_like(scale, math.inf)
    psnr_inside, psnr_outside = torch.full_like(scale, math.inf), torch.full_like(scale, -math.inf)
    aim = budget_db + BUDGET_SLACK_DB / 2
    for attempt in range(SHRINK_TRIES):
        tried, lr = degrade(scale)
        # An image that overflowed is as far outside as images in [0, 1] can be.
        reached = network_psnr(lr, inputs.clean, len(budget_db)).nan_to_num(nan=0.0, posinf=math.inf)
        fits = reached >= budget_db
        inside, psnr_inside = torch.where(fits, scale, inside), torch.where(fits, reached, psnr_inside)
        outside, psnr_outside = torch.where(fits, outside, scale), torch.where(fits, psnr_outside, reached)
        done = fits & ((scale == 1) | (reached <= budget_db + BUDGET_SLACK_DB))
        if done.all():
            return tried, lr
        del tried, lr  # with their graph, before the next one
        # The error grows at least in proportion to the deviation: proportionality gives the first guess, and with a
        # bracket, interpolation in log(scale) is better. A saturated image does not show how far outside it is, so
        # while nothing fits, the exponent doubles with each try after the third.
        shrink_exponent = torch.where(reached < aim, 2 ** max(attempt - 3, 0), 1)
        proportional = (scale * 10 ** ((reached - aim).clamp(min=-14) * shrink_exponent / 20)).clamp(max=1)
        slope = (outside / inside).log() / (psnr_outside - psnr_inside)
        between = inside * ((aim - psnr_inside) * slope).exp()
        within = torch.maximum(torch.minimum(between, 0.98 * outside + 0.02 * inside), 0.02 * outside + 0.98 * inside)
        guess = torch.where((inside > 0) & outside.isfinite(), within, proportional)
        scale = torch.where(done, scale, guess)
    return degrade(inside)

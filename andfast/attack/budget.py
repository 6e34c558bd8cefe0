"""The inputs of a search, and how far it may go: a least PSNR of the degraded LR image against the clean one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

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
        drawn: (N, P), the random deviations that the search needs; None: it needs none.
        start: (B, 3, h, w), the LR images at zero deviation, but for rounding; None: `clean`.
        tries: the passes through F, at most, that find a deviation within the budget; the last one's graph then serves
            the next gradient, whether or not it is within. None: `SHRINK_TRIES`, and one more for what they found.
        ask: stop as soon as all deviations are found, which waits for the device; else all `tries` are made.
    """

    network: DegradationNetwork
    hr: Tensor
    input: Tensor
    clean: Tensor
    budget_db: Tensor
    rng: torch.Generator | None
    drawn: Tensor | None = None
    start: Tensor | None = None
    tries: int | None = None
    ask: bool = True

    @property
    def start_lr(self) -> Tensor:
        """The LR images at zero deviation."""
        return self.clean if self.start is None else self.start


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

    def degrade(multiple: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        tried = (delta * multiple[:, None]).requires_grad_(graph)
        with torch.set_grad_enabled(graph):
            return tried, inputs.network(inputs.input, tried)

    multiples = _Multiples(inputs, first)
    if inputs.tries is None:
        for _ in range(SHRINK_TRIES):
            tried, lr = degrade(multiples.next, graph)
            _, done = multiples.judge(lr)
            if done.all():
                return tried, lr
            del tried, lr  # with their graph, before the next one
        return degrade(multiples.inside, graph)
    best = inputs.start_lr
    for _ in range(inputs.tries - 1):
        tried, lr = degrade(multiples.next, graph and inputs.ask)
        fits, done = multiples.judge(lr)
        if inputs.ask and done.all():
            return tried, lr
        best = torch.where(by_image(fits, lr), lr, best).detach()
        del tried, lr
    found = torch.empty_like(delta).requires_grad_(graph)
    with torch.set_grad_enabled(graph):
        lr = inputs.network(inputs.input, _Substitute.apply(found, delta * multiples.next[:, None]))
        fits, _ = multiples.judge(lr)
        # Where even the last try does not fit, the next gradient is that at a multiple a little too large.
        lr = _Substitute.apply(lr, torch.where(by_image(fits, lr), lr, best).detach())
    found.copy_(delta * multiples.inside[:, None])
    return found, lr


def by_image(by_network: Tensor, images: Tensor) -> Tensor:
    """(N,) -> (B, 1, 1, 1), to choose among `images` (B, 3, h, w)."""
    return by_network.repeat_interleave(len(images) // len(by_network))[:, None, None, None]


class _Substitute(torch.autograd.Function):
    """Another value for a tensor, in its place in the graph: the gradient is passed on as it is."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Multiples:
    """The search for the largest multiple of each network's deviation that is within its budget.

    Args:
        inputs: of the search.
        first: (N,), the multiples to try first; None: 1.

    Attributes:
        next: (N,), the multiples to try next.
        inside: (N,), the last ones that were within the budget; 0 before.
    """

    def __init__(self, inputs: SearchInputs, first: Tensor | None) -> None:
        self._inputs, self._tries = inputs, 0
        self.next = torch.ones_like(inputs.budget_db) if first is None else first
        self.inside, self._outside = torch.zeros_like(self.next), torch.full_like(self.next, math.inf)
        self._psnr_inside, self._psnr_outside = self._outside, torch.full_like(self.next, -math.inf)
        self._aim = inputs.budget_db + BUDGET_SLACK_DB / 2
        if inputs.start is not None:
            self._psnr_inside = network_psnr(inputs.start, inputs.clean, len(self.next))

    def judge(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each network's images, those of `next`, are within the budget, and whether they use it up, (N,)."""
        scale, budget_db, aim = self.next, self._inputs.budget_db, self._aim
        # An image that overflowed is as far outside as images in [0, 1] can be.
        reached = network_psnr(lr.detach(), self._inputs.clean, len(scale)).nan_to_num(nan=0.0, posinf=math.inf)
        fits = reached >= budget_db
        self.inside = torch.where(fits, scale, self.inside)
        self._psnr_inside = torch.where(fits, reached, self._psnr_inside)
        self._outside = torch.where(fits, self._outside, scale)
        self._psnr_outside = torch.where(fits, self._psnr_outside, reached)
        done = fits & ((scale == 1) | (reached <= budget_db + BUDGET_SLACK_DB))
        # The error grows at least in proportion to the deviation: proportionality gives the first guess, and with a
        # bracket, interpolation in log(scale) is better. A saturated image does not show how far outside it is, so
        # while nothing fits, the exponent doubles with each try after the third.
        shrink_exponent = torch.where(reached < aim, 2 ** max(self._tries - 3, 0), 1)
        proportional = scale * 10 ** ((reached - aim).clamp(min=-14) * shrink_exponent / 20)
        if self._inputs.start is None:
            slope = (self._outside / self.inside).log() / (self._psnr_outside - self._psnr_inside)
            between = self.inside * ((aim - self._psnr_inside) * slope).exp()
            bracketed = (self.inside > 0) & self._outside.isfinite()
        else:  # the error is not 0 at the multiple 0: a straight line from the error inside to that outside
            low, wanted, high = (10 ** (-psnr / 20) for psnr in (self._psnr_inside, aim, self._psnr_outside))
            between = self.inside + (wanted - low) / (high - low) * (self._outside - self.inside)
            bracketed = self._outside.isfinite()
        low, high = (part * self._outside + (1 - part) * self.inside for part in (0.02, 0.98))
        within = torch.maximum(torch.minimum(between, high), low)
        guess = torch.where(bracketed, within, proportional.clamp(max=1))
        self.next = torch.where(done, scale, guess)
        self._tries += 1
        return fits, done

"""Ascent in theta: the step that all gradient methods share (Sec 3.3 and 4.3), with no pass through F wasted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from andfast.attack.base import NetworkAttack, by_network
from andfast.attack.budget import BUDGET_SLACK_DB, check_range, network_psnr, within_budget
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.ops import projected_step
from andfast.ops.theta_layout import ScaleFactors


@dataclass(kw_only=True)
class GradientAttack(NetworkAttack):
    """An attack that climbs the loss in theta: what its steps have in common.

    A step is delta += length * s^-2 g / ||s^-1 g||_2 with the gradient g and the scale vector s, then the
    projection onto ||s * delta||_2 <= epsilon, then the shrinking of each network's deviation into its LR-PSNR
    budget.

    Args:
        step_size: length of a step in the scaled norm.
        step_ratio: length of a step relative to epsilon; where given, it takes the place of `step_size`.
        epsilon: radius of the ball in the scaled norm.
        scale_factors: the scaled norm's factors by group of parameters.
        lr_psnr: (low, high) in dB; each network draws its budget from this range: the least PSNR of its LR image
            against the clean one. None: the ball alone. Camera-captured LR images lie 22 to 36 dB from the
            downsampled HR image.
        lens: what the networks see HR images through; None: as they are, as in the paper.
    """

    step_size: float = 0.1
    step_ratio: float | None = None
    epsilon: float = 0.5
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    lr_psnr: tuple[float, float] | None = (22.0, 36.0)
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size is {self.step_size}; it must be positive and finite")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive")
        if self.step_ratio is not None and not 0 < self.step_ratio < math.inf:
            raise ValueError(f"step_ratio is {self.step_ratio}; it must be positive and finite, or None")
        if self.step_ratio is not None and self.epsilon == math.inf:
            raise ValueError(f"step_ratio is {self.step_ratio} of an infinite epsilon; give step_size, or a finite one")
        check_range(self.lr_psnr)

    @property
    def step_length(self) -> float:
        """Length of a step in the scaled norm, whichever way it was given."""
        return self.step_size if self.step_ratio is None else self.step_ratio * self.epsilon


class Ascent:
    """The way of a bank's deviations up the loss: where they are, what that makes of the images, the next step.

    Args:
        attack: the steps' settings.
        network: as in `Attack.__call__`.
        seen: (B, 3, H, W), what it degrades.
        clean: (B, 3, h, w), the clean LR images.
        budget_db: (N,), the least PSNR of an LR image against the clean one.
        climbs: whether a step follows at all.

    Attributes:
        delta: (N, P), the deviations; zero at first.
        lr: (B, 3, h, w), their LR images. They carry the graph to `delta` while a step follows, so that its
            gradient needs no forward pass of its own.
    """

    def __init__(
        self,
        attack: GradientAttack,
        network: DegradationNetwork,
        seen: Tensor,
        clean: Tensor,
        budget_db: Tensor,
        climbs: bool = True,
    ) -> None:
        self._attack, self._network, self._seen = attack, network, seen
        self._clean, self._budget_db = clean, budget_db
        self._inv_scale = attack.inv_scale(network)
        self.delta = torch.zeros_like(network.theta_id).requires_grad_(climbs)
        with torch.set_grad_enabled(climbs):
            self.lr = network(seen, self.delta)

    def step(self, costate: Tensor, last: bool = False) -> None:
        """Take a step along F's gradient of <costate, lr>, and stay within ball and budget.

        Args:
            costate: (B, 3, h, w), the loss's gradient on `lr`; a network's images may be scaled by any positive
                number, for the step is normalised.
            last: no other step follows.
        """
        (gradient,) = torch.autograd.grad(self.lr, self.delta, self._in_range(costate))
        length, epsilon = self._attack.step_length, self._attack.epsilon
        delta = projected_step(self.delta, gradient, self._inv_scale, length, epsilon)
        first = self._first_try(delta)
        # Nothing of this graph may live beside the next.
        del self.lr, self.delta, gradient
        self.delta, self.lr = within_budget(
            self._network, self._seen, self._clean, delta, self._budget_db, first, graph=not last
        )

    @torch.no_grad()
    def _first_try(self, delta: Tensor) -> Tensor:
        """The multiples of `delta`, (N,), that would use the budget up if the error's ratio to the norm stayed.

        From step to step a deviation turns more than it grows, so where the budget has bound it binds again near the
        same norm.
        """
        psnr = network_psnr(self.lr, self._clean, self._network.num_networks)
        norm, next_norm = (torch.linalg.vector_norm(rows, dim=1) for rows in (self.delta, delta))
        multiple = norm / next_norm * 10 ** ((psnr - self._budget_db - BUDGET_SLACK_DB / 2) / 20)
        # The identity says nothing.
        return torch.where(multiple.isfinite() & (multiple > 0), multiple, 1).clamp(max=1)

    def _in_range(self, costate: Tensor) -> Tensor:
        """The costate with each network's 1-norm brought to a fixed one: half types would under- or overflow in F."""
        groups = costate.unflatten(0, (self._network.num_networks, -1))
        total = groups.abs().sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(costate.dtype).tiny)
        # 1024 keeps sums over all pixels below float16's 65504 and single pixels above its smallest normal number.
        return (groups * (1024 / total)).flatten(0, 1)


def loss_and_costate(lr: Tensor, hr: Tensor, objective: Objective, num_networks: int) -> tuple[Tensor, Tensor]:
    """A pass forward through G, and one back to its input.

    G may compute in float16: the loss enters the backward pass multiplied by (about) the number of values that it
    is the mean of, so that the gradients of G's output are about 1 instead of far below float16's smallest normal
    number, 6e-5. A step in theta is normalised, so a constant factor is exact; a power of two rounds nothing.

    Args:
        lr: (B, 3, h, w); its graph is not entered.
        hr, objective: as in `Attack.__call__`.
        num_networks: N.

    Returns:
        The mean loss of each network's images, (N,), and the costate dL/dLR, (B, 3, h, w): a positive multiple, the
        same for all images.
    """
    image = lr.detach().requires_grad_()
    loss = by_network(objective(image, hr), num_networks)
    values = hr[0].numel() * len(hr) // num_networks
    (costate,) = torch.autograd.grad(loss.sum() * 2.0 ** round(math.log2(values)), image)
    return loss.detach(), costate

"""Adam with a guard: updates whose losses or gradients are not finite are skipped, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from andfast.training.distributed import World

_BETAS = (0.9, 0.99)


class Guard:
    """Decides on the device whether an update is skipped; one that is bad in one process is skipped in all.

    Attributes:
        bad: 1. if the last update was skipped, else 0: the `found_inf` of a fused Adam, as GradScaler sets it.
        skipped: how many updates in a row were skipped, up to the last one.
        first_step: the step (from 0) of the first update in the last such row; -1: there was none.
        batch: the HR and LR images of that update; None before any update.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self._world = world
        self.bad = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.first_step = torch.full((), -1, device=device)
        self.batch: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def check(self, step: int, losses: Tensor, norm: Tensor, hr: Tensor, lr: Tensor) -> None:
        """Set `bad` for the update that follows, from its losses (B,), the norm of its gradient, (), and its images."""
        self.bad.copy_(~(losses.isfinite().all() & norm.isfinite()))
        self._world.any(self.bad)
        self.skipped.add_(1).mul_(self.bad)
        images = hr.detach(), lr.detach()
        if self.batch is None or self.batch[0].shape != hr.shape:
            self.batch = tuple(torch.zeros_like(each) for each in images)
        first = self.skipped == 1
        self.first_step.masked_fill_(first, step)
        for saved, new in zip(self.batch, images, strict=True):
            torch.where(first, new, saved, out=saved)


def guarded_adam(weights: Sequence[nn.Parameter], learning_rate: float, guard: Guard) -> torch.optim.Adam:
    """A fused Adam that skips an update if `guard.bad` is 1."""
    optimizer = torch.optim.Adam(weights, lr=learning_rate, betas=_BETAS, fused=True)
    optimizer.grad_scale, optimizer.found_inf = None, guard.bad
    return optimizer


def begin_update(optimizer: torch.optim.Adam, learning_rate: float) -> None:
    """Set the learning rate of an update and drop the gradients of the one before."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()


def gradient_norm(weights: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of the whole gradient, ()."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


def load_adam(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Load the `state_dict` of any Adam; this one stays fused."""
    groups = [group | {"fused": True} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})

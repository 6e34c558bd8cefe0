"""The optimizers, with a guard: updates whose losses or gradients are not finite are skipped.

Adam and AdamW are fused and decide that on the device, without waiting for it. The others, from packages of their own,
count their steps on the host, which therefore waits for the decision.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from andfast.training.config import TrainConfig
from andfast.training.distributed import World
from andfast.utils.optional import problem_of

_BETAS = (0.9, 0.99)

# The package and class of those that are not PyTorch's.
_FOREIGN = {"adan": ("pytorch_optimizer", "Adan"), "schedule_free": ("schedulefree", "AdamWScheduleFree")}

STATES = {"adam": 2, "adamw": 2, "adan": 4, "schedule_free": 2}
"""How many numbers each optimizer keeps for a weight."""


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


def make_optimizer(
    settings: TrainConfig, weights: Sequence[nn.Parameter], learning_rate: float, guard: Guard
) -> Optimizer:
    """The optimizer of `settings`, for `finish_update`.

    Args:
        settings: name, betas and weight decay.
        weights: to update.
        learning_rate: at first.
        guard: of its updates.

    Raises:
        ValueError: its package is not installed, or broken.
    """
    # Plain numbers: they are part of the state, and PyTorch does not read back the parser's own.
    options: dict[str, Any] = {"lr": float(learning_rate), "weight_decay": float(settings.weight_decay)}
    if settings.betas is not None:
        options["betas"] = tuple(map(float, settings.betas))
    if settings.optimizer not in _FOREIGN:
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(weights, **{"betas": _BETAS} | options, fused=True)
        optimizer.grad_scale, optimizer.found_inf = None, guard.bad
        return optimizer
    package, name = _FOREIGN[settings.optimizer]
    if problem := problem_of(package):
        raise ValueError(
            f"train.optimizer {settings.optimizer} needs the package {package}, and {problem}: pip install {package}"
        )
    optimizer = getattr(importlib.import_module(package), name)(weights, **options)
    if settings.optimizer == "schedule_free":
        optimizer.train()  # for good: `own_average` leaves the weights as they are
    return optimizer


def begin_update(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of an update and drop the gradients of the one before."""
    for group in optimizer.param_groups:
        group["lr"] = float(learning_rate)
    optimizer.zero_grad()


def gradient_norm(weights: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of the whole gradient, ()."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


def finish_update(
    optimizer: Optimizer, weights: Sequence[nn.Parameter], norm: Tensor, clip_norm: float | None, guard: Guard
) -> None:
    """Update the weights, unless `guard.bad` is 1.

    Args:
        optimizer, guard: as for `make_optimizer`.
        weights: with gradients, which may be changed.
        norm: of their gradients, ().
        clip_norm: gradients of a larger norm are scaled down to it; None: they are not.
    """
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(weights, clip_norm, norm)
    if isinstance(optimizer, torch.optim.Adam) or not guard.bad.item():
        optimizer.step()


@torch.no_grad()
def own_average(optimizer: Optimizer) -> list[Tensor] | None:
    """The weights to validate and save of an optimizer that averages them itself, schedule-free; None of others.

    The package's `eval()` and `train()` put them in the place of the weights and back, which rounds: training would
    depend on how often a run validates and saves.
    """
    (group,) = optimizer.param_groups
    if "train_mode" not in group:
        return None
    weights = group["params"]
    ends = [optimizer.state[weight].get("z", weight) for weight in weights]
    return list(torch._foreach_lerp(weights, ends, 1 - 1 / group["betas"][0]))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the `state_dict` of the same kind of optimizer; an Adam stays fused."""
    if isinstance(optimizer, torch.optim.Adam):
        state = state | {"param_groups": [group | {"fused": True} for group in state["param_groups"]]}
    optimizer.load_state_dict(state)

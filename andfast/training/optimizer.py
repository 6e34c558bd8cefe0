"""Adam as a run uses it: fused, held by a guard, and with its state taken over from wherever it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from andfast.training.guard import Guard

_BETAS = (0.9, 0.99)


def guarded_adam(weights: Sequence[nn.Parameter], learning_rate: float, guard: Guard) -> torch.optim.Adam:
    """An Adam that leaves weights and moments as they are where `guard.bad` is 1."""
    optimizer = torch.optim.Adam(weights, lr=learning_rate, betas=_BETAS, fused=True)
    optimizer.grad_scale, optimizer.found_inf = None, guard.bad
    return optimizer


def begin_update(optimizer: torch.optim.Adam, learning_rate: float) -> None:
    """Set an update's learning rate, and let go of the gradients of the one before."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()


def gradient_norm(weights: Sequence[nn.Parameter]) -> Tensor:
    """Of the whole gradient, a scalar."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])


def load_adam(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Take over what another Adam's `state_dict` returned."""
    # The state of one that was not fused would make this one so.
    groups = [group | {"fused": True} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})

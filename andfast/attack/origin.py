"""Where a search begins, if not at the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.attack.base import Task
from andfast.attack.budget import within_budget
from andfast.degradation.network import DegradationNetwork
from andfast.utils.rng import draw_rows

# In the scaled norm: a random deviation so small that the image's error grows in proportion to it, and one from which
# on images are saturated and say little of how far beyond their budget they are.
_PROBE, _FAR = 0.3, 1.0


def random_direction(network: DegradationNetwork, inv_scale: Tensor, generator: torch.Generator | None) -> Tensor:
    """Deviations (N, P) of norm 1 in the scaled norm, each in a direction drawn uniformly.

    Args:
        network: says how many, of what size.
        inv_scale: (P,), 1 / s of the scaled norm; what has 0 there does not move.
        generator: of the network's device; None for torch's own.
    """
    count, columns = network.theta_id.shape
    direction = draw_rows(
        lambda rows: torch.randn(rows, columns, device=inv_scale.device, generator=generator), count, generator
    )
    direction *= inv_scale > 0
    return inv_scale * direction / direction.norm(dim=1, keepdim=True)


def random_deviation(task: Task, inv_scale: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Deviations (N, P) of norm `radius` in a random direction, shrunk into their budgets, and their LR images.

    Args:
        task: says of what networks and images, and within which budgets.
        inv_scale: (P,), as for `random_direction`.
        radius: in the scaled norm.
    """
    wished = radius * random_direction(task.network, inv_scale, task.generator)
    first = torch.full_like(task.budget_db, _PROBE / radius if radius > _FAR else 1.0)
    return within_budget(task.network, task.seen, task.clean, wished, task.budget_db, first)


class From:
    """A bank whose deviations count from `origin`, (N, P): what a search needs of a `DegradationNetwork`."""

    def __init__(self, network: DegradationNetwork, origin: Tensor) -> None:
        self._network, self._origin = network, origin
        self.layout, self.theta_id, self.num_networks = network.layout, network.theta_id, network.num_networks

    def __call__(self, hr: Tensor, delta: Tensor) -> Tensor:
        return self._network(hr, self._origin + delta)

"""Where a search begins, if not at the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.degradation import DegradationNetwork


def random_direction(network: DegradationNetwork, inv_scale: Tensor, generator: torch.Generator | None) -> Tensor:
    """Deviations (N, P) of norm 1 in the scaled norm, each in a direction drawn uniformly.

    Args:
        network: says how many, of what size.
        inv_scale: (P,), 1 / s of the scaled norm; what has 0 there does not move.
        generator: of the network's device; None for torch's own.
    """
    direction = torch.randn(network.theta_id.shape, device=inv_scale.device, generator=generator)
    direction *= inv_scale > 0
    return inv_scale * direction / direction.norm(dim=1, keepdim=True)


class From:
    """A bank whose deviations count from `origin`, (N, P): what a search needs of a `DegradationNetwork`."""

    def __init__(self, network: DegradationNetwork, origin: Tensor) -> None:
        self._network, self._origin = network, origin
        self.layout, self.theta_id, self.num_networks = network.layout, network.theta_id, network.num_networks

    def __call__(self, hr: Tensor, delta: Tensor) -> Tensor:
        return self._network(hr, self._origin + delta)

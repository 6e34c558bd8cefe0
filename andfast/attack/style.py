"""The adversary from random networks instead of identities (Table 2, "severe random style shift")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from andfast.attack.base import Task
from andfast.attack.pgd import PGD
from andfast.degradation.network import DegradationNetwork
from andfast.utils.rng import draw_rows


@dataclass
class Style(PGD):
    """`PGD` without the identity initialisation (Sec 4.5): the ball lies around a random network.

    All 3x3 kernels are drawn by Xavier's rule, std = sqrt(2 / (9 in + 9 out)), slopes and noise are the identity's. The
    LR images keep a skeleton of the HR images, in other colours and textures; they are clamped to [0, 1] as always.
    There is no LR-PSNR budget, for nothing is near the clean image. `delta` and `distance` are those from the identity,
    `loss_before` is the random network's.

    Args:
        steps, keep, step_size, step_ratio, epsilon, scale_factors: as for `PGD`, around the random network.
    """

    lr_psnr: ClassVar[None] = None
    random_start: ClassVar[float] = 0.0

    def _origin(self, task: Task) -> Tensor:
        return xavier_deviation(task.network, task.generator)


def xavier_deviation(network: DegradationNetwork, generator: torch.Generator | None = None) -> Tensor:
    """The deviations (N, P) that take a bank's identities to random networks.

    Args:
        network: has parameters.
        generator: a generator of its device; None for torch's own.
    """
    layout, theta_id = network.layout, network.theta_id
    wanted = theta_id.clone()
    for segment in layout.conv:
        out, into, size = segment.shape
        taps = draw_rows(
            lambda count, shape=segment.shape: torch.randn(count, *shape, device=theta_id.device, generator=generator),
            len(theta_id),
            generator,
        )
        segment.view(wanted).copy_(taps * (2 / (size * (out + into))) ** 0.5)
    return layout.to_moments(wanted - theta_id)

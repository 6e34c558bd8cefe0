"""What a training step tells of its adversary: scalars that stay on the device until several steps are read at once.

They are means over the networks, or over the images where there are none. Not a number stands for what there is not:

======================  ================================================================================
`loss_before_attack`    the loss of the clean LR images; without an adversary that of what was trained on
`loss_after_attack`     the loss of what the adversary found, or the same
`gain`                  loss after / before the attack, where the adversary looked at one
`lr_psnr`               PSNR of the LR images against the clean ones, in dB; infinite without an adversary
`budgets_bound`         the share of LR-PSNR budgets that are used up, where there are any
`distance_conv`         the scaled norm of the convolutions' deviation from the identity, where there is one
`distance_noise`        that of the noise injections
`distance_slope`        that of the slopes
======================  ================================================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from andfast.attack.budget import BUDGET_SLACK_DB
from andfast.training.distributed import World

_DISTANCES = ("distance_conv", "distance_noise", "distance_slope")


def unattacked(loss: Tensor) -> dict[str, Tensor]:
    """The statistics of a step without an adversary; `loss` is the mean, a scalar."""
    none = torch.full_like(loss, math.nan)
    infinite = torch.full_like(loss, math.inf)
    losses = {"loss_before_attack": loss, "loss_after_attack": loss}
    return losses | {"gain": none, "lr_psnr": infinite, "budgets_bound": none} | dict.fromkeys(_DISTANCES, none)


def attacked(
    before: Tensor | None, after: Tensor, lr_psnr: Tensor, budget_db: Tensor, distance_by_group: Tensor | None
) -> dict[str, Tensor]:
    """The statistics of a step with an adversary, but for a gain that there is: `of_all` adds it.

    A budget counts as used up where the LR image ends within `BUDGET_SLACK_DB` of it, which is as near as an attack
    brings an image whose deviation it had to shrink.

    Args:
        before, after: the mean losses, scalars; None: the attack looked at no loss.
        lr_psnr, budget_db, distance_by_group: as in `AttackResult`.
    """
    none = torch.full_like(after, math.nan)
    bound = (lr_psnr <= budget_db + BUDGET_SLACK_DB).float()
    distances = none.expand(3) if distance_by_group is None else distance_by_group.mean(dim=0)
    return {
        **({"loss_before_attack": after, "gain": none} if before is None else {"loss_before_attack": before}),
        "loss_after_attack": after,
        "lr_psnr": lr_psnr.mean(),
        "budgets_bound": torch.where(budget_db.isfinite(), bound, math.nan).mean(),
        **dict(zip(_DISTANCES, distances, strict=True)),
    }


def of_all(found: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """The statistics of all processes together, whose numbers of images and networks are the same; gain among them.

    Args:
        found: a process's own.
        world: the processes.
    """
    means = found
    if world.size > 1:
        means = dict(zip(found, world.mean(torch.stack(list(found.values()))), strict=True))
    if "gain" in means:
        return means
    # Of means, for a mean of gains would be another number. Of losses that are not positive, as those with a hinge loss
    # can be, there is no ratio.
    before, after = means["loss_before_attack"], means["loss_after_attack"]
    return means | {"gain": torch.where(before > 0, after / before, math.nan)}

"""The adversary looks at a part of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from andfast.attack.base import Iterates, Task
from andfast.attack.budget import within_budget
from andfast.attack.pgd import PGD
from andfast.degradation.network import DegradationNetwork


@dataclass
class Subset(PGD):
    """`PGD` on a part of the batch; the theta found degrades all of it.

    For a single network (N = 1), which all images share: its gradient is a mean over images, and that of a part is an
    estimate of it, as in any stochastic ascent. The part is the first images of the batch, which is a random draw
    already. With a `share` of 1 this is `PGD`, exactly.

    What binds in the end is the budget of the whole batch: `lr_psnr` is that of all images, and if they move further
    than the part did, the deviation is shrunk once more. The losses, `loss_after` among them, are those of the part,
    before that.

    Cost, K steps: those of `PGD` times the share, and one pass of the whole batch forward through F, or a few where the
    budget of the whole batch shrinks the deviation. It pays where one network for the whole batch is wanted anyway; the
    smaller the share, the weaker the adversary.

    Args:
        share: of the batch's images, in (0, 1]; at least one image is taken.
        steps, keep: as for `PGD`, on the part.
        step_size, step_ratio, epsilon, scale_factors, lr_psnr, lens: as for `GradientAttack`.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be in (0, 1]")
        super().__post_init__()

    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        if network.num_networks != 1:
            raise ValueError(
                f"the network is a bank of {network.num_networks}; Subset needs num_networks 1, for all images "
                "to share what is found on a part of them"
            )
        return super()._count(network, hr)

    def _search(self, task: Task) -> Iterates:
        images = max(1, round(self.share * len(task.hr)))
        if images == len(task.hr):
            return super()._search(task)
        part = {name: getattr(task, name)[:images] for name in ("hr", "seen", "clean")}
        iterates = super()._search(replace(task, **part))
        iterates.variable, iterates.lr = within_budget(
            task.network, task.seen, task.clean, iterates.variable, task.budget_db
        )
        return iterates

"""The paper's adversary: projected gradient ascent on theta (Sec 3.3 and 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from andfast.attack.ascent import Ascent, GradientAttack, loss_and_costate
from andfast.attack.base import Iterates, Task, by_network
from andfast.theta import ScaleFactors


@dataclass
class PGD(GradientAttack):
    """Projected gradient ascent on theta, from the identity (Sec 3.3 and 4.3; Madry et al. 2018).

    The exact attack, and what the cheaper ones are measured by. Fewer steps need longer ones: a `step_ratio` of
    0.5 for 3 steps, 0.75 for 2, 1 for a single one reaches the ball's surface as 5 steps of 0.2 do.

    Cost, K steps: K + 1 passes forward through F, one more for every try that a budget refuses (the one accepted
    serves the next gradient, too), K backward; K + 1 forward through G and K to its input. With `keep` "last" one
    forward pass through G less.

    Args:
        steps: gradient steps, K.
        keep: "worst" judges the last iterate, too, and returns the worst of all; "last" returns the last one
            unjudged: its loss is what the training step computes anyway.
        step_size, step_ratio, epsilon, scale_factors, lr_psnr, lens: as for `GradientAttack`.
    """

    steps: int = 5
    keep: Literal["worst", "last"] = "worst"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.keep not in ("worst", "last"):
            raise ValueError(f"keep is {self.keep!r}; it must be 'worst' or 'last'")
        super().__post_init__()

    @classmethod
    def paper(cls) -> PGD:
        """The paper's numbers to the letter: 5 steps of 6 in a ball of radius 20, factors 1, 10, 50 (Sec 4.3).

        They do not work as written: with Xavier-initialised centres the whole of theta has a norm of about 24, so a
        single step of 6 drowns the image (L1 loss from 0.03 to 9e4 before clamping). Here to be studied.
        """
        factors = ScaleFactors(conv_dc=1.0, conv_shift=1.0, conv=1.0, noise=10.0, slope=50.0)
        return cls(steps=5, step_size=6.0, epsilon=20.0, scale_factors=factors, lr_psnr=None)

    def _search(self, task: Task) -> Iterates:
        hr, count = task.hr, task.network.num_networks
        ascent = Ascent(self, task.network, task.seen, task.clean, task.budget_db)
        iterates = Iterates()
        for step in range(1, self.steps + 1):
            loss, costate = loss_and_costate(ascent.lr, hr, task.objective, count)
            iterates.see(loss, ascent.lr.detach(), ascent.delta.detach())
            self._climb(ascent, costate, last=step == self.steps)
        if self.keep == "last":
            iterates.end(ascent.lr, ascent.delta)
        else:
            with torch.no_grad():
                iterates.see(by_network(task.objective(ascent.lr, hr), count), ascent.lr, ascent.delta)
        return iterates

    def _climb(self, ascent: Ascent, costate: Tensor, last: bool) -> None:
        """What follows a pass through G."""
        ascent.step(costate, last)

"""What the generator minimises and the adversary maximises (Sec 3.4)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Objective = Callable[[Tensor, Tensor], Tensor]
"""(lr (B,3,h,w), hr (B,3,H,W)) -> a loss for each image, (B,)."""


def l1_objective(generator: nn.Module) -> Objective:
    """ANDNet's objective: ||HR - G(LR)||_1 as a mean over channels and pixels, for each image (Eq. 2, first term)."""

    def objective(lr: Tensor, hr: Tensor) -> Tensor:
        return (generator(lr).float() - hr).abs().mean(dim=(1, 2, 3))

    return objective

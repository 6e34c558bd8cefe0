"""What keeps numbers that are none out of the weights, without the host waiting for the device at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.training.distributed import World


class Guard:
    """Judges updates: one whose losses or gradient are not finite is left out, the moving average's as well.

    What is bad in one process is bad in all.

    All of it happens on the device. A fused Adam whose `found_inf` is `bad` leaves weights and moments as they are
    where it is 1, in the way in which GradScaler tells it.

    Attributes:
        bad: 1. where the last update was left out, else 0.
        in_row: how many were, in a row.
        first: the step (from 0) of the first update of the last such row; -1: there was none.
        batch: its HR and LR images; None before any update.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self._world = world
        self.bad = torch.zeros((), device=device)
        self.in_row = torch.zeros((), device=device)
        self.first = torch.full((), -1, device=device)
        self.batch: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def judge(self, step: int, losses: Tensor, norm: Tensor, hr: Tensor, lr: Tensor) -> None:
        """Set `bad` for the update that follows.

        Args:
            step: that it belongs to, from 0.
            losses: of the images, (B,).
            norm: of the whole gradient, ().
            hr, lr: the images that gave them, kept if they are the first bad ones in a row.
        """
        self.bad.copy_(~(losses.isfinite().all() & norm.isfinite()))
        self._world.any(self.bad)
        self.in_row.add_(1).mul_(self.bad)
        images = hr.detach(), lr.detach()
        if self.batch is None or self.batch[0].shape != hr.shape:
            self.batch = tuple(torch.zeros_like(each) for each in images)
        first = self.in_row == 1
        self.first.masked_fill_(first, step)
        for kept, new in zip(self.batch, images, strict=True):
            torch.where(first, new, kept, out=kept)

"""One backward pass for both: the generator's update and the adversary's step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from andfast.attack.ascent import Ascent, GradientAttack, loss_and_costate
from andfast.attack.base import Iterates, Task, by_network
from andfast.degradation.network import DegradationNetwork


@dataclass
class Free(GradientAttack):
    """Minibatch replay (Shafahi et al. 2019, "Adversarial Training for Free!").

    A minibatch is used m times. Each replay updates G on the current LR images, and the same backward pass goes on to
    them, dL/dLR, with which theta takes a step for the next replay. Theta starts at the identity in each new
    minibatch, whose networks are fresh.

    Since G is updated meanwhile, the trainer drives it, by way of `begin`:

        replay = attack.begin(network, hr, generator)
        for _ in range(attack.replays):
            loss = objective(replay.lr, hr).mean()       # replay.lr is a leaf that requires a gradient
            optimizer.zero_grad()
            loss.backward()                              # G's gradients, and replay.lr.grad
            optimizer.step()
            if not replay.done:
                replay.advance(replay.lr.grad)

    With m = 1 that is a plain step on the identity's LR images. Called as any other attack, with a G that stays as it
    is, it is `PGD` with m - 1 steps that returns the last iterate instead of the worst.

    Cost of m replays over m plain updates: one forward and one backward pass through F each (the first without
    backward, one more forward for every try that a budget refuses), and G's input gradient, which an update otherwise
    leaves out. There is no pass through G for the adversary alone: nothing is cheaper. In exchange most updates see an
    adversary that is not done, and a minibatch is seen m times. Called as an attack: m forward passes through F and G,
    m - 1 backward through F and to G's input.

    Args:
        replays: m, updates of G for each minibatch.
        step_size, step_ratio, epsilon, scale_factors, lr_psnr, lens: as for `GradientAttack`.
    """

    replays: int = 4

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"replays is {self.replays}; it must be at least 1")
        super().__post_init__()

    def begin(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> Replay:
        """Begin a minibatch, which the training loop above then drives.

        Args:
            network, hr, generator, margin_db: as for `Attack.__call__`, whose errors it raises.
        """
        return Replay(self, network, *self._begin(network, hr, generator, margin_db))

    def _search(self, task: Task) -> Iterates:
        hr, count = task.hr, task.network.num_networks
        replay = Replay(self, task.network, task.seen, task.clean, task.budget_db)
        iterates = Iterates()
        while not replay.done:
            loss, costate = loss_and_costate(replay.lr, hr, task.objective, count)
            iterates.see(loss, replay.lr.detach(), replay.delta)
            replay.advance(costate)
        lr = replay.lr.detach()
        with torch.no_grad():
            iterates.end(lr, replay.delta, by_network(task.objective(lr, hr), count))
        return iterates


class Replay:
    """A minibatch of `Free` on its way; made by `Free.begin`.

    Args:
        attack: how many replays there are, and how a step is made.
        network: has parameters.
        seen: (B, 3, H, W) in [0, 1], the HR images as the network gets them.
        clean, budget_db: see below.

    Attributes:
        lr: (B, 3, h, w) in [0, 1], the LR images to train on now: a leaf that requires a gradient, a new one after
            each `advance`.
        clean: (B, 3, h, w), the clean LR images.
        budget_db: (N,), the least PSNR of an LR image against the clean one; -inf without such a budget.
    """

    def __init__(
        self, attack: Free, network: DegradationNetwork, seen: Tensor, clean: Tensor, budget_db: Tensor
    ) -> None:
        self.clean, self.budget_db = clean, budget_db
        self._left = attack.replays - 1
        self._ascent = Ascent(attack, network, seen, clean, budget_db, climbs=not self.done)
        self.lr = self._ascent.lr.detach().requires_grad_()

    @property
    def done(self) -> bool:
        """Whether `lr` belongs to the last replay: no `advance` follows."""
        return self._left == 0

    @property
    def delta(self) -> Tensor:
        """(N, P), the deviation that `lr` comes from."""
        return self._ascent.delta.detach()

    def advance(self, costate: Tensor) -> None:
        """Move theta by one step, within ball and budget; `lr` are then the images of the next replay.

        Args:
            costate: (B, 3, h, w), the loss's gradient on `lr`, usually `lr.grad`. Its scale does not matter (a loss
                scaled for float16 may stay scaled), but it must have neither under- nor overflowed on its way
                through G; rows of networks whose gradient is not finite do not move.

        Raises:
            RuntimeError: all replays are done.
        """
        if self.done:
            raise RuntimeError("all replays of this minibatch are done; begin another")
        self._left -= 1
        self._ascent.step(costate, last=self.done)
        self.lr = self._ascent.lr.detach().requires_grad_()

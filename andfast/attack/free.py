"""One backward pass for both: the generator's update and the adversary's step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from andfast.attack.base import SearchResult, by_network
from andfast.attack.budget import SearchInputs
from andfast.attack.pgd import Ascent, GradientAttack, loss_and_grad_lr
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective


@dataclass
class FreeAT(GradientAttack):
    """Minibatch replay (Shafahi et al. 2019, "Adversarial Training for Free!").

    A minibatch is used m times. Each replay updates G on the current LR images, and the same backward pass continues
    to them, dL/dLR, with which theta takes a step for the next replay. Each minibatch begins with new networks at the
    identity. Since G is updated in between, the trainer drives the attack:

        replay = attack.begin(network, hr, rng)
        for _ in range(attack.replays):
            loss = objective(replay.lr, hr).mean()       # replay.lr is a leaf that requires a gradient
            optimizer.zero_grad()
            loss.backward()                              # G's gradients, and replay.lr.grad
            optimizer.step()
            if not replay.done:
                replay.advance(replay.lr.grad)

    With m = 1 that is a plain step on the identity's LR images. Called like any other attack, with a fixed G, it is
    `PGD` with m - 1 steps that returns the last iterate.

    Cost of m replays over m plain updates: one forward and one backward pass through F each (the first without
    backward, one more forward for every try that a budget refuses), and G's input gradient. There is no pass through G
    for the adversary alone, so nothing is cheaper; but most updates meet an unfinished adversary, and a minibatch is
    used m times. Called as an attack: m forward passes through F and G, m - 1 backward through F and to G's input.

    Args:
        replays: m, updates of G for each minibatch.
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
        rng: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> Replay:
        """Begin a minibatch, for the training loop above.

        Args:
            network, hr, rng, margin_db: as for `Attack.__call__`, whose errors it raises.
        """
        return Replay(self, self._prepare(network, hr, rng, margin_db))

    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        hr, count = inputs.hr, inputs.network.num_networks
        replay, result = Replay(self, inputs), SearchResult()
        while not replay.done:
            loss, grad_lr = loss_and_grad_lr(replay.lr, hr, objective, count)
            result.keep_worst(loss, replay.lr.detach(), replay.delta)
            replay.advance(grad_lr)
        lr = replay.lr.detach()
        with torch.no_grad():
            result.keep_last(lr, replay.delta, by_network(objective(lr, hr), count))
        return result


class Replay:
    """A minibatch that is being replayed; made by `FreeAT.begin`.

    Args:
        attack: the number of replays, and the settings of a step.
        inputs: the inputs of the search.

    Attributes:
        lr: (B, 3, h, w) in [0, 1], the LR images to train on now: a leaf that requires a gradient, a new one after
            each `advance`.
        clean: (B, 3, h, w), the clean LR images.
        budget_db: (N,), the least PSNR of an LR image against the clean one; -inf without such a budget.
    """

    def __init__(self, attack: FreeAT, inputs: SearchInputs) -> None:
        self.clean, self.budget_db = inputs.clean, inputs.budget_db
        self._left = attack.replays - 1
        self._ascent = Ascent(attack, inputs, requires_grad=not self.done)
        self.lr = self._ascent.lr.detach().requires_grad_()

    @property
    def done(self) -> bool:
        """Whether `lr` belongs to the last replay: no `advance` follows."""
        return self._left == 0

    @property
    def delta(self) -> Tensor:
        """(N, P), the deviation of `lr`."""
        return self._ascent.delta.detach()

    def advance(self, grad_lr: Tensor) -> None:
        """Move theta by one step, within ball and budget, and make the next replay's `lr`.

        Args:
            grad_lr: (B, 3, h, w), the loss's gradient on `lr`, usually `lr.grad`, in any scale, as long as it did not
                under- or overflow in G. Networks whose gradient is not finite do not move.

        Raises:
            RuntimeError: all replays are done.
        """
        if self.done:
            raise RuntimeError("all replays of this minibatch are done; begin another")
        self._left -= 1
        self._ascent.step(grad_lr, last=self.done)
        self.lr = self._ascent.lr.detach().requires_grad_()

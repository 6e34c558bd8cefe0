"""Results of steps that are read when they are there: a device that is asked after every step waits in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from andfast.training.log import RunLog


class DivergedError(RuntimeError):
    """The loss of a step or its gradient is no longer a number; from that step on nothing was updated.

    Attributes:
        step: the step that it happened in; the weights are those after the step before.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class StepResult:
    """What a training step found: the mean loss, and what `andfast.training.statistics` says of its adversary."""

    loss: float
    loss_before_attack: float
    loss_after_attack: float
    gain: float
    lr_psnr: float
    budgets_bound: float
    distance_conv: float
    distance_noise: float
    distance_slope: float

    def __str__(self) -> str:
        """The loss, and the gain where there was an adversary."""
        return f"loss {self.loss:.4f}" + ("" if math.isnan(self.gain) else f", gain {self.gain:.2f}")


class PendingStep:
    """A step that was begun, and whose result is on its way from the device.

    Args:
        step: its number, from 1.
        learning_rate: what it was taken with.
        diverged: whether nothing is updated any more, 0 or 1; this and all that follow are scalars on the device.
        norm: of the gradient.
        values: by the names of `StepResult`'s fields.
    """

    def __init__(
        self, step: int, learning_rate: float, diverged: Tensor, norm: Tensor, values: Mapping[str, Tensor]
    ) -> None:
        self.step = step
        self._learning_rate = learning_rate
        self._names = list(values)
        found = torch.stack([diverged, norm, *values.values()])
        self._values = found.to("cpu", non_blocking=True)
        self._arrived = None
        if found.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(found.device))

    def read(self) -> StepResult:
        """The result, once it is there.

        Raises:
            DivergedError: there is none; the first step that says so, in their order, is where it happened.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        diverged, norm, *values = self._values.tolist()
        result = StepResult(**dict(zip(self._names, values, strict=True)))
        if diverged:
            raise DivergedError(
                self.step,
                f"in step {self.step} the loss is {result.loss} and its gradient's norm {norm}; try a smaller "
                f"train.learning_rate (now {self._learning_rate:g}) or train.precision float32",
            )
        return result


class Readout:
    """Writes a run's steps to its log, a line a step, several at a time.

    Args:
        log: where to.
        every: how many steps to wait for at most.

    Attributes:
        last: the result that was read last; None before the first.
        seconds: the mean time of the steps that were read last.
    """

    def __init__(self, log: RunLog, every: int) -> None:
        self.last: StepResult | None = None
        self.seconds = 0.0
        self._log, self._every = log, every
        self._waiting: list[tuple[PendingStep, dict[str, float]]] = []

    def add(self, step: PendingStep, seconds: float, **timing: float) -> bool:
        """Take in a step, its time, and what else belongs into its line; whether anything was read."""
        self._waiting.append((step, {"seconds": seconds, **timing}))
        if len(self._waiting) < self._every:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Read and write all steps taken in so far.

        Raises:
            DivergedError: one has no result; those before it are written.
        """
        waiting, self._waiting = self._waiting, []
        for step, timing in waiting:
            self.last = step.read()
            self._log.write({"step": step.step, **asdict(self.last), **timing})
        if waiting:
            self.seconds = sum(timing["seconds"] for _, timing in waiting) / len(waiting)

    close = flush

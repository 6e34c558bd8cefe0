"""Results of steps that are read when they are there: a device that is asked after every step waits in between."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor
from tqdm import tqdm

from andfast.training.logging import RunLog


class DivergedError(RuntimeError):
    """Too many updates in a row were left out, for their losses or gradients were no numbers.

    Attributes:
        step: the first of them; the weights are those after the step before.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class StepResult:
    """What a training step found: the mean loss, and what `andfast.training.step_metrics` says of its adversary.

    `skipped` says how many updates in a row have been left out by now, for they were no numbers; of a good one 0.
    `terms` has what there is with ANDGAN alone: the loss's terms, and what the discriminator found.
    """

    loss: float
    loss_before_attack: float
    loss_after_attack: float
    gain: float
    lr_psnr: float
    budgets_bound: float
    distance_conv: float
    distance_noise: float
    distance_slope: float
    skipped: int
    terms: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, float]:
        """All of it by names, as it is recorded."""
        record = asdict(self)
        return record | record.pop("terms")

    def __str__(self) -> str:
        """The loss, and the gain where there was an adversary."""
        return f"loss {self.loss:.4f}" + ("" if math.isnan(self.gain) else f", gain {self.gain:.2f}")


_FIELDS = {each.name for each in fields(StepResult)}


class PendingStep:
    """A step that was begun, and whose result is on its way from the device.

    Args:
        step: its number, from 1.
        learning_rate: what it was taken with.
        skipped: how many updates in a row were left out; this and all that follow are scalars on the device.
        norm: of the gradient.
        values: by the names of the other fields of `StepResult`; those of no field are its `terms`.
    """

    def __init__(
        self, step: int, learning_rate: float, skipped: Tensor, norm: Tensor, values: Mapping[str, Tensor]
    ) -> None:
        self.step = step
        self._learning_rate = learning_rate
        self._names = list(values)
        found = torch.stack([skipped, norm, *values.values()])
        self._values = found.to("cpu", non_blocking=True)
        self._arrived = None
        if found.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(found.device))

    def read(self) -> StepResult:
        """The result, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        skipped, _, *values = self._values.tolist()
        found = dict(zip(self._names, values, strict=True))
        terms = {name: found.pop(name) for name in self._names if name not in _FIELDS}
        return StepResult(**found, skipped=int(skipped), terms=terms)

    def describe(self) -> str:
        """What its loss and gradient are, and what may help if they are no numbers."""
        result, norm = self.read(), self._values[1].item()
        found, smaller = f"the loss is {result.loss} and its gradient's norm {norm}", "train.learning_rate"
        if "loss_d" in result.terms:
            loss_d, norm_d = (result.terms[name] for name in ("loss_d", "norm_d"))
            found += f", of the discriminator {loss_d} and {norm_d}"
            smaller += " or discriminator.learning_rate"
        return (
            f"in step {self.step} {found}; try a smaller {smaller} (now {self._learning_rate:g}) or train.precision "
            "float32"
        )


class Readout:
    """Writes a run's steps to its log, a line a step, several at a time.

    Args:
        log: where to; None: nowhere, and nothing is told: another process does it.
        every: how many steps to wait for at most.
        max_skipped: how many updates left out in a row end the run.

    Attributes:
        last: the result that was read last; None before the first.
        seconds: the mean time of the steps that were read last.
    """

    def __init__(self, log: RunLog | None, every: int, max_skipped: int) -> None:
        self.last: StepResult | None = None
        self.seconds = 0.0
        self._log, self._every, self._max_skipped = log, every, max_skipped
        self._first_skipped: PendingStep | None = None
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
            DivergedError: too many updates in a row were left out; all until then are written.
        """
        waiting, self._waiting = self._waiting, []
        for step, timing in waiting:
            self.last = step.read()
            if self._log is not None:
                self._log.write({"step": step.step, **self.last.record(), **timing})
            if self.last.skipped:
                self._skipped(step, self.last.skipped)
        if waiting:
            self.seconds = sum(timing["seconds"] for _, timing in waiting) / len(waiting)

    close = flush

    def _skipped(self, step: PendingStep, count: int) -> None:
        if count == 1 or self._first_skipped is None:
            self._first_skipped = step
            if self._log is not None:
                tqdm.write(f"warning: {step.describe()}; the update was left out", file=sys.stderr)
        if count >= self._max_skipped:
            first = self._first_skipped
            raise DivergedError(first.step, f"{first.describe()}; {count} updates in a row were left out")

"""The metrics of training steps: made on the device and read several steps at a time, so that it need not wait."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor
from tqdm import tqdm

from andfast.attack.budget import BUDGET_SLACK_DB
from andfast.training.distributed import World
from andfast.training.logging import RunLog
from andfast.utils.formatting import counted


class DivergedError(RuntimeError):
    """Too many updates in a row, from `step` on, were skipped, since their losses or gradients were not finite."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass
class StepResult:
    """The metrics of a training step, means over images or networks; NaN marks metrics that do not apply."""

    loss: float  # of the update
    loss_before_attack: float  # of the clean LR images; without an attack `loss`
    loss_after_attack: float  # of the attacked LR images; without an attack `loss`
    gain: float  # loss after / before the attack, if the attack computes a loss
    lr_psnr: float  # of the LR images against the clean ones, in dB; infinite without an attack
    budgets_bound: float  # the share of LR-PSNR budgets that are used up
    distance_conv: float  # scaled norm of the deviation from the identity: of the convolutions,
    distance_noise: float  # of the noise injections,
    distance_slope: float  # of the slopes
    skipped: int  # how many updates in a row were skipped, up to this one
    # With ANDGAN alone: the terms of the loss, and the metrics of the discriminator's update.
    terms: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, float]:
        """All metrics by name, as a line of the log has them."""
        record = asdict(self)
        return record | record.pop("terms")

    def __str__(self) -> str:
        """The loss, and the gain if there was an attack."""
        return f"loss {self.loss:.4f}" + ("" if math.isnan(self.gain) else f", gain {self.gain:.2f}")


_FIELDS = {each.name for each in fields(StepResult)}
_DISTANCES = ("distance_conv", "distance_noise", "distance_slope")


def clean_metrics(loss: Tensor) -> dict[str, Tensor]:
    """The attack's metrics of a step without an attack; `loss` is the mean, ()."""
    nan, infinite = torch.full_like(loss, math.nan), torch.full_like(loss, math.inf)
    losses = {"loss_before_attack": loss, "loss_after_attack": loss}
    return losses | {"gain": nan, "lr_psnr": infinite, "budgets_bound": nan} | dict.fromkeys(_DISTANCES, nan)


def attack_metrics(
    before: Tensor | None, after: Tensor, lr_psnr: Tensor, budget_db: Tensor, distance_by_group: Tensor | None
) -> dict[str, Tensor]:
    """The attack's metrics of a step, all but the gain, which `all_reduce_metrics` adds.

    Args:
        before, after: mean losses, (); before is None if the attack computes none.
        lr_psnr, budget_db, distance_by_group: as in `AttackResult`.
    """
    nan = torch.full_like(after, math.nan)
    # Within the slack is how near an attack brings an image whose deviation it had to shrink.
    bound = (lr_psnr <= budget_db + BUDGET_SLACK_DB).float()
    distances = nan.expand(3) if distance_by_group is None else distance_by_group.mean(dim=0)
    return {
        **({"loss_before_attack": after, "gain": nan} if before is None else {"loss_before_attack": before}),
        "loss_after_attack": after,
        "lr_psnr": lr_psnr.mean(),
        "budgets_bound": torch.where(budget_db.isfinite(), bound, math.nan).mean(),
        **dict(zip(_DISTANCES, distances, strict=True)),
    }


def all_reduce_metrics(metrics: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """The means over all processes, which have equally many images and networks; and the gain of the mean losses."""
    if world.size > 1:
        metrics = dict(zip(metrics, world.mean(torch.stack(list(metrics.values()))), strict=True))
    if "gain" in metrics:
        return metrics
    # Not a mean of ratios, which differs; and NaN for losses below 0, as a hinge loss can give.
    before, after = metrics["loss_before_attack"], metrics["loss_after_attack"]
    return metrics | {"gain": torch.where(before > 0, after / before, math.nan)}


class PendingStep:
    """A step whose metrics are being copied from the device.

    Args:
        step: its number, from 1.
        learning_rate: of its update.
        skipped: how many updates in a row were skipped; this and what follows are scalars on the device.
        norm: of the gradient.
        metrics: by the names of the other fields of `StepResult`; all others become its `terms`.
    """

    def __init__(
        self, step: int, learning_rate: float, skipped: Tensor, norm: Tensor, metrics: Mapping[str, Tensor]
    ) -> None:
        self.step = step
        self._learning_rate = learning_rate
        self._names = list(metrics)
        values = torch.stack([skipped, norm, *metrics.values()])
        self._values = values.to("cpu", non_blocking=True)
        self._copied = None
        if values.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> StepResult:
        """The metrics; waits for them."""
        if self._copied is not None:
            self._copied.synchronize()
        skipped, _, *values = self._values.tolist()
        metrics = dict(zip(self._names, values, strict=True))
        terms = {name: metrics.pop(name) for name in self._names if name not in _FIELDS}
        return StepResult(**metrics, skipped=int(skipped), terms=terms)

    def describe(self) -> str:
        """The loss and the norm of the gradient, and what to change if they are not finite."""
        result, norm = self.read(), self._values[1].item()
        found, rate = f"the loss is {result.loss} and its gradient's norm {norm}", "train.learning_rate"
        if "loss_d" in result.terms:
            found += f", of the discriminator {result.terms['loss_d']} and {result.terms['norm_d']}"
            rate += " or discriminator.learning_rate"
        remedy = f"try a smaller {rate} (now {self._learning_rate:g}) or train.precision float32"
        return f"in step {self.step} {found}; {remedy}"


class StepLogger:
    """Reads the metrics of several steps at a time and writes them to the run's log, a line a step.

    Args:
        log: None: nothing is written or printed, since another process does it.
        every: how many steps to collect before they are read.
        max_skipped: how many skipped updates in a row end the run.

    Attributes:
        last: the metrics that were read last; None before the first.
        seconds: the mean time of the steps that were read last.
    """

    def __init__(self, log: RunLog | None, every: int, max_skipped: int) -> None:
        self.last: StepResult | None = None
        self.seconds = 0.0
        self._log, self._every, self._max_skipped = log, every, max_skipped
        self._first_skipped: PendingStep | None = None
        self._pending: list[tuple[PendingStep, dict[str, float]]] = []

    def add(self, step: PendingStep, seconds: float, **timing: float) -> bool:
        """Add a step, its time, and what else its line shows; returns whether steps were read."""
        self._pending.append((step, {"seconds": seconds, **timing}))
        if len(self._pending) < self._every:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Read and write the steps that were added; a DivergedError if too many updates in a row were skipped."""
        pending, self._pending = self._pending, []
        for step, timing in pending:
            self.last = step.read()
            if self._log is not None:
                self._log.write({"step": step.step, **self.last.record(), **timing})
            if self.last.skipped:
                self._warn_or_stop(step, self.last.skipped)
        if pending:
            self.seconds = sum(timing["seconds"] for _, timing in pending) / len(pending)

    close = flush

    def _warn_or_stop(self, step: PendingStep, skipped: int) -> None:
        if skipped == 1 or self._first_skipped is None:
            self._first_skipped = step
            if self._log is not None:
                tqdm.write(f"warning: {step.describe()}; the update was left out", file=sys.stderr)
        if skipped >= self._max_skipped:
            first = self._first_skipped
            raise DivergedError(first.step, f"{first.describe()}; left out in a row: {counted(skipped, 'update')}")

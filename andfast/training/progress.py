"""The progress bar of a run, whose time left knows that updates against an adversary take longer than others."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from tqdm import tqdm

_FIRST = 1  # times of each kind that do not count: these updates verify kernels, compile, and fill caches
_LEAST = 3  # the times of a kind from which on its updates count as measured


class TimeLeft:
    """The time that the rest of a run takes, from what its last updates took.

    Args:
        warmup, iterations: the updates without an adversary, and all.
        window: how many times of each kind are averaged.
    """

    def __init__(self, warmup: int, iterations: int, window: int = 100) -> None:
        self._ends = min(warmup, iterations), iterations
        self._seconds: tuple[deque[float], ...] = tuple(deque(maxlen=window) for _ in range(2))
        self._seen = [0, 0]

    def add(self, step: int, seconds: float) -> None:
        """Add the mean time of the updates up to `step`, since the last one that was given."""
        kind = int(step > self._ends[0])
        self._seen[kind] += 1
        if self._seen[kind] > _FIRST:
            self._seconds[kind].append(seconds)

    def after(self, step: int) -> float | None:
        """The seconds that are left after `step` updates; None while a kind that is to come was not measured."""
        left = max(self._ends[0] - step, 0), self._ends[1] - max(step, self._ends[0])
        if any(count and len(times) < _LEAST for count, times in zip(left, self._seconds, strict=True)):
            return None
        return sum(count * sum(times) / len(times) for count, times in zip(left, self._seconds, strict=True) if count)

    def at_least(self, step: int) -> float | None:
        """The seconds that are left if attacked updates take no longer than the others; None if these are unknown."""
        times = self._seconds[0]
        return (self._ends[1] - step) * sum(times) / len(times) if len(times) >= _LEAST else None


class TrainingBar(tqdm):
    """Shows a run's updates, and its `TimeLeft` instead of what the mean update would make of it.

    Validations and saves are not part of the time left.
    """

    def __init__(self, warmup: int, iterations: int, step: int, shown: bool) -> None:
        self.time_left = TimeLeft(warmup, iterations)
        super().__init__(
            total=iterations,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {left}, {rate_fmt}{postfix}]",
            disable=not shown,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        seconds, least = self.time_left.after(values["n"]), self.time_left.at_least(values["n"])
        if seconds is not None:
            left = f"{self.format_interval(seconds)} left"
        elif least is not None:
            left = f"more than {self.format_interval(least)} left"
        else:
            left = "time left not yet known"
        return values | {"left": left}

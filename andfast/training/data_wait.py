"""The share of a run's time that is spent waiting for data, and a hint how to reduce it."""

from __future__ import annotations

from collections import deque

from andfast.training.config import DataConfig

_STARTING = 10  # first steps that are ignored: the workers start and fill their queues
_TOO_MUCH = 0.1  # the share from which on the hint is given


class DataWait:
    """Averages the share of the last `window` steps' time that was spent waiting for their data."""

    def __init__(self, window: int = 100) -> None:
        self._last: deque[tuple[float, float]] = deque(maxlen=window)
        self._steps = 0
        self._hinted = False

    def add(self, waited: float, seconds: float) -> None:
        """Add a step that took `seconds`, `waited` of them for data."""
        self._steps += 1
        if self._steps > _STARTING:
            self._last.append((waited, seconds))

    @property
    def recent(self) -> float:
        """The share of the last steps' time, 0 to 1; 0 while the workers start."""
        waited, seconds = (sum(column) for column in zip(*self._last, strict=True)) if self._last else (0.0, 0.0)
        return waited / seconds if seconds else 0.0

    def hint(self, data: DataConfig) -> str | None:
        """Which settings to change, once, if at least a tenth of the last steps' time was waiting."""
        if self._hinted or len(self._last) < (self._last.maxlen or 0) or self.recent < _TOO_MUCH:
            return None
        self._hinted = True
        remedies = [f"more data.workers than {data.workers}"]
        if data.hr and data.cache is None:
            remedies.append("data.cache, a folder to keep images decoded in")
        remedy = " or ".join(remedies)
        return f"{self.recent:.0%} of the time of the last {len(self._last)} steps was waiting for data; try {remedy}"

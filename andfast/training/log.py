"""What a run records: `metrics.jsonl`, and TensorBoard events where tensorboard is installed."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from andfast.files import written_whole


class RunLog:
    """Appends records to `metrics.jsonl`, one JSON object a line, each with its "step".

    A number that is not finite is written as null, for JSON has no other word.

    Args:
        run_dir: where; must exist.
        step: the number of steps done: lines of later steps, from a run that went on after its last saved state,
            are dropped.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        path = run_dir / "metrics.jsonl"
        if path.exists():
            with written_whole(path) as temporary:
                temporary.write_text(
                    "".join(line for line in _complete_lines(path) if json.loads(line)["step"] <= step)
                )
        self._file = path.open("a", buffering=1)
        self._events = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Record values at `record["step"]`; nested dicts become nested names in TensorBoard."""
        self._file.write(json.dumps(_finite(record)) + "\n")
        if self._events is not None:
            for name, value in _scalars(record):
                if name != "step":
                    self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _complete_lines(path: Path) -> list[str]:
    """The lines of a file but for a last one that was cut off while it was written."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars = []
    for key, value in record.items():
        if isinstance(value, dict):
            scalars += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            scalars.append((prefix + key, value))
    return scalars

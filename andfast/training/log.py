"""What a run records: `metrics.jsonl`, TensorBoard events where tensorboard is installed, and wandb where asked for."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from andfast.files import written_whole
from andfast.training.records import METRICS_FILE, read_records
from andfast.training.wandb_run import WandbRun


class Sink(Protocol):
    """Takes in numbers by their names."""

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """Appends records to `metrics.jsonl`, one JSON object a line, each with its "step".

    A number that is not finite is written as null, for JSON has no other word.

    Args:
        run_dir: where; must exist.
        step: the number of steps done: lines of later steps, from a run that went on after its last saved state,
            are dropped.
        wandb: the project of Weights & Biases to write to as well; None: not.
        settings: the run's configuration as nested values, for wandb.

    Raises:
        RunRecordError: the file is damaged.
        WandbError: wandb cannot be used.
    """

    def __init__(
        self, run_dir: Path, step: int, wandb: str | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        path = run_dir / METRICS_FILE
        if path.exists():
            with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as kept:
                kept.writelines(_line(record) for record in read_records(path) if record["step"] <= step)
        self._sinks: list[Sink] = []
        if wandb is not None:
            self._sinks.append(WandbRun(wandb, run_dir, settings or {}))
        if find_spec("tensorboard") is not None:
            try:
                self._sinks.append(_Events(run_dir / "tensorboard", step))
            except UnicodeEncodeError:
                what = "TensorBoard takes no folder whose name is not UTF-8, and gets nothing"
                tqdm.write(f"warning: {run_dir}: {what}; {METRICS_FILE} has all of it", file=sys.stderr)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Record values at `record["step"]`; nested dicts become nested names in TensorBoard and wandb."""
        self._file.write(_line(record))
        scalars = _scalars({key: value for key, value in record.items() if key != "step"})
        for sink in self._sinks:
            sink.write(record["step"], scalars)

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()


class _Events:
    """TensorBoard's."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """All finite numbers of a record, those of nested dicts by "outer/inner"."""
    scalars: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            scalars |= _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            scalars[prefix + key] = value
    return scalars

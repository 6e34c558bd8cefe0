"""What a run records: `metrics.jsonl`, TensorBoard events where tensorboard works, and wandb where asked for."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from andfast.training.records import METRICS_FILE, read_records
from andfast.training.wandb_run import WandbRun
from andfast.utils.command_line import one_line
from andfast.utils.files import written_whole
from andfast.utils.optional import NOT_INSTALLED, problem_of


class Sink(Protocol):
    """Takes in numbers by their names; may raise anything, and is then given no more."""

    name: str

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """Appends records to `metrics.jsonl`, one JSON object a line, each with its "step".

    A number that is not finite is written as null, for JSON has no other word. That file is the record. TensorBoard and
    wandb get the same; where one of them fails, that is said once, and the run goes on without.

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
        self._sinks += _events(run_dir / "tensorboard", step)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Record values at `record["step"]`; nested dicts become nested names in TensorBoard and wandb."""
        self._file.write(_line(record))
        scalars = _scalars({key: value for key, value in record.items() if key != "step"})
        for sink in list(self._sinks):
            try:
                sink.write(record["step"], scalars)
            except Exception as error:  # of the disk, the network, or a package's own
                self._sinks.remove(sink)
                _without(sink.name, error)

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                _without(sink.name, error)


def _without(name: str, reason: object) -> None:
    reason = one_line(reason) if isinstance(reason, Exception) else reason
    tqdm.write(f"{name} is left out, the run goes on without: {reason}", file=sys.stderr)


def _events(folder: Path, step: int) -> list[Sink]:
    """TensorBoard's, if it is installed and can be used."""
    problem = problem_of("tensorboard")
    if problem == NOT_INSTALLED:
        return []
    if problem is None:
        try:
            return [_Events(folder, step)]
        except Exception as error:  # torch and protobuf want certain releases
            problem = one_line(error)
    _without(_Events.name, problem)
    return []


class _Events:
    name = "tensorboard"

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if not self._folder.is_dir():  # of which a thread would say more
            raise FileNotFoundError(f"{self._folder} is gone")
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

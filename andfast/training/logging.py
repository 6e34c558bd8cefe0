"""What a run records: `metrics.jsonl`, and TensorBoard events and Weights & Biases where they can be used."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tqdm import tqdm

from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.command_line import one_line
from andfast.utils.files import write_text, written_whole
from andfast.utils.optional import NOT_INSTALLED, problem_of

#: In the run folder: the id of the run in wandb, so that a resumed run continues there as well.
WANDB_FILE = "wandb_id.txt"


class Sink(Protocol):
    """Receives numbers by their names, until it raises an exception."""

    name: str

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """Appends records to `metrics.jsonl`, one JSON object a line, each with its "step".

    NaN and infinite numbers are written as null. TensorBoard and wandb get the same numbers; if one of them fails, a
    warning is printed and the run continues without it.

    Args:
        run_dir: must exist.
        step: the number of steps done: lines of later steps, written after the state that is resumed from, are dropped.
        wandb: a project of Weights & Biases to write to as well; None: none.
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
        self._sinks += _tensorboard(run_dir / "tensorboard", step)
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Record values at `record["step"]`; nested dicts become nested names in TensorBoard and wandb."""
        self._file.write(_line(record))
        scalars = {name: value for name, value in _scalars(record).items() if name != "step"}
        for sink in list(self._sinks):
            try:
                sink.write(record["step"], scalars)
            except Exception as error:  # of the disk, the network or the package
                self._sinks.remove(sink)
                _warn_without(sink.name, one_line(error))

    def close(self) -> None:
        self._file.close()
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                _warn_without(sink.name, one_line(error))


def _warn_without(name: str, reason: str) -> None:
    tqdm.write(f"{name} is left out, the run goes on without: {reason}", file=sys.stderr)


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


def _tensorboard(folder: Path, step: int) -> list[Sink]:
    """TensorBoard's sink if it is installed and works, else an empty list."""
    problem = problem_of("tensorboard")
    if problem == NOT_INSTALLED:
        return []
    if problem is None:
        try:
            return [_TensorBoard(folder, step)]
        except Exception as error:  # torch and protobuf need certain releases
            problem = one_line(error)
    _warn_without(_TensorBoard.name, problem)
    return []


class _TensorBoard:
    name = "tensorboard"

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        if not self._folder.is_dir():  # the writer's thread would print a traceback
            raise FileNotFoundError(f"{self._folder} is gone")
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbError(ValueError):
    """wandb cannot be used; the message says why."""


def import_wandb(project: str) -> ModuleType:
    """Import the package, or raise a WandbError that names the `project` of train.wandb."""
    try:
        import wandb

        # wandb leaves a folder of its name where it was run, which Python imports where the package is not installed.
        if not hasattr(wandb, "init"):
            raise ImportError(f"{wandb} has no init")
    except Exception as error:  # ImportError, or any error of its dependencies
        remedy = "pip install wandb, or leave train.wandb out"
        raise WandbError(f"train.wandb is {project}, but wandb cannot be imported ({error}): {remedy}") from error
    return wandb


class WandbRun:
    """Writes to one run of a wandb project; the next `WandbRun` of the same folder continues it.

    wandb takes each step once: of steps that are repeated after a run was killed, it keeps the first values.

    Raises:
        WandbError: wandb is not installed, or does not begin a run (not logged in, for one).
    """

    name = "wandb"

    def __init__(self, project: str, run_dir: Path, settings: dict[str, Any]) -> None:
        wandb = import_wandb(project)
        path = run_dir / WANDB_FILE
        run_id = path.read_text(encoding="utf-8").strip() if path.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=settings,
                allow_val_change=True,  # some settings may change when a run is resumed
                id=run_id,
                resume=None if run_id is None else "allow",
            )
        except Exception as error:  # of wandb, the network or its service's processes
            raise WandbError(f"train.wandb {project}: wandb.init failed: {error}") from error
        if run_id is None:
            write_text(path, f"{self._run.id}\n")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()

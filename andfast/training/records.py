"""Reading `metrics.jsonl`, the record of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class RunRecordError(ValueError):
    """The record of a run that cannot be read; the message names the file and the line."""


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, one after the other: those of steps have a "loss", others a "validation".

    A last line that does not end is left out: it is being written, or was when the run was killed.

    Raises:
        OSError: there is no such file, or it cannot be read.
        RunRecordError: a line is none that a run writes.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:  # among them bytes that are no text
                raise RunRecordError(f"{path}: line {number} is damaged ({error}); delete the line") from error
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise RunRecordError(f"{path}: line {number} has no step; it is none that andfast.train writes")
            yield record


def lacks_validation(path: Path, step: int) -> bool:
    """Whether a run's `metrics.jsonl` has lines of a step, but none of its validation.

    Raises:
        OSError, RunRecordError: as `read_records`; but where there is no such file, it has no lines.
    """
    if not path.exists():
        return False
    found = [record for record in read_records(path) if record["step"] == step]
    return bool(found) and not any("validation" in record for record in found)

"""Reading `metrics.jsonl`, the record of a run, and summarising it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from andfast.utils.formatting import counted

METRICS_FILE = "metrics.jsonl"

#: What people are told of the baseline; see `baseline_title`.
BICUBIC, INPUT = "bicubic interpolation", "the input"


class RunRecordError(ValueError):
    """The record of a run that cannot be read; the message names the file and the line."""


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, one after the other: those of steps have a "loss", others a "validation".

    An incomplete last line is left out: it is being written, or was when the run was killed. An invalid line raises a
    RunRecordError.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:  # also where the bytes are not text
                raise RunRecordError(f"{path}: line {number} is damaged ({error}); delete the line") from error
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise RunRecordError(f"{path}: line {number} has no step; andfast.train has not written it")
            yield record


def lacks_validation(path: Path, step: int) -> bool:
    """Whether a run's `metrics.jsonl` exists and has lines of a step, but no validation of it."""
    if not path.exists():
        return False
    records = [record for record in read_records(path) if record["step"] == step]
    return bool(records) and not any("validation" in record for record in records)


@dataclass
class _Score:
    """PSNR-Y in the validations with one kind of LR images."""

    best: float
    best_step: int
    last: float
    step: int
    baseline: str  # "" without one

    def __str__(self) -> str:
        best = "the best" if self.best_step == self.step else f"best {self.best:.2f} at step {self.best_step}"
        return f"{self.last:.2f} dB at step {self.step}, {best}{self.baseline}"


def baseline_title(scale: int) -> str:
    """What models of this scale are compared with: at scale 1 bicubic interpolation changes nothing."""
    return INPUT if scale == 1 else BICUBIC


def has_baseline(validation: str, scale: int) -> bool:
    """Whether a validation compares the model with a baseline: clean images of scale 1 are the HR images themselves."""
    return (validation, scale) != ("bicubic", 1)


def lr_name(validation: str, scale: int | None = None) -> str:
    """What people are told of the LR images of a validation, by its name in the records; `scale` if it is known."""
    if validation == "bicubic" and scale == 1:
        return "clean images"
    return {"camera": "simulated camera LR", "pairs": "camera pairs"}.get(validation, f"{validation} LR")


def summarise(run_dir: Path, batch_size: int, scale: int) -> str:
    """The number and speed of a run's steps, its validation results, and its files, in a few lines.

    They describe the whole run, however often it was resumed. Validations and saves do not count in its time.
    """
    steps, seconds, waited = 0, 0.0, 0.0
    scores: dict[str, _Score] = {}
    for record in read_records(run_dir / METRICS_FILE):
        if "loss" in record:
            steps += 1
            seconds += record["seconds"]
            waited += record["data_wait"]
        for name, result in record.get("validation", {}).items():
            # null stands for the infinite PSNR of images without any error.
            last, bicubic = (math.inf if result[key] is None else result[key] for key in ("psnr_y", "bicubic_psnr_y"))
            step = record["step"]
            before = scores.get(name)
            best, best_step = (before.best, before.best_step) if before and before.best >= last else (last, step)
            baseline = f" ({baseline_title(scale)} {bicubic:.2f})" if has_baseline(name, scale) else ""
            scores[name] = _Score(best, best_step, last, step, baseline)
    rate, share = (steps * batch_size / seconds, waited / seconds) if seconds else (0.0, 0.0)
    names = ("model.safetensors", "model.pth", "discriminator.pth", "state.pt", "samples", METRICS_FILE)
    return "\n".join(
        [
            f"{counted(steps, 'iteration')} in {_duration(seconds)}, {rate:.1f} images/s; "
            f"waited for data {share:.1%} of the time",
            *(f"PSNR-Y on {lr_name(name, scale)}: {score}" for name, score in scores.items()),
            f"in {run_dir}: {', '.join(name for name in names if (run_dir / name).exists())}",
        ]
    )


def _duration(seconds: float) -> str:
    """The two largest units."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"

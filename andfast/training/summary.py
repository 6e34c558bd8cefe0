"""What a run came to, in a few lines, from its records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from andfast.training.records import METRICS_FILE, read_records


@dataclass
class _Score:
    """PSNR-Y in the validations with one kind of LR images."""

    best: float
    best_step: int
    last: float
    step: int
    bicubic: float


def summarise(run_dir: Path, batch_size: int) -> str:
    """How many steps a run took, how fast, how well it did in its validations, and where its files are.

    All of it is of the whole run, however often that was resumed. Its time is that of the steps: validations and
    saves are not in it.

    Args:
        run_dir: holds `metrics.jsonl`.
        batch_size: images a step.

    Raises:
        OSError, RunRecordError: as `read_records`.
    """
    steps, seconds, waited = 0, 0.0, 0.0
    scores: dict[str, _Score] = {}
    for record in read_records(run_dir / METRICS_FILE):
        if "loss" in record:
            steps += 1
            seconds += record["seconds"]
            waited += record["data_wait"]
        for name, found in record.get("validation", {}).items():
            last, bicubic = (_decibels(found[key]) for key in ("psnr_y", "bicubic_psnr_y"))
            step = record["step"]
            before = scores.get(name)
            best, best_step = (before.best, before.best_step) if before and before.best >= last else (last, step)
            scores[name] = _Score(best, best_step, last, step, bicubic)
    rate, share = (steps * batch_size / seconds, waited / seconds) if seconds else (0.0, 0.0)
    names = ("model.safetensors", "model.pth", "discriminator.pth", "state.pt", "samples", METRICS_FILE)
    return "\n".join(
        [
            f"{steps:,} iteration{'s' * (steps != 1)} in {_duration(seconds)}, {rate:.1f} images/s; "
            f"waited for data {share:.1%} of the time",
            *(_describe(name, score) for name, score in scores.items()),
            f"in {run_dir}: {', '.join(name for name in names if (run_dir / name).exists())}",
        ]
    )


def _decibels(value: float | None) -> float:
    """A PSNR as it was before it was recorded: without an error, of a plain image, it is infinite."""
    return math.inf if value is None else value


def _describe(name: str, score: _Score) -> str:
    best = "the best" if score.best_step == score.step else f"best {score.best:.2f} at step {score.best_step}"
    return (
        f"PSNR-Y on {name} LR: {score.last:.2f} dB at step {score.step}, {best} "
        f"(bicubic interpolation {score.bicubic:.2f})"
    )


def _duration(seconds: float) -> str:
    """The two largest units."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"

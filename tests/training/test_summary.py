"""What is said of a run at its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from andfast.training.records import summarise


def record(folder: Path, lines: list[dict[str, Any]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def step(number: int, seconds: float = 2.0, data_wait: float = 0.25) -> dict[str, Any]:
    return {"step": number, "loss": 0.1, "seconds": seconds, "data_wait": data_wait}


def validation(number: int, **psnr_y: float) -> dict[str, Any]:
    return {"step": number, "validation": {kind: {"psnr_y": y, "bicubic_psnr_y": 28.0} for kind, y in psnr_y.items()}}


def test_a_whole_run_in_a_few_lines(tmp_path: Path) -> None:
    lines = [step(1), step(2), validation(2, bicubic=28.5, camera=27.0)]
    lines += [step(3), step(4, 4.0, 1.0), validation(4, bicubic=29.25, camera=26.5)]
    (tmp_path / "samples").mkdir()
    (tmp_path / "model.pth").touch()
    assert summarise(record(tmp_path, lines), batch_size=5, scale=4).splitlines() == [
        "4 iterations in 10 s, 2.0 images/s; waited for data 17.5% of the time",
        "PSNR-Y on bicubic LR: 29.25 dB at step 4, the best (bicubic interpolation 28.00)",
        "PSNR-Y on simulated camera LR: 26.50 dB at step 4, best 27.00 at step 2 (bicubic interpolation 28.00)",
        f"in {tmp_path}: model.pth, samples, metrics.jsonl",
    ]


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (3599.6, "1 h 0 min"), (86400, "24 h 0 min")],
)
def test_durations(seconds: float, wanted: str, tmp_path: Path) -> None:
    assert summarise(record(tmp_path, [step(1, seconds)]), 1, 4).startswith(f"1 iteration in {wanted}, ")


def test_a_run_without_a_step_has_one_too(tmp_path: Path) -> None:
    first, last = summarise(record(tmp_path, []), 4, 4).splitlines()
    assert first == "0 iterations in 0 s, 0.0 images/s; waited for data 0.0% of the time"
    assert last == f"in {tmp_path}: metrics.jsonl"


def test_images_restored_without_an_error_have_infinite_psnr(tmp_path: Path) -> None:
    line = {"step": 1, "validation": {"bicubic": {"psnr_y": 30.0, "bicubic_psnr_y": None}}}
    perfect = {"step": 2, "validation": {"bicubic": {"psnr_y": None, "bicubic_psnr_y": None}}}
    told = summarise(record(tmp_path, [line, perfect]), 1, 4)
    assert "PSNR-Y on bicubic LR: inf dB at step 2, the best (bicubic interpolation inf)" in told


def test_at_scale_1_models_are_compared_with_their_input(tmp_path: Path) -> None:
    told = summarise(record(tmp_path, [step(1), validation(1, bicubic=40.0, camera=29.0)]), 1, 1)
    # The input has no error.
    assert "PSNR-Y on clean images: 40.00 dB at step 1, the best\n" in told
    assert "PSNR-Y on simulated camera LR: 29.00 dB at step 1, the best (the input 28.00)" in told


def test_the_first_of_equally_good_validations_is_the_best(tmp_path: Path) -> None:
    lines = [step(1), *(validation(number, pairs=27.5) for number in (1, 2))]
    assert "27.50 dB at step 2, best 27.50 at step 1" in summarise(record(tmp_path, lines), 1, 4)

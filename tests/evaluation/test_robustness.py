"""`python -m andfast.robustness`: what it measures, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from study_images import photograph
from upscaling_models import save_two_models

from andfast import robustness
from andfast.data.images import DataError
from andfast.evaluation import robustness as measuring
from andfast.evaluation.attackers import FOUND, RANDOM, SHORT, Attacker
from andfast.evaluation.models import BICUBIC, INPUT
from andfast.models import Compact, save_model

SMALL = ["--crops=3", "--size=32", "--steps=2", "--restarts=1", "--generations=1", "--population=2", "--batch_size=2"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models and two photographs; the working directory."""
    monkeypatch.chdir(tmp_path)
    save_two_models(tmp_path)
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate("ab"):
        Image.fromarray(photograph(seed, 64)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def run(*options: str, status: int = 0) -> dict:
    given = ["--model", "one.safetensors", "two.safetensors", "--data.hr", "photos", "--output", "out", "--device=cpu"]
    assert robustness.main([*given, *SMALL, *options]) == status
    return json.loads(Path("out/robustness.json").read_text()) if status == 0 else {}


def test_all_is_measured_and_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run("--attackers", "noise", "camera", "F", "--budgets", "28", "40")
    assert content["cases"] == [
        "clean", "noise 40 dB", "noise 28 dB", "camera 40 dB", "camera 28 dB", "F 40 dB", "F 28 dB"
    ]  # fmt: skip
    means = content["means"]
    assert all(means[case].keys() == {BICUBIC, "one", "two"} for case in content["cases"])
    for title in (BICUBIC, "one", "two"):
        rows = [row for row in content["each"] if (row["case"], row["model"]) == ("noise 28 dB", title)]
        assert len(rows) == 3
        assert means["noise 28 dB"][title]["psnr_y"] == pytest.approx(np.mean([row["psnr_y"] for row in rows]))
        # The worst of all searches counts, on other models, too.
        for row in rows:
            searches = [row[name] for name in (FOUND, SHORT, RANDOM, "transferred")]
            assert row["psnr_y"] == min(searches)
        # A larger budget is no milder, and the clean image is the mildest.
        values = [means[case][title]["psnr_y"] for case in ("clean", "noise 40 dB", "noise 28 dB")]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] - 0.3
    assert Path("out/robustness.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"| {BICUBIC} | {means['clean'][BICUBIC]['psnr_y']:.2f} |" in printed
    assert "noise: PSNR-Y in the worst case, 3 crops" in printed


def test_at_scale_1_the_input_is_compared_with(here: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        save_model(Compact(1, features=4, convs=1), f"{name}.safetensors")
    content = run("--attackers", "noise", "camera", "F", "--budgets", "34")
    assert content["settings"]["scale"] == 1
    assert content["means"]["clean"][INPUT]["psnr_y"] == measuring.MOST_DB
    for case in ("noise 34 dB", "F 34 dB"):
        assert 30 < content["means"][case][INPUT]["psnr_y"] < 36  # luma alone is a little nearer or farther


def test_it_goes_on_where_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    measure = measuring._measure

    def stop_at_third(*arguments: object) -> object:
        calls.append(str(arguments[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(measuring, "_measure", stop_at_third)
    run("--attackers=noise", "--budgets=34", status=130)
    first = run("--attackers=noise", "--budgets=34")
    # Two batches of clean images, one of noise before the interruption; then that one and the last.
    assert calls == ["clean", "clean", "noise", "noise", "noise"]
    # Another budget leaves the rest; another effort, or model, does not.
    run("--attackers=noise", "--budgets", "34", "40")
    assert len(calls) == 7
    again = run("--attackers=noise", "--budgets=34")
    assert len(calls) == 7
    assert again["each"] == first["each"]
    run("--attackers=noise", "--budgets=34", "--steps=3")
    assert len(calls) == 11


class Weak(Attacker):
    """Finds nothing by its full search, and all by the other two."""

    name = "weak"

    def _searches(self, objective, hr, scale, budget_db, effort, rng):
        clean = torch.nn.functional.avg_pool2d(hr, scale)
        return {FOUND: [clean], SHORT: [clean.flip(-1)], RANDOM: [clean.flip(-2)]}


def test_an_attack_that_is_fooled_is_told(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setitem(measuring.ATTACKERS, "noise", Weak)
    content = run("--attackers=noise", "--budgets=34")
    printed = capsys.readouterr().out
    assert "fewer steps found a worse image 9 times of 9, which counts above" in printed
    assert "random draws found a worse image 9 times of 9" in printed
    assert "another model" not in printed
    assert all(row["psnr_y"] == min(row[SHORT], row[RANDOM]) for row in content["each"] if row["case"] != "clean")


def test_crops_are_drawn_from_all_images_in_turn() -> None:
    images = [(name, photograph(seed, 64)) for seed, name in enumerate("ab")]
    crops = measuring.make_crops(images, 5, 32, seed=1)
    assert [crop.name[0] for crop in crops] == ["a", "b", "a", "b", "a"]
    assert len({crop.name for crop in crops}) == 5
    for crop in crops:
        top, left = map(int, crop.name[2:].split(","))
        image = dict(images)[crop.name[0]][top : top + 32, left : left + 32]
        assert np.array_equal((255 * crop.hr).round().byte().permute(1, 2, 0).numpy(), image)
    # A crop does not depend on the other images.
    assert measuring.make_crops(images[:1], 2, 32, seed=1)[1].name == crops[2].name
    with pytest.raises(DataError, match=r"a is 64 x 64; crops are 96 x 96"):
        measuring.make_crops(images, 1, 96, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets=0"], "--budgets are in dB"),
        (["--size=34"], "--size is 34; it must be a multiple of the models' scale, 4"),
        (["--size=96"], "a is 64 x 64; crops are 96 x 96"),
        (["--model=none.pth"], "none.pth"),
        (["--data.hr=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_before_any_work(here: Path, options, message, capsys: pytest.CaptureFixture[str]) -> None:
    run("--attackers=noise", *options, status=2)
    assert message in capsys.readouterr().err
    assert not Path("out").exists()

"""The comparing runner from end to end, on tiny networks and images."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
import torch
import yaml
from killable_runs import begin, end
from study_images import write_pairs, write_photographs

from andfast.attack import PGD, AdversarialNoise
from andfast.data.pairs import find_pairs
from andfast.degradation.network import DegradationNetwork
from andfast.evaluation.attackers import luma_error
from andfast.evaluation.robustness import Plan
from andfast.metrics import psnr_y
from andfast.utils.rng import step_generator
from studies import compare, runs
from studies.evaluate import evaluate, load_models
from studies.outcome import Outcome, read_outcome
from studies.runs import Finished, Run, RunError, Runner
from studies.study import StudyError, checked, filled, merged, nested, read_study

FOLDER = Path(__file__).parents[2] / "studies"
STUDY = {
    "title": "tiny",
    "reference": "classical",
    "subject": "complete",
    "seeds": [3],
    "settings": {
        "train": {
            "iterations": 6,
            "ramp": 4,
            "batch_size": 2,
            "patch_size": 32,
            "save_every": 5,
            "precision": "float32",
        },
        "generator": {"features": 8, "depth": 1},
        "degradation": {"channels": 8, "blocks": 2},
        "attack.steps": 2,
        "data": {"workers": 0, "held_out": 2},
    },
    "worst": {"attackers": ["F", "noise"], "budgets": [30], "crops": 2, "size": 32, "steps": 2},
    "start": {"train.iterations": 60, "attack.method": "none"},
    "rows": {
        "classical": {"description": "bicubic LR", "settings": {"attack.method": "none"}},
        "complete": {"description": "the adversary", "settings": None},
        "oracle": {
            "description": "real pairs",
            "settings": {"attack": {"method": "pairs", "mix": {"pairs": "{tuning_pairs}"}}},
        },
        "free": {"description": "replay", "settings": {"attack": {"method": "free", "replays": 3}}},
    },
    "quick": {"seeds": [0], "images": 1, "settings": {"train.iterations": 3}, "start": {"train.iterations": 2}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    write_photographs(folder / "hr", 8)
    write_pairs(folder / "pairs", ["canon_1", "canon_2", "canon_3", "canon_4", "nikon_5", "nikon_6"])
    return folder


def command(data: Path, *more: str) -> list[str]:
    folders = ["--data.hr", str(data / "hr"), "--pairs", str(data / "pairs"), "--work", str(data / "work")]
    return [str(data / "study.yaml"), *folders, "--output", str(data / "result.json"), *more]


def comparison(data: Path, *more: str) -> compare.Comparison:
    return compare.Comparison(compare.make_parser().parse_args(command(data, *more)), {})


@pytest.fixture(scope="module")
def interrupted(data) -> int:
    """The status of a comparison that gets SIGTERM as soon as its first run has saved its state."""

    def stop() -> None:
        for _ in range(6000):
            if list(data.glob("work/start-*/run/state.pt")):
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threads = torch.get_num_threads()
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        return compare.main(command(data, "--rows", "classical"))
    finally:
        thread.join()
        torch.set_num_threads(threads)


class ForkedProcess:
    """The process that `Popen` would start, forked from one that has imported everything, which is much faster."""

    def __init__(self, arguments: list[str], stdout: BinaryIO, **_: object) -> None:
        assert arguments[:3] == [sys.executable, "-m", "andfast.train"]
        self.process = begin(arguments[3:], Path(stdout.name))

    def wait(self) -> int:
        return end(self.process)


@pytest.fixture(scope="module")
def outcome(data, interrupted) -> Outcome:
    """Of the same command after the interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": ForkedProcess}))
        assert compare.main(command(data, "--rows", "classical", "--jobs", "2")) == 0
    return read_outcome(data / "result.json")


def steps(folder: Path) -> list[int]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "validation" not in line]


def test_a_stopped_comparison_goes_on_where_it_was(data, interrupted, outcome):
    assert interrupted == 128 + signal.SIGTERM
    [start] = data.glob("work/start-*")
    assert steps(start) == list(range(1, 61))
    assert "resuming" in (start / "log.txt").read_text()


def test_rows_get_the_same_updates_and_then_the_same_time(data, outcome):
    assert outcome.rows == ["classical", "complete"]
    assert outcome.budgets() == ["updates", "time"]
    assert [outcome.runs(row, "updates")[3]["updates"] for row in outcome.rows] == [6, 6]
    subject, equal = (outcome.runs(row, "updates")[3] for row in ("complete", "classical"))
    assert outcome.runs("complete", "time")[3] is outcome.runs("complete", "updates")[3]
    expected = round(subject["seconds_per_update"] * 6 / equal["seconds_per_update"])
    timed = {row: json.loads(next(data.glob(f"work/{row}-timed-*/finished.json")).read_text()) for row in outcome.rows}
    assert {row: found["iterations"] for row, found in timed.items()} == dict.fromkeys(outcome.rows, 20)
    assert subject["seconds_per_update"] == timed["complete"]["seconds_per_step"]
    assert outcome.runs("classical", "time")[3]["updates"] == expected > 6


def test_all_rows_start_from_the_same_weights(data, outcome):
    [start] = data.glob("work/start-*/run/model.safetensors")
    for folder in [*data.glob("work/classical-*"), *data.glob("work/complete-*")]:
        settings = yaml.safe_load((folder / "settings.yaml").read_text())
        assert settings["generator"]["init"] == str(start)
        assert (settings["seed"], settings["train"]["warmup"]) == (3, 0)
        assert settings["train"]["ramp"] == round(4 * settings["train"]["iterations"] / 6)


def test_the_result_holds_every_image_and_what_follows_from_them(data, outcome):
    [folder] = data.glob("work/complete-updates-*")
    (contender,) = load_models([folder / "run" / "model.safetensors"], torch.device("cpu"))
    scores = evaluate(contender, comparison(data).sets, contender.upscaler.scale)
    run = outcome.runs("complete", "updates")[3]
    for metric, sets in scores.items():
        for name, values in sets.items():
            assert run["scores"][metric][name] == pytest.approx(values, abs=1e-4)
    worst = {name: run["scores"]["psnr_y"][name] for name in ("F 30 dB", "noise 30 dB")}
    for name, values in worst.items():
        attacked = measure_attacked(contender.upscaler.model, comparison(data).plan, name)
        assert values == pytest.approx(attacked, abs=0.3)  # the better of several searches
        assert all(value <= of_one + 0.01 for value, of_one in zip(values, attacked, strict=True))
    assert run["scores"]["psnr_y"].keys() == outcome.content["tests"].keys()
    assert outcome.content["tests"]["reporting"]["images"] == ["canon_2", "canon_4", "nikon_6"]
    assert outcome.content["tables"] == json.loads(json.dumps(outcome.tables()))
    assert str(data) not in (data / "result.json").read_text()


def measure_attacked(model: torch.nn.Module, plan: Plan, name: str) -> list[float]:
    """PSNR-Y of the crops under the attack itself, with the random numbers of the measurement."""
    hr = torch.stack([crop.hr for crop in plan.crops])
    objective, rng = luma_error(model, 4), step_generator(0, 0, hr.device)
    if name.startswith("noise"):
        lr = AdversarialNoise(steps=2, psnr_range=(30, 30))(DegradationNetwork(4), hr, objective, rng).lr
    else:
        network = DegradationNetwork(4, 2)
        network.reset_identity((32, 32), rng)
        step = 0.2 * 10 ** (-3 / 20)  # the norm of deviations of 30 dB
        attack = PGD(steps=2, step_size=step, epsilon=math.inf, psnr_range=(30, 30))
        lr = attack(network, hr, objective, rng).lr
    with torch.no_grad():
        return psnr_y(model(lr), hr, 4).tolist()


def test_what_is_done_is_not_done_again(data, outcome, monkeypatch):
    monkeypatch.setattr(Runner, "_train", None)
    monkeypatch.setattr(compare, "load_models", None)
    again = data / "again.json"
    assert compare.main([*command(data, "--rows", "classical"), "--output", str(again)]) == 0
    for key in ("runs", "marks", "tables"):
        assert read_outcome(again).content[key] == outcome.content[key]


def test_other_settings_are_another_run():
    runs = [Run("row", 0, "updates", {"train": {"iterations": count}}) for count in (1, 2, 1)]
    assert runs[0].name == runs[2].name != runs[1].name


def test_a_run_that_fails_says_why(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho this is why\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    runner = Runner(tmp_path / "work")
    with pytest.raises(RunError, match=r"(?s)row-updates-seed0.* ended with status 3.*this is why"):
        runner(Run("row", 0, "updates", {}))
    runner.stop()
    with pytest.raises(RunError, match="stopped"):
        runner(Run("row", 1, "updates", {}))


def test_a_run_that_a_killed_process_left_behind_is_waited_for(tmp_path, monkeypatch):
    run = Run("row", 0, "updates", {})
    folder = tmp_path / "work" / run.name / "run"
    folder.mkdir(parents=True)
    hold = "file = open('lock', 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); time.sleep(4)"
    other = subprocess.Popen([sys.executable, "-c", f"import fcntl, time; {hold}"], cwd=folder, stdout=subprocess.PIPE)
    other.stdout.readline()
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RunError, match="ended with status 1"):
        Runner(tmp_path / "work")(run)
    assert other.wait(timeout=2) == 0  # it had let go of the file


def test_the_oracle_gets_the_tuning_pairs(data):
    settings = comparison(data)._settings("oracle", 3)
    assert [pair.name for pair in find_pairs(settings["attack"]["mix"]["pairs"], 4)] == [
        "canon_1",
        "canon_3",
        "nikon_5",
    ]


def test_replayed_minibatches_are_counted_as_updates(data):
    start = Finished(Path("model"), 60, 1.0, 60.0, None)
    train = comparison(data)._row("free", 3, start, "updates", 30).settings["train"]
    # The ramp of 4 updates in 6 is one of 20 in 30, and these are 7 steps.
    assert (train["iterations"], train["ramp"]) == (10, 7)


def test_a_quick_study_is_the_whole_in_small(data):
    quick = comparison(data, "--quick")
    assert (quick.study.updates, quick.seeds, quick._start(0).settings["train"]["iterations"]) == (3, [0], 2)
    assert [case.image for case in quick.sets["reporting"]] == ["canon_2", "nikon_6"]
    assert [len(cases) for cases in quick.sets.values()] == [2, 2, *[1] * 8]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_training_takes_the_settings_of_every_row(path, quick):
    study = read_study(path, quick)
    assert len(study.rows) > 5
    for name, row in study.rows.items():
        settings = merged(study.settings, filled(row.settings, Path("pairs")))
        assert checked(settings, name).train.iterations == study.updates
    assert checked(merged(study.settings, study.start), "start").attack.method == "none"


def test_dotted_and_nested_settings_are_the_same():
    assert nested({"a.b.c": 1, "a": {"b": {"d": 2}}, "e": [1]}) == {"a": {"b": {"c": 1, "d": 2}}, "e": [1]}
    below = {"a": {"b": 1, "c": [1, 2]}}
    assert merged(below, {"a": {"c": [3]}}, {"d": None}) == {"a": {"b": 1, "c": [3]}, "d": None}
    assert below == {"a": {"b": 1, "c": [1, 2]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": "whole"}, "subject is whole; it must be a row, one of classical, complete"),
        ({"rows": {"classical": {"settings": {}}}}, "rows.classical must have the keys"),
        ({"budget": 3}, "a study has the keys"),
        ({"settings": {}}, "settings.train.iterations is missing"),
        ({"worst": {"budgets": [40]}}, "worst has the keys attackers, budgets, crops, size, steps; found"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, changes, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    with pytest.raises(StudyError, match=message):
        read_study(path)


def test_wrong_options_are_said_before_anything_runs(data, tmp_path, capsys):
    assert compare.main(command(data, "--rows", "classic")) == 2
    assert "--rows classic: the rows are classical, complete" in capsys.readouterr().err
    study = tmp_path / "study.yaml"
    wrong = {"complete": {"description": "", "settings": {"attack.step": 1}}}
    study.write_text(yaml.safe_dump(STUDY | {"rows": STUDY["rows"] | wrong}))
    assert compare.main([str(study), *command(data)[1:]]) == 2
    assert "refuses the settings of row complete" in capsys.readouterr().err
    study.write_text(yaml.safe_dump(STUDY | {"worst": STUDY["worst"] | {"attackers": ["noises"]}}))
    assert compare.main([str(study), *command(data)[1:]]) == 2
    assert "worst.attackers: noises; there are F," in capsys.readouterr().err
    without_pairs = [part for part in command(data) if part not in ("--pairs", str(data / "pairs"))]
    assert compare.main(without_pairs) == 2
    assert "give --pairs" in capsys.readouterr().err

"""What a run records where: the same numbers in metrics.jsonl, TensorBoard and wandb, resumed or not."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import runs
from runs import records as lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from andfast import train
from andfast.training.logging import WANDB_FILE, RunLog, import_wandb
from andfast.training.records import RunRecordError, read_records
from andfast.training.trainer import Trainer

FAKE = '''
"""Remembers what it was given."""

runs = []


class Run:
    def __init__(self, settings):
        self.settings, self.logged, self.finished = settings, [], False
        self.id = settings["id"] or f"new{len(runs)}"

    def log(self, numbers, step):
        assert not self.finished
        self.logged.append((step, numbers))

    def finish(self):
        self.finished = True


def init(**settings):
    if settings["project"] == "closed":
        raise PermissionError("not logged in")
    runs.append(Run(settings))
    return runs[-1]
'''

RECORDS = [
    {"step": 1, "loss": 0.5, "gain": float("nan"), "lr_psnr": float("inf")},
    {"step": 2, "loss": 0.25, "gain": 1.5, "lr_psnr": 31.0},
    {"step": 2, "validation": {"bicubic": {"psnr_y": 28.5, "bicubic_psnr_y": 28.0}}},
]
SCALARS = [
    (1, {"loss": 0.5}),
    (2, {"loss": 0.25, "gain": 1.5, "lr_psnr": 31.0}),
    (2, {"validation/bicubic/psnr_y": 28.5, "validation/bicubic/bicubic_psnr_y": 28.0}),
]


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of that name."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE)
    # Entered first, so that what the test imports is gone again after it.
    monkeypatch.setitem(sys.modules, "wandb", None)
    del sys.modules["wandb"]
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return import_wandb("project")


options = partial(runs.options, train__iterations=5, train__ramp=0)


def events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(run_dir / "tensorboard"))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}/"))
        elif value is not None and key != "step":
            found[prefix + key] = value
    return found


def test_all_get_the_same_numbers(tmp_path: Path, wandb: ModuleType) -> None:
    log = RunLog(tmp_path, 0, "project", {"seed": 3})
    for record in RECORDS:
        log.write(record)
    log.close()
    assert [(line.pop("step"), line) for line in lines(tmp_path)] == [
        (1, {"loss": 0.5, "gain": None, "lr_psnr": None}),
        (2, {"loss": 0.25, "gain": 1.5, "lr_psnr": 31.0}),
        (2, {"validation": {"bicubic": {"psnr_y": 28.5, "bicubic_psnr_y": 28.0}}}),
    ]
    (run,) = wandb.runs
    assert run.logged == SCALARS
    assert run.finished
    wanted: dict[str, list[tuple[int, float]]] = {}
    for step, scalars in SCALARS:
        for name, value in scalars.items():
            wanted.setdefault(name, []).append((step, value))
    assert events(tmp_path) == wanted


def test_a_resumed_run_goes_on_in_all_of_them(
    tmp_path: Path, wandb: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, step = tmp_path / "run", Trainer.train_step

    def interrupted(self: Trainer, *batch: Any) -> Any:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    assert train.main(options(run_dir, train__wandb="project")) == 128 + signal.SIGTERM
    told = capsys.readouterr().out
    assert "stopped at step 4 and saved" in told
    assert "4 iterations in " in told
    monkeypatch.setattr(Trainer, "train_step", step)
    assert train.main(options(run_dir, train__wandb="project")) == 0
    assert "done: 5 iterations in " in capsys.readouterr().out
    first, second = wandb.runs
    assert (first.id, second.id) == ("new0", "new0")
    assert (first.settings["resume"], second.settings["resume"]) == (None, "allow")
    assert first.settings["project"] == "project"
    assert first.settings["name"] == "run"
    assert first.settings["dir"] == str(run_dir)
    assert first.settings["config"]["attack"]["method"] == "pgd"
    assert (run_dir / WANDB_FILE).read_text() == "new0\n"
    assert first.finished
    assert second.finished
    written = lines(run_dir)
    assert [line["step"] for line in written] == [1, 2, 3, 3, 4, 5, 5]
    assert first.logged + second.logged == [(line["step"], flat(line)) for line in written]
    assert {"distance_conv", "gain", "budgets_bound"} <= first.logged[-1][1].keys()
    assert "gain" not in first.logged[0][1]
    found = events(run_dir)
    assert [number for number, _ in found["loss"]] == [1, 2, 3, 4, 5]
    assert [number for number, _ in found["distance_noise"]] == [3, 4, 5]
    assert found["gain"] == [(line["step"], pytest.approx(line["gain"])) for line in written if line.get("gain")]


def test_a_run_that_starts_over_is_another_one(tmp_path: Path, wandb: ModuleType) -> None:
    one_step = {"train__wandb": "project", "train__iterations": 1}
    for _ in range(2):
        assert train.main(options(tmp_path / "run", resume="never", **one_step)) == 0
    assert [run.id for run in wandb.runs] == ["new0", "new1"]
    assert [run.settings["resume"] for run in wandb.runs] == [None, None]


BROKEN = {
    "an old release": "__version__ = '1.14.0'",
    "no protobuf": "raise TypeError('Descriptors cannot be created directly.')",
    "no distutils": "import no_such_distutils",
    "another NumPy": "raise AttributeError('module numpy has no attribute bool8')",
    "a library that is not there": "raise OSError('libcudart.so.11: cannot open shared object file')",
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_tensorboard_costs_a_line(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "packages" / "tensorboard").mkdir(parents=True)
    (tmp_path / "packages" / "tensorboard" / "__init__.py").write_text(BROKEN[why])
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    log = RunLog(tmp_path, 0)
    for record in RECORDS:
        log.write(record)
    log.close()
    assert len(lines(tmp_path)) == 3
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("tensorboard is left out, the run goes on without: ")
    assert len(told) > 60  # with the cause


@pytest.mark.parametrize("where", ["add_scalar", "close"])
def test_what_fails_in_the_middle_is_left_out_from_then_on(
    where: str, tmp_path: Path, wandb: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    log = RunLog(tmp_path, 0, "project", {})
    log.write(RECORDS[0])
    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, where, full)
        patch.setattr(wandb.Run, {"add_scalar": "log", "close": "finish"}[where], full)
        for record in RECORDS[1:]:
            log.write(record)
        log.close()
    assert len(lines(tmp_path)) == 3
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["wandb", "tensorboard"]
    assert all("No space left on device" in line for line in told)


def test_lines_after_the_saved_state_are_dropped(tmp_path: Path) -> None:
    text = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 6))
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 6, "lo')
    log = RunLog(tmp_path, 3)
    log.write({"step": 4, "loss": 7.0})
    log.close()
    kept = text.splitlines(keepends=True)[:3]
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept) + '{"step": 4, "loss": 7.0}\n'


@pytest.mark.parametrize("line", ["no json", "[1, 2]", '{"loss": 1}', '{"step": "x"}', "\udcff"])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode(errors="surrogateescape") + b'\n{"step": 3}\n')
    before = path.read_bytes()
    for read in (lambda: list(read_records(path)), lambda: RunLog(tmp_path, 9)):
        with pytest.raises(RunRecordError, match=r"metrics\.jsonl: line 2 "):
            read()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_whose_record_is_damaged_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options(tmp_path, train__iterations=2)) == 0
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    assert train.main(options(tmp_path)) == 2
    assert "metrics.jsonl: line 4 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["nothing", "a folder"])
def test_without_the_package_a_run_does_not_begin(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    if left == "a folder":
        (tmp_path / "wandb").mkdir()
        del sys.modules["wandb"]
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert train.main(options(tmp_path / "run", train__wandb="project")) == 2
    message = capsys.readouterr().err
    assert "train.wandb is project, but wandb cannot be imported" in message
    assert "pip install wandb" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", ["AttributeError('np.float_ was removed')", "OSError('no libc')", "TypeError()"])
def test_a_wandb_that_cannot_be_imported_ends_the_run_before_it_begins(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb.py").write_text(f"raise {error}")
    monkeypatch.setitem(sys.modules, "wandb", None)
    del sys.modules["wandb"]
    monkeypatch.syspath_prepend(tmp_path)
    assert train.main(options(tmp_path / "run", train__wandb="project")) == 2
    assert "train.wandb is project, but wandb cannot be imported" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_wandb_that_refuses_is_quoted(tmp_path: Path, wandb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options(tmp_path / "run", train__wandb="closed")) == 2
    assert "error: train.wandb closed: wandb.init failed: not logged in" in capsys.readouterr().err


def test_wandb_is_not_imported_where_nobody_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = RunLog(tmp_path, 0)
    log.write(RECORDS[0])
    log.close()
    assert not (tmp_path / WANDB_FILE).exists()

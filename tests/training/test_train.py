"""The training command, in small: every file it leaves, resuming, and what goes wrong."""

import copy
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killable_runs
import numpy as np
import pytest
import torch
from killable_runs import begin, end, wait_for
from PIL import Image
from runs import lines, options, records

from andfast import train
from andfast.data import cache
from andfast.models import load_model
from andfast.ops import dispatch, use_backend
from andfast.training.checkpoints import StateError, load_state, save_state
from andfast.training.config import Config
from andfast.training.data_wait import DataWait
from andfast.training.folder import RunFolder
from andfast.training.images import Skipped, find_images
from andfast.training.options import parse_config
from andfast.training.trainer import Trainer


def steps(run_dir: Path) -> list[dict[str, Any]]:
    """The records of the steps, without what is different each time."""
    return [line for line in lines(run_dir) if "validation" not in line]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_model(one).state_dict(), load_model(other).state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def make_images(folder: Path, count: int, size: tuple[int, int] = (48, 56)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a small run."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(options(run_dir)) == 0
    return run_dir


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    expected = {"config.yaml", "metrics.jsonl", "model.safetensors", "model.pth", "state.pt"}
    assert expected | {"samples/step_0000003.png", "samples/step_0000006.png"} <= names
    assert any(name.startswith("tensorboard/events.") for name in names)
    # Nothing half-written is left behind.
    assert not [name for name in names if Path(name).name.startswith(".")]


def test_every_step_has_its_record(finished: Path) -> None:
    found = [record for record in records(finished) if "validation" not in record]
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    keys = {"step", "loss", "loss_before_attack", "loss_after_attack", "skipped", "seconds", "data_wait"}
    adversary = {"gain", "lr_psnr", "budgets_bound", "distance_conv", "distance_noise", "distance_slope"}
    assert all(line.keys() == keys | adversary for line in found)
    # Clean LR images while it warms up: no attack, no distance.
    assert all(line["loss_after_attack"] == line["loss"] for line in found[:2])
    assert all(line[name] is None for line in found[:2] for name in adversary)
    assert all(line[name] is not None for line in found[2:] for name in adversary)
    attacked = found[2:]
    assert all(line["loss_after_attack"] > line["loss_before_attack"] for line in attacked)
    # What the generator is trained on is what the adversary found, but for batch-wise rounding.
    assert all(line["loss"] == pytest.approx(line["loss_after_attack"], rel=0.02) for line in attacked)
    assert all(20 < line["lr_psnr"] < 80 for line in attacked)


def test_validation_stands_beside_the_steps(finished: Path) -> None:
    validations = [record for record in records(finished) if "validation" in record]
    assert [line["step"] for line in validations] == [3, 6]
    for line in validations:
        assert line["validation"].keys() == {"bicubic", "camera"}
        assert all(10 < found["psnr_y"] < 60 for found in line["validation"].values())


def test_the_configuration_reruns_the_run_with_any_number_of_workers_and_log_interval(
    finished: Path, tmp_path: Path
) -> None:
    changed = ["--run_dir", str(tmp_path), "--data.workers=2", "--train.log_every=5"]
    assert train.main(["--config", str(finished / "config.yaml"), *changed]) == 0
    assert steps(tmp_path) == steps(finished)
    assert same_weights(tmp_path / "model.pth", finished / "model.pth")


def test_both_model_files_hold_the_moving_average(finished: Path) -> None:
    assert same_weights(finished / "model.safetensors", finished / "model.pth")
    state = torch.load(finished / "state.pt", weights_only=True)
    ema = load_model(finished / "model.pth").state_dict()
    assert all(torch.equal(ema[key], value) for key, value in state["ema"].items())
    assert not all(torch.equal(state["generator"][key], value) for key, value in state["ema"].items())
    assert "params_ema" in torch.load(finished / "model.pth", weights_only=True)


def test_the_sample_sheet_shows_what_was_asked_for(finished: Path) -> None:
    sheet = np.asarray(Image.open(finished / "samples" / "step_0000006.png"))
    # Seven columns of 160 pixels, three rows, gaps and a header.
    assert sheet.shape == (3 * 164 + 22, 7 * 164 + 4, 3)
    cells = [sheet[22 : 22 + 160, 4 + 164 * column : 164 + 164 * column].astype(int) for column in range(7)]
    hr, clean, bicubic, restored, attacked, before, now = cells
    assert abs(hr - clean).mean() < 40
    for one, other in ((clean, bicubic), (clean, attacked), (before, now), (restored, now)):
        assert abs(one - other).mean() > 0.05


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_an_error_in_a_step_ends_the_run_though_workers_wait(tmp_path: Path) -> None:
    place = "andfast.training.trainer.Trainer.train_step"
    plan = (killable_runs.fail_at, place, 0, RuntimeError, "nobody foresaw this")
    command = options(tmp_path / "run", data__workers=2, train__iterations=1000)
    assert end(begin(command, tmp_path / "output", *plan), 120) == 1
    assert "RuntimeError: nobody foresaw this" in (tmp_path / "output").read_text()


def test_a_forced_backend_that_is_not_there_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(dispatch.unavailable, "cuda", "there is no CUDA device")
    with use_backend("cuda"):
        assert train.main(options(tmp_path / "run")) == 2
    assert "'cuda' is forced, but cannot be used: there is no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert train.main(options(finished)) == 0
    assert "all 6 iterations are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_run_is_neither_mixed_in_nor_in_the_way(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(options(tmp_path, seed=1)) == 0
    assert steps(tmp_path) != steps(finished)
    assert train.main(options(tmp_path, resume=finished / "state.pt", train__iterations=7)) == 2
    assert "holds another run" in capsys.readouterr().err
    assert train.main(options(tmp_path, resume="never")) == 0
    assert steps(tmp_path) == steps(finished)
    # How a run began is not for the next time.
    assert parse_config(["--config", str(tmp_path / "config.yaml")]).resume == "auto"


def test_a_run_can_go_on_from_a_state_elsewhere_longer_and_with_a_smaller_learning_rate(
    finished: Path, tmp_path: Path
) -> None:
    changed = {"train__learning_rate": 1e-4, "train__precision": "float32", "train__iterations": 8}
    assert train.main(options(tmp_path, resume=finished / "state.pt", **changed)) == 0
    assert [record["step"] for record in steps(tmp_path)] == [7, 8]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_scheduler_s_signal_to_all_processes_stops_and_saves(tmp_path: Path) -> None:
    """SIGTERM to the process group, workers and all, as Slurm and systemd send it."""
    run_dir, output = tmp_path / "run", tmp_path / "output"
    process = begin(options(run_dir, train__iterations=100_000, data__workers=2, train__validate_every=0), output)
    wait_for(run_dir / "metrics.jsonl", "\n", 4, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert end(process) == 128 + signal.SIGTERM, output.read_text()
    state = torch.load(run_dir / "state.pt", weights_only=True)
    assert state["step"] == len(steps(run_dir))
    assert load_model(run_dir / "model.pth").scale == 4


def test_a_state_of_other_settings_is_refused_by_name(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options(finished, train__batch_size=4, seed=3)) == 2
    message = capsys.readouterr().err
    assert "train.batch_size: 2 then, 4 now" in message
    assert "seed: 0 then, 3 now" in message


def test_a_state_knows_settings_by_their_older_names(tmp_path: Path) -> None:
    now, path = Config().to_dict(), tmp_path / "state.pt"
    for kept in ("worst", "last"):
        then = copy.deepcopy(now)
        then["attack"] |= {"keep": kept, "lr_psnr": then["attack"].pop("psnr_range")}
        del then["attack"]["return_iterate"]
        save_state(path, {"step": 1, "config": then, "images": "none"})
        if kept == "worst":
            assert load_state(path, now)["step"] == 1
            continue
        with pytest.raises(StateError, match=r"settings:\n  attack.return_iterate: last then, worst now\nUse"):
            load_state(path, now)


@pytest.mark.parametrize("content", [b"", b"not a state", "truncated"])
def test_a_damaged_state_is_named(
    content: bytes | str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (finished / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2] if content == "truncated" else content)
    assert train.main(options(tmp_path)) == 2
    assert str(tmp_path / "state.pt") in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_missing_state_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options(tmp_path / "run", resume=tmp_path / "no.pt")) == 2
    assert str(tmp_path / "no.pt") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"generator__name": "rrdbnet"},
        {"scale": 2, "degradation__noise": "gaussian", "data__hr": "[]"},  # the default images
        {"scale": 3, "train__patch_size": 33, "degradation__num_networks": 1},
        {"scale": 1, "attack__baseline": "bicubic", "attack__noise_every": 2},
        {"scale": 1, "generator__name": "rrdbnet", "degradation__noise": "gaussian"},
        {"scale": 8, "generator__name": "rrdbnet", "train__patch_size": 48},
    ],
)
def test_other_generators_scales_and_noises_train(changed: dict[str, Any], tmp_path: Path) -> None:
    assert train.main(options(tmp_path, **changed)) == 0
    assert load_model(tmp_path / "model.safetensors").scale == changed.get("scale", 4)


def test_it_trains_on_folders_and_names_what_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "hr", 8)
    make_images(tmp_path / "pairs" / "HR", 2)
    make_images(tmp_path / "pairs" / "LR", 2, (12, 14))
    make_images(tmp_path / "small", 1, (20, 40))
    (tmp_path / "hr" / "text.jpg").write_text("no image")
    # A header that is whole, and pixels that are not: found out only when it is decoded.
    whole = (tmp_path / "hr" / "0.png").read_bytes()
    (tmp_path / "hr" / "truncated.png").write_bytes(whole[: len(whole) * 2 // 3])
    arguments = options(tmp_path / "run", data__held_out=2, data__val_pairs=tmp_path / "pairs")
    assert train.main([*arguments, "--data.hr", str(tmp_path / "hr"), str(tmp_path / "small")]) == 0
    message = capsys.readouterr()
    for name in ("skipped image 1", "text.jpg", "skipped image 2", "small/0.png", "20 x 40", "truncated.png"):
        assert name in message.err
    assert "2 held out, 2 camera pairs" in message.out
    assert records(tmp_path / "run")[-1]["validation"].keys() == {"bicubic", "camera", "pairs"}


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    make_images(tmp_path, 14)
    config = parse_config(["--data.hr", str(tmp_path), "--data.held_out", "3", "--train.patch_size", "32"])
    images = find_images(config, Skipped())
    assert len(images.sources) == 11
    assert len(images.held_out) == 3
    assert not {source.name for source in images.sources} & {name for name, _ in images.held_out}
    # No more than a quarter, whatever was asked for.
    config.data.held_out = 10
    assert len(find_images(config, Skipped()).held_out) == 3


def test_images_to_validate_on_are_skipped_by_name_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "hr", 2)
    make_images(tmp_path / "val", 3)
    (tmp_path / "val" / "text.png").write_text("no image")
    whole = (tmp_path / "val" / "1.png").read_bytes()
    (tmp_path / "val" / "1.png").write_bytes(whole[: len(whole) * 2 // 3])
    options = ["--data.hr", str(tmp_path / "hr"), "--data.val_hr", str(tmp_path / "val"), "--train.patch_size", "32"]
    skipped = Skipped()
    images = find_images(parse_config(options), skipped)
    assert [Path(name).name for name, _ in images.held_out] == ["0.png", "2.png"]
    assert skipped.count == 2
    message = capsys.readouterr().err
    assert "skipped image 1" in message
    assert "text.png" in message
    assert "skipped image 2" in message
    assert "val/1.png" in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing_but_where_pixels_come_from(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "hr", 8)
    whole = (tmp_path / "hr" / "0.png").read_bytes()
    (tmp_path / "hr" / "truncated.png").write_bytes(whole[: len(whole) * 2 // 3])
    folder = tmp_path / "cache"
    data = {"data__hr": tmp_path / "hr", "data__held_out": 1, "data__workers": workers}
    assert train.main(options(tmp_path / "plain", **data)) == 0
    assert train.main(options(tmp_path / "cached", **data, data__cache=folder)) == 0
    assert len(list(folder.glob("*.u8"))) == 7
    assert steps(tmp_path / "cached") == steps(tmp_path / "plain")
    assert same_weights(tmp_path / "cached" / "model.pth", tmp_path / "plain" / "model.pth")
    skipped = [line for line in capfd.readouterr().err.splitlines() if "truncated.png" in line]
    assert len(skipped) == 2
    assert skipped[0] == skipped[1]
    # A run may take up a cache half-way, and no image has come or gone for that.
    assert train.main(options(tmp_path / "plain", **data, data__cache=folder, train__iterations=8)) == 0
    assert "warning" not in capfd.readouterr().err


def test_a_cache_is_not_begun_before_everything_else_is_right(tmp_path: Path) -> None:
    make_images(tmp_path / "hr", 8)
    changed = {"data__hr": tmp_path / "hr", "data__cache": tmp_path / "cache"}
    assert train.main(options(tmp_path / "run", generator__init="nowhere.pth", **changed)) == 2
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "letter.txt").write_text("dear")
    assert train.main(options(tmp_path / "run", **changed)) == 2
    assert not (tmp_path / "run").exists()


def test_being_interrupted_while_the_cache_is_made_is_no_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "hr", 8)
    arguments = options(tmp_path / "run", data__hr=tmp_path / "hr", data__cache=tmp_path / "cache")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    try:
        with monkeypatch.context() as patched:
            patched.setattr(cache, "_store", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
            assert train.main(arguments) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted before the first step" in capsys.readouterr().err
    assert train.main(arguments) == 0


def test_the_time_waited_for_data_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DataWait, "recent", 0.37)
    monkeypatch.setattr(DataWait, "hint", lambda self, data: "try this")
    assert train.main(options(tmp_path)) == 0
    message = capsys.readouterr()
    found = [record for record in records(tmp_path) if "validation" not in record]
    share = sum(record["data_wait"] for record in found) / sum(record["seconds"] for record in found)
    assert f"waited for data {share:.1%} of the time" in message.out
    assert "done: 6 iterations in " in message.out
    assert "to use it: python -m andfast.upscale PHOTO --output upscaled --model " in message.out
    assert "data 37%" in message.err
    assert "try this" in message.err


def test_images_that_were_added_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "hr", 4)
    arguments = [*options(tmp_path / "run"), "--data.hr", str(tmp_path / "hr")]
    assert train.main(arguments) == 0
    assert train.main(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    make_images(tmp_path / "hr", 5)
    assert train.main([*arguments, "--train.iterations", "7"]) == 0
    assert "warning: the images are not those" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"data__hr": "empty"}, "empty"),
        ({"data__hr": "nowhere"}, "nowhere"),
        ({"data__val_pairs": "empty"}, "empty"),
        ({"generator__init": "nowhere.pth"}, "nowhere.pth"),
        ({"data__val_hr": "empty"}, "empty"),
    ],
)
def test_nothing_is_begun_or_written_when_something_is_missing(
    changed: dict[str, str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {key: tmp_path / value for key, value in changed.items()}
    assert train.main(options(tmp_path / "run", **paths)) == 2
    assert str(tmp_path / word) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_begun_with_a_network_that_cannot_be(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert train.main(options(finished, resume="never", degradation__channels=2)) == 2
    assert "channels is 2" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize("sizes", [{}, {"generator.features": "null", "generator.depth": "null"}])
def test_weights_to_start_from_are_taken_or_refused(
    sizes: dict[str, str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options(tmp_path, generator__init=finished / "model.pth")]
    arguments += [f"--{key}={value}" for key, value in sizes.items()]
    trainer = Trainer(parse_config(arguments))
    start = load_model(finished / "model.pth").state_dict()
    assert all(torch.equal(value, start[key]) for key, value in trainer.generator.state_dict().items())
    assert train.main([*arguments, "--scale", "2"]) == 2
    assert str(finished / "model.pth") in capsys.readouterr().err
    assert train.main(options(tmp_path, generator__init=finished / "model.pth", generator__features=16)) == 2
    assert str(finished / "model.pth") in capsys.readouterr().err


def test_a_diverging_run_stops_and_keeps_its_last_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options(tmp_path, train__learning_rate=1e30, train__save_every=1)) == 3
    assert "train.learning_rate" in capsys.readouterr().err
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    good = [record["step"] for record in steps(tmp_path) if not record["skipped"]]
    assert good == list(range(1, state["step"] + 1))


def test_a_run_that_diverges_is_ended_however_late_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages, batches = [], []
    for every in (1, 4, 100):
        run_dir = tmp_path / str(every)
        changed = {"train__learning_rate": 1e30, "train__iterations": 12, "train__save_every": 3}
        changed |= {"train__validate_every": 3, "train__max_bad_steps": 5}
        assert train.main(options(run_dir, train__log_every=every, **changed)) == 3
        messages.append(capsys.readouterr().err.splitlines()[-1].replace(str(run_dir), "RUN"))
        assert steps(run_dir) == steps(tmp_path / "1")
        batches.append(torch.load(run_dir / "bad_batch.pt"))
        # Saved between updates that were left out, it would have taken the place of a good one.
        assert not (run_dir / "state.pt").exists()
    assert len(set(messages)) == 1
    skipped = [record["skipped"] for record in steps(tmp_path / "1")]
    first = skipped.index(1) + 1
    assert skipped == [0] * (first - 1) + [1, 2, 3, 4, 5]
    assert f"stopped at step {first - 1}: in step {first} the loss" in messages[0]
    assert "left out in a row: 5 updates; its images are in RUN/bad_batch.pt" in messages[0]
    for batch in batches:
        assert batch["step"] == first
        assert batch["hr"].shape[1:] == (3, 32, 32)
        assert torch.equal(batch["hr"], batches[0]["hr"])
        assert torch.equal(batch["lr"], batches[0]["lr"])


def test_a_passing_disturbance_does_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Disturbed(Trainer):
        def _backward(self, lr: torch.Tensor, hr: torch.Tensor) -> tuple[Any, ...]:
            losses, *rest = super()._backward(lr, hr)
            return losses * torch.nan if self.step in (2, 3) else losses, *rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("andfast.training.run.Trainer", Disturbed)
        assert train.main(options(tmp_path, train__save_every=3)) == 0
    found = steps(tmp_path)
    assert [record["skipped"] for record in found] == [0, 0, 1, 2, *[0] * (len(found) - 4)]
    assert [record["loss"] is None for record in found] == [bool(record["skipped"]) for record in found]
    assert capsys.readouterr().err.count("warning: in step 3 the loss is nan") == 1
    assert torch.load(tmp_path / "state.pt")["step"] == len(found)


def learning_rates(arguments: Sequence[str]) -> list[float]:
    trainer = Trainer(parse_config(arguments))
    rates = []
    for step in range(trainer.config.train.iterations):
        trainer.step = step
        rates.append(trainer.learning_rate)
    return rates


@pytest.mark.parametrize("every", [2, 0])  # at the next save, or where the run is stopped
def test_a_run_whose_folder_is_gone_says_so_and_makes_no_part_of_it_anew(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = Trainer.train_step

    def removed(self: Trainer, *arguments: Any) -> Any:
        if self.step == 1:
            shutil.rmtree(tmp_path / "run")
            if not every:
                signal.raise_signal(signal.SIGINT)
        return train_step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_step", removed)
    assert train.main(options(tmp_path / "run", train__save_every=every, train__validate_every=every)) == 3
    told = capsys.readouterr().err
    assert f"{tmp_path / 'run'}: the run's folder is gone" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_learning_rates_follow_the_schedule(tmp_path: Path) -> None:
    constant = learning_rates(options(tmp_path, train__iterations=300, train__schedule="constant"))
    assert constant[0] == pytest.approx(2e-5)
    assert constant[99:] == pytest.approx([2e-3] * 201)
    cosine = learning_rates(options(tmp_path, train__iterations=300))
    assert cosine[150] == pytest.approx(2e-3 * (0.01 + 0.99 / 2))
    assert cosine[-1] == pytest.approx(2e-5, rel=0.02)


def test_a_held_out_image_that_is_too_small_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(tmp_path / "hr", 6, (18, 40))
    make_images(tmp_path / "val", 2)
    small = {"data__hr": tmp_path / "hr", "train__patch_size": 16, "train__iterations": 1, "scale": 4}
    assert train.main(options(tmp_path / "run", **small)) == 2
    assert "png: 16 x 40 pixels, smaller than the 19 x 19 wanted to validate on" in capsys.readouterr().err
    assert train.main(options(tmp_path / "run", **small, data__val_hr=tmp_path / "val")) == 0


def test_a_run_whose_updates_take_long_is_saved_between(tmp_path, monkeypatch):
    saved, save = [], RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda self, run, digest: (saved.append(run.step), save(self, run, digest)))
    assert train.main(options(tmp_path / "quick", train__save_every=4)) == 0
    assert saved == [4, 6]
    saved.clear()
    monkeypatch.setattr("andfast.training.run._LONGEST_UNSAVED", -1)
    assert train.main(options(tmp_path / "slow", train__save_every=4)) == 0
    assert saved == [1, 2, 3, 4, 5, 6]
    saved.clear()
    assert train.main(options(tmp_path / "never", train__save_every=0)) == 0
    assert saved == [6]


@pytest.mark.parametrize(("method", "warned"), [("pgd", True), ("none", False)])
def test_a_warm_up_without_an_end_is_warned_of(method, warned, tmp_path, capsys):
    assert train.main(options(tmp_path, train__warmup=6, train__ramp=0, attack__method=method)) == 0
    message = "warning: no update is attacked: train.warmup is 6 of 6 train.iterations"
    assert (message in capsys.readouterr().err) == warned

"""Runs of several real processes: they do what one process does, and they end together."""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import killable_runs
import pytest
import torch
from killable_runs import arguments, begin, begin_several, end, wait_for
from PIL import Image
from runs import content, lines, unfinished
from vgg_file import write_vgg

from andfast.data.images import DataError
from andfast.models import load_model
from andfast.training.checkpoints import STATE_FILE, flat

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

FOUR = {"train__batch_size": 4, "data__held_out": 2}
LOST = "another process of this run has ended"
Plans = Mapping[int, tuple[Any, ...]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "hr"
    killable_runs.make_images(folder, 8)
    return folder


@pytest.fixture
def live(images: Path, tmp_path: Path) -> Callable[..., list[int]]:
    """Runs a command in two processes; returns their exit statuses."""

    def run(run_dir: Path, plans: Plans | None = None, **changed: Any) -> list[int]:
        command = arguments(run_dir, images, **(FOUR | changed))
        return [end(process) for process in begin_several(command, tmp_path / "output", plans=plans)]

    return run


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    processes = begin_several(arguments(folder / "run", images, **FOUR), folder / "output")
    assert [end(process) for process in processes] == [0, 0]
    return folder / "run"


def said(tmp_path: Path, rank: int) -> str:
    return (tmp_path / f"output{rank}").read_text()


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in flat(record).items()}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for folder, size in (("HR", 32), ("LR", 16)):
        killable_runs.make_images(tmp_path / folder, 3)
        for path in (tmp_path / folder).iterdir():
            Image.open(path).resize((size, size)).save(path)
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    [
        {
            "degradation__num_networks": "batch",
            "attack__random_start": 0.3,
            "attack__lens": "{}",
            "attack__mix": '{"share": 0.25, "method": "bicubic", "noise": [2, 9]}',
            "data__soften": "[0.5, 2]",
            "train__micro_batch": 2,
            "train__batch_size": 8,
        },
        {"degradation__noise": "gaussian", "train__micro_batch": 2, "data__soften": "[0.5, 2]"},
        {"attack__method": "style", "generator__name": "rrdbnet", "train__checkpoint_blocks": True},
        {"attack__method": "free", "attack__mix__share": 0},
        {"attack__mix": '{"share": 0.5, "method": "pairs", "pairs": "PAIRS"}', "train__max_bad_steps": 1},
        {"loss__gan": 0.1, "discriminator__name": "unet", "discriminator__features": 2, "train__micro_batch": 1},
        {"train__optimizer": "schedule_free", "train__schedule": "constant", "train__clip_grad": 0.1},
        {"compile": "on", "data__workers": 1, "train__validate_every": 0, "train__iterations": 4, "train__warmup": 2},
    ],
    ids=["own networks", "shared networks", "style", "free", "pairs", "gan", "schedule-free", "compiled"],
)
def test_two_processes_do_what_one_does(
    changed: dict[str, Any], images: Path, pairs: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    changed = FOUR | {key: str(value).replace("PAIRS", str(pairs)) for key, value in changed.items()}
    one, two = tmp_path / "one", tmp_path / "two"
    assert end(begin(arguments(one, images, **changed), tmp_path / "output")) == 0
    keep = {rank: (killable_runs.keep_all, tmp_path / f"{rank}.pt") for rank in (0, 1)}
    assert live(two, keep, **changed) == [0, 0]
    for expected, found in zip(lines(one), lines(two), strict=True):
        assert numbers(found) == pytest.approx(numbers(expected), rel=1e-3, abs=1e-6, nan_ok=True)
    states = [torch.load(path) for path in (one / STATE_FILE, two / STATE_FILE)]
    for name in ("generator", "ema"):
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-3, atol=1e-5)
    if "discriminator" in states[0]:
        weights = [state["discriminator"]["module"] for state in states]
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)
    kept = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)


def test_what_is_drawn_on_the_host_differs_between_processes(live: Callable[..., list[int]], tmp_path: Path) -> None:
    """Both processes get the same images, which bsrgan degrades."""
    (tmp_path / "seen").mkdir()
    plans = {rank: (killable_runs.same_patches, tmp_path / "seen" / str(rank)) for rank in (0, 1)}
    changed = {"attack__method": "bsrgan", "train__warmup": 0, "train__iterations": 1}
    assert live(tmp_path / "run", plans, **changed) == [0, 0]
    (hr, lr), (other_hr, other_lr) = (torch.load(tmp_path / "seen" / str(rank)) for rank in (0, 1))
    assert torch.equal(hr, other_hr)
    assert not torch.equal(lr, other_lr)


def test_an_update_that_is_bad_in_one_process_is_left_out_in_all(
    live: Callable[..., list[int]], tmp_path: Path
) -> None:
    """Its images have changed no batch norm of the discriminator either."""
    run_dir = tmp_path / "run"
    keep = [(killable_runs.keep_all, tmp_path / f"{rank}.pt") for rank in (0, 1)]
    plans = {0: keep[0], 1: (killable_runs.all_of, keep[1], (killable_runs.disturbed, 5, 6))}
    assert live(run_dir, plans, loss__gan=0.1, discriminator__features=2) == [0, 0]
    assert [line["skipped"] for line in lines(run_dir) if "loss" in line] == [0] * 5 + [1, 2] + [0] * 5
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert all(step["step"] == 10 for step in states[1]["optimizer"]["state"].values())
    statistics = {key: value for key, value in states[0]["discriminator"]["module"].items() if "running" in key}
    assert statistics
    assert all(value.isfinite().all() for value in statistics.values())
    assert said(tmp_path, 0).count("the update was left out") == 1
    assert "left out" not in said(tmp_path, 1)


def test_of_a_run_that_diverges_the_whole_batch_is_kept(live: Callable[..., list[int]], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert live(run_dir, {1: (killable_runs.disturbed, 5, 99)}, train__max_bad_steps=3) == [3, 3]
    batch = torch.load(run_dir / "bad_batch.pt")
    assert (batch["step"], batch["hr"].shape, batch["lr"].shape) == (6, (4, 3, 16, 16), (4, 3, 8, 8))
    assert len({image.numpy().tobytes() for image in batch["hr"]}) == 4
    assert "left out in a row: 3 updates; its images are in" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""


def test_kills_leave_no_trace(images: Path, live: Callable[..., list[int]], tmp_path: Path) -> None:
    """Of one process or both, at any time and within the writing of a state."""
    draw = random.Random(1)
    options = {"train__iterations": 40, "train__save_every": 1, "train__validate_every": 10}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert live(whole, **options) == [0, 0]
    before = 0
    for start, victims in enumerate(([0], [1], [0, 1], [1], "a write"), start=2):
        if victims == "a write":
            assert live(killed, {0: (killable_runs.die_at_file_call, draw.randrange(12, 40))}, **options) == [-9, 3]
        else:
            command = arguments(killed, images, **(FOUR | options))
            processes = begin_several(command, tmp_path / "output", plans={0: (killable_runs.slow_disk, 0.02)})
            wait_for(tmp_path / "output0", "images to train on", start, processes[0])
            processes[0].join(draw.uniform(0, 1.5))
            for rank in victims:
                processes[rank].kill()
            statuses = [end(process) for process in processes]
            # A second victim may have noticed the end of the first one before its own.
            wanted = [{-9} if rank == victims[0] else {-9, 3} if rank in victims else {3} for rank in range(2)]
            assert all(status in each for status, each in zip(statuses, wanted, strict=True)), (victims, statuses)
        if (killed / STATE_FILE).exists():
            step = torch.load(killed / STATE_FILE, weights_only=True)["step"]
            assert step >= before
            before = step
    assert 0 < before < 40
    assert live(killed, **options) == [0, 0]
    assert content(killed) == content(whole)
    assert not unfinished(killed)
    assert LOST in said(tmp_path, 0)
    assert "process 1: stopped at step" in said(tmp_path, 1)


@pytest.mark.parametrize(
    ("ranks", "place", "call", "number"),
    [
        ([1], "andfast.training.trainer.Trainer.train_step", 6, signal.SIGTERM),
        ([0, 1], "andfast.training.trainer.Trainer.train_step", 6, signal.SIGINT),
        ([1], "andfast.training.validation.upscale_tensor", 0, signal.SIGTERM),
        ([0], "andfast.training.run.sample_sheet", 1, signal.SIGINT),
    ],
)
def test_a_signal_stops_all_after_the_same_step_whoever_gets_it(
    ranks: list[int],
    place: str,
    call: int,
    number: signal.Signals,
    uninterrupted: Path,
    live: Callable[..., list[int]],
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    assert live(run_dir, dict.fromkeys(ranks, (killable_runs.signal_at, place, call, number))) == [128 + number] * 2
    step = torch.load(run_dir / STATE_FILE, weights_only=True)["step"]
    assert step == len([line for line in lines(run_dir) if "loss" in line])
    assert f"stopped at step {step} and saved" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    assert live(run_dir) == [0, 0]
    assert content(run_dir) == content(uninterrupted)


@pytest.mark.parametrize(
    ("place", "call", "step"),
    [
        ("andfast.training.trainer.Trainer.train_step", 8, 10),
        ("andfast.training.validation.upscale_tensor", 0, 4),
        ("andfast.training.trainer.Trainer.train_step", 10, 12),
    ],
)
def test_processes_that_seldom_agree_stop_together_too(
    place: str, call: int, step: int, uninterrupted: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    """At their next agreement, at the validation that is broken off, or at the end."""
    run_dir = tmp_path / "run"
    patient = (killable_runs.patient, 5)
    plans = {0: patient, 1: (killable_runs.all_of, patient, (killable_runs.signal_at, place, call, signal.SIGTERM))}
    assert live(run_dir, plans) == [128 + signal.SIGTERM] * 2
    assert torch.load(run_dir / STATE_FILE, weights_only=True)["step"] == step
    assert live(run_dir) == [0, 0]
    assert content(run_dir) == content(uninterrupted)


def test_a_process_that_fails_ends_all(uninterrupted: Path, live: Callable[..., list[int]], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    place = "andfast.data.patches.PatchBatches.__getitem__"
    failing = (killable_runs.fail_at, place, 5, DataError, "the disk is gone")
    assert live(run_dir, {1: failing}) == [3, 3]
    kept = f"{run_dir / STATE_FILE} is whole, of step 4"
    assert "error: process 1: stopped at step 5: the disk is gone\n" in said(tmp_path, 1)
    assert f"error: stopped at step 5: {LOST}, and without it the others cannot go on; {kept}" in said(tmp_path, 0)
    assert live(run_dir) == [0, 0]
    assert content(run_dir) == content(uninterrupted)


def test_out_of_memory_in_one_process_ends_all(live: Callable[..., list[int]], tmp_path: Path) -> None:
    failing = (killable_runs.fail_at, "andfast.training.trainer.Trainer._make_lr", 5, MemoryError, "no more")
    assert live(tmp_path / "run", {1: failing}) == [3, 3]
    assert "process 1: stopped at step 5: out of memory (no more); try a smaller train.micro_batch (now none, 2 " in (
        said(tmp_path, 1)
    )
    assert LOST in said(tmp_path, 0)
    assert torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)["step"] == 4


def test_out_of_memory_in_all_loses_nothing(live: Callable[..., list[int]], tmp_path: Path) -> None:
    """The main process saves, even if it gets SIGTERM because the others have ended."""
    failing = (killable_runs.fail_at, "andfast.training.trainer.Trainer._make_lr", 5, MemoryError, "no more")
    stop = (killable_runs.signal_at, "andfast.training.folder.save_state", 2, signal.SIGTERM)
    plans = {0: (killable_runs.all_of, failing, (killable_runs.slow_save, 1), stop), 1: failing}
    assert live(tmp_path / "run", plans) == [3, 3]
    assert f"{tmp_path / 'run' / STATE_FILE} is whole, of step 5" in said(tmp_path, 0)
    assert "is whole" not in said(tmp_path, 1)
    assert torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)["step"] == 5


def test_a_process_that_dies_before_they_have_met_is_not_waited_for(
    live: Callable[..., list[int]], tmp_path: Path
) -> None:
    dying = (killable_runs.signal_at, "torch.distributed.init_process_group", 0, signal.SIGKILL)
    assert live(tmp_path / "run", {0: (killable_runs.hasty, 3), 1: dying}) == [2, -signal.SIGKILL]
    assert "error: the 2 processes of this run have not found each other in 0:00:03" in said(tmp_path, 0)


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        (
            {"train__batch_size": 6, "degradation__num_networks": 3},
            2,
            "degradation.num_networks is 3; with 2 processes",
        ),
        ({"train__learning_rate": 1e30, "train__max_bad_steps": 2}, 3, "left out in a row: 2 updates; its images"),
    ],
    ids=["refused", "diverged"],
)
def test_interpreters_go_down_in_order(
    changed: dict[str, Any], status: int, words: str, images: Path, tmp_path: Path
) -> None:
    """Whole interpreters, unlike the forked processes here: threads that wait for others must not abort them."""
    command = [sys.executable, "-m", "andfast.train", *arguments(tmp_path / "run", images, **(FOUR | changed))]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(killable_runs.free_port())}
    shared |= {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}, **pipes)
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [status, status], outputs
    assert outputs[0].count(words) == 1
    assert words not in outputs[1]
    assert "terminate called" not in "".join(outputs)


def test_one_process_alone_touches_the_run_folder(
    uninterrupted: Path, images: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    """Also when it is resumed, so that the other need not have access to it; or without the other."""
    run_dir, alone = tmp_path / "run", tmp_path / "alone"
    stop = (killable_runs.signal_at, "andfast.training.trainer.Trainer.train_step", 6, signal.SIGTERM)
    plans = {0: stop, 1: (killable_runs.untouchable, run_dir)}
    assert live(run_dir, plans) == [128 + signal.SIGTERM] * 2
    shutil.copytree(run_dir, alone)
    assert live(run_dir, {1: plans[1]}) == [0, 0]
    assert content(run_dir) == content(uninterrupted)
    # The check itself works.
    assert live(run_dir, {0: (killable_runs.untouchable, run_dir)})[0] == 99
    # Another number of processes adds up in another order.
    assert end(begin(arguments(alone, images, **FOUR), tmp_path / "output")) == 0
    one, two = (load_model(folder / "model.pth").state_dict() for folder in (alone, uninterrupted))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    assert [line["step"] for line in lines(alone)] == [line["step"] for line in lines(uninterrupted)]


def test_three_processes_add_up_in_the_same_order_after_a_start(images: Path, tmp_path: Path) -> None:
    """The sum of two numbers has no order; DDP's buckets decide the order for three."""
    sizes = {"train__batch_size": 6, "generator__features": 12, "generator__depth": 4, "train__iterations": 8}
    stop = {2: (killable_runs.signal_at, "andfast.training.trainer.Trainer.train_step", 5, signal.SIGTERM)}
    for name, plans, status in (("whole", {}, 0), ("cut", stop, 143), ("cut", {}, 0)):
        command = arguments(tmp_path / name, images, degradation__num_networks="batch", **sizes)
        processes = begin_several(command, tmp_path / "output", 3, plans)
        assert [end(process) for process in processes] == [status] * 3
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("plans", "changed", "message"),
    [
        ({}, {"generator__init": "nowhere.pth"}, "error: generator.init: nowhere.pth"),
        ({}, {"train__batch_size": 3, "degradation__num_networks": "batch"}, "error: train.batch_size is 3; with 2 "),
        ({}, {"degradation__num_networks": 1}, "error: degradation.num_networks is 1; with 2 processes"),
        ({}, {"train__lerning_rate": 1}, "did you mean train.learning_rate?"),
        ({1: "training.run.find_images"}, {}, "error: process 1: it is not here"),
        ({1: "train.parse_config"}, {}, "error: process 1: it is not here"),
        ({0: "training.folder.load_newest"}, {}, "error: process 0: it is not here"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_once(
    plans: dict[int, str], changed: dict[str, Any], message: str, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    fail = {
        rank: (killable_runs.fail_at, f"andfast.{name}", 0, ValueError, "it is not here")
        for rank, name in plans.items()
    }
    assert live(tmp_path / "run", fail, **changed) == [2, 2]
    assert message in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    assert not (tmp_path / "run").exists()


def test_processes_started_differently_are_refused(images: Path, tmp_path: Path) -> None:
    plans = {1: (killable_runs.add_option, "--seed=1")}
    processes = begin_several(arguments(tmp_path / "run", images, **FOUR), tmp_path / "output", plans=plans)
    assert [end(process) for process in processes] == [2, 2]
    assert "process 1 was started with other settings than process 0:\n  seed: 1, not 0" in said(tmp_path, 0)


def test_what_is_validated_on_must_be_the_same(images: Path, pairs: Path, tmp_path: Path) -> None:
    command = arguments(tmp_path / "run", images, **(FOUR | {"data__val_pairs": pairs}))
    processes = begin_several(command, tmp_path / "output", plans={1: (killable_runs.fewer_pairs,)})
    assert [end(process) for process in processes] == [2, 2]
    assert "process 1 finds other images than process 0" in said(tmp_path, 0)


def test_a_cache_is_made_once_and_by_those_that_have_one(
    uninterrupted: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    assert live(both, data__cache=tmp_path / "new") == [0, 0]
    assert said(tmp_path, 1) == ""
    assert live(one, {1: (killable_runs.add_option, f"--data.cache={tmp_path / 'cache'}")}) == [0, 0]
    assert list((tmp_path / "cache").glob("*.u8"))
    assert content(one) == content(both) == content(uninterrupted)


def test_an_unreadable_image_is_reported_by_the_process_that_found_it(
    images: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    mixed = Path(shutil.copytree(images, tmp_path / "hr"))
    whole = (mixed / "0.png").read_bytes()
    (mixed / "5.png").write_bytes(whole[:-100])
    assert live(tmp_path / "run", data__hr=mixed) == [0, 0]
    reports = [said(tmp_path, rank).count(f"skipped image 1: {mixed / '5.png'}") for rank in (0, 1)]
    assert reports == [1, 1]
    assert f"process 1: skipped image 1: {mixed / '5.png'}" in said(tmp_path, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of those that are fetched, whose name ends in their digest."""
    file = tmp_path_factory.mktemp("weights") / "vgg.pth"
    write_vgg(file)
    return file.rename(file.with_name(f"vgg19-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"))


PERCEPTUAL = {
    "loss__perceptual": 1,
    "loss__perceptual_layers": '{"conv1_1": 1}',
    "loss__vgg": "download",
    "train__iterations": 2,
}


@pytest.mark.parametrize("machines", [1, 2])
def test_weights_are_fetched_once_for_each_machine(
    machines: int, weights: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    places = [(tmp_path / "hub", False), (tmp_path / "hub" if machines == 1 else tmp_path / "other", machines == 2)]
    plans = {rank: (killable_runs.fetch_from, weights, *place) for rank, place in enumerate(places)}
    assert live(tmp_path / "run", plans, **PERCEPTUAL) == [0, 0]
    assert [said(tmp_path, rank).count("fetching") for rank in (0, 1)] == [1, machines - 1]


def test_weights_that_cannot_be_fetched_are_reported_once(live: Callable[..., list[int]], tmp_path: Path) -> None:
    plan = (killable_runs.fetch_from, tmp_path / "vgg19-00000000.pth", tmp_path / "hub", False)
    assert live(tmp_path / "run", {0: plan, 1: plan}, **PERCEPTUAL) == [2, 2]
    assert said(tmp_path, 0).count("could not be fetched") == 1
    assert said(tmp_path, 1) == ""


def test_who_waits_for_weights_does_not_wait_for_one_that_is_gone(
    weights: Path, live: Callable[..., list[int]], tmp_path: Path
) -> None:
    fetch = (killable_runs.fetch_from, weights, tmp_path / "hub", False)
    dying = (killable_runs.signal_at, "torch.hub.download_url_to_file", 0, signal.SIGKILL)
    plans = {0: (killable_runs.all_of, fetch, dying), 1: fetch}
    assert live(tmp_path / "run", plans, **PERCEPTUAL) == [-signal.SIGKILL, 3]
    assert f"error: process 1: {LOST}" in said(tmp_path, 1)
    assert "fetching" not in said(tmp_path, 1)


def test_torchrun_starts_a_run(uninterrupted: Path, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["andfast.train", *arguments(tmp_path / "run", images, **FOUR)]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert content(tmp_path / "run") == content(uninterrupted)
    assert ended.stdout.count("images to train on") == 1
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1

"""Runs that are killed, stopped, or find the disk full or their state damaged, each a real process."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killable_runs
import pytest
import torch
from killable_runs import arguments, begin, end, wait_for
from PIL import Image
from runs import content, lines, unfinished
from safetensors import safe_open

from andfast.models import load_model
from andfast.training.checkpoints import PREVIOUS_FILE, STATE_FILE, load_newest
from andfast.training.options import parse_config
from andfast.training.run import Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "hr"
    killable_runs.make_images(folder)
    return folder


@pytest.fixture
def live(images: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs a command with a plan in its own process; returns its exit status."""

    def run(run_dir: Path, plan: tuple[Any, ...] = (None,), **changed: Any) -> int:
        return end(begin(arguments(run_dir, images, **changed), tmp_path / "output", *plan))

    return run


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert end(begin(arguments(folder / "run", images), folder / "output")) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def _stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    plan = (killable_runs.signal_at, "andfast.training.trainer.Trainer.train_step", 6, signal.SIGTERM)
    assert end(begin(arguments(folder / "run", images), folder / "output", *plan)) == 128 + signal.SIGTERM
    return folder / "run"


@pytest.fixture
def half(_stopped: Path, tmp_path: Path) -> Path:
    """A run with states of the steps 7 and 6."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))


def newest_step(run_dir: Path, images: Path) -> int | None:
    """The step of the newest state, of which none may be damaged."""
    settings = parse_config(arguments(run_dir, images)).to_dict()
    settings["train"]["iterations"] = 0  # it may be another
    found = load_newest(run_dir, settings, pytest.fail)
    return None if found is None else found[1]["step"]


def check_files(run_dir: Path) -> None:
    """All files with their final names are complete; unfinished ones are hidden."""
    for path in (*run_dir.glob("[!.]*.safetensors"), *run_dir.glob("[!.]*.pth")):
        assert load_model(path).scale == 2
    for path in run_dir.glob("samples/[!.]*.png"):
        Image.open(path).load()
    if (run_dir / "config.yaml").exists():
        parse_config(["--config", str(run_dir / "config.yaml")])


def test_twenty_kills_leave_no_trace(images: Path, tmp_path: Path) -> None:
    """At any time, with a slow disk so that writes are often hit; at any call that touches a file; within a write."""
    draw = random.Random(0)
    options = {"train__iterations": 60, "train__save_every": 1, "data__workers": 1}
    whole, killed, output = tmp_path / "whole", tmp_path / "killed", tmp_path / "output"
    assert end(begin(arguments(whole, images, **options), output)) == 0
    plans = [(killable_runs.slow_disk, 0.03)] * 6
    plans += [(killable_runs.die_at_file_call, draw.randrange(50)) for _ in range(8)]
    plans += [(killable_runs.full_disk, "", draw.randrange(30_000), draw.randrange(8), True) for _ in range(6)]
    draw.shuffle(plans)
    before = 0
    for plan in plans:
        process = begin(arguments(killed, images, **options), output, *plan)
        if plan[0] is killable_runs.slow_disk:
            process.join(draw.uniform(0.2, 1.5))
            process.kill()
        assert end(process) in (-signal.SIGKILL, -signal.SIGXFSZ)
        check_files(killed)
        step = newest_step(killed, images)
        assert before == 0 or step is not None
        assert (step or 0) >= before
        before = step or 0
    assert 0 < before < 60
    assert end(begin(arguments(killed, images, **options), output)) == 0
    assert content(killed) == content(whole)
    assert not unfinished(killed)


def test_a_run_that_was_killed_between_two_renames_resumes_from_the_previous_state(
    half: Path, uninterrupted: Path, live: Callable[..., int]
) -> None:
    (half / STATE_FILE).unlink()
    assert live(half) == 0
    assert content(half) == content(uninterrupted)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_state_is_named_and_the_one_before_is_resumed(
    damage: str, half: Path, uninterrupted: Path, live: Callable[..., int], tmp_path: Path
) -> None:
    state = half / STATE_FILE
    whole = bytearray(state.read_bytes())
    whole[len(whole) // 2] ^= 16
    state.write_bytes({"flip": whole, "cut": whole[:-1000], "empty": b""}[damage])
    # Killed at once: what is damaged must not take the place of what is whole.
    calls = [(killable_runs.die_at_file_call, call) for call in (0, 3, 12)] if damage == "flip" else []
    for plan in calls:
        assert live(half, plan) == -signal.SIGKILL
        assert any(
            (half / name).stat().st_size > 1000 for name in (STATE_FILE, PREVIOUS_FILE) if (half / name).exists()
        )
    assert live(half) == 0
    assert content(half) == content(uninterrupted)
    message = (tmp_path / "output").read_text()
    assert f"warning: {state}: not a state that can be resumed, or damaged" in message
    assert f"resuming {half / PREVIOUS_FILE} at step 6" in message


def test_without_a_whole_state_it_is_said_what_to_do(half: Path, live: Callable[..., int], tmp_path: Path) -> None:
    for name in (STATE_FILE, PREVIOUS_FILE):
        (half / name).write_bytes((half / name).read_bytes()[:-1])
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    assert live(half) == 2
    message = (tmp_path / "output").read_text()
    for word in (str(half / STATE_FILE), str(half / PREVIOUS_FILE), "--resume never", "--generator.init"):
        assert word in message
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


FILES = [
    "config.yaml",
    "model.safetensors",
    "model.best.safetensors",
    "model.pth",
    "state.pt",
    "samples/step_0000008.png",
]


@pytest.mark.parametrize("name", [*FILES, "metrics.jsonl"])
def test_a_write_that_fails_ends_the_run_and_harms_nothing(
    name: str, half: Path, uninterrupted: Path, live: Callable[..., int], tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in half.iterdir() if path.is_file()}
    if name == "metrics.jsonl":
        plan = (killable_runs.full_metrics, half / name, 1)
    else:
        path = Path(name)
        # model.pth follows model.safetensors, and of the temporary names both have the same part.
        plan = (killable_runs.full_disk, f"{path.stem}-", 100, int(name == "model.pth"))
    if name == "model.best.safetensors":  # so that there is a better one
        (half / name).unlink()
    assert live(half, plan) == 3
    message = (tmp_path / "output").read_text()
    assert "File too large" in message
    assert f"{half / STATE_FILE} is whole, of step" in message
    assert name == "metrics.jsonl" or str(half / name) in message
    assert not unfinished(half)
    check_files(half)
    if name in ("state.pt", "config.yaml"):
        assert (half / name).read_bytes() == before[name]
    assert live(half) == 0
    ours, theirs = content(half), content(uninterrupted)
    if name == "model.best.safetensors":
        del ours[name], theirs[name]
    assert ours == theirs


def train_with_mounts(script: str, options: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a training command by a shell script, as "$@", that may mount file systems for it and exits with 99 else."""
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-m", "andfast.train", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, env=environment)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if ended.returncode in (1, 99) and ("unshare" in ended.stderr or "mount" in ended.stderr):
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")
    return ended


def test_a_full_disk_ends_the_run_in_plain_words(
    images: Path, uninterrupted: Path, live: Callable[..., int], tmp_path: Path
) -> None:
    """On a file system with space for one state but not for two."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "kept").mkdir()
    keep = f"status=$?; cp -a {mounted}/. {tmp_path}/kept; exit $status"
    script = f'mount -t tmpfs -o size=128k tmpfs {mounted} || exit 99; "$@"; {keep}'
    ended = train_with_mounts(script, arguments(mounted / "run", images))
    assert ended.returncode == 3, ended.stderr
    assert "the disk is full ([Errno 28] No space left on device: " in ended.stderr
    assert "make room" in ended.stderr
    run_dir = tmp_path / "kept" / "run"
    check_files(run_dir)
    assert not unfinished(run_dir)
    assert live(run_dir) == 0
    assert content(run_dir) == content(uninterrupted)


PLACES = {
    "step": ("andfast.training.trainer.Trainer.train_step", 5),
    "validation": ("andfast.training.validation.upscale_tensor", 3),
    "last validation": ("andfast.training.validation.upscale_tensor", 5),
    "sample sheet": ("andfast.training.run.sample_sheet", 1),
    "model": ("andfast.models.generators.save", 1),
    "state": ("andfast.training.checkpoints._add_checksum", 2),
    "start": ("andfast.training.run.RunLog.__init__", 0),
    "reading": ("andfast.data.patches.read_image", 1),
}


# All have the same handler, so each place has one of them.
@pytest.mark.parametrize(
    ("place", "number"), zip(PLACES, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] * 3, strict=False)
)
def test_a_signal_stops_and_saves_wherever_it_comes(
    place: str, number: signal.Signals, uninterrupted: Path, live: Callable[..., int], images: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert live(run_dir, (killable_runs.signal_at, *PLACES[place], number)) == 128 + number
    step = newest_step(run_dir, images)
    assert step == len([line for line in lines(run_dir) if "validation" not in line])
    assert not unfinished(run_dir)
    assert f"stopped at step {step} and saved" in (tmp_path / "output").read_text()
    assert live(run_dir) == 0
    assert content(run_dir) == content(uninterrupted)


def test_a_signal_need_not_wait_for_a_validation(uninterrupted: Path, live: Callable[..., int], tmp_path: Path) -> None:
    """The resumed run validates, unless a signal stops it again."""
    run_dir = tmp_path / "run"
    plan = (killable_runs.signal_at, "andfast.training.validation.upscale_tensor", 0, signal.SIGTERM)
    for _ in range(2):
        assert live(run_dir, plan) == 128 + signal.SIGTERM
        assert [line["step"] for line in lines(run_dir)] == [1, 2, 3, 4]
        assert not list(run_dir.glob("samples/*"))
    assert live(run_dir) == 0
    assert content(run_dir) == content(uninterrupted)


def test_a_run_that_nobody_listens_to_any_more_is_saved(
    uninterrupted: Path, live: Callable[..., int], tmp_path: Path
) -> None:
    """As when Ctrl-C also ends the `tee` behind the run."""
    run_dir = tmp_path / "run"
    assert live(run_dir, (killable_runs.lose_listener, 4)) == 128 + signal.SIGINT
    assert torch.load(run_dir / STATE_FILE, weights_only=True)["step"] == 5
    assert live(run_dir) == 0
    assert content(run_dir) == content(uninterrupted)


def group_is_empty(leader: int, seconds: float = 10) -> bool:
    """Whether all processes of a group end within that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("workers", "to_group"), [(0, False), (2, False), (2, True)])
def test_a_second_signal_ends_a_run_at_once_whatever_it_waits_for(
    workers: int, to_group: bool, images: Path, tmp_path: Path
) -> None:
    """Here for images, of which each takes a minute; in a terminal Ctrl-C goes to the workers, too."""
    output = tmp_path / "output"
    process = begin(arguments(tmp_path / "run", images, data__workers=workers), output, killable_runs.slow_images, 60)
    wait_for(output, "0/12", 1, process)
    send = os.killpg if to_group else os.kill
    send(process.pid, signal.SIGINT)
    wait_for(output, "a second signal ends the run at once", 1, process)
    send(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == -signal.SIGINT
    assert group_is_empty(process.pid)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_is_killed_takes_its_workers_with_it(images: Path, tmp_path: Path, stopped: bool) -> None:
    """Also those that do nothing more, as in a file system that hangs."""
    output = tmp_path / "output"
    process = begin(arguments(tmp_path / "run", images, data__workers=3), output, killable_runs.slow_images, 60)
    wait_for(output, "reading", 3, process)  # all workers have begun
    if stopped:
        os.killpg(process.pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert group_is_empty(process.pid)


def test_a_folder_is_kept_for_one_run_as_long_as_that_lasts(
    images: Path, tmp_path: Path, live: Callable[..., int]
) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "first"
    first = begin(arguments(run_dir, images), output, killable_runs.slow_images, 60)
    wait_for(output, "0/12", 1, first)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert live(run_dir) == 2
    message = (tmp_path / "output").read_text()
    assert f"error: {run_dir}: process {first.pid} on " in message
    assert "works in this folder; wait for its end, or give another folder" in message
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    os.kill(first.pid, signal.SIGKILL)
    first.join(10)
    assert live(run_dir) == 0


def test_a_run_whose_worker_dies_saves_what_it_has(
    images: Path, uninterrupted: Path, live: Callable[..., int], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    plan = (killable_runs.die_in_a_worker, "andfast.data.patches.PatchBatches.__getitem__", 7)
    assert live(run_dir, plan, data__workers=1, train__save_every=100) == 3
    message = (tmp_path / "output").read_text()
    assert "stopped at step 7: data worker 0 was killed by SIGKILL" in message
    assert f"{run_dir / STATE_FILE} is whole, of step 7" in message
    assert live(run_dir) == 0
    assert content(run_dir) == content(uninterrupted)


def test_no_shared_memory_and_no_short_folder_for_temporary_files_is_needed(images: Path, tmp_path: Path) -> None:
    """With a read-only /dev/shm, and TMPDIR longer than the name of a socket may be."""
    long = tmp_path / ("job_" + "0123456789" * 10)
    long.mkdir()
    options = arguments(tmp_path / "run", images, data__workers=2, data__cache=tmp_path / "cache")
    script = 'mount -t tmpfs -o ro none /dev/shm || exit 99; exec "$@"'
    ended = train_with_mounts(script, options, TMPDIR=str(long))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / STATE_FILE).exists()


def test_where_nothing_else_can_be_written_temporary_files_are_the_run_s(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    Run(parse_config(arguments(tmp_path / "run", images, data__workers=0)))
    assert tempfile.gettempdir() == str(tmp_path / "run")


def test_the_best_model_is_the_one_that_the_metrics_say(uninterrupted: Path) -> None:
    scores = {
        line["step"]: line["validation"]["camera"]["psnr_y"] for line in lines(uninterrupted) if "validation" in line
    }
    with safe_open(uninterrupted / "model.best.safetensors", "pt") as file:
        record = file.metadata()
    best = max(scores, key=scores.get)
    assert (record["validation"], int(record["iterations"])) == ("camera", best)
    assert float(record["psnr_y"]) == scores[best]

"""Training commands that can be killed: each in its own process, forked from one that has imported everything.

A process that imports PyTorch takes seconds to start; these take a fraction of a second, so that a test can have many.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import pkgutil
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import as_options
from PIL import Image

from andfast import train
from andfast.models import vgg
from andfast.training import distributed, images, run
from andfast.training.distributed import World
from andfast.training.run import Run
from andfast.training.trainer import Trainer
from andfast.utils import files

Plan = Callable[..., None]
"""Runs in the process before the command, to prepare what is to happen to it."""

SMALL = {
    "scale": 2,
    "train.iterations": 12,
    "train.warmup": 3,
    "train.ramp": 4,
    "train.batch_size": 2,
    "train.patch_size": 16,
    "train.validate_every": 4,
    "train.save_every": 2,
    "train.precision": "float32",
    "generator.features": 4,
    "generator.depth": 1,
    "degradation.channels": 4,
    "degradation.blocks": 1,
    "degradation.precision": "float32",
    "attack.steps": 1,
    "data.held_out": 1,
    "data.workers": 0,
}


def arguments(run_dir: Path, images: Path, **changed: Any) -> list[str]:
    return as_options(SMALL | {"run_dir": run_dir, "data.hr": images}, **changed)


def make_images(folder: Path, count: int = 6) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 24), Image.Resampling.BICUBIC).save(folder / f"{index}.png")


def begin(
    command: Sequence[str],
    output: Path,
    plan: Plan | None = None,
    *values: Any,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a process that runs the command, as leader of its own process group; its output is appended to `output`.

    The output goes through a pipe, which is not affected by what happens to the process's files.
    """
    context = multiprocessing.get_context("forkserver")
    # Including what Adam and the log import later.
    context.set_forkserver_preload(["andfast.train", "torch._dynamo", "torch.utils.tensorboard"])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(list(command), writer, plan, values, dict(environment or {})))
    process.start()
    writer.close()
    process.listener = threading.Thread(target=_listen, args=(reader, output), daemon=True)
    process.listener.start()
    return process


def begin_several(
    command: Sequence[str], output: Path, size: int = 2, plans: Mapping[int, tuple[Any, ...]] | None = None
) -> list[BaseProcess]:
    """Start the processes of one run; the output of rank r goes to `output` with r appended.

    Args:
        plans: a plan and its arguments, by rank.
    """
    processes = []
    port = str(free_port())
    for rank in range(size):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {key: str(value) for key, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
        plan = (plans or {}).get(rank, (None,))
        processes.append(begin(command, output.with_name(f"{output.name}{rank}"), *plan, environment=environment))
    return processes


def wait_for(path: Path, words: str, times: int, process: BaseProcess, seconds: float = 60) -> None:
    """Wait until a running process has written something so many times."""
    until = time.monotonic() + seconds
    while not path.exists() or path.read_text().count(words) < times:
        assert process.exitcode is None, f"it has ended without {words!r}"
        assert time.monotonic() < until, f"no {words!r} in {seconds} seconds"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _listen(reader: Connection, output: Path) -> None:
    with reader, output.open("ab") as file:
        while text := os.read(reader.fileno(), 1 << 16):
            file.write(text)
            file.flush()


def end(process: BaseProcess, seconds: float = 60) -> int:
    """The exit status of a process, -n if signal n killed it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"it had not ended after {seconds} seconds")
    with suppress(ProcessLookupError):  # children of a process that was killed
        os.killpg(process.pid, signal.SIGKILL)
    process.listener.join(seconds)
    return process.exitcode


def _live(
    command: list[str], output: Connection, plan: Plan | None, values: tuple[Any, ...], environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A shell's background jobs begin with the one ignored, nohup's with the other.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    torch.set_num_threads(1)
    # Takes a third of the time of so small a run, and has tests of its own (test_memory_check.py).
    run.estimate_memory = lambda trainer: 0
    # Generating code takes long, and has tests of its own (test_compilation.py).
    torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    # Data workers are forked, as on Linux by default up to Python 3.13, so that the plan holds for them, too.
    multiprocessing.set_start_method("fork", force=True)
    if plan is not None:
        plan(*values)
    raise SystemExit(train.main(command))


def all_of(*plans: tuple[Any, ...]) -> None:
    """Several plans, each with its arguments."""
    for plan, *values in plans:
        plan(*values)


def slow_disk(seconds: float) -> None:
    """Delay the renaming of every file that is written."""
    _before("os.fsync", lambda _: time.sleep(seconds))


def signal_at(target: str, call: int, number: int) -> None:
    """Send a signal to the process and its children, before that call (from 0) of the function `target`."""
    _before(target, lambda calls: calls == call and os.killpg(os.getpgid(0), number))


def slow_images(seconds: float) -> None:
    """Delay the reading of every training image, in the process and in its children; each says "reading" before."""

    def wait(_: int) -> None:
        os.write(2, b"reading\n")
        time.sleep(seconds)

    _before("andfast.data.patches.PatchBatches._read", wait)


def die_in_a_worker(target: str, call: int) -> None:
    """Kill a data worker before its call (from 0) of the function `target`."""
    own = os.getpid()
    _before(target, lambda calls: calls == call and os.getpid() != own and os.kill(os.getpid(), signal.SIGKILL))


def die_at_file_call(call: int) -> None:
    """Kill the process before that call (from 0) of all that create, sync, rename or remove a file."""
    calls = itertools.count()
    for target in ("andfast.utils.files._new_file", "os.fsync", "os.replace", "os.unlink"):
        _before(target, lambda _: next(calls) == call and os.kill(os.getpid(), signal.SIGKILL))


def full_disk(name: str, count: int, number: int = 0, fatal: bool = False) -> None:
    """Limit the size of files to `count` bytes, from the file `number` (from 0) on whose name contains `name`.

    The kernel enforces it: a longer write is an error or, if `fatal`, kills the process.
    """
    if fatal:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    new_file, numbers = files._new_file, itertools.count()

    def limited(path: Path) -> Path:
        temporary = new_file(path)
        if name in temporary.name and next(numbers) == number:
            limit_files(count)
        return temporary

    files._new_file = limited


def full_metrics(path: Path, record: int) -> None:
    """Limit `metrics.jsonl` so that only a part of that record fits."""
    _before(
        "andfast.training.logging.RunLog.write", lambda calls: calls == record and limit_files(path.stat().st_size + 20)
    )


def limit_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, resource.RLIM_INFINITY))


def lose_listener(step: int) -> None:
    """Print to a pipe whose reader ends when the step begins, by the same Ctrl-C as the process."""
    reader, writer = os.pipe()
    for stream in (1, 2):
        os.dup2(writer, stream)

    def leave(calls: int) -> None:
        if calls == step:
            os.close(reader)
            os.kill(os.getpid(), signal.SIGINT)

    _before("andfast.training.trainer.Trainer.train_step", leave)


def _before(target: str, act: Callable[[int], Any]) -> None:
    """Call `act` with the number of earlier calls before each call of the function `target`."""
    module, name = target.rpartition(".")[::2]
    owner = pkgutil.resolve_name(module)
    function, calls = getattr(owner, name), itertools.count()

    @functools.wraps(function)
    def call(*values: Any, **options: Any) -> Any:
        act(next(calls))
        return function(*values, **options)

    setattr(owner, name, call)


def untouchable(folder: Path) -> None:
    """End the process with status 99 when it opens, makes, renames or removes anything in a folder."""

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir", "shutil.rmtree"):
            paths = [value for value in values[:2] if isinstance(value, (str, Path))]
            if any(Path(path).is_relative_to(folder) for path in paths):
                os._exit(99)

    sys.addaudithook(watch)


def fail_at(target: str, call: int, kind: type[Exception], message: str) -> None:
    """Raise an error instead of that call (from 0) of the function `target`."""

    def fail(calls: int) -> None:
        if calls == call:
            raise kind(message)

    _before(target, fail)


def disturbed(first: int, last: int) -> None:
    """Make losses and restored images NaN in the updates of steps `first` to `last` (from 0), not G's gradients."""
    backward = Trainer._backward

    def disturbed_backward(trainer: Trainer, *values: torch.Tensor) -> tuple[Any, ...]:
        losses, means, restored = backward(trainer, *values)
        if not first <= trainer.step <= last:
            return losses, means, restored
        return losses * torch.nan, means, None if restored is None else restored * torch.nan

    Trainer._backward = disturbed_backward


def patient(steps: int) -> None:
    """Let the processes agree whether to stop only every so many steps, as very many processes do."""
    World.stop_check_interval = property(lambda world: steps)


def keep_all(path: Path) -> None:
    """Save the process's final state, to compare it with others'."""
    loop = Run._loop

    def kept(self: Run, *values: Any) -> int:
        stopped = loop(self, *values)
        torch.save(self.trainer.state(), path)
        return stopped

    Run._loop = kept


def same_patches(path: Path) -> None:
    """Give the process the patches of process 0, and save the images of its last update, HR and LR."""
    update, batches = Trainer._update, run.PatchBatches
    run.PatchBatches = lambda *values, **options: batches(*values, **options | {"rank": 0})

    def watched(trainer: Trainer, lr: torch.Tensor, hr: torch.Tensor) -> Any:
        torch.save((hr, lr.detach()), path)
        return update(trainer, lr, hr)

    Trainer._update = watched


def fetch_from(path: Path, cache: Path, first_of_machine: bool) -> None:
    """Let the process fetch that file instead of VGG19's weights, and print a line each time."""
    vgg.URL = path.as_uri()
    torch.hub.set_dir(cache)
    if first_of_machine:
        os.environ["LOCAL_RANK"] = "0"
    _before("torch.hub.download_url_to_file", lambda _: print("fetching"))


def fewer_pairs() -> None:
    """Let the process find one validation pair less."""
    find = images.find_pairs
    images.find_pairs = lambda *values: find(*values)[:-1]


def hasty(seconds: float) -> None:
    """Give the processes little time to find each other."""
    distributed._START_TIMEOUT = timedelta(seconds=seconds)


def slow_save(seconds: float) -> None:
    """Delay the writing of states."""
    _before("andfast.training.folder.save_state", lambda calls: time.sleep(seconds))


def add_option(option: str) -> None:
    """Add an option to the command line of the process."""
    main = train.main
    train.main = lambda command: main([*command, option])

"""Which of the implementations that could run an operation does: the fastest that is right on this machine.

When an operation meets a device, a type and a size for the first time, every candidate, plain PyTorch among them, is
run by another process (`andfast.ops.selection_worker`), where a kernel that crashes does no harm. A candidate that does
not compile, does not run, or differs from the float64 reference in its results or gradients is set aside with a
warning. The others are timed, and the fastest is chosen. This takes seconds and is kept in a file for this device, its
driver, and these versions and sources, which all processes on the machine share.

ANDFAST_MEASURE=0 switches this off: the first candidate in `dispatch.IMPLEMENTATIONS`' order then runs, unverified.
ANDFAST_CACHE names another folder than ~/.cache/andfast.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from andfast.ops import _extension
from andfast.utils.files import make_folder, write_json
from andfast.utils.locks import locked
from andfast.utils.optional import version

#: Images of more pixels, B x H x W, are timed at so many: implementations no longer change places.
MOST_PIXELS = {"cpu": 2**13, "cuda": 2**20}

#: A later candidate must be so many times as fast as an earlier one to be preferred: noise must not decide, and earlier
#: ones take less memory.
_MARGIN = 1.1

#: Seconds after which a candidate counts as hanging. Compilers of kernels take up to a minute.
_TIMEOUT = 300.0

#: The worker's command.
WORKER = [sys.executable, "-m", "andfast.ops.selection_worker"]


class KernelWarning(RuntimeWarning):
    """A kernel is not used, because it does not run or computes something wrong on this device."""


def measures() -> bool:
    """Whether candidates are verified and timed, rather than the first one taken."""
    return os.environ.get("ANDFAST_MEASURE", "1") != "0"


def choose(
    operation: str,
    candidates: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    fastest: bool = True,
) -> str:
    """The fastest of the candidates that are right, or the first of them.

    Args:
        operation: of `dispatch.operations`.
        candidates: implementations that take such tensors, from the first choice to the last; the last is "reference".
        device, dtype: of the computation.
        sizes: what the operation's kernels depend on (channels, networks), then (B, H, W).
    """
    if not measures():
        return candidates[0]
    *structure, batch, height, width = sizes
    pixels = min(batch * height * width, _most_pixels(device))
    key = operation, candidates, device, dtype, *structure, pixels.bit_length(), fastest
    if key not in _chosen:
        with _lock:
            if key not in _chosen:
                _chosen[key] = _decide(operation, candidates, device, dtype, sizes, fastest)
    return _chosen[key]


# torch.compile calls it while it traces, and keeps the result: what `torch.compiler.assume_constant_result` does, which
# would import the compiler, and Triton with it, wherever andfast is imported.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]

_chosen: dict[tuple[Any, ...], str] = {}
_lock = threading.Lock()


def chosen_here() -> dict[str, list[str]]:
    """operation -> the implementations that were chosen for it in this process."""
    found: dict[str, list[str]] = {}
    for (operation, *_), name in _chosen.items():
        if name not in found.setdefault(operation, []):
            found[operation].append(name)
    return found


def _decide(
    operation: str,
    candidates: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    fastest: bool,
) -> str:
    """Look the choice up in the file, or make it and write it there."""
    sizes = _at_most(sizes, _most_pixels(device))
    *structure, batch, height, width = sizes
    request = {
        "operation": operation,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "sizes": sizes,
        "threads": torch.get_num_threads(),
    }
    kind = " ".join([operation, request["dtype"], "x".join(map(str, structure))]).rstrip()
    table = _table(device, torch.get_num_threads() if device.type == "cpu" else 0)
    with table.opened():
        problems = table.problems.setdefault(kind, {})
        for name in candidates[:-1]:
            if name not in problems:
                table.announce()
                problems[name] = _worker.ask(request | {"verify": name})["problem"]
                table.write()
        size_class = f"{kind} at 2^{(batch * height * width).bit_length() - 1} pixels"
        usable = [name for name in candidates if problems.get(name) is None]
        if fastest and not set(usable) <= set(table.milliseconds.get(size_class, ())):
            table.announce()
            times = table.milliseconds[size_class] = _time(usable, request, problems)
            table.write()
            print(f"  {size_class}: {describe_times(times)}", file=sys.stderr)
    for name in candidates:
        if problems.get(name) is not None:
            _warn(f"the {name} kernels of {operation} ({request['dtype']})", table.device, problems[name])
    return _fastest(table.milliseconds[size_class]) if fastest else usable[0]


def _time(names: list[str], request: dict[str, Any], problems: dict[str, str | None]) -> dict[str, float | None]:
    """name -> milliseconds, None where memory was too short to measure; adds to `problems` what fails at this size."""
    while len(names) > 1:
        answer = _worker.ask(request | {"time": names})
        failed = answer.get("running", names[-1])
        if answer["problem"] is None or failed == "reference":
            return dict.fromkeys(names) | answer.get("ms", {})
        problems[failed] = answer["problem"]
        names = [name for name in names if name != failed]
    return dict.fromkeys(names)


def _fastest(milliseconds: dict[str, float | None]) -> str:
    """The first, if no later one is clearly faster."""
    chosen, *others = milliseconds
    for name in others:
        mine, best = milliseconds[name], milliseconds[chosen]
        if mine is not None and best is not None and mine * _MARGIN < best:
            chosen = name
    return chosen


def describe_times(milliseconds: dict[str, float | None]) -> str:
    """The implementations with their times, the chosen one first."""
    chosen = _fastest(milliseconds)
    order = sorted(milliseconds.items(), key=lambda item: item[0] != chosen)
    return ", ".join(f"{name} {'not timed' if time is None else f'{time:.3g} ms'}" for name, time in order)


def _most_pixels(device: torch.device) -> int:
    return MOST_PIXELS.get(device.type, MOST_PIXELS["cpu"])


def _at_most(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Sizes with at most so many pixels: the largest dimension is halved until they are few enough."""
    *structure, batch, height, width = sizes
    shape = [batch, height, width]
    while shape[0] * shape[1] * shape[2] > most:
        largest = shape.index(max(shape))
        shape[largest] = (shape[largest] + 1) // 2
    return *structure, *shape


@cache  # warns once
def _warn(kernels: str, device: str, problem: str) -> None:
    warnings.warn(
        f"{kernels} are not used on {device}: {problem}. What is used instead is right, but may be slower. Please "
        "report this with what `python -m andfast.info --verify` prints",
        KernelWarning,
        stacklevel=2,
    )


class Table:
    """The file with what was found about one device in one environment.

    Attributes:
        device: its name.
        problems: "operation type structure" -> implementation -> what is wrong with it, None if nothing is.
        milliseconds: the same "at 2^k pixels" -> implementation -> the time of a forward and backward pass, from the
            first choice to the last; of those that are right.
    """

    def __init__(self, device: str, environment: dict[str, str]) -> None:
        self.device, self._environment = device, environment
        digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache_folder() / "kernels" / digest / "kernels.json"
        self.problems: dict[str, dict[str, str | None]] = {}
        self.milliseconds: dict[str, dict[str, float | None]] = {}
        self._read()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the file, and read what other processes have written."""
        try:
            make_folder(self.path.parent)
        except OSError as error:
            _warn_unwritable(self.path.parent, str(error.strerror))
            yield
            return
        with locked(self.path.parent, wait=True, log=lambda _: None):
            self._read()
            yield

    def _read(self) -> None:
        with suppress(OSError, ValueError, KeyError):  # there is none yet, or it is damaged
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.problems |= content["problems"]
            self.milliseconds |= content["milliseconds"]

    def write(self) -> None:
        """Write the file, if that is possible."""
        content = {
            "environment": self._environment,
            "problems": self.problems,
            "milliseconds": self.milliseconds,
        }
        with suppress(OSError):
            write_json(self.path, content)

    def clear(self) -> None:
        """Forget everything, so that it is measured anew."""
        with self.opened():
            self.problems.clear()
            self.milliseconds.clear()
            self.write()
        _chosen.clear()

    @cache  # noqa: B019  tables live as long as the process
    def announce(self) -> None:
        """Say once what takes seconds."""
        print(f"verifying and timing kernels on {self.device} (once; kept in {self.path.parent})", file=sys.stderr)

    def summary(self) -> dict[str, Any]:
        """As JSON types: the device, "kernels": their sizes -> the chosen one and all times, and "problems"."""
        kernels = {key: {"chosen": _fastest(found), "ms": found} for key, found in sorted(self.milliseconds.items())}
        problems = {
            f"{kind} {name}": problem
            for kind, found in sorted(self.problems.items())
            for name, problem in found.items()
            if problem is not None
        }
        return {"device": self.device, "kernels": kernels, "problems": problems}


@cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    warnings.warn(
        f"{folder} cannot be written ({reason}), so every process verifies and times kernels anew; set ANDFAST_CACHE "
        "to a folder that can",
        KernelWarning,
        stacklevel=2,
    )


def cache_folder() -> Path:
    """The folder of what is measured once a machine."""
    if os.environ.get("ANDFAST_CACHE"):
        return Path(os.environ["ANDFAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "andfast"


def table(device: torch.device) -> Table:
    """What was found about a device."""
    return _table(device, torch.get_num_threads() if device.type == "cpu" else 0)


@lru_cache
def _table(device: torch.device, threads: int) -> Table:
    environment = {
        "torch": torch.__version__,
        "triton": version("triton") or "none",
        "sources": _sources(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, driver = properties.name, Path("/proc/driver/nvidia/version")
        environment |= {
            "device": name,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver.read_text(encoding="utf-8").partition("\n")[0] if driver.exists() else "unknown",
            "cuda": str(torch.version.cuda or torch.version.hip),
            "cudnn": str(torch.backends.cudnn.version()),
            "tf32": str(torch.backends.cudnn.allow_tf32),
        }
    else:
        name = processor()
        capability = torch.backends.cpu.get_cpu_capability()
        environment |= {"device": name, "capability": capability, "threads": str(threads)}
    return Table(name, environment)


@cache
def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _sources() -> str:
    """A hash of the operations' sources and of the extension."""
    digest = hashlib.sha256(_extension.built_from.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Worker:
    """The process that runs candidates: started for the first, and again after it has died; ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, see `andfast.ops.selection_worker`; or what became of it instead, as a "problem"."""
        answer: dict[str, Any] = {}
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            while "problem" not in answer:
                line = self._read_line(process)
                if not line:
                    return answer | {"problem": self._end(hangs=line is None)}
                answer |= json.loads(line)
            if answer.get("lost"):  # a new process has the device again
                self.stop()
            return answer
        except OSError as error:
            self._process = None
            return answer | {"problem": f"no process could be started to run it: {error}"}

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            environment = {
                **os.environ,
                # All that this process imports from, but not the folder of its script, whose files may have the names
                # of modules.
                "PYTHONPATH": os.pathsep.join([*sys.path[1:], str(_extension.PACKAGE.parent)]),
                "PYTHONSAFEPATH": "1",
            }
            self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  lives as long as the process
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._stderr}
            self._process = subprocess.Popen(WORKER, text=True, env=environment, **pipes)
        return self._process

    @staticmethod
    def _read_line(process: subprocess.Popen[str]) -> str | None:
        """A line of its output; empty if it has ended, None after `_TIMEOUT`."""
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(_TIMEOUT)
        return lines[0] if lines else None

    def _end(self, hangs: bool) -> str:
        """End the process, if it has not ended itself, and say what became of it."""
        process, self._process = self._process, None
        assert process is not None
        if not hangs:
            with suppress(subprocess.TimeoutExpired):  # one that has crashed keeps its own status
                process.wait(5)
        process.kill()
        with suppress(BrokenPipeError), process:  # closes its pipes
            pass
        with self._stderr as file:
            file.seek(0)
            last = [line.strip() for line in file if line.strip()][-1:]
        if hangs:
            return f"it did not finish within {_TIMEOUT:.0f} s"
        return ": ".join([f"its process ended with status {process.returncode}", *last])[:500]

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._end(hangs=True)


_worker = _Worker()

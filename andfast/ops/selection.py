"""Which of the implementations that could run an operation does: the fastest that is right on this machine.

When an operation meets a device, a type and a size for the first time, every candidate, plain PyTorch among them, is
run by another process (`andfast.ops.selection_worker`), where a kernel that crashes does no harm. A candidate that does
not compile, does not run, or differs from the float64 reference in its results or gradients is set aside with a
warning. The others are timed, and the fastest is chosen. This takes seconds and is kept in a file for this device, its
driver, and these versions and sources, which all processes on the machine share (`andfast.ops.kernel_table`).

Where nothing can be measured, because no process can be started, for example, a warning says so. Plain PyTorch then
runs on GPUs, and on CPUs the first candidate.

ANDFAST_MEASURE=0 switches all this off: the first candidate in `dispatch.IMPLEMENTATIONS`' order runs, unverified.
ANDFAST_CACHE names another folder than ~/.cache/andfast.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from functools import cache
from itertools import count
from typing import Any

import torch

from andfast.ops import _extension, kernel_table
from andfast.ops.kernel_table import KernelWarning, Time, describe_times, fastest

logger = logging.getLogger(__name__)

#: Images of more pixels, B x H x W, are timed at so many: implementations hardly change places.
MOST_PIXELS = {"cpu": 2**13, "cuda": 2**20}

#: The (B, H, W) that the choice is made for where sizes are symbols, as in torch.compile: one choice for all sizes.
TYPICAL = (8, 128, 128)

#: What is verified is the same for all numbers of networks from here on, and whatever passes are made.
_MOST_NETWORKS, _ALL_PASSES = 3, 2

#: Seconds after which a candidate counts as hanging. Compilers of kernels take up to a minute.
TIMEOUT = 300.0

#: Seconds without a request after which the worker ends: it holds memory of the device.
_IDLE = 20.0

#: What the worker's process runs: it imports from where this process does.
WORKER = (
    "import sys; sys.path[:] = sys.argv[1].split(sys.argv[2]); from andfast.ops.selection_worker import main; main()"
)

# Signals that come from outside: that a process was stopped by one says nothing about a kernel.
_STOPPED = {-signal.SIGINT, -signal.SIGTERM, -9, -getattr(signal, "SIGHUP", 1)}


def measures() -> bool:
    """Whether candidates are verified and timed, rather than the first one taken."""
    return os.environ.get("ANDFAST_MEASURE", "1") != "0"


def choose(
    operation: str,
    candidates: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    want_fastest: bool = True,
) -> str:
    """The fastest of the candidates that are right, or the first of them.

    Args:
        operation: of `dispatch.operations`.
        candidates: implementations that take such tensors, from the first choice to the last; the last is "reference".
        device, dtype: of the computation.
        sizes: what the operation's kernels depend on (channels, networks), then (B, H, W).
        want_fastest: else the first, which takes the least memory.
    """
    if not measures():
        return candidates[0]
    sizes = _at_most(sizes, device)
    *structure, batch, height, width = sizes
    key = operation, candidates, device, dtype, *structure, _size_class(batch * height * width), want_fastest
    if key not in _chosen:
        with _lock:
            if key not in _chosen:
                try:
                    _chosen[key] = _decide(operation, candidates, device, dtype, sizes, want_fastest)
                except Exception as error:  # of the file, of the system: no reason to end what calls an operation
                    _warn(f"{operation} could not be measured on {device.type}: {type(error).__name__}: {error}")
                    _chosen[key] = _unmeasured(candidates, device)
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


def measure_anew(device: torch.device) -> None:
    """Forget what was found about a device."""
    kernel_table.table(device).clear()
    _chosen.clear()


def _unmeasured(candidates: tuple[str, ...], device: torch.device) -> str:
    """What runs where nothing could be measured: on CPUs our kernels have been tested, on GPUs not on each."""
    return candidates[0] if device.type == "cpu" else "reference"


def _decide(
    operation: str,
    candidates: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    want_fastest: bool,
) -> str:
    """Look the choice up in the file, or make it and write it there."""
    *structure, batch, height, width = sizes
    verified = _verified_structure(operation, structure)
    request = {
        "operation": operation,
        "device": device.type,
        "uuid": kernel_table.uuid(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "settings": kernel_table.settings(device),
    }
    kind = _words(operation, request["dtype"], verified)
    timed = f"{_words(operation, request['dtype'], structure)} at 2^{_size_class(batch * height * width)} pixels"
    table = kernel_table.table(device)
    with table.opened():
        problems, unknown = dict.fromkeys(candidates), {}
        for name in candidates[:-1]:
            known = table.problems.setdefault(kind, {})
            if name not in known:
                table.announce()
                answer = _worker.ask(request | {"verify": name, "structure": verified})
                if "unknown" in answer:
                    unknown[name] = answer["unknown"]
                    continue
                known[name] = answer["problem"]
                table.write()
            problems[name] = known[name] or table.problems.get(timed, {}).get(name)
        usable = [name for name in candidates if problems[name] is None]
        if device.type != "cpu":
            usable = [name for name in usable if name not in unknown]
        if want_fastest and len(usable) > 1 and not unknown and not set(usable) <= set(table.times.get(timed, ())):
            table.announce()
            times = _time(usable, request | {"sizes": sizes}, problems)
            failed = {name: problems[name] for name in usable if problems[name] is not None}
            if failed:
                table.problems[timed] = failed
            if times:
                table.times[timed] = times
                logger.debug(f"{timed}: {describe_times(times)}")
            table.write()
            usable = [name for name in usable if problems[name] is None]
    kernels = f"kernels of {operation} ({request['dtype']})"
    for name, problem in problems.items():
        if problem is not None:
            _warn(
                f"the {name} {kernels} are not used on {table.device}: {problem}. What is used instead is right, but "
                "may be slower. Please report this with what `python -m andfast.info --verify` prints"
            )
    for name, reason in unknown.items():
        _warn(f"the {name} {kernels} could not be verified: {reason}. The next run tries again")
    measured = {name: table.times[timed][name] for name in usable if name in table.times.get(timed, ())}
    return fastest(measured) if want_fastest and len(measured) > 1 else usable[0]


def faster_type(operation: str, names: dict[torch.dtype, str], sizes: tuple[int, ...]) -> torch.dtype | None:
    """The type that an operation is faster in on a CPU; None where that could not be measured.

    In one thread: with several, other processes on the machine make them wait for each other, and so decide.

    Args:
        operation: of `dispatch.operations`.
        names: type -> the implementation that would run; the first unless a later one is clearly faster.
        sizes: as `choose`.
    """
    device = torch.device("cpu")
    *structure, batch, height, width = sizes
    words = " ".join([operation, "x".join(map(str, structure))])
    kind = f"{words} in one thread at 2^{_size_class(batch * height * width)} pixels"
    request = {"operation": operation, "device": "cpu", "uuid": "", "threads": 1, "sizes": sizes}
    request["settings"] = kernel_table.settings(device)
    keys = {f"{str(dtype).removeprefix('torch.')} ({name})": dtype for dtype, name in names.items()}
    table = kernel_table.table(device)
    with _lock, table.opened():
        if table.times.get(kind, {}).keys() != keys.keys():
            table.announce()
            times = {}
            for key, dtype in keys.items():
                asked = {"dtype": str(dtype).removeprefix("torch."), "time": [names[dtype]]}
                answer = _worker.ask(request | asked)
                if "times" not in answer:
                    reason = answer.get("unknown", answer.get("problem"))
                    _warn(f"{operation} could not be timed in {asked['dtype']}: {reason}. The next run tries again")
                    return None
                times[key] = Time(*answer["times"][names[dtype]])
            table.times[kind] = times
            logger.debug(f"{kind}: {describe_times(times)}")
            table.write()
        return keys[fastest({key: table.times[kind][key] for key in keys})]


def _verified_structure(operation: str, structure: list[int]) -> list[int]:
    """What a verification depends on, of what the time depends on."""
    if operation in ("conv_act", "dense_block"):
        return [*structure[:-1], _ALL_PASSES]
    if operation in ("degradation_block", "degradation_forward"):
        return [min(structure[0], _MOST_NETWORKS), *structure[1:]]
    return structure


def _time(names: list[str], request: dict[str, Any], problems: dict[str, str | None]) -> dict[str, Time]:
    """name -> time; empty where it could not be measured. Adds to `problems` what fails at this size."""
    while len(names) > 1:
        answer = _worker.ask(request | {"time": names})
        if "times" in answer:
            return {name: Time(*times) for name, times in answer["times"].items()}
        failed = answer.get("running", "reference")
        if "unknown" in answer or failed == "reference":
            break
        problems[failed] = answer["problem"]
        names = [name for name in names if name != failed]
    return {}


def _words(operation: str, dtype: str, structure: list[int]) -> str:
    return " ".join([operation, dtype, "x".join(map(str, structure))]).rstrip()


def _size_class(pixels: int) -> int:
    """Sizes of similar numbers of pixels, from a power of two to the next, share a choice."""
    return pixels.bit_length() - 1


def _at_most(sizes: tuple[int, ...], device: torch.device) -> tuple[int, ...]:
    """Sizes with at most `MOST_PIXELS`: the largest dimension is halved until they are few enough."""
    most = MOST_PIXELS.get(device.type, MOST_PIXELS["cpu"])
    *structure, batch, height, width = sizes
    shape = [batch, height, width]
    while shape[0] * shape[1] * shape[2] > most:
        largest = shape.index(max(shape))
        shape[largest] = (shape[largest] + 1) // 2
    return *structure, *shape


@cache  # warns once
def _warn(message: str) -> None:
    warnings.warn(message, KernelWarning, stacklevel=2)


class _Worker:
    """The process that runs candidates: started for the first, and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._numbers = count()
        self._idle: threading.Timer | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, see `andfast.ops.selection_worker`; "unknown" is why there is none."""
        request = request | {"number": next(self._numbers)}
        try:
            answer = self._ask(request)
        except OSError as error:
            self.stop()
            return {"unknown": f"no process could be started to run it ({error})"}
        except BaseException:  # Ctrl-C: this answer must not be taken for the next one's
            self.stop()
            raise
        if answer.get("lost"):  # a new process has the device again
            self.stop()
        self._stop_when_idle()
        return answer

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if getattr(sys, "frozen", False) or not sys.executable:
            return {"unknown": "this program has no Python interpreter to start"}
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = {}
        while not {"problem", "times", "unknown"} & answer.keys():
            line = self._read_line(process)
            if not line:
                return answer | self._end(hangs=line is None, candidate="running" in answer)
            with suppress(ValueError, TypeError, KeyError):  # what anything else prints there
                content = json.loads(line)
                if content["number"] == request["number"]:
                    answer |= content
        if answer["sources"] != kernel_table.sources():
            return {"unknown": "the process that verifies it imports another andfast"}
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            first, *others = [entry for entry in sys.path if isinstance(entry, str)] or [""]
            # Last the folder of this process's script, whose files may have the names of modules.
            paths = [*([] if _extension.CHECKOUT is None else [str(_extension.CHECKOUT)]), *others, first]
            self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  lives as long as the process
            self._process = subprocess.Popen(
                [sys.executable, "-c", WORKER, os.pathsep.join(paths), os.pathsep],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env={**os.environ, "ANDFAST_MEASURE": "0", "ANDFAST_BACKEND": ""},
                start_new_session=True,  # Ctrl-C is for this process
            )
        return self._process

    @staticmethod
    def _read_line(process: subprocess.Popen[str]) -> str | None:
        """A line of its output; empty if it has ended, None after `TIMEOUT`."""
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)
        reader.start()
        reader.join(TIMEOUT)
        return lines[0] if lines else None

    def _end(self, hangs: bool, candidate: bool) -> dict[str, str]:
        """End the process, if it has not ended itself, and say what became of it: a problem of the candidate or not."""
        process, file = self._process, self._stderr
        assert process is not None
        if not hangs:
            with suppress(subprocess.TimeoutExpired):  # one that has crashed keeps its own status
                process.wait(5)
        file.seek(0)
        last = [line.strip() for line in file if line.strip()][-1:]
        status = process.poll()
        self.stop()
        words = f"its process ended with status {status}"
        if hangs:
            words, last = f"it did not finish within {TIMEOUT:.0f} s", []
        kind = "problem" if candidate and status not in _STOPPED else "unknown"
        return {kind: ": ".join([words, *last])[:500]}

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            with suppress(BrokenPipeError), process:  # closes its pipes
                pass
            self._stderr.close()

    def _stop_when_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = threading.Timer(_IDLE, self._stop_if_idle)
        self._idle.daemon = True
        self._idle.start()

    def _stop_if_idle(self) -> None:
        if _lock.acquire(blocking=False):  # else it is used
            try:
                self.stop()
            finally:
                _lock.release()

    def forget(self) -> None:
        """In a forked process: the worker is the parent's."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.close(pipe.fileno())  # not pipe.close(): a thread that reads it may have locked it before the fork
            _abandoned.append(self._process)
        self._process = self._idle = None


_worker = _Worker()
_abandoned: list[subprocess.Popen[str]] = []  # kept, so that nobody closes their pipes again


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that holds it does not exist here
    _worker.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

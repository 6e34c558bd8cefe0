"""The file with what was found about the kernels on one device; see `andfast.ops.selection`."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from andfast.ops import _extension
from andfast.utils.files import make_folder, write_json
from andfast.utils.locks import locked
from andfast.utils.optional import version

logger = logging.getLogger(__name__)

#: A later implementation must be so many times as fast as an earlier one to be preferred: noise must not decide, and
#: earlier ones take less memory.
MARGIN = 1.1


#: PyTorch's settings, attributes of `torch.backends`, that decide which algorithms its libraries take on a device.
_SETTINGS = {
    "cpu": ("mkldnn.conv.fp32_precision", "mkldnn.matmul.fp32_precision"),
    "cuda": ("cudnn.conv.fp32_precision", "cuda.matmul.fp32_precision", "cudnn.benchmark", "cudnn.deterministic"),
}


class KernelWarning(RuntimeWarning):
    """A kernel is not used, because it does not run or computes something wrong on this device."""


class Time(NamedTuple):
    """Milliseconds of a forward and backward pass: on the clock, and on CPUs of all threads together."""

    clock: float
    threads: float


def fastest(times: dict[str, Time]) -> str:
    """The first, if no later one is clearly faster.

    By both times: other processes on the machine slow down the clock, and a kernel that uses one thread of many takes
    little time of all threads.
    """
    chosen, *others = times
    for name in others:
        mine, best = times[name], times[chosen]
        if mine.clock * MARGIN < best.clock and mine.threads * MARGIN < best.threads:
            chosen = name
    return chosen


def describe_times(times: dict[str, Time]) -> str:
    """The implementations with their times on the clock, the chosen one first."""
    chosen = fastest(times)
    order = sorted(times.items(), key=lambda item: item[0] != chosen)
    return ", ".join(f"{name} {time.clock:.3g} ms" for name, time in order)


class Table:
    """What was found about one device in one environment, in a file that all processes on the machine share.

    Attributes:
        device: its name.
        problems: "operation type structure", or the same "at 2^k pixels" -> implementation -> what is wrong with it,
            None if nothing is.
        times: "operation type structure at 2^k pixels" -> implementation -> its time, from the first choice to the
            last.
    """

    def __init__(self, device: str, environment: dict[str, str]) -> None:
        self.device, self.environment = device, environment
        digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
        self.path = cache_folder() / "kernels" / digest / "kernels.json"
        self.problems: dict[str, dict[str, str | None]] = {}
        self.times: dict[str, dict[str, Time]] = {}
        self._read()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the file, and read what other processes have written."""
        with ExitStack() as stack:
            try:
                make_folder(self.path.parent)
                stack.enter_context(locked(self.path.parent, wait=True))
            except OSError as error:
                _warn_unwritable(self.path.parent, str(error.strerror))
            self._read()
            yield

    def _read(self) -> None:
        """Read the file, if there is one and it is whole."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            problems = {
                kind: {str(name): None if problem is None else str(problem) for name, problem in found.items()}
                for kind, found in content["problems"].items()
            }
            times = {
                kind: {str(name): Time(float(clock), float(threads)) for name, (clock, threads) in found.items()}
                for kind, found in content["times"].items()
                if found
            }
            self.problems |= problems
            self.times |= times

    def write(self) -> None:
        """Write the file, if that is possible."""
        with suppress(OSError):
            write_json(self.path, {"environment": self.environment, "problems": self.problems, "times": self.times})

    def clear(self) -> None:
        """Forget everything, so that it is measured anew."""
        with self.opened():
            self.problems.clear()
            self.times.clear()
            self.write()

    @cache  # noqa: B019  tables live as long as the process
    def announce(self) -> None:
        """Say once what takes seconds."""
        where = f"they are kept in {self.path.parent}"
        logger.info(f"testing which kernels are the fastest on {self.device}, some seconds for each new size; {where}")

    def summary(self) -> dict[str, Any]:
        """As JSON types: the device, "kernels" (size -> times in words, the chosen one first), and "problems"."""
        problems = {
            f"{kind} {name}": problem
            for kind, found in sorted(self.problems.items())
            for name, problem in found.items()
            if problem is not None
        }
        kernels = {kind: describe_times(times) for kind, times in sorted(self.times.items())}
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
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "andfast"
    try:
        return Path.home() / ".cache" / "andfast"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"andfast-{os.getuid()}"


def table(device: torch.device) -> Table:
    """What was found about a device."""
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return _table(device, threads, tuple(settings(device).items()))


@lru_cache
def _table(device: torch.device, threads: int, set_to: tuple[tuple[str, Any], ...]) -> Table:
    environment = {
        "torch": torch.__version__,
        "triton": version("triton") or "none",
        "interpreted": os.environ.get("TRITON_INTERPRET", ""),
        "sources": sources(),
        **{name: str(value) for name, value in set_to},
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
        }
    else:
        name = processor()
        capability = torch.backends.cpu.get_cpu_capability()
        environment |= {"device": name, "capability": capability, "threads": str(threads)}
    return Table(name, environment)


def settings(device: torch.device) -> dict[str, Any]:
    """The values of `_SETTINGS` in this process, by their names.

    TF32 by PyTorch's newer settings, which also say what the older ones were set to.
    """
    return {name: attrgetter(name)(torch.backends) for name in _SETTINGS.get(device.type, ())}


def apply_settings(wanted: dict[str, Any]) -> None:
    """Make another process's `settings` those of this one."""
    for name, value in wanted.items():
        owner, _, attribute = name.rpartition(".")
        if getattr(attrgetter(owner)(torch.backends), attribute) != value:
            setattr(attrgetter(owner)(torch.backends), attribute, value)


def uuid(device: torch.device) -> str:
    """What tells a GPU from all others, under the same name in all processes; empty for CPUs."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


@cache
def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def sources() -> str:
    """A hash of the operations' sources and of the extension."""
    digest = hashlib.sha256(_extension.built_from.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

"""The environment of a measurement: versions, devices, backends, and the checkout's commit."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from andfast.ops import _extension, dispatch, kernel_table
from andfast.pretrained import pretrained_names
from andfast.utils import openmp
from andfast.utils.optional import version


def collect() -> dict[str, Any]:
    """Versions, devices, pretrained models and backends, as JSON types.

    "operations" is operation -> backend -> why it cannot run here, null if it can; "kernels" is device -> which were
    chosen, with their times, see `kernel_table.Table.summary`.
    """
    packages = ("andfast", "torch", "numpy", "pillow", "triton")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "extension compiler": _extension.compiler,
        },
        "devices": {"cpu": _cpu(), **_cuda()},
        "pretrained": pretrained_names(),
        "operations": dispatch.status(),
        "kernels": {name: _kernels(torch.device(name)) for name in devices()},
    }


def _kernels(device: torch.device) -> dict[str, Any]:
    summary = kernel_table.table(device).summary()
    return summary | {"problems": unused_backends(device) | summary["problems"]}


def unused_backends(device: torch.device) -> dict[str, str]:
    """The backends that another device of this machine may use, but not this one, each with the reason."""
    usable = (name for name in dispatch.BACKENDS if name not in dispatch.unavailable)
    return {name: problem for name in usable if (problem := dispatch.problem_on(device, name)) is not None}


def devices() -> list[str]:
    """The devices that kernels run on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{index}" for index in range(count))]


def machine() -> dict[str, Any]:
    """The processor's name, the system, and the versions and devices of `collect`."""
    info = collect()
    return {
        "processor": kernel_table.processor(),
        "system": platform.platform(),
        "versions": info["versions"],
        "devices": info["devices"],
    }


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" if files were changed; None if the package is not in a checkout."""
    here = Path(__file__)
    if shutil.which("git") is None:
        return None
    # A package installed somewhere below another project's checkout is not part of it.
    for command in (["git", "ls-files", "--error-unmatch", here.name], ["git", "describe", "--always", "--dirty"]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=here.parent)
        if done.returncode:
            return None
    return done.stdout.strip()


def _cpu() -> dict[str, Any]:
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: None)  # not public
    return {
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "idle threads": openmp.state,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
    }


def _cuda() -> dict[str, Any]:
    try:
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # a driver that does not match this torch
        return {"cuda": {"problem": " ".join(str(error).split())}}
    return {
        f"cuda:{index}": {
            "name": device.name,
            "memory_gib": round(device.total_memory / 2**30, 1),
            "capability": f"{device.major}.{device.minor}",
        }
        for index, device in enumerate(devices)
    }


def made_by(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The command, date, commit and machine of results."""
    return {
        "command": shlex.join(["python", "-m", module, *arguments]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
    }

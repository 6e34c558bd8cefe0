"""What andfast runs on here: versions, devices, and the backends of its operations.

    python -m andfast.info [--json]

Look here first when something is slow, and paste the output into a bug report.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from andfast.ops import _extension, dispatch
from andfast.pretrained import pretrained_names
from andfast.utils.console import console
from andfast.utils.optional import NOT_INSTALLED, problem_of

#: The optional packages.
OPTIONAL = ("tensorboard", "wandb", "onnx", "onnxruntime", "gradio", "spandrel", "torchmetrics", "lpips", "scipy")


def collect() -> dict[str, Any]:
    """Everything this command shows, as JSON types: "versions", "devices", "pretrained", "operations", "chosen".

    "pretrained" lists the models that come with andfast; "operations" maps operation -> backend -> why it cannot run
    here, null where it can; "chosen" maps "device type" -> operation -> the implementation that runs.
    """
    packages = ("andfast", "torch", "numpy", "pillow", "triton")
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
            "extension compiler": _extension.compiler,
        },
        "devices": {"cpu": _cpu(), **_cuda()},
        "pretrained": pretrained_names(),
        "operations": dispatch.status(),
        "chosen": _chosen(),
    }


def _chosen() -> dict[str, dict[str, str]]:
    """`dispatch.chosen` for the devices here and the types that images are computed in; "problem": what it raised."""
    found = {}
    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in dispatch.GPU_TYPES:
            key = f"{kind} {str(dtype).removeprefix('torch.')}"
            try:
                found[key] = dispatch.chosen(torch.device(kind), dtype)
            except (RuntimeError, ValueError) as error:  # a forced backend that cannot serve
                found[key] = {"problem": str(error)}
    return found


def machine() -> dict[str, Any]:
    """The machine of a measurement: the processor's name, the system, and the versions and devices of `collect`."""
    info = collect()
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {"processor": model, "system": platform.platform(), "versions": info["versions"], "devices": info["devices"]}


def commit() -> str | None:
    """The checkout's commit, marked "dirty" if files were changed since; None outside of a checkout."""
    here = Path(__file__)
    if shutil.which("git") is None:
        return None
    # A package installed somewhere below another project's checkout is not part of it.
    for command in (["git", "ls-files", "--error-unmatch", here.name], ["git", "describe", "--always", "--dirty"]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=here.parent)
        if done.returncode:
            return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except Exception:  # PackageNotFoundError, or what a damaged installation raises
        return None


def optional() -> dict[str, str | None]:
    """The versions of `OPTIONAL`, with the problem of those that cannot be imported; None: not installed."""
    found: dict[str, str | None] = {}
    for name in OPTIONAL:
        problem = problem_of(name)
        broken = "" if problem is None else f", but {problem}"
        found[name] = None if problem == NOT_INSTALLED else f"{_version(name) or 'unknown'}{broken}"
    return found


def _cpu() -> dict[str, Any]:
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: None)  # not public, so perhaps not for ever
    return {
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
    }


def _cuda() -> dict[str, Any]:
    try:
        return _cuda_devices()
    except Exception as error:  # a driver that does not go with this torch
        return {"cuda": {"problem": " ".join(str(error).split())}}


def _cuda_devices() -> dict[str, Any]:
    devices: dict[str, Any] = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }
    return devices


def _as_text(info: dict[str, Any]) -> str:
    lines = ["versions"]
    lines += [f"  {name:<20}{version or 'none'}" for name, version in info["versions"].items()]
    lines += ["optional", *(f"  {name:<20}{version or 'none'}" for name, version in info["optional"].items()), "devices"]
    for name, properties in info["devices"].items():
        lines.append(f"  {name:<20}" + ", ".join(f"{key} {value}" for key, value in properties.items()))
    lines += ["pretrained", *(f"  {name}" for name in info["pretrained"]), "operations"]
    for operation, status in info["operations"].items():
        lines.append(f"  {operation}")
        lines += [f"    {backend:<18}{reason or 'ready'}" for backend, reason in status.items()]
    lines.append("chosen")
    for tensors, names in info["chosen"].items():
        lines.append(f"  {tensors:<20}" + ", ".join(f"{operation} {name}" for operation, name in names.items()))
    return "\n".join(lines)


@console()
def main(arguments: list[str] | None = None) -> None:
    """Print what `collect` returns, for people or with --json for programs."""
    parser = argparse.ArgumentParser(prog="python -m andfast.info", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    info = collect() | {"optional": optional()}
    print(json.dumps(info, indent=2) if options.json else _as_text(info))


if __name__ == "__main__":
    main()

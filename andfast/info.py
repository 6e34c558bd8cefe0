"""Show versions, devices, and which kernels run on them.

    python -m andfast.info [--verify] [--json]

Look here first when something is slow, and paste it into bug reports.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import torch

from andfast.evaluation.environment import collect, devices
from andfast.ops import dispatch
from andfast.ops.examples import standard_sizes
from andfast.pretrained import describe_pretrained
from andfast.utils.command_line import make_parser
from andfast.utils.console import console
from andfast.utils.optional import EXTRAS, NOT_INSTALLED, install_command, packages_of, problem_of, version
from andfast.utils.torchvision_operators import declare_missing

# How the fastest backend of a device is called in the verdict.
_KERNELS = {
    "triton": "Triton kernels",
    "cuda": "CUDA kernels",
    "cpu": "fused CPU kernels",
    "library": "plain PyTorch",
}
_REMEDY = ". To fix it: "  # as andfast.ops._extension says it


def optional() -> dict[str, str | None]:
    """The versions of the extras' packages, and their problems; None: not installed. Importing them takes seconds."""
    declare_missing()  # or torchvision, and what imports it, would seem broken where andfast can use them
    found: dict[str, str | None] = {}
    for name in (package for extra in EXTRAS for package in packages_of(extra)):
        problem = problem_of(name)
        broken = "" if problem is None else f", but {problem}"
        found[name] = None if problem == NOT_INSTALLED else f"{version(name) or 'unknown'}{broken}"
    return found


def verdict(info: dict[str, Any]) -> str:
    """What `collect` found, in a line: which kernels run on which device, and what would make them faster."""
    cpu, gpus = info["devices"]["cpu"], {name: each for name, each in info["devices"].items() if name != "cpu"}
    problem = dispatch.unavailable.get("cpu")
    first = f"Ready: {'plain PyTorch on the CPU' if problem else _KERNELS['cpu']} ({cpu['capability']})."
    parts = [first, f"The C++ extension would be faster, but {problem}." if problem else ""]
    for name, gpu in gpus.items():
        if "problem" in gpu:
            parts.append(f"No GPU can be used: {gpu['problem']}.")
            continue
        usable = (each for each in _KERNELS if each != "cpu" and dispatch.problem_on(torch.device(name), each) is None)
        parts.append(f"{name}: {_KERNELS[next(usable)]} on {gpu['name']}.")
    if not gpus:
        driver = shutil.which("nvidia-smi") and torch.version.cuda is None
        parts.append("The GPU is not used: install a torch for CUDA; this one is for CPUs." if driver else "No GPU.")
    return " ".join(filter(None, parts))


def _extras(found: dict[str, str | None]) -> list[str]:
    """A line for each extra with its packages' versions, or the command that installs them."""
    lines = []
    for extra in EXTRAS:
        versions = [f"{name} {found[name]}" for name in packages_of(extra) if found[name]]
        whole = len(versions) == len(EXTRAS[extra])
        lines.append(f"  {extra:<20}{', '.join(versions) if whole else f'not installed: {install_command(extra)}'}")
    return lines


def _backends(operations: dict[str, dict[str, str | None]]) -> list[str]:
    """A line for each backend with what all operations say of it, or for each of different answers."""
    lines = []
    for backend in dispatch.BACKENDS:
        answers: dict[str, list[str]] = {}
        for operation, status in operations.items():
            answer = (status[backend] or "ready").partition(_REMEDY)[0]
            answers.setdefault(answer, []).append(operation)
        for answer, names in answers.items():
            lines.append(f"  {backend:<20}{answer}" + (f": {', '.join(names)}" if len(answers) > 1 else ""))
    return lines


def _as_text(info: dict[str, Any]) -> str:
    lines = ["versions"]
    lines += [f"  {name:<20}{version or 'none'}" for name, version in info["versions"].items()]
    lines += ["extras", *_extras(info["optional"]), "devices"]
    for name, properties in info["devices"].items():
        lines.append(f"  {name:<20}" + ", ".join(f"{key} {value}" for key, value in properties.items()))
    lines += ["pretrained", *(f"  {line}" for line in describe_pretrained())]
    lines += ["backends", *_backends(info["operations"])]
    for device, found in info["kernels"].items():
        known = "verified and timed, the chosen first" if found["kernels"] else "none verified yet (--verify does)"
        lines.append(f"kernels on {device}, {found['device']}: {known}")
        lines += [f"  {key}: {times}" for key, times in found["kernels"].items()]
        lines += [f"  not used: {name}: {problem}" for name, problem in found["problems"].items()]
    return "\n".join([*lines, info["verdict"]])


def _verify() -> None:
    """Verify and time the kernels of all devices anew."""
    for name in devices():
        device = torch.device(name)
        dispatch.measure_anew(device)
        for operation, dtype, sizes in standard_sizes(device):
            dispatch.resolve(operation, device, dtype, sizes)


@console()
def main(arguments: list[str] | None = None) -> None:
    """Print what `collect` returns, the optional packages, and the verdict, for people or with --json for programs."""
    parser = make_parser("andfast.info", description=__doc__.splitlines()[0])
    parser.add_argument("--verify", action="store_true", help="verify and time the kernels anew, at usual sizes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.verify:
        _verify()
    info = collect() | {"optional": optional()}
    info["verdict"] = verdict(info)
    print(json.dumps(info, indent=2) if options.json else _as_text(info))


if __name__ == "__main__":
    main()

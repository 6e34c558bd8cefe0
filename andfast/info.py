"""Show versions, devices, and which kernels run on them.

    python -m andfast.info [--verify] [--json]

Look here first when something is slow, and paste it into bug reports.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from andfast.evaluation.environment import collect, devices
from andfast.ops import dispatch
from andfast.ops.examples import standard_sizes
from andfast.pretrained import describe_pretrained
from andfast.utils.command_line import make_parser
from andfast.utils.console import console
from andfast.utils.optional import NOT_INSTALLED, problem_of, version

#: Optional packages.
OPTIONAL = (
    "tensorboard",
    "wandb",
    "schedulefree",
    "pytorch_optimizer",
    "onnx",
    "onnxruntime",
    "gradio",
    "matplotlib",
    "pillow_heif",
    "spandrel",
    "torchmetrics",
    "lpips",
    "scipy",
)


def optional() -> dict[str, str | None]:
    """The versions of `OPTIONAL` and their problems; None: not installed. Importing them takes seconds."""
    found: dict[str, str | None] = {}
    for name in OPTIONAL:
        problem = problem_of(name)
        broken = "" if problem is None else f", but {problem}"
        found[name] = None if problem == NOT_INSTALLED else f"{version(name) or 'unknown'}{broken}"
    return found


def _as_text(info: dict[str, Any]) -> str:
    lines = ["versions"]
    lines += [f"  {name:<20}{version or 'none'}" for name, version in info["versions"].items()]
    lines += ["optional", *(f"  {name:<20}{text or 'none'}" for name, text in info["optional"].items()), "devices"]
    for name, properties in info["devices"].items():
        lines.append(f"  {name:<20}" + ", ".join(f"{key} {value}" for key, value in properties.items()))
    lines += [
        "pretrained",
        *(f"  {line}" for line in describe_pretrained()),
        "operations",
    ]
    for operation, status in info["operations"].items():
        lines.append(f"  {operation}")
        lines += [f"    {backend:<18}{reason or 'ready'}" for backend, reason in status.items()]
    for device, found in info["kernels"].items():
        known = "verified and timed, the chosen first" if found["kernels"] else "none verified yet (--verify does)"
        lines.append(f"kernels on {device}, {found['device']}: {known}")
        lines += [f"  {key}: {times}" for key, times in found["kernels"].items()]
        lines += [f"  not used: {name}: {problem}" for name, problem in found["problems"].items()]
    return "\n".join(lines)


def _verify() -> None:
    """Verify and time the kernels of all devices anew."""
    for name in devices():
        device = torch.device(name)
        dispatch.measure_anew(device)
        for operation, dtype, sizes in standard_sizes(device):
            dispatch.resolve(operation, device, dtype, sizes)


@console()
def main(arguments: list[str] | None = None) -> None:
    """Print what `collect` returns, for people or with --json for programs."""
    parser = make_parser("andfast.info", description=__doc__.splitlines()[0])
    parser.add_argument("--verify", action="store_true", help="verify and time the kernels anew, at usual sizes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.verify:
        _verify()
    info = collect() | {"optional": optional()}
    print(json.dumps(info, indent=2) if options.json else _as_text(info))


if __name__ == "__main__":
    main()

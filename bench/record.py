"""Collect what finished training runs measured into one file: `python -m bench.record RUN_DIR... --output FILE`.

The file says which machine, versions and settings its numbers come from, so that documents can cite it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andfast.evaluation.environment import commit, machine, made_by
from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.console import console
from andfast.utils.files import write_text
from andfast.utils.yaml_files import read_yaml


def origin(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Date, commit, command and machine of a result; paths in the command by their last names."""
    return made_by(module, [_last_name(argument) for argument in arguments])


def now() -> str:
    """The time as results state it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _last_name(argument: str) -> str:
    """An argument without the folders of its path, which belong to this machine."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name or value)


def settings(run_dir: Path) -> dict[str, Any]:
    """A run's configuration, with folders by their last names."""
    config = read_yaml(run_dir / "config.yaml")
    config["run_dir"] = run_dir.name
    for key, value in config["data"].items():
        if isinstance(value, str):
            config["data"][key] = Path(value).name
        if isinstance(value, list):
            config["data"][key] = [Path(item).name if isinstance(item, str) else item for item in value]
    return config


def summary(run_dir: Path) -> dict[str, Any]:
    """A run's settings, its validations, and medians over its steps, with and without attack."""
    lines = list(read_records(run_dir / METRICS_FILE))
    steps = [line for line in lines if "validation" not in line]
    parts: dict[str, list[dict]] = {"clean": [], "attacked": []}
    for step in steps:
        if step["loss"] is not None:  # else the update was skipped, because the loss was not finite
            clean = step["loss_before_attack"] == step["loss_after_attack"]
            parts["clean" if clean else "attacked"].append(step)
    return {
        "config": settings(run_dir),
        "seconds_in_steps": sum(step["seconds"] for step in steps),
        "steps": {
            name: {
                "count": len(part),
                "median_seconds": statistics.median(step["seconds"] for step in part),
                "share_waiting_for_data": sum(step["data_wait"] for step in part) / sum(s["seconds"] for s in part),
                "median_gain": statistics.median(s["loss_after_attack"] / s["loss_before_attack"] for s in part),
                "median_lr_psnr": statistics.median(psnr) if psnr else None,
            }
            for name, part in parts.items()
            if part
            for psnr in [[step["lr_psnr"] for step in part if step["lr_psnr"] is not None]]
        },
        "validation": [line for line in lines if "validation" in line],
    }


@console()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--command", nargs="*", default=[], help="the commands that made the runs")
    options = parser.parse_args()
    names = [run.name for run in options.runs]
    if len(set(names)) < len(names):
        parser.error(f"the runs are told apart by the names of their folders, and two are the same: {names}")
    result = {
        "date": now(),
        "commit": commit(),
        "commands": options.command,
        "machine": machine(),
        "runs": {run.name: summary(run) for run in options.runs},
    }
    write_text(options.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

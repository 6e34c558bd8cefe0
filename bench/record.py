"""Collect what finished training runs measured into one file: `python -m bench.record RUN_DIR... --output FILE`.

The file says which machine, versions and settings its numbers come from, so that documents can cite it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from andfast.evaluation.environment import commit, machine
from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.console import console
from andfast.utils.files import write_text
from andfast.utils.yaml_files import read_yaml


def settings(run_dir: Path) -> dict[str, Any]:
    """A run's configuration, with folders by their last names: where they lie is this machine's affair."""
    config = read_yaml(run_dir / "config.yaml")
    config["run_dir"] = run_dir.name
    for key, value in config["data"].items():
        if isinstance(value, str):
            config["data"][key] = Path(value).name
        if isinstance(value, list):
            config["data"][key] = [Path(item).name if isinstance(item, str) else item for item in value]
    return config


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def summary(run_dir: Path) -> dict[str, Any]:
    """A run's settings, its validations, and medians over its steps, with and without attack."""
    lines = list(read_records(run_dir / METRICS_FILE))
    steps = [line for line in lines if "validation" not in line]
    made = [step for step in steps if step["loss"] is not None]  # and not left out, as no numbers are
    parts = {
        "clean": [step for step in made if step["loss_before_attack"] == step["loss_after_attack"]],
        "attacked": [step for step in made if step["loss_before_attack"] != step["loss_after_attack"]],
    }
    return {
        "config": settings(run_dir),
        "seconds_in_steps": sum(step["seconds"] for step in steps),
        "steps": {
            name: {
                "count": len(part),
                "median_seconds": statistics.median(step["seconds"] for step in part),
                "share_waiting_for_data": sum(step["data_wait"] for step in part) / sum(s["seconds"] for s in part),
                "median_gain": statistics.median(s["loss_after_attack"] / s["loss_before_attack"] for s in part),
                "median_lr_psnr": _median([s["lr_psnr"] for s in part if s["lr_psnr"] is not None]),
            }
            for name, part in parts.items()
            if part
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
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "commands": options.command,
        "machine": machine(),
        "runs": {run.name: summary(run) for run in options.runs},
    }
    write_text(options.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

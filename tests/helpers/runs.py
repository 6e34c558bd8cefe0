"""What runs leave behind, for comparison."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from andfast.training.checkpoints import STATE_FILE

TIMES = ("seconds", "data_wait")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The records, without what is different each time."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def content(run_dir: Path) -> dict[str, Any]:
    """What a finished run has found, for comparison."""
    found: dict[str, Any] = {"lines": lines(run_dir)}
    for path in run_dir.glob("samples/*"):
        found[path.name] = path.read_bytes()
    for path in run_dir.glob("*.safetensors"):  # whose metadata come in any order
        with safe_open(path, "pt") as file:
            found[path.name] = [file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}]  # noqa: SIM118
    for name in ("model.pth", STATE_FILE):
        state = torch.load(run_dir / name, weights_only=True)
        state.pop("config", None)
        found[name] = _plain(state)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def unfinished(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.rglob(".*") if path.is_file()]

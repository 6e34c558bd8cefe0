"""What small runs train on, and what they leave behind, for comparison."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from commands import as_options
from PIL import Image
from safetensors import safe_open

from andfast.data.photographs import held_out_photographs, training_photographs
from andfast.training.checkpoints import STATE_FILE

TIMES = ("seconds", "data_wait")
SMALL_RUN = {
    "train.iterations": 6,
    "train.warmup": 2,
    "train.ramp": 2,
    "train.batch_size": 2,
    "train.patch_size": 32,
    "train.validate_every": 3,
    "train.save_every": 2,
    "generator.features": 8,
    "generator.depth": 1,
    "degradation.channels": 8,
    "degradation.blocks": 2,
    "attack.steps": 2,
    "data.workers": 0,
    "data.held_out": 3,
}


@functools.cache
def photograph_crops() -> Path:
    """A folder with crops of the default images, as large as the cells of a sample sheet.

    A validation on the whole images takes longer than the training of a small run.
    """
    folder = tempfile.TemporaryDirectory()
    photograph_crops.folder = folder  # until the end of the process
    for index, (_, image) in enumerate([*training_photographs(), *held_out_photographs()]):
        Image.fromarray(image[64:224, 64:224]).save(Path(folder.name) / f"{index:02d}.png")
    return Path(folder.name)


def options(run_dir: Path, **changed: Any) -> list[str]:
    """The command line of a small run."""
    return as_options(SMALL_RUN | {"run_dir": run_dir, "data.hr": photograph_crops()}, **changed)


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The records, without what is different each time."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records(run_dir)]


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

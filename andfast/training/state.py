"""The resumable state of a run: everything that is not a function of the configuration and the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from andfast.files import written_whole

STATE_FILE = "state.pt"

# Settings that may change half-way: those that say where and how fast to compute, when to stop and save, and what
# a run that diverged needs changed.
_FREE = {
    "run_dir", "resume", "device", "compile", "data.workers", "data.cache_mib", "data.cache",
    "data.val_pairs",
    "train.iterations", "train.validate_every", "train.save_every", "train.log_every",
    "train.wandb",
    "train.micro_batch", "train.checkpoint_blocks", "train.learning_rate", "train.precision", "degradation.precision",
    "attack.dtype",
}  # fmt: skip


class StateError(ValueError):
    """A state that cannot be gone on from; the message names the file and what is wrong with it."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state (nested dicts and lists of tensors and plain values), whole or not at all."""
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a state that `save_state` wrote, on the CPU. Nothing but data is ever loaded from it.

    Args:
        path: the file.
        settings: the run's configuration as nested values; must agree with the "config" in the state.

    Raises:
        StateError: the file is damaged or foreign, or from a run with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises on damaged bytes is not documented: EOFError, OSError, RuntimeError and others.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise StateError(f"{path}: not a state that can be resumed, or damaged ({reason})") from error
    if not isinstance(state, dict) or not {"step", "config", "images"} <= state.keys():
        raise StateError(f"{path}: not the state of a training run")
    then, now = _flat(state["config"]), _flat(settings)
    different = [key for key in sorted(then.keys() | now.keys()) if key not in _FREE and then.get(key) != now.get(key)]
    if different:
        lines = "".join(f"\n  {key}: {then.get(key)} then, {now.get(key)} now" for key in different)
        raise StateError(
            f"{path}: the state of a run with other settings:{lines}\n"
            "Use the same ones, another --run_dir, or --resume never to start over."
        )
    return state


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

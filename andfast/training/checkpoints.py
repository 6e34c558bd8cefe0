"""The resumable state of a run: everything that is not a function of the configuration and the step.

Random numbers are such functions (`andfast.utils.rng`, `andfast.data.patches`), and so is the place in the
images; what is kept is what `Trainer.state` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from andfast.training.checksum import SealError, check_seal, seal
from andfast.training.config import RENAMED, Config
from andfast.utils.files import sync_folder, write_torch, written_whole

STATE_FILE = "state.pt"
PREVIOUS_FILE = "state.previous.pt"

FORMAT = 2
"""The number that states are written with. It goes up when what `Trainer.state` returns gets another meaning."""

# What makes a state of one format, by its number, one of the next.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda state: state,  # the same, but for the number, which it had not, and the checksum
}

# Settings that may change half-way: those that say where and how fast to compute, when to stop and save, and what
# a run that diverged needs changed.
_FREE = {
    "run_dir", "resume", "device", "compile", "data.workers", "data.cache_mib", "data.cache",
    "data.val_pairs",
    "train.iterations", "train.validate_every", "train.save_every", "train.log_every", "train.max_bad_steps",
    "train.wandb",
    "train.micro_batch", "train.checkpoint_blocks", "train.learning_rate", "train.precision", "degradation.precision",
    "attack.dtype", "loss.vgg", "discriminator.learning_rate",
}  # fmt: skip


# Settings that are a mapping, and of which no part can be missing.
_WHOLE = {"loss.perceptual_layers"}


class StateError(ValueError):
    """A state that cannot be gone on from; the message names the file and what is wrong with it."""


class DamagedStateError(StateError):
    """A file that is no whole state; the one before it may be."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state (nested dicts and lists of tensors and plain values), whole or not at all.

    Where `path` is, the state that was there becomes `PREVIOUS_FILE` beside it.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path, previous=path.with_name(PREVIOUS_FILE)) as temporary:
        write_torch(state | {"format": FORMAT}, temporary)
        seal(temporary)


def load_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a state that `save_state` wrote, on the CPU. Nothing but data is ever loaded from it.

    Args:
        path: the file.
        settings: the run's configuration as nested values; must agree with the "config" in the state. A setting that
            the state does not know had its default's meaning when it was written.

    Raises:
        DamagedStateError: the file is damaged or foreign.
        StateError: it is from a run with other settings, or from a later version of andfast.
        OSError: it cannot be read.
    """
    state = _migrated(path, _read(path))
    then, now = renamed(flat(state["config"])), flat(settings)
    then = flat(Config().to_dict()) | then
    changed = [key for key in different(then, now) if key not in _FREE]
    if changed:
        lines = "".join(f"\n  {key}: {then.get(key)} then, {now.get(key)} now" for key in changed)
        raise StateError(
            f"{path}: the state of a run with other settings:{lines}\n"
            "Use the same ones, another --run_dir, or --resume never to start over."
        )
    return state


def load_newest(folder: Path, settings: dict[str, Any], tell: Callable[[str], None]) -> tuple[Path, dict] | None:
    """The newest state in a run's folder that is whole, and its file; None: there is no state.

    Args:
        folder: of the run.
        settings: as for `load_state`.
        tell: is given a warning for one that is damaged.

    Raises:
        StateError: as `load_state`, or all of them are damaged.
        OSError: one cannot be read.
    """
    damaged = []
    for path in (folder / STATE_FILE, folder / PREVIOUS_FILE):
        if not path.exists():
            continue
        try:
            state = load_state(path, settings)
        except DamagedStateError as error:
            damaged.append(str(error))
            continue
        if damaged:
            tell(f"{damaged[0]}; going on from the one before it, {path}, which takes its place")
        return path, state
    if damaged:
        raise StateError(
            "\n".join(damaged) + f"\n{folder} has no other state. Put a copy back as {folder / STATE_FILE}; or begin "
            f"again: in another --run_dir, there from the model that is left with --generator.init "
            f"{folder / 'model.safetensors'} --train.warmup 0, or here with --resume never, which removes all of this."
        )
    return None


def make_newest(path: Path) -> None:
    """Let a state be the newest of its folder, in the place of one that is damaged, gone, or not gone on from."""
    if path.name == PREVIOUS_FILE:
        path.replace(path.with_name(STATE_FILE))
        sync_folder(path.parent)


def _read(path: Path) -> dict[str, Any]:
    try:
        sealed = check_seal(path)
    except SealError as error:
        raise DamagedStateError(f"{path}: not a state that can be resumed, or damaged ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    # What torch raises on damaged bytes is not documented: EOFError, OSError, RuntimeError and others.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedStateError(f"{path}: not a state that can be resumed, or damaged ({reason})") from error
    if not isinstance(state, dict) or not {"step", "config", "images"} <= state.keys():
        raise DamagedStateError(f"{path}: not the state of a training run")
    if "format" in state and not sealed:
        raise DamagedStateError(f"{path}: damaged (its checksum is gone)")
    return state


def _migrated(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    found = state.get("format", 1)
    if found > FORMAT:
        raise StateError(
            f"{path}: a state of format {found}, which a later version of andfast wrote; this one reads up to "
            f"{FORMAT}. Update andfast, or choose another --run_dir."
        )
    for number in range(found, FORMAT):
        state = _MIGRATIONS[number](state)
    return state | {"format": FORMAT}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and prefix + key not in _WHOLE
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `flat`, written before some were renamed, by the names of today."""
    return {RENAMED.get(key, key): value for key, value in settings.items()}


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted names of settings that are not the same in both, which `flat` gave."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))

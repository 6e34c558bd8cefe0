"""The files of a run that hold weights: its resumable state, and the model that validated best.

A state holds everything that is not a function of the configuration and the step: what `Trainer.state` returns, and
`Trainer.computes`, since the types that `auto` stands for are measured (`andfast.ops.precision`). Random numbers
are such functions (`andfast.utils.rng`, `andfast.data.patches`), and so is the position in the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from torch import nn

from andfast.models import save_model
from andfast.models.weights import read_safetensors
from andfast.training.config import RENAMED, Config
from andfast.utils.files import sync_folder, write_torch, written_whole

STATE_FILE = "state.pt"
PREVIOUS_FILE = "state.previous.pt"
BEST_FILE = "model.best.safetensors"

# Increased when what `Trainer.state` returns changes its meaning. States of format 1 have neither number nor checksum.
FORMAT = 2

# Settings that may change when a run is resumed: where and how fast to compute, when to stop and save, and what a run
# that diverged needs changed.
_CHANGEABLE = {
    "run_dir", "resume", "device", "compile", "data.workers", "data.cache_mib", "data.cache",
    "data.val_pairs",
    "train.iterations", "train.validate_every", "train.validate_metrics", "train.save_every", "train.log_every",
    "train.max_bad_steps", "train.wandb",
    "train.micro_batch", "train.checkpoint_blocks", "train.learning_rate", "train.precision", "degradation.precision",
    "attack.dtype", "loss.vgg", "discriminator.learning_rate", "train.clip_grad",
}  # fmt: skip

# Settings whose value is a mapping.
_MAPPINGS = {"loss.perceptual_layers"}


class StateError(ValueError):
    """A state that cannot be resumed from; the message names the file and what is wrong with it."""


class DamagedStateError(StateError):
    """A damaged or foreign file; the state before it may be whole."""


# A state file ends with a checksum, the SHA-256 of all bytes before it, as the comment of the zip archive that
# `torch.save` writes: zip's own checksums do not cover all bytes, and `torch.load` ignores them. The last record of an
# archive begins with _ZIP_END and has this length without a comment, whose length is its last two bytes.
_ZIP_END, _ZIP_END_LENGTH = b"PK\x05\x06", 22
_CHECKSUM_START = b"sha256 "
_CHECKSUM_LENGTH = len(_CHECKSUM_START) + 2 * hashlib.sha256().digest_size


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all; the one that was at `path` becomes `PREVIOUS_FILE` beside it."""
    with written_whole(path, previous=path.with_name(PREVIOUS_FILE)) as temporary:
        write_torch(state | {"format": FORMAT}, temporary)
        _add_checksum(temporary)


def load_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read a state that `save_state` wrote, on the CPU. Only data is loaded, no code.

    Args:
        path: the file.
        settings: the run's configuration, which must agree with the state's. A setting that the state lacks had its
            default.

    Raises:
        DamagedStateError: the file is damaged or foreign.
        StateError: it is from a run with other settings, or from a later version of andfast.
    """
    state = _read(path)
    then, now = flat(Config().to_dict()) | renamed(flat(state["config"])), flat(settings)
    for each in (then, now):  # null was written so once
        each["generator.name"] = each.get("generator.name") or "compact"
    if not then["attack.mix.share"]:
        then["attack.mix.noise"] = None  # it had no effect, and was accepted once
    changed = [key for key in different(then, now) if key not in _CHANGEABLE]
    if changed:
        lines = "".join(f"\n  {key}: {then.get(key)} then, {now.get(key)} now" for key in changed)
        raise StateError(
            f"{path}: the state of a run with other settings:{lines}\n"
            "Use the same ones, another --run_dir, or --resume never to start over."
        )
    return state


def load_newest(folder: Path, settings: dict[str, Any], warn: Callable[[str], None]) -> tuple[Path, dict] | None:
    """The newest whole state in a run's folder, and its file; None if there is no state.

    Args:
        folder: of the run.
        settings: as for `load_state`.
        warn: called with a warning if the newest one is damaged.

    Raises:
        StateError: as `load_state`, or all of them are damaged.
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
            warn(f"{damaged[0]}; resuming from the one before it, {path}, which takes its place")
        return path, state
    if damaged:
        raise StateError(
            "\n".join(damaged) + f"\n{folder} has no other state. Put a copy back as {folder / STATE_FILE}; or begin "
            f"again: in another --run_dir, there from the model that is left with --generator.init "
            f"{folder / 'model.safetensors'} --train.warmup 0, or here with --resume never, which removes all of this."
        )
    return None


def make_newest(path: Path) -> None:
    """Rename a state to be the newest of its folder, replacing one that is damaged, missing or not resumed from."""
    if path.name == PREVIOUS_FILE:
        path.replace(path.with_name(STATE_FILE))
        sync_folder(path.parent)


def _read(path: Path) -> dict[str, Any]:
    has_checksum = _check_checksum(path)
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
    if "format" in state and not has_checksum:
        raise DamagedStateError(f"{path}: damaged (its checksum is gone)")
    if (found := state.get("format", 1)) > FORMAT:
        raise StateError(
            f"{path}: a state of format {found}, which a later version of andfast wrote; this one reads up to "
            f"{FORMAT}. Update andfast, or choose another --run_dir."
        )
    return state


def _add_checksum(path: Path) -> None:
    """Append its checksum to an archive without a comment."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 2)
        file.write(_CHECKSUM_LENGTH.to_bytes(2, "little"))
        file.seek(0)
        digest = _sha256(file, size)
        file.seek(size)
        file.write(_CHECKSUM_START + digest)


def _check_checksum(path: Path) -> bool:
    """Whether a file has a checksum; raises a DamagedStateError if that is wrong, or the end of the file is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _CHECKSUM_LENGTH, 0))
        tail = file.read()
        end = tail[-_ZIP_END_LENGTH:]
        if end.startswith(_ZIP_END) and end.endswith(b"\0\0"):  # an archive without a comment
            return False
        reason = "it does not end with a checksum"
        if tail.startswith(_CHECKSUM_START):
            file.seek(0)
            if tail[len(_CHECKSUM_START) :] == _sha256(file, size - _CHECKSUM_LENGTH):
                return True
            reason = "its checksum is wrong"
    raise DamagedStateError(f"{path}: not a state that can be resumed, or damaged ({reason})")


def _sha256(file: BinaryIO, length: int) -> bytes:
    """The hexadecimal digits of the SHA-256 of the next bytes."""
    digest = hashlib.sha256()
    while length and (block := file.read(min(length, 2**20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flattened: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and prefix + key not in _MAPPINGS
        flattened |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flattened


def renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `flat`, written before some were renamed, by today's names."""
    return {RENAMED.get(key, key): value for key, value in settings.items()}


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The dotted names of settings that differ between two results of `flat`."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


# The validation sets that decide which model is best, in order of preference.
_DECISIVE_SETS = ("pairs", "camera")


class BestModel:
    """Keeps the model with the highest PSNR-Y in `BEST_FILE`: on camera pairs, else camera-like images, else the first.

    The file itself records the set, its PSNR and that of bicubic interpolation, for a resumed run. If the set or the
    PSNR of bicubic interpolation differs, the images have changed, and the next model is taken.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = folder / BEST_FILE, warn

    def offer(self, model: nn.Module, step: int, results: Mapping[str, Mapping[str, float]]) -> bool:
        """Save a generator of so many steps if it is the best by the results of `Validator`; returns whether it was."""
        name = next((name for name in _DECISIVE_SETS if name in results), next(iter(results)))
        result = results[name]
        images = {"validation": name, "bicubic_psnr_y": repr(result["bicubic_psnr_y"])}
        best = self._metadata()
        if all(best.get(key) == value for key, value in images.items()) and float(best["psnr_y"]) >= result["psnr_y"]:
            return False
        save_model(model, self._path, images | {"iterations": step, "psnr_y": repr(result["psnr_y"])})
        return True

    def _metadata(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        try:
            return read_safetensors(self._path)[1]
        except SafetensorError as error:
            self._warn(f"{self._path}: damaged ({error}); the next model that is validated takes its place")
            return {}

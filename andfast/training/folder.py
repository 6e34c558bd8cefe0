"""The directory of a run: its lock, the state to resume from, and every file that is written to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from andfast.data.images import write_png
from andfast.models import save_discriminator, save_model
from andfast.training.checkpoints import (
    BEST_FILE,
    PREVIOUS_FILE,
    STATE_FILE,
    load_newest,
    load_state,
    make_newest,
    save_state,
)
from andfast.training.config import Config
from andfast.training.logging import WANDB_FILE
from andfast.training.records import METRICS_FILE
from andfast.training.trainer import Trainer
from andfast.utils.files import make_folder, remove_unfinished, sync, write_text, write_torch, written_whole
from andfast.utils.locks import locked
from andfast.utils.yaml_files import dump_yaml

BAD_BATCH = "bad_batch.pt"
DISCRIMINATOR_FILE = "discriminator.pth"
MODEL_FILES = ("model.safetensors", "model.pth")


class RunFolder:
    """The directory of a run, which only the main process reads or writes.

    Attributes:
        path: the directory.
        saved_step: the step of the newest state that is saved here; None: there is none.
    """

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self.path = Path(config.run_dir)
        self.saved_step: int | None = None
        self._config, self._warn = config, warn
        # The state in this directory that is resumed from.
        self._resumed: Path | None = None
        self._seen_version: tuple[int, int] | None = None
        self._lock = ExitStack()
        self._is_locked = False
        _ensure_temporary_folder(self.path)

    def load_state(self, images: str) -> dict[str, Any] | None:
        """Load the state that `resume` names; None: the run starts at step 0.

        Args:
            images: digest of the run's images, to be compared with the state's.

        Raises:
            ValueError: there is no such state, or it is damaged or of another run.
            OSError: it cannot be read.
        """
        self._seen_version = self._state_version()
        resume, settings = self._config.resume, self._config.to_dict()
        if resume == "never":
            return None
        if resume == "auto":
            newest = load_newest(self.path, settings, self._warn)
            if newest is None:
                return None
            path, state = newest
            self._resumed = path
        else:
            path = Path(resume)
            if not path.exists():
                raise ValueError(f"--resume {path}: no such file; give a {STATE_FILE}, 'auto' or 'never'")
            own = [name for name in (self.path / STATE_FILE, self.path / PREVIOUS_FILE) if name.exists()]
            self._resumed = next((name for name in own if name.samefile(path)), None)
            if own and self._resumed is None:
                raise ValueError(f"--resume {path}: --run_dir {self.path} holds another run; choose another folder")
            state = load_state(path, settings)
        if state["images"] != images:
            self._warn(
                f"the images are not those that {path} was trained on; what is held out from now on may have been "
                "trained on before"
            )
        if self._resumed is not None:
            self.saved_step = state["step"]
        print(f"resuming {path} at step {state['step']}")
        return state

    def lock(self) -> None:
        """Make the directory, and keep other runs out of it until `close`.

        Raises:
            ValueError: another run works in it, or has saved in it since `load_state`.
            OSError: it cannot be written.
        """
        if self._is_locked:
            return
        make_folder(self.path)
        self._lock.enter_context(locked(self.path))
        self._is_locked = True
        if self._state_version() != self._seen_version:
            raise ValueError(f"{self.path}: another run has just saved here; give the command again")

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def begin(self, step: int) -> None:
        """Remove unfinished files, and at step 0 those of an earlier run; write the configuration."""
        for folder in (self.path, self.path / "samples"):
            remove_unfinished(folder)
        if self._resumed is not None:
            make_newest(self._resumed)
        if step == 0:
            self._clear()
        # Resuming is the default, however this run was started.
        write_text(self.path / "config.yaml", dump_yaml(self._config.to_dict() | {"resume": "auto"}))

    def _clear(self) -> None:
        # The newest state second: if killed in between, the earlier run can still be resumed.
        names = [PREVIOUS_FILE, STATE_FILE, METRICS_FILE, WANDB_FILE, BEST_FILE, BAD_BATCH]
        names += [*MODEL_FILES, DISCRIMINATOR_FILE]
        others = [*self.path.glob("samples/step_*.png"), *self.path.glob("tensorboard/events.*")]
        for path in [*(self.path / name for name in names), *others]:
            path.unlink(missing_ok=True)
        self.saved_step = None

    def check(self) -> None:
        """Raise a FileNotFoundError if the directory was removed: parts of a run are not written into a new one."""
        if not (self.path / METRICS_FILE).exists():
            raise FileNotFoundError(f"{self.path}: the run's folder is gone, or its {METRICS_FILE}; not saved")

    def save(self, trainer: Trainer, images: str) -> None:
        """Write the models and the state; `images` is the digest of the run's images."""
        self.check()
        for name in MODEL_FILES:
            save_model(trainer.ema, self.path / name, {"iterations": trainer.step})
        if trainer.discriminator is not None:
            save_discriminator(trainer.discriminator.averaged(), self.path / DISCRIMINATOR_FILE)
        sync(self.path / METRICS_FILE)  # a state is never ahead of its records
        settings = {"config": self._config.to_dict(), "images": images, "computes": trainer.computes}
        save_state(self.path / STATE_FILE, trainer.state() | settings)

    def save_samples(self, step: int, sheet: np.ndarray) -> None:
        """Write a sample sheet, uint8 (H, W, 3)."""
        write_png(self.path / "samples" / f"step_{step:07d}.png", sheet)

    def save_bad_batch(self, step: int, hr: Tensor, lr: Tensor) -> None:
        """Write the images of an update that was skipped."""
        with written_whole(self.path / BAD_BATCH) as temporary:
            write_torch({"step": step, "hr": hr, "lr": lr}, temporary)

    def describe_state(self) -> str:
        """Which state a failed run has left, to be appended to the error; empty if there is none."""
        state = self.path / STATE_FILE
        return "" if self.saved_step is None or not state.exists() else f"; {state} is whole, of step {self.saved_step}"

    def _state_version(self) -> tuple[int, int] | None:
        """Changes whenever a state is saved."""
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.stat(self.path / STATE_FILE)
            return status.st_ino, status.st_mtime_ns
        return None


def _ensure_temporary_folder(run_dir: Path) -> None:
    """Use the run's directory for temporary files if no other can be written: torch's optimisers need one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(run_dir.absolute())

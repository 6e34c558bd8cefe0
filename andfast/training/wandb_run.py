"""A run's numbers on Weights & Biases, a package that andfast does not need and imports only where asked to."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from andfast.utils.files import write_text

#: In the run folder: the id by which wandb knows the run, so that a resumed run goes on there as well.
WANDB_FILE = "wandb_id.txt"


class WandbError(ValueError):
    """wandb cannot be used; the message says why."""


def import_wandb(project: str) -> ModuleType:
    """The package.

    Args:
        project: the setting that asks for it, for the message.

    Raises:
        WandbError: it is not installed, or broken.
    """
    try:
        import wandb
    except Exception as error:  # ImportError, or whatever it meets in its dependencies
        raise WandbError(_missing(project, str(error))) from error
    # wandb leaves a folder of its name where it was run, which Python imports where the package is not.
    if not hasattr(wandb, "init"):
        raise WandbError(_missing(project, f"{wandb} has no init"))
    return wandb


def _missing(project: str, reason: str) -> str:
    remedy = "pip install wandb, or leave train.wandb out"
    return f"train.wandb is {project}, but wandb cannot be imported ({reason}): {remedy}"


class WandbRun:
    """Writes to one run of a project; the next `WandbRun` of the same folder goes on with it.

    wandb takes steps in their order alone: of those that are taken again after a run was killed, it keeps what it was
    told first.

    Args:
        project: its name.
        run_dir: the run's folder, whose name is the run's; wandb's files go to `wandb/` in it.
        settings: the run's configuration as nested values.

    Raises:
        WandbError: wandb is not installed, or does not begin a run (not logged in, for one).
    """

    name = "wandb"

    def __init__(self, project: str, run_dir: Path, settings: dict[str, Any]) -> None:
        wandb = import_wandb(project)
        path = run_dir / WANDB_FILE
        known = path.read_text(encoding="utf-8").strip() if path.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=settings,
                allow_val_change=True,  # some may change when a run is resumed
                id=known,
                resume=None if known is None else "allow",
            )
        # wandb raises errors of its own, and those of its network and its service's processes.
        except Exception as error:
            raise WandbError(f"train.wandb {project}: wandb.init failed: {error}") from error
        if known is None:
            write_text(path, f"{self._run.id}\n")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()

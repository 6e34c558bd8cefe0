"""The model that validated best, beside the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from andfast.models import save_model
from andfast.models.weights import read_safetensors

BEST_FILE = "model.best.safetensors"

# What counts, the first that there is: of what cameras do, the real thing before its likeness.
_COUNTS = ("pairs", "camera")


class BestModel:
    """Keeps the model with the highest PSNR-Y in `BEST_FILE`: on camera pairs, else camera-like images, else the first.

    What it has to beat stands in the file itself, so that a run that was killed goes on from there: the set, its
    PSNR and that of bicubic interpolation on it. Where the set or the latter is another, the images are not the same,
    and the search begins anew.

    Args:
        folder: of the run.
        tell: is given a warning when the file is damaged, and with it what there was to beat.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._path = folder / BEST_FILE
        self._tell = tell

    def offer(self, model: nn.Module, step: int, results: Mapping[str, Mapping[str, float]]) -> bool:
        """Take in a model and what its validation gave; whether it is the best so far, and was kept.

        Args:
            model: a generator of andfast.
            step: how many updates made it.
            results: as a `Validator` returns them.

        Raises:
            OSError: the file cannot be read or written.
        """
        name = next((name for name in _COUNTS if name in results), next(iter(results)))
        found = results[name]
        images = {"validation": name, "bicubic_psnr_y": repr(found["bicubic_psnr_y"])}
        best = self._metadata()
        if all(best.get(key) == value for key, value in images.items()) and float(best["psnr_y"]) >= found["psnr_y"]:
            return False
        save_model(model, self._path, images | {"iterations": step, "psnr_y": repr(found["psnr_y"])})
        return True

    def _metadata(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        try:
            return read_safetensors(self._path)[1]
        except SafetensorError as error:
            self._tell(f"{self._path}: damaged ({error}); what validates next takes its place")
            return {}

"""What NIQE compares images with: statistics of undistorted photographs, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from andfast.utils.files import written_whole

FEATURES = 36
"""How many numbers NIQE tells of a block: 18 at each of two scales."""

DEFAULT = Path(__file__).parent / "niqe_pristine.npz"
"""The model that comes with andfast; `studies.niqe` made it."""

# By what names files hold a model: BasicSR's niqe_pris_params.npz, and the authors' modelparameters.mat.
_NAMES = {"mean": ("mu_pris_param", "mu_prisparam"), "covariance": ("cov_pris_param", "cov_prisparam")}
_WINDOW = "gaussian_window"


class PristineError(ValueError):
    """A file that holds no pristine model; the message names it and says what would be right."""


def gaussian_window() -> Tensor:
    """The weights of a pixel's surroundings: MATLAB's `fspecial('gaussian', 7, 7/6)`, float64 (7, 7)."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=torch.float64) / (7 / 6)).square())
    window = torch.outer(taps, taps)
    return window / window.sum()


@dataclass(frozen=True)
class PristineModel:
    """A multivariate Gaussian of the features of sharp blocks.

    Attributes:
        mean: float64 (36,).
        covariance: float64 (36, 36).
        window: float64 (7, 7), the weights of the surroundings that pixels are normalised by.
        about: what it was fitted to, where the file says so.
    """

    mean: Tensor
    covariance: Tensor
    window: Tensor = field(default_factory=gaussian_window)
    about: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> PristineModel:
        """The same on a device."""
        return PristineModel(self.mean.to(device), self.covariance.to(device), self.window.to(device), self.about)

    def digest(self) -> str:
        """A text that changes with any of its numbers."""
        state = hashlib.sha256()
        for each in (self.mean, self.covariance, self.window):
            state.update(each.cpu().contiguous().numpy().tobytes())
        return state.hexdigest()


def load_pristine(path: str | os.PathLike[str] = DEFAULT) -> PristineModel:
    """Read a pristine model.

    Args:
        path: an `.npz` or `.mat` file with mu_pris_param (36 values) and cov_pris_param (36 x 36), and, if not MATLAB's
            Gaussian is meant, gaussian_window (7 x 7); as BasicSR's niqe_pris_params.npz and, with mu_prisparam and
            cov_prisparam, the modelparameters.mat of NIQE's authors. `.mat` files need SciPy.

    Raises:
        FileNotFoundError: there is no such file.
        PristineError: it holds something else, or SciPy is missing.
        OSError: it cannot be read.
    """
    path = Path(path)
    content = _read(path)
    found = {}
    for name, spellings in _NAMES.items():
        key = next((spelling for spelling in spellings if spelling in content), None)
        if key is None:
            raise PristineError(f"{path}: no {spellings[0]} in it, but {', '.join(sorted(content)) or 'nothing'}")
        found[name] = content[key]
    if _WINDOW in content:
        found["window"] = content[_WINDOW]
    shapes = {"mean": (FEATURES,), "covariance": (FEATURES, FEATURES), "window": (7, 7)}
    tensors = {}
    for name, value in found.items():
        value = value.reshape(-1) if name == "mean" else value
        if value.shape != shapes[name] or value.dtype.kind != "f" or not np.isfinite(value).all():
            raise PristineError(
                f"{path}: the {name} is {value.dtype} {value.shape}; wanted are {shapes[name]} finite numbers"
            )
        tensors[name] = torch.from_numpy(value.astype(np.float64))
    return PristineModel(about=_about(content), **tensors)


def save_pristine(model: PristineModel, path: str | os.PathLike[str]) -> None:
    """Write an `.npz` file that `load_pristine` and BasicSR read; the same model gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    values = {
        "mu_pris_param": model.mean.cpu().numpy()[None],
        "cov_pris_param": model.covariance.cpu().numpy(),
        _WINDOW: model.window.cpu().numpy(),
        "about": np.array(json.dumps(dict(model.about))),
    }
    with written_whole(Path(path)) as temporary:
        np.savez(temporary, **values)  # type: ignore[arg-type]  # the names are not numpy's own parameters


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix.lower() not in (".npz", ".mat"):
        raise PristineError(f"{path}: not a pristine model; give an .npz or .mat file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a pristine model is an .npz or .mat file")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # NumPy's reader raises what zipfile and its own parser do
        raise PristineError(f"{path}: damaged, or no .npz file ({error})") from error
    try:
        from scipy.io import loadmat
    except Exception as error:  # ImportError, or what a SciPy for another NumPy raises
        raise PristineError(f"{path}: reading .mat files needs SciPy: pip install scipy ({error})") from error
    try:
        return {key: value for key, value in loadmat(path).items() if isinstance(value, np.ndarray)}
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # SciPy's reader of damaged files raises nearly anything
        raise PristineError(f"{path}: damaged, or no .mat file that SciPy reads ({error})") from error


def _about(content: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `save_pristine` wrote beside the numbers; other programs' files have none."""
    try:
        about = json.loads(str(content["about"]))
    except (KeyError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}

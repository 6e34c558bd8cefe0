"""NIQE: how far an image's local statistics are from those of undistorted photographs.

Mittal, Soundararajan, Bovik, "Making a 'completely blind' image quality analyzer" (2013), in the version of its
authors' MATLAB code; the equations are the paper's. From top to bottom: the metric, the features of blocks, and the
pristine model, the statistics of photographs, with its files.
"""

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
import torch.nn.functional as F
from torch import Tensor

from andfast.utils.files import written_whole

BLOCK = 96
"""Height and width of a block in pixels; at the second scale half as many."""

FEATURES = 36
"""The number of features of a block: 18 at each of two scales."""

DEFAULT_PRISTINE = Path(__file__).parent / "niqe_pristine.npz"
"""The included model, made by `studies.niqe`."""

# Names in files: BasicSR's niqe_pris_params.npz, and the authors' modelparameters.mat.
_NAMES = {"mean": ("mu_pris_param", "mu_prisparam"), "covariance": ("cov_pris_param", "cov_prisparam")}
_WINDOW = "gaussian_window"


# Pairs of neighbours: right, below, and the two diagonals. Blocks are closed to a ring for them, as in the MATLAB code.
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def niqe(images: Tensor, pristine: PristineModel | None = None) -> Tensor:
    """NIQE of images as they would be saved: clamped and rounded to 8 bits, of these Y, rounded. Lower is better.

    Only whole blocks of 96 x 96 pixels count, from the upper left corner on. Computed in float64 on the images' device.

    Args:
        images: float tensor (3, H, W) or (B, 3, H, W), RGB in [0, 1]; at least two blocks.
        pristine: the model to compare with; None: the included one.

    Returns:
        float64 tensor, (B,) or () for a single image; NaN where fewer than two blocks have any texture.

    Raises:
        TypeError: the tensor is not of a floating-point type.
        ValueError: the shape is not an image's, or there are fewer than two blocks.
    """
    if not images.is_floating_point():
        raise TypeError(f"images are floating-point tensors, not {images.dtype}")
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise ValueError(f"wanted images (3, H, W) or (B, 3, H, W), not {tuple(images.shape)}")
    if whole_blocks(*images.shape[-2:]) < 2:
        raise ValueError(
            f"{images.shape[-2]} x {images.shape[-1]} pixels hold less than two blocks of {BLOCK} x {BLOCK}"
        )
    model = (pristine or load_pristine()).to(images.device)
    batch = images if images.ndim == 4 else images[None]
    features, _ = block_features(niqe_luma(batch), model.window)
    mean, covariance, count = moments(features)
    inverse = torch.linalg.pinv((model.covariance + covariance) / 2)
    distance = (model.mean - mean)[:, None]
    found = (distance @ inverse @ distance.mT).sqrt().flatten()
    found = torch.where(count > 1, found, torch.nan)
    return found if images.ndim == 4 else found[0]


def whole_blocks(height: int, width: int) -> int:
    """How many blocks an image holds."""
    return (height // BLOCK) * (width // BLOCK)


def niqe_luma(images: Tensor) -> Tensor:
    """The input of NIQE: (B, 3, H, W) in [0, 1] -> float64 (B, H, W), `to_y` rounded to whole numbers.

    Computed in integers, because some 8-bit colours lie exactly between two whole numbers; these are rounded up.
    """
    red, green, blue = (images.double().clamp(0, 1) * 255).round().long().unbind(1)
    return (16 + (65_481 * red + 128_553 * green + 24_966 * blue + 127_500) // 255_000).double()


def block_features(luma: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The features of all whole blocks, float64 (B, blocks, 36), and how sharp they are.

    Args:
        luma: float64 (B, H, W), 0..255.
        window: (7, 7), as in `PristineModel`.

    Returns:
        The features, NaN in blocks without texture; and (B, blocks), the mean local deviation.
    """
    rows, columns = luma.shape[-2] // BLOCK, luma.shape[-1] // BLOCK
    luma = luma[..., : rows * BLOCK, : columns * BLOCK]
    found = []
    for size in (BLOCK, BLOCK // 2):
        normalised, deviation = _normalised(luma, window)
        if size == BLOCK:
            sharpness = _blocks(deviation, size).mean(dim=(-2, -1))
            luma = halve(luma)
        found.append(_features(_blocks(normalised, size)))
    return torch.cat(found, dim=-1), sharpness


def moments(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, 36) and covariance (B, 36, 36) of features (B, blocks, 36) over blocks, and the number of blocks (B,).

    As MATLAB's `nanmean`, the mean of a feature leaves out only the blocks in which it is NaN itself; as `nancov`, the
    covariance leaves out blocks with any NaN, and so does the number. The covariance of fewer than two blocks is zero.
    """
    whole = ~features.isnan().any(dim=-1, keepdim=True)
    count = whole.sum(dim=1)
    kept = torch.where(whole, features, 0)
    centred = torch.where(whole, features - kept.sum(dim=1, keepdim=True) / count[:, None], 0)
    covariance = centred.mT @ centred / (count[..., None] - 1).clamp(min=1)
    return features.nanmean(dim=1), covariance, count[:, 0]


def _normalised(luma: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 to 3: pixels minus their local mean, divided by the local deviation plus one; and that deviation.

    Computed from differences to the pixel itself, which are exact, so that the result is 0 where an image is flat:
    `_fit` counts signs, which must not come from rounding.
    """
    height, width = luma.shape[-2:]
    padded = F.pad(luma[:, None], (3,) * 4, mode="replicate")[:, 0]
    mean, square = torch.zeros_like(luma), torch.zeros_like(luma)
    for row, weights in enumerate(window.tolist()):
        for column, weight in enumerate(weights):
            difference = padded[..., row : row + height, column : column + width] - luma
            mean.add_(difference, alpha=weight)
            square.addcmul_(difference, difference, value=weight)
    deviation = (square - mean.square()).abs().sqrt()
    return -mean / (deviation + 1), deviation


def _blocks(image: Tensor, size: int) -> Tensor:
    """(B, H, W) -> (B, blocks, size, size)."""
    return image.unflatten(-1, (-1, size)).unflatten(-3, (-1, size)).transpose(-3, -2).flatten(-4, -3)


def _features(blocks: Tensor) -> Tensor:
    """18 features of each block, (B, blocks, size, size) -> (B, blocks, 18)."""
    shape, left, right = _fit(blocks)
    found = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = _fit(blocks * blocks.roll(shift, dims=(-2, -1)))
        # Eq. 8: the mean of the fitted distribution.
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        found += [shape, mean, left, right]
    return torch.stack(found, dim=-1)


def _fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalised Gaussian (Eq. 7) to each block by its moments: shape, left and right scale."""
    values = values.flatten(-2)
    square = values.square()
    negative, positive = values < 0, values > 0
    left, right = ((square * side).sum(-1).div(side.sum(-1)).sqrt() for side in (negative, positive))
    ratio = left / right
    moment = values.abs().mean(-1).square() / square.mean(-1)
    moment = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = 0.2 + 0.001 * torch.arange(9801, dtype=values.dtype, device=values.device)
    shape = shapes[_nearest(_generalised_moment(shapes), moment)]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale


def _generalised_moment(shape: Tensor) -> Tensor:
    """E|x|^2 / E x^2 of a generalised Gaussian of that shape; it grows with the shape."""
    return torch.exp(2 * torch.lgamma(2 / shape) - torch.lgamma(1 / shape) - torch.lgamma(3 / shape))


def _nearest(ascending: Tensor, values: Tensor) -> Tensor:
    """The index of the nearest of `ascending`, the first for NaN, as MATLAB's `min` has it."""
    upper = torch.searchsorted(ascending, values.contiguous()).clamp(1, len(ascending) - 1)
    lower = upper - 1
    nearer = (values - ascending[lower]).abs() <= (ascending[upper] - values).abs()
    return torch.where(values.isnan(), 0, torch.where(nearer, lower, upper))


def halve(image: Tensor) -> Tensor:
    """MATLAB's `imresize(image, 0.5)` of (..., H, W), H and W even and at least 4.

    That is the bicubic filter (a = -0.5) stretched to twice its width against aliasing, with the image mirrored beyond
    its borders, the outermost pixels included. Nothing is rounded or clipped.
    """
    # Each result lies in the middle between two pixels: for all the same eight weights.
    distance = (torch.arange(8, dtype=torch.float64) - 3.5).abs() / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance <= 1, near, far)
    weights /= weights.sum()
    for dim in (-2, -1):
        length = image.shape[dim]
        ends = image.narrow(dim, 0, 3).flip(dim), image, image.narrow(dim, length - 3, 3).flip(dim)
        windows = torch.cat(ends, dim).unfold(dim, 8, 2)
        # By differences, which are exact: what is flat stays flat.
        middle = windows[..., 3]
        image = middle + (windows - middle[..., None]) @ weights.to(image)
    return image


class PristineError(ValueError):
    """An invalid file of a pristine model; the message names it and says what would be right."""


def gaussian_window() -> Tensor:
    """The default window: MATLAB's `fspecial('gaussian', 7, 7/6)`, float64 (7, 7)."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=torch.float64) / (7 / 6)).square())
    window = torch.outer(taps, taps)
    return window / window.sum()


@dataclass(frozen=True)
class PristineModel:
    """A multivariate Gaussian of the features of sharp blocks.

    Attributes:
        mean: float64 (36,).
        covariance: float64 (36, 36).
        window: float64 (7, 7), the weights of the pixels around one in its normalisation.
        about: what it was fitted to, where the file says so.
    """

    mean: Tensor
    covariance: Tensor
    window: Tensor = field(default_factory=gaussian_window)
    about: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> PristineModel:
        """The model on a device."""
        return PristineModel(self.mean.to(device), self.covariance.to(device), self.window.to(device), self.about)

    def digest(self) -> str:
        """A checksum of the numbers."""
        state = hashlib.sha256()
        for each in (self.mean, self.covariance, self.window):
            state.update(each.cpu().contiguous().numpy().tobytes())
        return state.hexdigest()


def load_pristine(path: str | os.PathLike[str] = DEFAULT_PRISTINE) -> PristineModel:
    """Read a pristine model.

    Args:
        path: an `.npz` file, or with SciPy a `.mat` file, with mu_pris_param (36 values), cov_pris_param (36 x 36), and
            gaussian_window (7 x 7; default: MATLAB's): BasicSR's niqe_pris_params.npz or, with mu_prisparam and
            cov_prisparam, the modelparameters.mat of NIQE's authors.

    Raises:
        FileNotFoundError: there is no such file.
        PristineError: it is not valid, or SciPy is missing.
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
    """`PristineModel.about`; files of other programs have none."""
    try:
        about = json.loads(str(content["about"]))
    except (KeyError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}

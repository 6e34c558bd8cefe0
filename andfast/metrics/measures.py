"""Metrics by name, with all their settings, for one image at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from andfast.metrics.dists import load_dists
from andfast.metrics.fidelity import SSIM_WINDOW, psnr_y, ssim_y
from andfast.metrics.lpips import NETS, load_lpips
from andfast.metrics.niqe import BLOCK, DEFAULT_PRISTINE, load_pristine, niqe, whole_blocks

FIDELITY: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {"psnr_y": psnr_y, "ssim_y": ssim_y}
"""Metrics that compare images with their originals: (images, originals, border) -> values."""

MEASURES = (*FIDELITY, *(f"lpips_{net}" for net in NETS), "dists", "niqe")
"""The names that `make_measure` knows."""

_SAVED = "clamped to [0, 1] and rounded to 8 bits"
_LUMA = "ITU-R BT.601 as MATLAB's rgb2ycbcr: 65.481 R + 128.553 G + 24.966 B + 16"


@dataclass(frozen=True)
class Measure:
    """A metric with its settings.

    Attributes:
        name: one of `MEASURES`.
        title: the heading of its column.
        higher_is_better: whether it is.
        digits: how many decimals are worth printing.
        needs_hr: whether it compares with an original.
        settings: all that a value depends on beside the images, as JSON values.
        fits: whether an image of that height and width can be measured.
        compute: (image, hr), each (1, 3, H, W) in [0, 1], hr None without `needs_hr` -> the value, one element.
    """

    name: str
    title: str
    higher_is_better: bool
    digits: int
    needs_hr: bool
    settings: Mapping[str, Any]
    fits: Callable[[int, int], bool] = field(repr=False)
    compute: Callable[[Tensor, Any], Tensor] = field(repr=False)

    def __call__(self, image: Tensor, hr: Tensor | None = None) -> float:
        """The value of `image`, (1, 3, H, W) in [0, 1]; with `needs_hr` compared with its original `hr`."""
        with torch.inference_mode():
            return self.compute(image, hr).item()


def make_measure(
    name: str,
    scale: int,
    device: str | torch.device = "cpu",
    pristine: str | os.PathLike[str] | None = None,
    lpips: Sequence[str | os.PathLike[str]] = (),
) -> Measure:
    """Make a metric.

    Args:
        name: one of `MEASURES`.
        scale: the super-resolution factor, which is the border that PSNR and SSIM leave out.
        device: where the images will be.
        pristine: NIQE's model; None: the included one.
        lpips: LPIPS's files, trunk and linear layers; empty: where `load_lpips` looks for them.

    Raises:
        FileNotFoundError, ModelError, PristineError: of the files that it needs; each says how to get them.
        ValueError: there is no such metric.
    """
    if name in FIDELITY:
        return _fidelity(name, scale)
    if name == "niqe":
        return _niqe(DEFAULT_PRISTINE if pristine is None else pristine, device)
    if name == "dists":
        return _dists(device)
    if name in MEASURES:
        return _lpips(name.removeprefix("lpips_"), lpips, device)
    raise ValueError(f"no metric {name!r}; there are {', '.join(MEASURES)}")


def _fidelity(name: str, scale: int) -> Measure:
    settings: dict[str, Any] = {"images": _SAVED, "channel": f"{_LUMA}, not rounded", "border": scale, "peak": 255}
    least, compute = 1, FIDELITY[name]
    if name == "ssim_y":
        settings |= {"window": SSIM_WINDOW, "sigma": 1.5, "k1": 0.01, "k2": 0.03, "covariance": "weighted, not sample"}
        least = SSIM_WINDOW
    return Measure(
        name,
        {"psnr_y": "PSNR-Y", "ssim_y": "SSIM-Y"}[name],
        higher_is_better=True,
        digits={"psnr_y": 2, "ssim_y": 4}[name],
        needs_hr=True,
        settings=settings,
        fits=lambda height, width: min(height, width) >= least + 2 * scale,
        compute=lambda image, hr: compute(image, hr, scale),
    )


def _niqe(pristine: str | os.PathLike[str], device: str | torch.device) -> Measure:
    model = load_pristine(pristine).to(device)
    settings = {
        "images": _SAVED,
        "channel": f"{_LUMA}, rounded",
        "border": 0,
        "block": BLOCK,
        "scales": [1, 0.5],
        "downscaling": "MATLAB's imresize: bicubic, antialiased",
        "pristine_sha256": model.digest(),
    }
    return Measure(
        "niqe",
        "NIQE",
        higher_is_better=False,
        digits=3,
        needs_hr=False,
        settings=settings,
        fits=lambda height, width: whole_blocks(height, width) >= 2,
        compute=lambda image, hr: niqe(image, model),
    )


def _dists(device: str | torch.device) -> Measure:
    model = load_dists(device=device)
    return Measure(
        "dists",
        "DISTS",
        higher_is_better=False,
        digits=4,
        needs_hr=True,
        settings={"images": _SAVED, "border": 0, "resized": False, "weights_sha256": model.digest()},
        fits=lambda height, width: min(height, width) >= model.least_size,
        compute=lambda image, hr: model(image, hr),
    )


def _lpips(net: str, files: Sequence[str | os.PathLike[str]], device: str | torch.device) -> Measure:
    model = load_lpips(net, *files, device=device)  # type: ignore[arg-type, misc]  # at most two files
    settings = {"images": _SAVED, "border": 0, "network": net, "version": "0.1", "weights_sha256": model.digest()}
    return Measure(
        f"lpips_{net}",
        f"LPIPS {net}",
        higher_is_better=False,
        digits=4,
        needs_hr=True,
        settings=settings,
        fits=lambda height, width: min(height, width) >= model.least_size,
        compute=lambda image, hr: model(image, hr),
    )

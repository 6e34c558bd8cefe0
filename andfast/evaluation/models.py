"""The methods that are evaluated: models, and bicubic interpolation."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from andfast.data.tensors import to_tensor
from andfast.inference.models import find_model
from andfast.inference.upscaler import Upscaler
from andfast.models import ModelError
from andfast.pretrained import DEFAULT, model_file, pretrained_names
from andfast.training.records import BICUBIC, INPUT
from andfast.training.validation import upsample_by_pillow
from andfast.utils.formatting import dtype_name


@dataclass(frozen=True)
class Computing:
    """How models are computed; `tile` and `overlap` are those of `Upscaler`."""

    device: torch.device
    precision: torch.dtype = torch.float32
    tile: int = 0
    overlap: int = 16

    def settings(self) -> dict[str, str | int]:
        """The settings as JSON values."""
        precision = dtype_name(self.precision)
        return {"device": self.device.type, "precision": precision, "tile": self.tile, "overlap": self.overlap}


@dataclass(frozen=True)
class Method:
    """A model, or bicubic interpolation.

    Attributes:
        title: its name in results.
        file: the file or pretrained name; None for bicubic interpolation.
        digest: the SHA-256 of the file; for bicubic interpolation, Pillow's version.
        upscaler: None for bicubic interpolation.
    """

    title: str
    file: str | None
    digest: str
    upscaler: Upscaler | None

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return torch.device("cpu") if self.upscaler is None else self.upscaler.device

    def restore(self, lr: np.ndarray, scale: int, device: torch.device) -> Tensor:
        """Upscale uint8 (h, w, 3) to float32 (1, 3, scale * h, scale * w) on the device, not clipped.

        Raises:
            NonFiniteError: the model's output holds NaN or infinity.
        """
        if self.upscaler is None:
            return to_tensor(upsample_by_pillow(lr, scale)).to(device)
        return self.upscaler.tensor(to_tensor(lr).to(device))


def bicubic_method(title: str = BICUBIC) -> Method:
    """Pillow's bicubic interpolation; `title` may be that of `baseline_title`."""
    return Method(title, None, f"Pillow {PIL.__version__}", None)


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the option --model, for `load_methods`."""
    parser.add_argument(
        "--model", nargs="+", default=[DEFAULT], metavar="FILE",
        help=f"models of one scale: files, pretrained ones' names, or TITLE=FILE (default: {DEFAULT})",
    )  # fmt: skip


def load_methods(given: Sequence[str], computing: Computing) -> list[Method]:
    """Load the models of a command line: pretrained names or files, or TITLE=NAME or TITLE=FILE.

    Raises:
        ModelError: not a model; or two have the same title, or different scales.
        OSError: a file cannot be read.
    """
    found: dict[str, Method] = {}
    for text in given:
        title, file = split_title(text)
        if title in (*found, BICUBIC, INPUT):
            raise ModelError(f"two models have the title {title}: {text} and another; give one as TITLE={file}")
        model = find_model(file, computing.device).to(memory_format=torch.channels_last)
        upscaler = Upscaler(model, computing.precision, computing.tile, computing.overlap)
        found[title] = Method(title, file, hashlib.sha256(model_file(file).read_bytes()).hexdigest(), upscaler)
    scales = {title: one.upscaler.scale for title, one in found.items()}
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{title} x{scale}" for title, scale in scales.items())
        raise ModelError(f"models of one scale are compared, not {listed}")
    return list(found.values())


def title_of(path: Path) -> str:
    """The file's name, or for a run's "model" file that of its folder."""
    return path.resolve().parent.name if path.stem == "model" else path.stem


def split_title(text: str) -> tuple[str, str]:
    """Split FILE, a pretrained name, or TITLE=FILE into title and file."""
    title, equals, file = text.partition("=")
    if equals and title and not Path(text).exists():
        return title, file
    return (text if text in pretrained_names() else title_of(model_file(text))), text

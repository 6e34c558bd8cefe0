"""The models that come with andfast: weights, and beside them how they were made, what they reach, their card."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from andfast.models import ModelError, load_model
from andfast.models.weights import READABLE

FOLDER = Path(__file__).parent
DEFAULT = "andnet_compact_x4"


def pretrained_names() -> list[str]:
    """The names of the models that come with this installation, sorted."""
    return sorted(path.stem for path in FOLDER.glob("[!.]*.safetensors"))


def model_file(name_or_file: str) -> Path:
    """The file of the model that comes with andfast by that name, or else the one given, which need not exist.

    Args:
        name_or_file: one of `pretrained_names()`, or a path.
    """
    return FOLDER / f"{name_or_file}.safetensors" if name_or_file in pretrained_names() else Path(name_or_file)


def find_file(name_or_file: str) -> Path:
    """`model_file`, which must exist.

    Args:
        name_or_file: one of `pretrained_names()`, or a path.

    Raises:
        ModelError: there is neither.
    """
    path = model_file(name_or_file)
    if not path.exists():
        known = ", ".join(pretrained_names()) or "none"
        raise ModelError(f"{path}: no such file ({', '.join(READABLE)}), nor a pretrained model; those are {known}")
    return path


def load_pretrained(name: str = DEFAULT, device: str | torch.device = "cpu") -> nn.Module:
    """Load a model that comes with andfast; nothing is downloaded.

    What it was trained on and what it reaches stands in its model card, `andfast/pretrained/NAME.md`.

    Args:
        name: one of `pretrained_names()`.
        device: where the model goes.

    Returns:
        An `RRDBNet` or a `Compact` in evaluation mode with float32 weights: (B, 3, H, W) in [0, 1] to
        (B, 3, scale * H, scale * W), with the attribute `scale`.

    Raises:
        ModelError: there is no such model; the message lists those that there are.
    """
    names = pretrained_names()
    if name not in names:
        raise ModelError(f"there is no pretrained model {name!r}; there are: {', '.join(names) or 'none'}")
    return load_model(FOLDER / f"{name}.safetensors", device)

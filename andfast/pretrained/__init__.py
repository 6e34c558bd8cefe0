"""The models that come with andfast: weights, settings, results and a model card each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from andfast.models import ModelError, load_model
from andfast.models.own_models import split_class
from andfast.models.weights import READABLE

FOLDER = Path(__file__).parent
DEFAULT = "andnet_compact_x4"
#: What each model is for, by name; the default first.
PURPOSES = {
    "andnet_compact_x4": "photographs as cameras take them",
    "andnet_compact_x2": "photographs as cameras take them, by a factor of 2",
    "andnet_compact_strong_x4": "noisy, compressed and old photographs",
}


def pretrained_names() -> list[str]:
    """The names of the pretrained models of this installation, the default first."""
    found = sorted(path.stem for path in FOLDER.glob("[!.]*.safetensors"))
    return [name for name in PURPOSES if name in found] + [name for name in found if name not in PURPOSES]


def describe(name: str) -> str:
    """A model's name, with what it is for if it is a pretrained one."""
    return f"{name}: {PURPOSES[name]}" if name in PURPOSES else name


def describe_pretrained() -> list[str]:
    """The names of the pretrained models, each with what it is for."""
    return [describe(name) for name in pretrained_names()]


def model_file(name_or_file: str) -> Path:
    """The file of a pretrained model, or else the path in `name_or_file`, FILE or FILE@CLASS, which need not exist."""
    if name_or_file in pretrained_names():
        return FOLDER / f"{name_or_file}.safetensors"
    return Path(split_class(name_or_file)[0])


def find_file(name_or_file: str) -> Path:
    """`model_file` of `name_or_file`; raises ModelError if it does not exist."""
    path = model_file(name_or_file)
    if not path.exists():
        known = ", ".join(pretrained_names()) or "none"
        raise ModelError(f"{path}: no such file ({', '.join(READABLE)}), nor a pretrained model; those are {known}")
    return path


def load_pretrained(name: str = DEFAULT, device: str | torch.device = "cpu") -> nn.Module:
    """Load a pretrained model, by default to the CPU; nothing is downloaded.

    The model card, `andfast/pretrained/NAME.md`, says what it was trained on and its results.

    Args:
        name: one of `pretrained_names()`.
        device: where the model goes.

    Returns:
        An `RRDBNet` or a `Compact` in evaluation mode with float32 weights.

    Raises:
        ModelError: no such model; the message lists the names.
    """
    names = pretrained_names()
    if name not in names:
        raise ModelError(f"there is no pretrained model {name!r}; there are: {', '.join(names) or 'none'}")
    return load_model(FOLDER / f"{name}.safetensors", device)

"""Networks of users' own classes as generators: built, trained, saved, and read again where the user says so."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from andfast.models.foreign import ForeignModel
from andfast.models.spandrel_models import PREFIX
from andfast.models.weights import ModelError, fit, read_weights
from andfast.utils.import_path import import_class, is_import_path

if TYPE_CHECKING:
    from typing_extensions import Self

_AT = "@"


class OwnModel(ForeignModel):
    """A network of a user's class, (B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w), which need not be clamped.

    Attributes:
        options: the arguments that it was made with, beside the scale.
    """

    def __init__(self, network: nn.Module, scale: int, name: str, options: Mapping[str, Any]) -> None:
        super().__init__(network, scale, name)
        self.options = dict(options)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def prepare_training(self) -> Self:
        """As `ForeignModel.prepare_training`; weights that the class itself freezes stay frozen."""
        frozen = [weight for weight in self.parameters() if not weight.requires_grad]
        super().prepare_training()
        for weight in frozen:
            weight.requires_grad_(False)
        return self


class OwnCodeError(ModelError):
    """A file whose architecture is a user's class, which is imported only where the user names it."""


def is_own(name: str | None) -> bool:
    """Whether a `generator.name` names a user's class."""
    return name is not None and not name.startswith(PREFIX) and is_import_path(name)


def build_own(name: str, scale: int, options: Mapping[str, Any]) -> OwnModel:
    """A new network of a user's class, in training mode.

    Args:
        name: `my_file.py:MyNet` or `package.module:MyNet`, a class of `torch.nn.Module` with an argument `scale`.
        scale: the factor.
        options: its other arguments.

    Raises:
        ModelError: there is no such class, it has not these options, or it does not make images of the right size.
    """
    wanted = f"generator.name {name}"
    try:
        kind = import_class(name, "generator.name")
    except ValueError as error:
        raise ModelError(str(error)) from error
    if not issubclass(kind, nn.Module):
        raise ModelError(f"{wanted}: a class of torch.nn.Module is wanted")
    try:
        inspect.signature(kind).bind(scale=scale, **options)
    except TypeError as error:
        raise ModelError(f"{wanted} cannot be called with scale={scale} and {dict(options)}: {error}") from error
    try:
        model = OwnModel(kind(scale=scale, **options), scale, name, options)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ValueError("it has no weights to train")
        image = model._trial_image()
        with torch.no_grad():
            found = model.eval()(image)
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"{wanted} with {dict(options)}: {type(error).__name__}: {error}") from error
    size = (1, 3, scale * image.shape[2], scale * image.shape[3])
    if not isinstance(found, Tensor) or found.shape != size:
        made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"{wanted} makes {made} of an image {tuple(image.shape)}; with scale {scale} it must be {size}"
        )
    return model.prepare_training()


def load_own_weights(model: OwnModel, path: str | os.PathLike[str]) -> None:
    """Load a file's weights, those of exactly this network, into it.

    Raises:
        FileNotFoundError, ModelError: the file is missing, or has other weights.
    """
    state, _ = read_weights(path)

    def take(state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {key: value.shape for key, value in model.model.state_dict().items()}
        if own != {key: value.shape for key, value in state.items()}:
            differ = sorted(
                key for key in own.keys() | state.keys() if key not in state or own.get(key) != state[key].shape
            )
            raise ModelError(f"not the weights of {model.architecture} with {model.options}: {', '.join(differ[:4])}")
        return state

    try:
        model.model.load_state_dict(fit(state, take))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def load_own(path: str | os.PathLike[str], name: str) -> OwnModel:
    """Read a generator whose architecture is a user's class, with the scale and options that the file records.

    Raises:
        FileNotFoundError, ModelError: the file is missing, was not written by andfast, or does not fit the class.
    """
    _, record = read_weights(path)
    try:
        scale, options = int(record["scale"]), json.loads(record["options"])
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: it does not record the scale and options of {name}; andfast.train writes them"
        ) from error
    model = build_own(name, scale, options)
    load_own_weights(model, path)
    return model.eval()


def check_not_own(record: Mapping[str, str]) -> None:
    """Raise an OwnCodeError if a file's metadata name a user's class: reading a file runs no code."""
    if is_own(name := record.get("architecture")):
        raise OwnCodeError(
            f"its architecture is the class {name}; to run that code give FILE{_AT}{name}, with its path now"
        )


def split_class(text: str) -> tuple[str, str | None]:
    """Split FILE@CLASS, as `model.safetensors@my_net.py:MyNet`, into the file and the class; None for other texts."""
    file, at, name = text.rpartition(_AT)
    return (file, name) if at and file and is_own(name) and not Path(text).exists() else (text, None)

"""Load a model to upscale with: a pretrained one, a model file, or an architecture that spandrel knows."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn

from andfast.models import ModelError, load_model
from andfast.models.weights import AmbiguousModelError, UnknownModelError, fit, read_weights
from andfast.ops.precision import choose_precision
from andfast.pretrained import find_file, load_pretrained, pretrained_names
from andfast.utils.devices import Purpose

# The window size of transformers is 8 or 16 pixels; spandrel does not know it for all.
_WINDOW = 16


def find_model(name_or_file: str, device: str | torch.device = "cpu") -> nn.Module:
    """Load a pretrained model or a model file.

    RRDBNet and Compact files of any program are read by andfast itself, other architectures by spandrel if it is
    installed. No code from a file is ever run.

    Args:
        name_or_file: one of `andfast.pretrained.pretrained_names()`, or a file, see `load_model`.
        device: where the model goes.

    Returns:
        A network in evaluation mode, (B, 3, h, w) to (B, 3, scale * h, scale * w), with the attribute `scale`.

    Raises:
        ModelError: no such model, or the file is not a model.
        OSError: the file cannot be read.
    """
    if name_or_file in pretrained_names():
        return load_pretrained(name_or_file, device)
    find_file(name_or_file)
    try:
        return load_model(name_or_file, device)
    except AmbiguousModelError:
        raise
    except ModelError as error:
        state, _ = read_weights(name_or_file)  # raises the same error if the file holds no weights
        return _by_spandrel(name_or_file, state, error).to(device)


def precision_for(model: nn.Module, name: str, purpose: Purpose = "upscaling") -> torch.dtype:
    """Choose the type to compute a model in: `choose_precision`, as far as the model supports it.

    Raises:
        ValueError: the model does not work in the type `name`.
    """
    precision = choose_precision(name, next(model.parameters()).device, purpose)
    if precision in getattr(model, "precisions", (precision,)):
        return precision
    if name == "auto":
        return torch.float32
    raise ValueError(f"the model, a {model.architecture}, does not work in {name}; use float32")


class SpandrelModel(nn.Module):
    """An `ImageModelDescriptor` of spandrel as a network: (B, 3, H, W) in [0, 1] -> (B, 3, scale * H, scale * W).

    Attributes:
        align: tiles must begin at multiples of it, so that windows cut them as they cut the whole image.
        tiles: whether images can be upscaled in tiles.
        precisions: the types it supports.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model = descriptor.model  # registers its weights
        self._descriptor = descriptor
        self.scale = descriptor.scale
        self.align = math.lcm(_WINDOW, descriptor.size_requirements.multiple_of)
        self.tiles = descriptor.tiling.name != "INTERNAL"
        self.precisions = {torch.float32}
        self.precisions |= {torch.float16} if descriptor.supports_half else set()
        self.precisions |= {torch.bfloat16} if descriptor.supports_bfloat16 else set()
        self.architecture = descriptor.architecture.name

    def forward(self, x: Tensor) -> Tensor:
        return self._descriptor(x)


def _by_spandrel(path: str, state: dict[str, Tensor], problem: ModelError) -> SpandrelModel:
    if importlib.util.find_spec("spandrel") is None:
        raise ModelError(f"{problem}; more architectures are read where spandrel is installed: andfast[spandrel]")
    try:
        import spandrel
    except Exception as error:  # a torchvision built for another torch raises various errors
        raise ModelError(f"{problem}; spandrel, which knows more, cannot be imported: {error}") from error
    loader = spandrel.ModelLoader()

    def take(state: dict[str, Tensor]) -> SpandrelModel:
        try:
            descriptor = loader.load_from_state_dict(dict(state))
        except Exception as error:  # architectures raise various errors on unknown weights
            raise UnknownModelError(f"spandrel does not know it, either ({type(error).__name__})") from error
        image = isinstance(descriptor, spandrel.ImageModelDescriptor) and descriptor.purpose in ("SR", "Restoration")
        if not image or (descriptor.input_channels, descriptor.output_channels) != (3, 3):
            raise ModelError(f"a {descriptor.architecture.name}, which does not turn RGB images into RGB images")
        return SpandrelModel(descriptor.eval())

    try:
        return fit(state, take)
    except UnknownModelError as error:
        raise ModelError(f"{problem}; {error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error

"""Architectures that spandrel knows, as generators: read, built anew, trained, and saved under their own names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.models.foreign import WINDOW, ForeignModel
from andfast.models.weights import ModelError, UnknownModelError, fit
from andfast.utils.optional import install_command
from andfast.utils.torchvision_operators import declare_missing

#: What names of spandrel's architectures begin with in configurations and model files.
PREFIX = "spandrel:"

# What architectures call their factor.
_SCALES = ("scale", "upscale", "up_scale", "upscale_factor", "upscaling_factor")
# Architectures that files of andfast's own generators are read as.
_OURS = {"Compact": "compact", "ESRGAN": "rrdbnet"}


class SpandrelModel(ForeignModel):
    """An `ImageModelDescriptor` of spandrel as a network: (B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w).

    Results are not clamped, so that training sees by how much they leave [0, 1].

    Attributes:
        architecture: the name of its class in `spandrel.architectures`.
        tiles: whether images can be upscaled in tiles.
        precisions: the types it supports.
    """

    def __init__(self, descriptor: Any, architecture: str) -> None:
        super().__init__(descriptor.model, descriptor.scale, architecture)
        self.align = math.lcm(WINDOW, descriptor.size_requirements.multiple_of)
        self.tiles = descriptor.tiling.name != "INTERNAL"
        self.precisions = {torch.float32}
        self.precisions |= {torch.float16} if descriptor.supports_half else set()
        self.precisions |= {torch.bfloat16} if descriptor.supports_bfloat16 else set()
        self._sizes, self._call = descriptor.size_requirements, descriptor._call_fn

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        right, bottom = self._sizes.get_padding(width, height)
        if right or bottom:
            # As spandrel pads: reflected as far as the image reaches.
            inside = min(right, width - 1), min(bottom, height - 1)
            x = F.pad(x, (0, inside[0], 0, inside[1]), "reflect")
            x = F.pad(x, (0, right - inside[0], 0, bottom - inside[1]), "replicate")
        # A copy, since some architectures write into their input.
        return self._call(self.model, x.clone())[..., : height * self.scale, : width * self.scale]


def read_with_spandrel(path: str, state: dict[str, Tensor], problem: ModelError) -> SpandrelModel:
    """The network whose weights are in a file of another program; any architecture that spandrel knows.

    Args:
        path: named in errors.
        state: all tensors in it.
        problem: why andfast itself does not read it.

    Raises:
        ModelError: spandrel is not installed, does not know the weights, or the network is not from RGB to RGB.
    """
    if importlib.util.find_spec("spandrel") is None:
        raise ModelError(f"{problem}; more architectures are read with spandrel: {install_command('spandrel')}")
    try:
        spandrel = import_spandrel()
    except ImportError as error:
        raise ModelError(f"{problem}; spandrel, which knows more, cannot be imported: {error}") from error
    try:
        return fit(state, lambda state: _recognise(spandrel, state))
    except UnknownModelError as error:
        raise ModelError(f"{problem}; {error}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def build_with_spandrel(name: str, scale: int, options: Mapping[str, Any]) -> SpandrelModel:
    """A new network of an architecture that spandrel knows.

    Args:
        name: of its class in `spandrel.architectures`, as SPAN, RealPLKSR, SwinIR or DAT.
        scale: the factor.
        options: further arguments of the class.

    Raises:
        ModelError: spandrel is missing or has no such class; it has not these options, or this scale; or a program that
            reads the file could not tell it from another network.
    """
    wanted = f"generator.name {PREFIX}{name}"
    try:
        spandrel = import_spandrel()
    except ImportError as error:
        raise ModelError(f"{wanted} needs spandrel ({install_command('spandrel')}): {error}") from error
    classes = _classes(spandrel)
    if name in _OURS:
        raise ModelError(f"{wanted}: give generator.name {_OURS[name]}, which is the same network")
    if name not in classes:
        raise ModelError(
            f"{wanted}: spandrel has no such architecture; it has {', '.join(sorted(set(classes) - set(_OURS)))}"
        )
    known = list(inspect.signature(classes[name]).parameters)
    if strangers := sorted(set(options) - set(known)):
        raise ModelError(f"{wanted} has no option {', '.join(strangers)}; it has {', '.join(known)}")
    factor = {key: scale for key in _SCALES if key in known}
    try:
        network = classes[name](**(factor | dict(options)))
    except Exception as error:  # architectures raise various errors on values that do not go together
        raise ModelError(f"{wanted} with {dict(options)}: {type(error).__name__} {error}") from error
    try:
        model = _recognise(spandrel, dict(network.state_dict()))
    except ModelError as error:
        raise ModelError(f"{wanted} with {dict(options)}: of a file of its weights, {error}") from error
    if model.scale != scale:
        raise ModelError(f"{wanted} with {dict(options)} has the scale {model.scale}; scale is {scale}")
    _check_recognised(wanted, network, model)
    model.model = network  # with options that files do not tell, such as dropout
    return model.prepare_training()


def _check_recognised(wanted: str, network: nn.Module, model: SpandrelModel) -> None:
    """Refuse options that are not to be seen in a file of weights: `model` is what spandrel makes of those weights."""
    image = model._trial_image()
    with torch.no_grad():
        expected, found = model.eval()(image), network.eval()(image.clone())
    if isinstance(found, Tensor) and not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise ModelError(f"{wanted}: a file of its weights would be read as another network; leave out some options")


def import_spandrel() -> ModuleType:
    """Import spandrel, also where torchvision's compiled operators do not load; raises ImportError."""
    declare_missing()
    try:
        return importlib.import_module("spandrel")
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(str(error)) from error


def _classes(spandrel: ModuleType) -> dict[str, type[nn.Module]]:
    """The networks of all architectures, by the names of their classes."""
    found: dict[str, type[nn.Module]] = {}
    for support in spandrel.MAIN_REGISTRY:
        module = importlib.import_module(type(support.architecture).__module__)
        for name in getattr(module, "__all__", ()):
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                found[name] = kind
    return found


def _recognise(spandrel: ModuleType, state: Mapping[str, Tensor]) -> SpandrelModel:
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(dict(state))
    except Exception as error:  # architectures raise various errors on unknown weights
        raise UnknownModelError(f"spandrel does not know it ({type(error).__name__})") from error
    image = isinstance(descriptor, spandrel.ImageModelDescriptor) and descriptor.purpose in ("SR", "Restoration")
    if not image or (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ModelError(f"a {descriptor.architecture.name}, which does not turn RGB images into RGB images")
    kinds = {kind: name for name, kind in _classes(spandrel).items()}
    kind = type(descriptor.model)
    return SpandrelModel(descriptor.eval(), kinds.get(kind, kind.__name__))

"""Load a model to upscale with: a pretrained one, a model file, or an architecture that spandrel knows."""

from __future__ import annotations

import torch
from torch import nn

from andfast.models import ModelError, load_model
from andfast.models.own_models import OwnCodeError, load_own, split_class
from andfast.models.spandrel_models import read_with_spandrel
from andfast.models.weights import AmbiguousModelError, read_weights
from andfast.ops.precision import choose_precision
from andfast.pretrained import find_file, load_pretrained, pretrained_names
from andfast.utils.devices import Purpose


def find_model(name_or_file: str, device: str | torch.device = "cpu") -> nn.Module:
    """Load a pretrained model or a model file.

    RRDBNet and Compact files of any program are read by andfast itself, other architectures by spandrel if it is
    installed. No code from a file is ever run, and a user's class only where it is named.

    Args:
        name_or_file: one of `andfast.pretrained.pretrained_names()`, or a file, see `load_model`, or FILE@CLASS for one
            whose architecture is a user's class.
        device: where the model goes.

    Returns:
        A network in evaluation mode, (B, 3, h, w) to (B, 3, scale * h, scale * w), with the attribute `scale`.

    Raises:
        ModelError: no such model, or the file is not a model.
        OSError: the file cannot be read.
    """
    if name_or_file in pretrained_names():
        return load_pretrained(name_or_file, device)
    path = find_file(name_or_file)
    if (own := split_class(name_or_file)[1]) is not None:
        return load_own(path, own).to(device)
    try:
        return load_model(name_or_file, device)
    except (AmbiguousModelError, OwnCodeError):
        raise
    except ModelError as error:
        state, _ = read_weights(name_or_file)  # raises the same error if the file holds no weights
        return read_with_spandrel(name_or_file, state, error).to(device)


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

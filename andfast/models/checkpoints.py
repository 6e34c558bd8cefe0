"""Model files: generators that BasicSR, Real-ESRGAN, spandrel and andfast write for one another."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from andfast.models.compact import Compact
from andfast.models.rrdbnet import RRDBNet
from andfast.models.weights import SUFFIXES, ModelError, Shapes, UnknownModelError, portable, read_model, some
from andfast.utils.files import write_torch, written_whole

GENERATORS: dict[str, type[nn.Module]] = {"rrdbnet": RRDBNet, "compact": Compact}
"""The generators by the names that configurations and model files use."""


def build_generator(name: str, scale: int, **options: Any) -> nn.Module:
    """A new generator, with the initialisation of its class.

    Args:
        name: a key of `GENERATORS`: "rrdbnet" or "compact".
        scale: the upscaling factor.
        **options: further arguments of that class, as `blocks` or `convs`.

    Raises:
        ValueError: no such generator, or a value that it refuses.
        TypeError: an option that it does not know.
    """
    if name not in GENERATORS:
        raise ValueError(f"there is no generator {name!r}; there are {', '.join(GENERATORS)}")
    return GENERATORS[name](scale=scale, **options)


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, object] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a generator's weights, contiguous on the CPU, whole or not at all.

    `.safetensors` files hold the flat state dict; `.pth` and `.pt` files hold it under "params_ema", which is
    where BasicSR and Real-ESRGAN write and look for it. Both also carry a few strings that describe it, the
    latter under "metadata".

    Args:
        model: an `RRDBNet` or a `Compact`, wrapped by torch.compile or DistributedDataParallel or not.
        path: where to; its suffix chooses the format.
        metadata: more to record, turned into strings, beside what always is: the architecture, the scale, the
            version of andfast, and a Compact's activation.
        dtype: what the weights are rounded to.

    Raises:
        ValueError: another suffix.
        TypeError: `model` is no generator of andfast.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a model file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    for wrapped in ("_orig_mod", "module", "_orig_mod"):  # either may stand outside the other
        model = getattr(model, wrapped, model)
    record = describe_model(model, metadata)
    state = portable(model, dtype)
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            # Not save_file, whose errors of the disk are no OSError.
            temporary.write_bytes(save(state, record))
        else:
            write_torch({"params_ema": state, "metadata": record}, temporary)


def describe_model(model: nn.Module, metadata: Mapping[str, object] | None = None) -> dict[str, str]:
    """What is recorded beside a generator's weights; arguments as for `save_model`, but the model has no wrapper.

    Raises:
        TypeError: `model` is no generator of andfast.
    """
    names = [name for name, kind in GENERATORS.items() if isinstance(model, kind)]
    if not names:
        raise TypeError(f"cannot save a {type(model).__name__}: the generators are {', '.join(GENERATORS)}")
    record = {"architecture": names[0], "scale": model.scale, "andfast": _version()}
    if isinstance(model, Compact):
        record["activation"] = model.activation
    return {key: str(value) for key, value in (record | dict(metadata or {})).items()}


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """Read a generator from a file that andfast, BasicSR, ESRGAN, BSRGAN, Real-ESRGAN or a program like them wrote.

    The architecture and its size come from the names and shapes of the weights alone; only whether a Compact
    without PReLU has ReLU or LeakyReLU, which they cannot tell, comes from what `save_model` recorded.
    Reading never runs code from the file.

    Args:
        path: a `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin` file with the weights, flat or wherever training
            programs put them (`andfast.models.wrappers`); of several the moving average.
        device: where the model goes.

    Returns:
        An `RRDBNet` or a `Compact` in evaluation mode with float32 weights.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is not a model file, is damaged, or holds another architecture or one that does not
            turn RGB into RGB.
        OSError: it cannot be read.
    """
    return read_model(path, _recognise).eval().to(device)


def _recognise(shapes: Shapes, record: Mapping[str, str]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The architecture that the names and shapes describe, and its arguments."""
    if "conv_first.weight" in shapes and any(key.startswith("body.0.rdb1.") for key in shapes):
        return RRDBNet, _rrdbnet_options(shapes)
    if "body.0.weight" in shapes and len(shapes["body.0.weight"]) == 4:
        return Compact, _compact_options(shapes, record)
    raise UnknownModelError(
        f"an unknown architecture (its weights are called {some(shapes)}); known are RRDBNet "
        "(ESRGAN, BSRGAN, Real-ESRGAN) and Compact (SRVGGNetCompact)"
    )


def _rrdbnet_options(shapes: Shapes) -> dict[str, Any]:
    features, channels = shapes["conv_first.weight"][0], shapes["conv_first.weight"][1]
    scales = {3: 4, 12: 2, 48: 1}
    outputs = shapes["conv_last.weight"][0]
    if channels not in scales or outputs != 3:
        raise ModelError(
            f"an RRDBNet with {channels} input and {outputs} output channels; from RGB to RGB they are 3 "
            "(x4), 12 (x2) or 48 (x1), and 3"
        )
    return {
        "scale": scales[channels],
        "features": features,
        "blocks": sum(bool(re.fullmatch(r"body\.\d+\.rdb1\.conv1\.weight", key)) for key in shapes),
        "growth": shapes["body.0.rdb1.conv1.weight"][0],
    }


def _compact_options(shapes: Shapes, record: Mapping[str, str]) -> dict[str, Any]:
    features, channels = shapes["body.0.weight"][0], shapes["body.0.weight"][1]
    convs = [key for key, shape in shapes.items() if re.fullmatch(r"body\.\d+\.weight", key) and len(shape) == 4]
    outputs = shapes[max(convs, key=lambda key: int(key.split(".")[1]))][0]
    scale = math.isqrt(outputs // 3)
    if channels != 3 or scale < 1 or 3 * scale**2 != outputs:
        raise ModelError(
            f"a Compact with {channels} input and {outputs} last channels; from RGB to RGB they are 3, and 3 "
            "times the scale squared"
        )
    activation = "prelu" if "body.1.weight" in shapes else record.get("activation")
    if activation not in ("prelu", "relu", "leakyrelu"):
        raise ModelError(
            "a Compact whose activation has no weights, and the file does not say if it is relu or "
            "leakyrelu; load it into Compact(..., activation=...) yourself and write that with save_model, "
            "which records it"
        )
    return {"scale": scale, "features": features, "convs": len(convs) - 2, "activation": activation}


def _version() -> str:
    try:
        return version("andfast")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"

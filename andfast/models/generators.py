"""Build generators, and read and write their files: those of BasicSR, Real-ESRGAN, ESRGAN, BSRGAN and spandrel, too."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import nn

from andfast.models.compact import Compact
from andfast.models.own_models import OwnModel, check_not_own
from andfast.models.rrdbnet import RRDBNet
from andfast.models.spandrel_models import PREFIX, SpandrelModel
from andfast.models.weights import SUFFIXES, ModelError, Shapes, UnknownModelError, portable, read_model, some
from andfast.utils.files import write_torch, written_whole
from andfast.utils.optional import version

GENERATORS: dict[str, type[nn.Module]] = {"rrdbnet": RRDBNet, "compact": Compact}
"""The generators by the names that configurations and model files use."""

Value = TypeVar("Value")

# Names of the modules in BSRGAN, RealSR and the later ESRGAN.
_BSRGAN = {
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "upconv3": "conv_up3",
    "HRconv": "conv_hr",
}
_BSRGAN_BLOCK = re.compile(r"RRDB_trunk\.(\d+)\.RDB([123])\.(conv[1-5]\.\w+)")

# The first ESRGAN numbers its layers. Each upsampling, which has no weights, is followed by a convolution and an
# activation: the convolutions are 3 and 6 for a scale of 4, and 9 as well for a scale of 8.
_NUMBERED = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
_NUMBERED_X8 = {**_NUMBERED, "9": "conv_up3", "11": "conv_hr", "13": "conv_last"}
_NUMBERED_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB([123])\.(conv[1-5])\.0\.(\w+)")
_NUMBERED_LAST = re.compile(r"model\.1\.sub\.\d+\.(\w+)")


def build_generator(name: str, scale: int, **options: Any) -> nn.Module:
    """Build a new generator.

    Args:
        name: a key of `GENERATORS`: "rrdbnet" or "compact".
        scale: the upscaling factor.
        **options: further arguments of that class, as `blocks` or `convs`.

    Raises:
        ValueError: an unknown generator, or an invalid value.
        TypeError: an unknown option.
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
    """Write a generator's weights, whole or not at all.

    `.safetensors` files hold the flat state dict and the metadata; `.pth` and `.pt` files hold them under "params_ema",
    as BasicSR and Real-ESRGAN do, and "metadata".

    Args:
        model: an `RRDBNet`, `Compact`, `SpandrelModel` or `OwnModel`; it may be wrapped by torch.compile or
            DistributedDataParallel.
        path: the file; its suffix chooses the format.
        metadata: recorded as strings, beside those of `describe_model`.
        dtype: the type that floating-point weights are rounded to.

    Raises:
        ValueError: another suffix.
        TypeError: `model` is not a generator of andfast.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a model file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    for wrapped in ("_orig_mod", "module", "_orig_mod"):  # in either order
        model = getattr(model, wrapped, model)
    record = describe_model(model, metadata)
    state = portable(model, dtype)
    with written_whole(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            # save_file does not raise OSError if the disk is full.
            temporary.write_bytes(save(state, record))
        else:
            write_torch({"params_ema": state, "metadata": record}, temporary)


def describe_model(model: nn.Module, metadata: Mapping[str, object] | None = None) -> dict[str, str]:
    """The metadata of a generator's file: architecture, scale, version of andfast, the activation of a Compact,
    and the options of a user's class.

    Raises:
        TypeError: `model` is not a generator of andfast, or is wrapped.
    """
    record = {
        "architecture": architecture_name(model), "scale": model.scale, "andfast": version("andfast") or "unknown"
    }  # fmt: skip
    if isinstance(model, Compact):
        record["activation"] = model.activation
    if isinstance(model, OwnModel):
        record["options"] = json.dumps(model.options)
    return {key: str(value) for key, value in (record | dict(metadata or {})).items()}


def architecture_name(model: nn.Module) -> str:
    """A generator's `generator.name`; raises TypeError if it is none of andfast or spandrel."""
    if isinstance(model, SpandrelModel):
        return PREFIX + model.architecture
    if isinstance(model, OwnModel):
        return model.architecture
    names = [name for name, kind in GENERATORS.items() if isinstance(model, kind)]
    if not names:
        raise TypeError(
            f"a {type(model).__name__} is no generator: they are {', '.join(GENERATORS)}, and those of spandrel"
        )
    return names[0]


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """Read a generator from a file of andfast, BasicSR, ESRGAN, BSRGAN, Real-ESRGAN or similar programs.

    The architecture and its size follow from the names and shapes of the weights, except whether a Compact without
    PReLU has ReLU or LeakyReLU: `save_model` records that. Code from the file is never run.

    Args:
        path: a `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin` file; weights may be nested as training programs do
            (see `andfast.models.weights.candidates`); of several networks the moving average is read.
        device: where the model goes.

    Returns:
        An `RRDBNet` or a `Compact` in evaluation mode with float32 weights.

    Raises:
        FileNotFoundError: no such file.
        ModelError: not a model file, a damaged one, another architecture, or not from RGB to RGB.
        OSError: the file cannot be read.
    """
    return read_model(path, _recognise, standard_names).eval().to(device)


def _recognise(shapes: Shapes, record: Mapping[str, str]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The architecture of weights with these names and shapes, and its arguments."""
    check_not_own(record)
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
    scales = {3: 8 if "conv_up3.weight" in shapes else 4, 12: 2, 48: 1}
    outputs = shapes["conv_last.weight"][0]
    if channels not in scales or outputs != 3:
        raise ModelError(
            f"an RRDBNet with {channels} input and {outputs} output channels; from RGB to RGB they are 3 "
            "(x4, x8), 12 (x2) or 48 (x1), and 3"
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
            "a Compact whose activation has no weights, and the file does not say if it is relu or leakyrelu; load it "
            "into Compact(..., activation=...) yourself and write that with save_model, which records it"
        )
    return {"scale": scale, "features": features, "convs": len(convs) - 2, "activation": activation}


def standard_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the weights of an RRDBNet from BSRGAN's or ESRGAN's names to `RRDBNet`'s; keep all other names."""
    if any(key.startswith("RRDB_trunk.") for key in state):
        return {_from_bsrgan(key): value for key, value in state.items()}
    if any(_NUMBERED_BLOCK.fullmatch(key) for key in state):
        names = _NUMBERED_X8 if "model.13.weight" in state else _NUMBERED
        return {_from_numbered(key, names): value for key, value in state.items()}
    return dict(state)


def _from_bsrgan(key: str) -> str:
    block = _BSRGAN_BLOCK.fullmatch(key)
    if block:
        return f"body.{block[1]}.rdb{block[2]}.{block[3]}"
    module, dot, rest = key.partition(".")
    return _BSRGAN.get(module, module) + dot + rest


def _from_numbered(key: str, names: Mapping[str, str]) -> str:
    block, last = _NUMBERED_BLOCK.fullmatch(key), _NUMBERED_LAST.fullmatch(key)
    if block:
        return f"body.{block[1]}.rdb{block[2]}.{block[3]}.{block[4]}"
    if last:
        return f"conv_body.{last[1]}"
    model, _, rest = key.partition(".")
    number, _, name = rest.partition(".")
    return f"{names[number]}.{name}" if model == "model" and number in names else key

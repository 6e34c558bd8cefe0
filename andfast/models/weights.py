"""Files of weights, whoever wrote them: how they are read, and how a network takes them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from andfast.models.dialects import standard_names

SUFFIXES = (".safetensors", ".pth", ".pt")

# Under which keys training programs keep the weights, the preferred one (the moving average) first.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict")
# What DistributedDataParallel and torch.compile put in front of every name.
_PREFIXES = ("module.", "_orig_mod.")


class ModelError(ValueError):
    """A file that is not a model that andfast can run; the message names it and says what would be right."""


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights in a file, on the CPU, and what is recorded beside them. Reading never runs code from the file.

    Args:
        path: a `.safetensors`, `.pth` or `.pt` file with the weights, flat or under "params_ema", "params" or
            "state_dict"; of several, the first of these.

    Returns:
        Tensors by name, without what DistributedDataParallel and torch.compile put in front; and the strings that
        describe them, none where there are none.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is no file of weights, or is damaged.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model is a {', '.join(SUFFIXES)} file")
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path}: not a model file; give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)


Shapes = Mapping[str, tuple[int, ...]]
Recognise = Callable[[Shapes, Mapping[str, str]], tuple[type[nn.Module], dict[str, Any]]]
"""(the weights' shapes by name, what is recorded beside them) -> the architecture and its arguments; `ModelError`
where it is none that is known."""


def read_model(path: str | os.PathLike[str], recognise: Recognise) -> nn.Module:
    """The network whose weights are in a file, in its own types, on the CPU; errors are those of `read_weights`, and:

    Raises:
        ModelError: it is not recognised, or its weights are not what it was recognised as.
    """
    state, record = read_weights(path)
    state = standard_names(state)
    try:
        model = _empty_model_for(state, record, recognise)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    own = model.state_dict()
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, assign=True)
    return model.requires_grad_()


def _empty_model_for(state: Mapping[str, Tensor], record: Mapping[str, str], recognise: Recognise) -> nn.Module:
    """The architecture that `state` describes, on the meta device: without memory."""
    try:
        kind, options = recognise({key: tuple(value.shape) for key, value in state.items()}, record)
    except KeyError as error:
        raise ModelError(f"the weights are incomplete: {error} is missing") from None
    except (IndexError, TypeError) as error:  # a tensor of another rank than its name says
        raise ModelError(f"the weights do not have the shapes of a convolutional network ({error})") from None
    try:
        with torch.device("meta"):
            model = kind(**options)
    except ValueError as error:
        raise ModelError(f"the weights do not make a {kind.__name__}: {error}") from None
    wrong = wrong_weights(model.state_dict(), state)
    if wrong:
        built = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ModelError(
            f"looks like {kind.__name__}({built}), but of the weights {len(wrong)} are missing, too many or "
            f"of another shape: {some(wrong)}"
        )
    check_floating(model.state_dict(), state)
    return model


def wrong_weights(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The names of weights that a network (its own: `own`) lacks in `state`, does not know, or has in another shape."""
    shapes, found = ({key: value.shape for key, value in weights.items()} for weights in (own, state))
    return sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))


def check_floating(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse whole numbers in `state` where a network has none.

    Raises:
        ModelError: there are some.
    """
    if any(value.is_floating_point() and not state[key].is_floating_point() for key, value in own.items()):
        raise ModelError("its weights are whole numbers; quantised models are not supported")


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """`safe_open`, which refuses paths that are not UTF-8: such a file is opened by its number.

    Raises:
        SafetensorError: it is no safetensors file, or truncated.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            path = Path(f"/dev/fd/{file.fileno()}")
        with safe_open(path, framework="pt") as opened:
            yield opened


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with open_safetensors(path) as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            return _without_prefixes(state), file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file, or truncated ({_first_sentence(error)})") from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what becomes an error here, or needs no attention
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    # What PyTorch's reader raises on damaged or foreign bytes is not documented: UnpicklingError, EOFError,
    # RuntimeError and OSError among others.
    except Exception as error:
        raise ModelError(
            f"{path}: not a file of PyTorch weights, or truncated, or with objects other than weights in it, "
            f"which are never loaded because they can run code ({_first_sentence(error)})"
        ) from error
    record = content.get("metadata") if isinstance(content, dict) else None
    for _ in range(3):  # wrappers inside wrappers, but never endless: a dict can hold itself
        if isinstance(content, dict):
            content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    named = isinstance(content, dict) and all(isinstance(key, str) for key in content)
    tensors = named and all(isinstance(value, Tensor) for value in content.values())
    if not tensors or not content:
        raise ModelError(
            f"{path}: holds no model weights; expected are tensors by name, flat or under one of "
            + ", ".join(_WRAPPERS)
        )
    return _without_prefixes(content), record if isinstance(record, dict) else {}


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    for prefix in _PREFIXES * 2:  # either may stand outside the other
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def portable(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A network's weights as files hold them: contiguous, on the CPU, under the names of no wrapper; floating ones in
    `dtype`."""
    # A model compiled block by block has the wrapper's prefix inside its names.
    state = {key.replace("_orig_mod.", ""): value.detach() for key, value in model.state_dict().items()}
    return {
        key: value.to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for key, value in _without_prefixes(state).items()
    }


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__

"""Files of weights, whoever wrote them: how they are read, and how a network takes them."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from andfast.models.dialects import standard_names
from andfast.models.pickles import Inert, load_inert
from andfast.models.wrappers import Place, flattened, places, split, unwrapped

#: What models are written as, by their suffixes, and what else is read.
SUFFIXES = (".safetensors", ".pth", ".pt")
READABLE = (*SUFFIXES, ".ckpt", ".bin")

# What to do with files that hold more than weights.
_HOW = "in the program that wrote it, torch.save(model.state_dict(), FILE) writes one that is read"

# What is saved in the place of a model, by how it begins.
_FOREIGN = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}

_ALONE = "write the one that is meant to a file of its own"

Fitted = TypeVar("Fitted")


class ModelError(ValueError):
    """A file that is not a model that andfast can run; the message names it and says what would be right."""


class UnknownModelError(ModelError):
    """The weights are those of no architecture that is known."""


class AmbiguousModelError(ModelError):
    """There are several networks, and nothing says which is meant."""


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors in a file, on the CPU, and what is recorded beside them. Reading never runs code from the file.

    Args:
        path: a `.safetensors` file, or one that PyTorch wrote: `.pth`, `.pt`, `.ckpt` or `.bin`.

    Returns:
        Tensors by name, those in dicts by the keys and the name, joined by dots; which of them are a network's is for
        `fit` to find. And the strings that describe them, none where there are none.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is no file of weights, or is damaged.
        OSError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model is a {', '.join(READABLE)} file")
    if path.suffix.lower() not in READABLE:
        raise ModelError(f"{path}: not a model file; give a {', '.join(READABLE[:-1])} or {READABLE[-1]} file")
    with path.open("rb") as file:
        start, size = file.read(64), os.fstat(file.fileno()).st_size
    for found, what in _FOREIGN.items():
        if start.lstrip().lower().startswith(found):
            raise ModelError(f"{path}: {what}, not the model itself; download it anew")
    if not size:
        raise ModelError(f"{path}: an empty file, or truncated")
    # Downloads are often named by the wrong suffix.
    by_torch = start.startswith((b"PK\x03\x04", b"\x80"))
    by_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size
    if by_safetensors or (path.suffix.lower() == ".safetensors" and not by_torch):
        return _read_named_safetensors(path)
    return _read_pickle(path)


def fit(state: dict[str, Tensor], take: Callable[[dict[str, Tensor]], Fitted]) -> Fitted:
    """What `take` makes of a network's weights, wherever in a file they stand: see `andfast.models.wrappers.places`.

    Args:
        state: all tensors of the file, as `read_weights` gives them.
        take: is given those of one place after the other, by their names there; raises ModelError where they are not
            what it wants.

    Raises:
        AmbiguousModelError: there are two that are as good.
        UnknownModelError: there is none, or but one whose place does not say that it is the file's network.
        ModelError: it is damaged, or not what is wanted of its kind.
    """
    seen: list[Place] = []
    problems: list[ModelError] = []
    for equals in places(state):
        found = {}
        for place in equals:
            try:
                found[place.name] = take(place.state)
            except ModelError as error:
                problems.append(error)
        if len(found) > 1:
            raise AmbiguousModelError(f"holds several networks, {', '.join(found)}; {_ALONE}")
        if found:
            return found.popitem()[1]
        seen += equals
    others = []
    for part in (part for place in seen for part in split(place).values()):
        with suppress(ModelError):
            take(part.state)
            others.append(part.name)
    if others:
        raise UnknownModelError(f"holds a network under {' and under '.join(others)}, beside others; {_ALONE}")
    raise next((error for error in problems if not isinstance(error, UnknownModelError)), problems[0])


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

    def take(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], nn.Module]:
        state = standard_names(state)
        return state, _empty_model_for(state, record, recognise)

    try:
        state, model = fit(state, take)
    except ModelError as error:
        raise type(error)(f"{path}: {error}") from None
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
    """Refuse whole numbers in `state` where a network has none, and weights that are no numbers.

    Raises:
        ModelError: there are some.
    """
    if any(value.is_meta for value in state.values()):
        raise ModelError("its weights have no values (they are on the meta device)")
    if any(value.layout != torch.strided or value.is_complex() for value in state.values()):
        raise ModelError("its weights are sparse or complex; wanted are plain numbers")
    if any(value.is_floating_point() and not state[key].is_floating_point() for key, value in own.items()):
        raise ModelError("its weights are whole numbers; quantised models are not supported")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file, and what is recorded beside them.

    It is read, not mapped into memory as by `safetensors.safe_open`: some mounted folders have no memory maps, and that
    takes no names that are not UTF-8.

    Raises:
        SafetensorError: it is no safetensors file, or truncated.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    state = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return state, header.get("__metadata__", {})


def _read_named_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state, record = read_safetensors(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file, or truncated ({_first_sentence(error)})") from error
    return _named(path, state), record


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what becomes an error here, or needs no attention
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # there may be objects beside the weights; TorchScript is another error
                content = load_inert(path)
    except (PermissionError, MemoryError):
        raise
    # What PyTorch's reader raises on damaged or foreign bytes is not documented: UnpicklingError, EOFError,
    # RuntimeError and OSError among others.
    except Exception as error:
        raise ModelError(
            f"{path}: not a file of PyTorch weights, or truncated, or with programs in it, "
            f"which are never loaded because they can run code ({_first_sentence(error)}); {_HOW}"
        ) from error
    record = content.get("metadata") if isinstance(content, dict) else None
    return _named(path, content), record if isinstance(record, dict) else {}


def _named(path: Path, content: object) -> dict[str, Tensor]:
    state = flattened(content)
    if not state:
        training = isinstance(content, dict) and any(str(key).startswith("optimizer") for key in content)
        whole = isinstance(content, Inert)
        raise ModelError(
            f"{path}: holds no model weights; expected are tensors by name, flat or in a dict such as params_ema"
            + ("; this is the state of a training, whose model is another file" if training else "")
            + (f"; this is a whole module, whose code is never run: {_HOW}" if whole else "")
        )
    return state


def portable(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A network's weights as files hold them: contiguous, on the CPU, under the names of no wrapper; floating ones in
    `dtype`."""
    # A model compiled block by block has the wrapper's prefix inside its names.
    state = {unwrapped(key).removeprefix("module."): value.detach() for key, value in model.state_dict().items()}
    return {
        key: value.to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for key, value in state.items()
    }


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__

"""Read files of weights of any program without running their code, and find the network in them."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from andfast.utils.formatting import counted

#: The suffixes of model files that are written, and those that are read.
SUFFIXES = (".safetensors", ".pth", ".pt")
READABLE = (*SUFFIXES, ".ckpt", ".bin")

# The remedy for files that hold more than weights.
_HOW = "in the program that wrote it, torch.save(model.state_dict(), FILE) writes one that is read"

# Files that are saved instead of a model by mistake, by their first bytes.
_FOREIGN = {
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}

_ALONE = "write the one that is meant to a file of its own"

# Names of networks in files, preferred names first: moving averages, BasicSR's weights, generators, general names,
# discriminators. Names on one line have the same rank; case does not matter.
_NAMES = (
    "params_ema",
    "params-ema",
    "ema ema_params ema_state_dict state_dict_ema model_ema ema_model ema_net "
    "generator_ema ema_generator net_g_ema netG_ema g_ema net_ema shadow",
    "params",
    "generator netG net_g G gen params_g state_dict_g model_g generator_model netG_state_dict generator_state_dict "
    "g_state_dict",
    "state_dict",
    "model_state_dict",
    "model net network weights module online_model sr_model model_state net_state_dict network_state_dict",
    "discriminator netD net_d D discriminator_model discriminator_state_dict d_state_dict netD_state_dict",
)
_RANKS = {name.lower(): rank for rank, names in enumerate(_NAMES) for name in names.split()}

# Inserted into names by torch.compile, FSDP and activation checkpointing.
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

_DEEPEST = 6  # levels of nesting; a dict can contain itself

# The classes and functions that make tensors and parameters; torch.load handles storages itself.
_TENSORS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}

# Modules that only a malicious file refers to.
_SUSPICIOUS = {
    "_io", "asyncio", "code", "commands", "ctypes", "importlib", "io", "multiprocessing", "nt", "os", "posix",
    "pty", "runpy", "shutil", "socket", "subprocess", "sys", "webbrowser",
}  # fmt: skip
_SUSPICIOUS_BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"}

Fitted = TypeVar("Fitted")


class ModelError(ValueError):
    """A file that is not a model andfast can run; the message names the file and the remedy."""


class UnknownModelError(ModelError):
    """The weights belong to no known architecture."""


class AmbiguousModelError(ModelError):
    """A file holds several equally likely networks."""


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors in a file, on the CPU, and its metadata. Code from the file is never run.

    The names of nested tensors are their keys joined with dots; `fit` finds the network among them.

    Raises:
        FileNotFoundError: no such file.
        ModelError: not a file of weights, or a damaged one.
        OSError: the file cannot be read.
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
    # Downloads often have the wrong suffix.
    by_torch = start.startswith((b"PK\x03\x04", b"\x80"))
    by_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size
    if not by_safetensors and (by_torch or path.suffix.lower() != ".safetensors"):
        return _read_pickle(path)
    try:
        state, record = read_safetensors(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file, or truncated ({_first_sentence(error)})") from error
    return _named(path, state), record


def fit(state: dict[str, Tensor], take: Callable[[dict[str, Tensor]], Fitted]) -> Fitted:
    """Find the network among all tensors of a file, and return what `take` makes of its weights.

    `take` is called with the weights of each of `candidates`; it raises ModelError if it does not know the network.

    Raises:
        AmbiguousModelError: two candidates are equally good.
        UnknownModelError: there is no network, or only one beside others under an unknown name.
        ModelError: the network is damaged, or not of the wanted kind.
    """
    tried: list[Candidate] = []
    problems: list[ModelError] = []
    for equals in candidates([Candidate("", state)]):
        found = {}
        for candidate in equals:
            try:
                found[candidate.name] = take(candidate.state)
            except ModelError as error:
                problems.append(error)
        if len(found) > 1:
            raise AmbiguousModelError(f"holds several networks, {', '.join(found)}; {_ALONE}")
        if found:
            return found.popitem()[1]
        tried += equals
    others = []
    for part in (part for candidate in tried for part in split(candidate).values()):
        with suppress(ModelError):
            take(part.state)
            others.append(part.name)
    if others:
        raise UnknownModelError(f"holds a network under {' and under '.join(others)}, beside others; {_ALONE}")
    raise next((error for error in problems if not isinstance(error, UnknownModelError)), problems[0])


Shapes = Mapping[str, tuple[int, ...]]
Recognise = Callable[[Shapes, Mapping[str, str]], tuple[type[nn.Module], dict[str, Any]]]
"""(shapes by name, metadata) -> the architecture and its arguments; raises `ModelError` if it is unknown."""

Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Weights under another program's names -> under ours."""


def read_model(path: str | os.PathLike[str], recognise: Recognise, rename: Rename = dict) -> nn.Module:
    """Build the network whose weights are in a file, on the CPU, in the types that it is built with.

    Raises:
        ModelError: it is not recognised, or its weights do not fit the recognised network; and as `read_weights`.
    """
    state, record = read_weights(path)

    def take(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], nn.Module]:
        state = rename(state)
        return state, _empty_model_for(state, record, recognise)

    try:
        state, model = fit(state, take)
    except ModelError as error:
        raise type(error)(f"{path}: {error}") from None
    own = model.state_dict()
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, assign=True)
    return model.requires_grad_()


def _empty_model_for(state: Mapping[str, Tensor], record: Mapping[str, str], recognise: Recognise) -> nn.Module:
    """Build the architecture of `state` on the meta device, without memory."""
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
    built = ", ".join(f"{key}={value}" for key, value in options.items())
    _check_weights(model.state_dict(), state, f"looks like {kind.__name__}({built}), but ")
    return model


def read_exactly(
    path: str | os.PathLike[str], own: Mapping[str, Tensor], prefix: str, wanted: str, problem: str = ""
) -> dict[str, Tensor]:
    """Read the weights whose names begin with `prefix`; they must be those of a network's state dict, `own`.

    Args:
        path: see `read_weights`.
        own: only its names, shapes and kinds of numbers matter.
        prefix: selects the weights.
        wanted: ends every error message; says where the right file is found.
        problem: begins the message about missing weights and wrong shapes.

    Raises:
        ModelError: other weights; and as `read_weights`.
    """

    def take(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {key: value for key, value in state.items() if key.startswith(prefix)}
        _check_weights(own, state, problem)
        return state

    try:
        state, _ = read_weights(path)
    except (FileNotFoundError, ModelError) as error:
        raise type(error)(f"{error}. {wanted}") from error
    try:
        return fit(state, take)
    except ModelError as error:
        raise ModelError(f"{path}: {error}. {wanted}") from None


def _check_weights(own: Mapping[str, Tensor], state: Mapping[str, Tensor], problem: str) -> None:
    """Refuse weights that do not fit a network's state dict, `own`; `problem` begins the message about shapes."""
    shapes, found = ({key: value.shape for key, value in weights.items()} for weights in (own, state))
    wrong = sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))
    if wrong:
        raise ModelError(
            f"{problem}{counted(len(wrong), 'weight')} missing, too many or of another shape: {some(wrong)}"
        )
    if any(value.is_meta for value in state.values()):
        raise ModelError("its weights have no values (they are on the meta device)")
    if any(value.layout != torch.strided or value.is_complex() for value in state.values()):
        raise ModelError("its weights are sparse or complex; wanted are plain numbers")
    if any(value.is_floating_point() and not state[key].is_floating_point() for key, value in own.items()):
        raise ModelError("its weights are whole numbers; quantised models are not supported")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file; raises SafetensorError if it is damaged."""
    # Not safetensors.safe_open, which fails without memory maps (on some mounted folders) and on file names that are
    # not UTF-8.
    content = path.read_bytes()
    state = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return state, header.get("__metadata__", {})


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these become errors below, or do not matter
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # perhaps objects beside the weights; TorchScript raises another error
                content = load_inert(path)
    except (PermissionError, MemoryError):
        raise
    # torch.load raises undocumented errors on damaged files: UnpicklingError, EOFError, RuntimeError, OSError, ...
    except Exception as error:
        raise ModelError(
            f"{path}: not a file of PyTorch weights, or truncated, or with programs in it, "
            f"which are never loaded because they can run code ({_first_sentence(error)}); {_HOW}"
        ) from error
    record = content.get("metadata") if isinstance(content, dict) else None
    return _named(path, content), record if isinstance(record, dict) else {}


def _named(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors in nested dicts, by their keys joined with dots and `unwrapped`."""
    state = {unwrapped(name): value for name, value in _tensors(content, "", _DEEPEST)}
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
    """Copy a network's weights for a file: contiguous, on the CPU, named without wrappers, floats in `dtype`.

    They are those of its `portable_state()`, if it has one, instead of `state_dict()`.
    """
    # A model compiled block by block has the prefix inside its names.
    found = getattr(model, "portable_state", model.state_dict)()
    state = {unwrapped(key).removeprefix("module."): value.detach() for key, value in found.items()}
    return {
        key: value.to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for key, value in state.items()
    }


def some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__


class Candidate(NamedTuple):
    """A part of a file that may be a network: its prefix in the file, "" for the whole, and its weights without it."""

    name: str
    state: dict[str, Tensor]


def unwrapped(name: str) -> str:
    """Remove what PyTorch's wrappers insert into a weight's name."""
    for part in _WITHIN:
        name = name.replace(part, "")
    return name


def _tensors(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items() if isinstance(content, Mapping) and depth else ():
        if isinstance(key, str):
            if isinstance(value, Tensor):
                yield prefix + key, value
            else:
                yield from _tensors(value, f"{prefix}{key}.", depth - 1)


def candidates(equals: list[Candidate], depth: int = _DEEPEST) -> Iterator[list[Candidate]]:
    """Yield equally likely candidates, and then the parts of them that may be a network, most likely first.

    Training programs nest weights in dicts ({"params_ema": ...}) or prefix their names with an attribute
    ("generator.conv_first.weight"); here both are the same. The whole comes first, as a prefix of one architecture
    ("model.") is a part of another. Then the parts with a known prefix, or with the only prefix.
    """
    yield equals
    if depth == 0:
        return
    inside: dict[int, list[Candidate]] = {}
    for candidate in equals:
        parts = split(candidate)
        for name, part in parts.items():
            rank = _RANKS.get(name.lower(), len(_NAMES) if len(parts) == 1 else None)
            if rank is not None:
                inside.setdefault(rank, []).append(part)
    for rank in sorted(inside):
        yield from candidates(inside[rank], depth - 1)


def split(whole: Candidate) -> dict[str, Candidate]:
    """The parts of a candidate by prefix."""
    parts: dict[str, Candidate] = {}
    for key, value in whole.state.items():
        name, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(name, Candidate(f"{whole.name}.{name}".lstrip("."), {})).state[rest] = value
    return parts


class Inert:
    """Replaces classes, functions and objects of a pickle, so that nothing of them is run.

    Lightning stores hyper-parameters and callbacks beside the weights, mmengine its history, others NumPy's numbers.
    """

    dump_patches = False  # read by torch.load in modules of PyTorch before 1.6

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:
        return self

    def ignore(self, *_: Any) -> None:
        pass

    # The methods that a pickle calls on objects.
    __setstate__ = __setitem__ = append = extend = add = update = ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSORS:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.partition(".")[0] in _SUSPICIOUS or (
            module in ("builtins", "__builtin__") and name in _SUSPICIOUS_BUILTINS
        ):
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return Inert


def load_inert(path: Path) -> Any:
    """Read a file of `torch.save`, with `Inert` in place of everything but plain values, tensors and parameters."""
    with path.open("rb") as file:
        module = SimpleNamespace(
            Unpickler=_Unpickler, load=lambda *values, **named: _Unpickler(*values, **named).load(), __name__="pickle"
        )
        try:
            return torch.load(file, map_location="cpu", pickle_module=module, weights_only=False)
        except MemoryError as error:  # a damaged length: torch's own loader has read valid ones before
            raise pickle.UnpicklingError("it claims more than fits the memory") from error

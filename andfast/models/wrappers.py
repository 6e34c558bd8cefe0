"""Where in a file the weights of a network stand: under which keys, behind which prefixes.

Training programs keep weights in dicts ({"params_ema": ...}), name them by the attribute that held the network
("generator.conv_first.weight"), or both. Here a dict in a dict and a dot in a name are the same. What wraps the network
in one file is a part of it in another ("model.0.weight"), so that names only say where to look first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

# What networks are called, the preferred names first: moving averages, BasicSR's weights, then a program's generator,
# and last what says nothing of what it holds. Names of one line are equals, and so are
# capital and small letters.
_NAMES = (
    "params_ema params-ema ema ema_params ema_state_dict state_dict_ema model_ema ema_model ema_net "
    "generator_ema ema_generator net_g_ema netG_ema g_ema net_ema shadow",
    "params",
    "generator netG net_g G gen params_g state_dict_g model_g generator_model netG_state_dict generator_state_dict "
    "g_state_dict",
    "state_dict model_state_dict model net network weights module online_model sr_model model_state "
    "net_state_dict network_state_dict",
    "discriminator netD net_d D discriminator_model discriminator_state_dict d_state_dict netD_state_dict",
)
_RANKS = {name.lower(): rank for rank, names in enumerate(_NAMES) for name in names.split()}

# What torch.compile, FSDP and the checkpointing of activations put into names.
_WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

# The equals among which training programs themselves have an order.
_FIRST = ("params_ema", "params-ema", "state_dict", "model_state_dict")

_DEEPEST = 6  # wrappers within wrappers, never endless: a dict can hold itself


class Place(NamedTuple):
    """A part of a file that may be a network.

    Attributes:
        name: its keys and prefixes, "" for all of the file.
        state: its weights, by the names that they have there.
    """

    name: str
    state: dict[str, Tensor]


def flattened(content: Any) -> dict[str, Tensor]:
    """All tensors of nested dicts by their keys, joined by dots; what is no tensor, or has no name, is left out.

    The names are `unwrapped`.
    """
    return {unwrapped(name): value for name, value in _tensors(content, "", _DEEPEST)}


def unwrapped(name: str) -> str:
    """A weight's name without what PyTorch's own wrappers put into it."""
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


def places(state: dict[str, Tensor], depth: int = _DEEPEST) -> Iterator[list[Place]]:
    """Where a network may stand, the likeliest places first, those that are as likely together.

    All of the file comes first: a name that wraps in one architecture is a part of the other. Then what stands behind a
    known name; or behind any, if nothing stands beside it.
    """
    yield from _places([Place("", state)], depth)


def _places(equals: list[Place], depth: int) -> Iterator[list[Place]]:
    yield equals
    if depth == 0:
        return
    inside: dict[tuple[int, ...], list[Place]] = {}
    for place in equals:
        parts = split(place)
        for name, part in parts.items():
            rank = _RANKS.get(name.lower(), len(_NAMES) if len(parts) == 1 else None)
            if rank is not None:
                order = _FIRST.index(name.lower()) if name.lower() in _FIRST else len(_FIRST)
                inside.setdefault((rank, order), []).append(part)
    for key in sorted(inside):
        yield from _places(inside[key], depth - 1)


def split(place: Place) -> dict[str, Place]:
    """The parts of a place by the first of their names."""
    parts: dict[str, Place] = {}
    for key, value in place.state.items():
        name, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(name, Place(f"{place.name}.{name}".lstrip("."), {})).state[rest] = value
    return parts

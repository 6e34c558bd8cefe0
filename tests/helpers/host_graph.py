"""A stand-in for CUDA graphs on the CPU: it repeats the recorded operations on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from andfast.attack.base import SearchResult

WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")
RANDOM = ("random_", "rand", "randn", "normal_", "uniform_")


class Tape(TorchDispatchMode):
    """Records operations; refuses those that a CUDA graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or name in RANDOM:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


class HostGraph:
    """Repeats the operations of a function on the memory that they had."""

    room = True

    def record(self, function: Callable[[], SearchResult]) -> SearchResult:
        with Tape() as tape:
            result = function()
        self._operations = tape.operations
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self._operations:
            for new, old in zip(tree_iter(func(*args, **kwargs)), tree_iter(recorded), strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.detach().copy_(new)

    @classmethod
    def has_room(cls, device: torch.device) -> bool:
        return cls.room

    @staticmethod
    def wait(device: torch.device) -> None:
        pass

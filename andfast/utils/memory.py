"""How much memory operations take, how much there is, and what it looks like when it runs out."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the memory of the tensors that operations make, while they live. Views of a tensor share its memory.

    Attributes:
        live: bytes there are now.
        peak: bytes there were at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, Callable[[], object] | None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def know(self, tensor: Tensor) -> Tensor:
        """Leave a tensor out of the count, in which it is if it was made while this counts."""
        storage = tensor.untyped_storage()
        forget = self._known.get(storage)
        if forget is not None:
            forget()
        self._known[storage] = None
        return tensor

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        # When the storage goes, unless it is called before.
        self._known[storage] = weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(found + _left_in_container(), default=None)


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a container (Linux's control groups, version 2) may still take, where its memory is limited."""
    try:
        most, taken = ((folder / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        counts = [line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    cached = sum(int(count) for name, count in counts if name == "file")  # counts as taken, but gives way
    return [] if most == "max" else [max(int(most) - int(taken) + cached, 0)]


# How the allocators that raise no error of their own kind begin.
_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of the device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)

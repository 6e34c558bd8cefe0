"""Memory: measure what operations take and what is free, recognise errors, and reuse the host's."""

from __future__ import annotations

import ctypes
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live: `live` now, and `peak`.

    Views of a tensor share its memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._counted: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        storages = (tensor.untyped_storage() for tensor in tree_iter(result) if isinstance(tensor, Tensor))
        for storage in storages:
            if storage not in self._counted:
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                self._counted.add(storage)
                weakref.finalize(storage, self._forget, size)
        return result

    def _forget(self, size: int) -> None:
        self.live -= size


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(available + _left_in_container(), default=None)


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """The bytes left to a container (Linux's control groups, version 2); empty if its memory is not limited."""
    try:
        limit, used = ((folder / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
        counts = [line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    cached = sum(int(count) for name, count in counts if name == "file")  # counts as used, but is freed on demand
    return [] if limit == "max" else [max(int(limit) - int(used) + cached, 0)]


# How the messages of allocators that raise no class of their own begin.
_MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the device or of the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def return_freed_memory() -> None:
    """Return to the system what `keep_freed_memory` keeps of this process's memory, where glibc can."""
    if trim := _of_glibc("malloc_trim"):
        trim(ctypes.c_size_t(0))


# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have this process reuse the large blocks that it frees; return whether glibc accepts the setting.

    A step on the CPU allocates and frees the same large tensors again and again. By default glibc takes every block
    over 32 MiB from the system and returns it at once, so that each of its pages is mapped and zeroed anew. Other
    allocators (jemalloc, tcmalloc) keep memory anyway. The process then holds its peak memory until it ends, so only
    programs should call this, not libraries.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    largest = 2**31 - 1
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, largest), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)


def _of_glibc(name: str) -> Any:
    """A function of glibc, None where there is none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None

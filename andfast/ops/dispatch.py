"""Which implementation of an operation runs.

Every operation has a "reference" in plain PyTorch, which takes any device, and faster backends for some
devices and types. A call takes the first backend of `BACKENDS` that implements the operation, can be used on
this machine and takes the tensors at hand. The environment variable ANDFAST_BACKEND, or `use_backend` around
a call, forces one instead: then a call it cannot serve is an error, never a silent change to another.

A new backend is a name in `BACKENDS`, a line in `unavailable` where it cannot be used, and a `register` call
in the file of each operation that has it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from andfast.ops import _extension
from andfast.utils.optional import NOT_INSTALLED, problem_of

#: All backends, from the first choice to the last.
BACKENDS = ("triton", "cuda", "cpu", "reference")

#: The backends that cannot be used here, each with the reason.
unavailable: dict[str, str] = {}
if _extension.problem is not None:
    unavailable["cpu"] = unavailable["cuda"] = _extension.problem
elif not _extension.cuda_archs:
    unavailable["cuda"] = "the extension was built without its CUDA part: that needs a CUDA build of torch and nvcc"
elif not torch.cuda.is_available():
    unavailable["cuda"] = "there is no CUDA device"

#: Whether Triton's kernels run in its interpreter: on any device, very slowly, to test them.
interpreting = os.environ.get("TRITON_INTERPRET", "0") == "1"
_problem = problem_of("triton")
if _problem == NOT_INSTALLED:
    unavailable["triton"] = "triton is not installed: run `pip install triton` (Linux)"
elif _problem is not None:
    unavailable["triton"] = _problem
    # torch imports it for its optimizers and operators, on CPUs, too, and does without where that is an ImportError.
    sys.modules["triton"] = None
    warnings.warn(f"andfast and torch do without triton: {_problem}", RuntimeWarning, stacklevel=2)
elif not interpreting and not torch.cuda.is_available():
    unavailable["triton"] = (
        "there is no CUDA device (TRITON_INTERPRET=1 interprets the kernels on the CPU, to test them)"
    )


@dataclass(frozen=True)
class Implementation:
    """One backend's function for an operation, and the tensors it takes (None: any)."""

    function: Callable[..., Any]
    device: str | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    automatic: bool = True  # whether it is chosen where nothing is forced

    def takes(self, tensor: Tensor) -> bool:
        """Whether `tensor`, and others of its device and type, can be given to the function."""
        return self.device in (None, tensor.device.type) and (self.dtypes is None or tensor.dtype in self.dtypes)


#: operation -> backend -> implementation; filled by the files of the operations.
operations: dict[str, dict[str, Implementation]] = {}


def register(
    operation: str,
    backend: str,
    function: Callable[..., Any],
    device: str | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> None:
    """Make `function` the `backend` of `operation`, for tensors on `device` and of `dtypes` (None: any).

    Raises:
        ValueError: there is no such backend.
    """
    implementation = Implementation(function, device, dtypes)
    if backend == "triton" and interpreting:
        implementation = Implementation(function, None, dtypes, automatic=False)
    operations.setdefault(operation, {})[_known(backend)] = implementation


def select(operation: str, tensor: Tensor) -> Callable[..., Any]:
    """The function that runs `operation` on `tensor` (and on others of the same device and type); see `select_name`."""
    return operations[operation][select_name(operation, tensor)].function


def select_name(operation: str, tensor: Tensor) -> str:
    """The backend that runs `operation` on `tensor` (and on others of the same device and type).

    Raises:
        RuntimeError: the forced backend does not implement the operation, or cannot be used here.
        ValueError: the forced backend does not take tensors of this device or type.
    """
    implementations = operations[operation]
    if _forced is not None:
        _check_usable(operation, _forced, tensor)
        return _forced
    for backend in BACKENDS:
        implementation = implementations.get(backend)
        if implementation is None or backend in unavailable or not implementation.automatic:
            continue
        if implementation.takes(tensor):
            return backend
    raise RuntimeError(f"{operation} has no backend for {tensor.dtype} tensors on {tensor.device.type!r}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every operation in the `with` block, in all threads, onto the backend `name`.

    Operations that cannot run on it raise; see `select`.

    Args:
        name: one of `BACKENDS`.

    Raises:
        ValueError: there is no such backend.
    """
    global _forced
    previous, _forced = _forced, _known(name)
    try:
        yield
    finally:
        _forced = previous


def status() -> dict[str, dict[str, str | None]]:
    """operation -> backend -> why the backend cannot run it here, None where it can."""
    return {
        operation: {name: unavailable.get(name) if name in implementations else "not implemented" for name in BACKENDS}
        for operation, implementations in operations.items()
    }


def _check_usable(operation: str, backend: str, tensor: Tensor) -> None:
    """Raise what `select` says if the backend cannot run the operation on `tensor`."""
    implementation = operations[operation].get(backend)
    if implementation is None:
        choices = ", ".join(operations[operation])
        raise RuntimeError(f"backend {backend!r} is forced, but {operation} has only: {choices}")
    if backend in unavailable:
        raise RuntimeError(f"backend {backend!r} is forced, but cannot be used: {unavailable[backend]}")
    if not implementation.takes(tensor):
        types = " or ".join(str(dtype) for dtype in implementation.dtypes or ("any",))
        raise ValueError(
            f"backend {backend!r} is forced, but its {operation} takes {types} tensors on "
            f"{implementation.device or 'any device'}, not {tensor.dtype} on {tensor.device.type}"
        )


def _known(name: str, source: str = "backend") -> str:
    """Return `name` if it is a backend's; else raise a ValueError that lists them."""
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


# Read once: what an operation runs on does not change in the middle of a run.
_forced: str | None = os.environ.get("ANDFAST_BACKEND") or None
if _forced is not None:
    _known(_forced, "the environment variable ANDFAST_BACKEND")

"""Which implementation of an operation runs: the one place where the backend is chosen.

Every operation has a reference in plain PyTorch, which takes any device and type, and faster implementations for some.
`resolve` collects the `IMPLEMENTATIONS` that the operation has, that can be used on this machine and that take the
tensors' device and type; `andfast.ops.selection` verifies and times them and takes the fastest. The environment
variable ANDFAST_BACKEND, or `use_backend` around a call, forces a backend instead: a call that it cannot serve is an
error and never falls back to another one.

Operations without convolutions register a function for each backend in their own file. The convolutional operations
share the classes of andfast/ops/backends/, which `CONVOLUTIONS` lists; `load` returns one.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from andfast.ops import _extension, selection
from andfast.utils.optional import NOT_INSTALLED, problem_of

if TYPE_CHECKING:
    from andfast.ops.backends.base import Backend

#: All backends, the names that can be forced, from the first choice to the last.
BACKENDS = ("triton", "cuda", "cpu", "library", "reference")

#: All implementations, each with the backend that it belongs to, from the first choice to the last.
IMPLEMENTATIONS = {
    "triton": "triton",  # Triton kernels (backends/triton/)
    "cudnn": "cuda",  # cuDNN's convolutions with our CUDA kernels between them
    "cuda": "cuda",  # our CUDA kernels (csrc/cuda/)
    "winograd": "cpu",  # our own convolutions (csrc/cpu/) for float32
    "onednn": "cpu",  # oneDNN's convolutions with our C++ kernels between them, for bfloat16
    "cpu": "cpu",  # our C++ kernels (csrc/cpu/)
    "library": "library",  # cuDNN's or oneDNN's convolutions with plain PyTorch between them: needs no kernels of ours
    "reference": "reference",
}


class Convolutions(NamedTuple):
    """A class with the kernels of the convolutional operations, imported on first use, and the tensors it takes."""

    backend_class: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]


GPU_TYPES = (torch.float32, torch.float16, torch.bfloat16)
CPU_TYPES = (torch.float32, torch.bfloat16)

#: The implementations of all convolutional operations.
CONVOLUTIONS = {
    "triton": Convolutions("andfast.ops.backends.triton.backend:TritonBackend", ("cuda",), GPU_TYPES),
    "cudnn": Convolutions("andfast.ops.backends.library:CudnnBackend", ("cuda",), GPU_TYPES),
    "winograd": Convolutions("andfast.ops.backends.winograd:WinogradBackend", ("cpu",), (torch.float32,)),
    "onednn": Convolutions("andfast.ops.backends.library:OneDnnBackend", ("cpu",), (torch.bfloat16,)),
    "library": Convolutions("andfast.ops.backends.library:LibraryBackend", ("cuda", "cpu"), GPU_TYPES),
}
_LARGE_TILES = "andfast.ops.backends.winograd:LargeTilesBackend"


def interpreting() -> bool:
    """Whether TRITON_INTERPRET asks for Triton's interpreter: kernels then run on any device, slowly, to test them."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


#: The backends that cannot be used on this machine, each with the reason; `problem_on` also knows devices.
unavailable: dict[str, str] = {}
if _extension.problem is not None:
    unavailable["cpu"] = unavailable["cuda"] = _extension.problem
elif not _extension.cuda_archs:
    unavailable["cuda"] = "the extension was built without its CUDA part: that needs a CUDA build of torch and nvcc"
elif not torch.cuda.is_available():
    unavailable["cuda"] = "there is no CUDA device"

_interpreting = interpreting()  # read once, as Triton does where a kernel is defined
_problem = problem_of("triton")
if _problem == NOT_INSTALLED:
    unavailable["triton"] = "triton is not installed: run `pip install triton` (Linux)"
elif _problem is not None:
    unavailable["triton"] = _problem
    # torch imports triton for its optimizers and operators, also on CPUs, and does without it on an ImportError.
    sys.modules["triton"] = None
    warnings.warn(f"triton will not be used by andfast and torch: {_problem}", RuntimeWarning, stacklevel=2)
elif not _interpreting and not torch.cuda.is_available():
    unavailable["triton"] = (
        "there is no CUDA device (TRITON_INTERPRET=1 interprets the kernels on the CPU, to test them)"
    )


@dataclass(frozen=True)
class Implementation:
    """An implementation of one operation, and the tensors it takes (None: any).

    Attributes:
        function: what runs; None for convolutional operations, see `load`.
        automatic: whether it is chosen where nothing is forced.
    """

    function: Callable[..., Any] | None = None
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    automatic: bool = True

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it takes tensors of this device and type."""
        fits = self.devices is None or device.type in self.devices
        return fits and (self.dtypes is None or dtype in self.dtypes)


#: operation -> implementation's name -> implementation; filled by the files of the operations.
operations: dict[str, dict[str, Implementation]] = {}


def register(
    operation: str,
    name: str,
    function: Callable[..., Any] | None,
    device: str | tuple[str, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> None:
    """Make `function` the implementation `name` of `operation`, for tensors on `device` and of `dtypes` (None: any).

    Raises:
        ValueError: there is no such implementation in `IMPLEMENTATIONS`.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"an implementation must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}")
    implementation = Implementation(function, (device,) if isinstance(device, str) else device, dtypes)
    if name == "triton" and _interpreting:
        implementation = Implementation(function, None, dtypes, automatic=False)
    operations.setdefault(operation, {})[name] = implementation
    if name == "reference":  # also what the backend "library" has, where there are no convolutions
        operations[operation]["library"] = Implementation(function, automatic=False)


def register_convolutional(operation: str, reference: Callable[..., Any]) -> None:
    """Register an operation that the classes of `CONVOLUTIONS` have the kernels of."""
    register(operation, "reference", reference)
    for name, (_, devices, dtypes) in CONVOLUTIONS.items():
        register(operation, name, None, devices, dtypes)


def problem_on(device: torch.device, backend: str) -> str | None:
    """Why a backend cannot be used on a device; None if it can, as far as is known without running it."""
    if backend == "triton" and backend not in unavailable and device.type == "cuda":
        return _problem_of_triton(device)
    return unavailable.get(backend)


# As `selection.choose`.
problem_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _problem_of_triton(device: torch.device) -> str | None:
    """Older GPUs of NVIDIA have no tensor cores that Triton's releases use; a machine may hold old and new ones."""
    if torch.version.hip is not None or not torch.cuda.is_available():  # tensors without a device, to trace
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return None
    return f"Triton needs compute capability 8.0, and {torch.cuda.get_device_name(device)} has {major}.{minor}"


def resolve(
    operation: str, device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...], fastest: bool = True
) -> str:
    """The name of the implementation that runs `operation` on tensors of this device, type and size.

    Args:
        operation: of `operations`.
        device, dtype: of the computation.
        sizes: what the kernels depend on (channels, networks), then (B, H, W); see `andfast.ops.examples`.
        fastest: take the fastest of the candidates that are right, rather than the first.

    Raises:
        RuntimeError: the forced backend does not implement the operation, or cannot be used here.
        ValueError: the forced backend does not take tensors of this device or type.
    """
    if operation in _used:
        return _used[operation]
    if torch.compiler.is_compiling() or not all(isinstance(size, int) for size in sizes):
        # Sizes may be symbols here. Those of images are left open; channels become numbers, which int() does not do.
        sizes = *[len(range(size)) for size in sizes[:-3]], *selection.TYPICAL
        return _decide(operation, device, dtype, sizes, fastest, _forced)
    return _decided(operation, device, dtype, sizes, fastest, _forced, selection.measures())


def _decide(
    operation: str, device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...], fastest: bool, forced: str | None
) -> str:
    found = _candidates(operation, device, dtype, forced)
    if forced is not None or len(found) == 1 or min(sizes[-3:]) < 1:
        return found[0]
    return selection.choose(operation, found, device, dtype, sizes, fastest)


@lru_cache(2**14)
def _decided(*arguments: Any) -> str:
    """`_decide`, whose arguments these are but for the last one: whether candidates are measured."""
    return _decide(*arguments[:-1])


def measure_anew(device: torch.device) -> None:
    """Forget what was found about a device."""
    selection.measure_anew(device)
    _decided.cache_clear()


def candidates(operation: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The implementations that can run `operation` on tensors of this device and type, the first choice first.

    Raises:
        RuntimeError, ValueError: as `resolve`; there is at least one.
    """
    return _candidates(operation, device, dtype, _forced)


def _candidates(operation: str, device: torch.device, dtype: torch.dtype, forced: str | None) -> tuple[str, ...]:
    implementations = operations[operation]
    found = []
    for name, backend in IMPLEMENTATIONS.items():
        implementation = implementations.get(name)
        if implementation is None or problem_on(device, backend) or not implementation.takes(device, dtype):
            continue
        if implementation.automatic if forced is None else backend == forced:
            found.append(name)
    if forced is None and device.type == "cpu" and "cpu" not in unavailable:
        # Our C++ kernels are faster between the same convolutions.
        found = [name for name in found if name != "library"]
    if not found:
        raise _refusal(operation, device, dtype, forced)
    return tuple(found)


def select(operation: str, tensor: Tensor, sizes: tuple[int, ...]) -> Callable[..., Any]:
    """The function that runs an operation without convolutions on `tensor` and others like it; see `resolve`."""
    function = operations[operation][resolve(operation, tensor.device, tensor.dtype, sizes)].function
    assert function is not None
    return function


def load(name: str, inference: bool = False) -> Backend:
    """The object with the kernels of an implementation of the convolutional operations.

    To be called where the kernels run, not in what torch.compile traces: the import of Triton takes seconds.

    Args:
        name: of an implementation in `CONVOLUTIONS`, from `resolve`.
        inference: nothing is kept for a backward pass: large tiles then replace "winograd" where they are allowed.
    """
    large = name == "winograd" and inference and _large_tiles.get()
    return _instance(_LARGE_TILES if large else CONVOLUTIONS[name].backend_class)


@lru_cache
def _instance(backend_class: str) -> Backend:
    return pkgutil.resolve_name(backend_class)()


_large_tiles = ContextVar("large_tiles", default=False)


@contextmanager
def allow_large_tiles() -> Iterator[None]:
    """Allow convolutions in large tiles in the `with` block, in this thread: on the CPU, in float32, for inference.

    They are faster. Results differ by a few millionths from those of training's convolutions: invisible in an image,
    but an update would not be the same.
    """
    token = _large_tiles.set(True)
    try:
        yield
    finally:
        _large_tiles.reset(token)


def large_tiles_allowed() -> bool:
    """Whether `allow_large_tiles` is in effect."""
    return _large_tiles.get()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every operation in the `with` block, in all threads, onto the backend `name`.

    Operations that cannot run on it raise; see `resolve`.

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


_used: dict[str, str] = {}


@contextmanager
def use_implementation(operation: str, name: str) -> Iterator[None]:
    """Run one operation by one implementation in the `with` block, in all threads: to verify and to time it.

    Args:
        operation: of `operations`.
        name: of one of its implementations that takes the tensors.
    """
    _used[operation] = name
    try:
        yield
    finally:
        del _used[operation]


def status() -> dict[str, dict[str, str | None]]:
    """operation -> backend -> why the backend cannot run it here, None where it can."""
    found = {}
    for operation, implementations in operations.items():
        present = {IMPLEMENTATIONS[name] for name in implementations}
        found[operation] = {name: unavailable.get(name) if name in present else "not implemented" for name in BACKENDS}
    return found


def in_use(operation: str, device: torch.device, dtype: torch.dtype) -> str:
    """For people: the implementations that have run an operation so far; before, the first of its `candidates`.

    Raises:
        RuntimeError, ValueError: as `resolve`.
    """
    first = candidates(operation, device, dtype)[:1]
    return " and ".join(first if _forced is not None else selection.chosen_here().get(operation, first))


def _refusal(operation: str, device: torch.device, dtype: torch.dtype, forced: str | None) -> Exception:
    """Why `resolve` found no implementation."""
    if forced is None:
        return RuntimeError(f"{operation} has no backend for {dtype} tensors on {device.type!r}")
    implementations = operations[operation]
    found = [entry for name, entry in implementations.items() if IMPLEMENTATIONS[name] == forced]
    if not found:
        choices = ", ".join(dict.fromkeys(IMPLEMENTATIONS[name] for name in implementations))
        return RuntimeError(f"backend {forced!r} is forced, but {operation} has only: {choices}")
    if problem := problem_on(device, forced):
        return RuntimeError(f"backend {forced!r} is forced, but cannot be used: {problem}")
    types = " or ".join(str(dtype) for entry in found for dtype in entry.dtypes or ("any",))
    return ValueError(
        f"backend {forced!r} is forced, but its {operation} takes {types} tensors on "
        f"{' or '.join(found[0].devices or ('any device',))}, not {dtype} on {device.type}"
    )


def _known(name: str, source: str = "backend") -> str:
    """Return `name` if it is a backend's; else raise a ValueError that lists them."""
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


# Read once: the backend does not change in the middle of a run.
_forced: str | None = os.environ.get("ANDFAST_BACKEND") or None
if _forced is not None:
    _known(_forced, "the environment variable ANDFAST_BACKEND")

"""The implementations of an operation that a bench can compare here, and a check of their results."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from andfast.ops import dispatch
from andfast.utils.devices import usual_precision
from andfast.utils.formatting import dtype_name
from bench.timing import DEVICE

#: The largest relative error, in the 2-norm, of a correct result.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}


@dataclass(frozen=True)
class Variant:
    """An implementation, the type that it computes in, and the memory format of images.

    `tf32`: float32 with products rounded to TF32.
    """

    name: str
    dtype: torch.dtype
    tf32: bool = False
    channels_last: bool = False

    def __str__(self) -> str:
        dtype = "tf32" if self.tf32 else dtype_name(self.dtype)
        return f"{self.name} {dtype}{' channels_last' if self.channels_last else ''}"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def tolerance(self) -> float:
        return 0.05 if self.tf32 else TOLERANCE[self.dtype]


def backend_variants(operation: str, *dtypes: torch.dtype) -> list[Variant]:
    """The reference and then every other backend for this device, in the types of `dtypes` that it takes."""
    implementations = dispatch.operations[operation].items()
    return [
        Variant(backend, dtype)
        for backend in dict.fromkeys(("reference", *dispatch.BACKENDS))
        for dtype in dtypes
        if any(
            one.automatic and one.takes(DEVICE, dtype)
            for name, one in implementations
            if dispatch.IMPLEMENTATIONS[name] == backend
        )
    ]


#: The half type if this device is fast with one, else float32: on CPUs without AMX bfloat16 takes minutes.
FAST_TYPE = usual_precision(DEVICE, "training")
COMPILED = Variant("torch.compile", FAST_TYPE, channels_last=True)


def network_variants(operation: str) -> list[Variant]:
    """Plain PyTorch, simple and at its best, and the backends of an operation, in float32 and `FAST_TYPE`."""
    eager = [Variant("eager", torch.float32), Variant("eager", FAST_TYPE, channels_last=True)]
    if DEVICE.type == "cuda":  # PyTorch's default for float32 convolutions there
        eager.insert(1, Variant("eager", torch.float32, tf32=True))
    return eager + backend_variants(operation, *dict.fromkeys((FAST_TYPE, torch.float32)))


def skip_unavailable(variant: Variant) -> None:
    """Skip the test of a backend that cannot be used here, with the reason."""
    if problem := dispatch.problem_on(DEVICE, variant.name):
        pytest.skip(problem)


def check(what: str, result: Tensor, exact: Tensor, variant: Variant) -> None:
    """Fail if `result` is wrong."""
    error = float((result.double() - exact).norm() / exact.norm())
    if not error < variant.tolerance:  # NaN, too
        pytest.fail(f"{variant}: the {what} has a relative error of {error:.2g}, over {variant.tolerance:g}")

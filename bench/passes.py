"""Forward and backward passes of one operation in several variants: checked, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from andfast.ops import dispatch, use_backend
from bench.timing import measure
from bench.variants import Variant, check

PASSES = ("forward", "backward", "forward+backward")


def of_passes(which: str, forward: int, backward: int) -> int:
    """The count of the passes of `which`, one of `PASSES`, from those of both passes."""
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[which]


@dataclass
class Program:
    """A variant, ready to run.

    Attributes:
        forward: the forward pass.
        parameters: the tensors with gradients.
        comparable: converts the gradients of `parameters` to the same form for all variants.
    """

    forward: Callable[[], Tensor]
    parameters: list[Tensor]
    comparable: Callable[[tuple[Tensor, ...]], Tensor]

    def passes(self, which: str, grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """A function that runs the passes of `which`, one of `PASSES`, with the result's gradient `grad`.

        It returns the result (except for "backward") and the gradients of `parameters` (except for "forward").
        """

        def forward() -> tuple[Tensor]:
            with torch.no_grad():
                return (self.forward(),)

        def both() -> tuple[Tensor, ...]:
            result = self.forward()
            return result, *torch.autograd.grad(result, self.parameters, grad)

        if which == "forward":
            return forward
        if which == "forward+backward":
            return both
        result = self.forward()
        return lambda: torch.autograd.grad(result, self.parameters, grad, retain_graph=True)


def end_to_end(grads: tuple[Tensor, ...]) -> Tensor:
    """All gradients in one vector, float64."""
    return torch.cat([grad.double().flatten() for grad in grads])


@contextmanager
def settings(variant: Variant) -> Iterator[None]:
    """Select a variant's backend, if it is one, and TF32 if its name says so."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = variant.tf32
    try:
        with use_backend(variant.name) if variant.name in dispatch.BACKENDS else nullcontext():
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def bench_passes(
    benchmark: Any,
    program: Program,
    which: str,
    variant: Variant,
    grad: Tensor,
    exact: tuple[Tensor, Tensor],
    **details: Any,
) -> None:
    """Check a variant's result and gradients against `exact`, then time the passes of `which`.

    Args:
        grad: the gradient of the result, as `exact` was computed from.
        exact: the result and the comparable gradients in float64.
        details: for `measure`.
    """
    if which == "backward" and variant.name == "torch.compile":
        pytest.skip("compiled backward passes use up what a second one would need")
    run = program.passes("forward" if which == "forward" else "forward+backward", grad.to(variant.dtype))
    if variant.name == "torch.compile":
        benchmark.extra_info["compile_seconds"] = compiled(run)
    result, *grads = run()
    check("result", result.detach(), exact[0], variant)
    if which != "forward":
        check("gradient", program.comparable(tuple(grads)), exact[1], variant)
    del result, grads
    if which == "backward":
        run = program.passes(which, grad.to(variant.dtype))
    measure(benchmark, run, variant=str(variant), dtype=variant.dtype, tf32=variant.tf32, **details)


def compiled(run: Callable[[], object]) -> float:
    """Compile by the first call; the seconds it took."""
    torch.compiler.reset()
    start = time.perf_counter()
    try:
        run()
    except Exception as error:
        pytest.skip(f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}")
    return time.perf_counter() - start

"""The process that verifies and times implementations for `andfast.ops.selection`.

It reads requests from standard input, a line of JSON each, and answers with lines of JSON; the last has a "problem",
which is null if there is none, and "lost" if this process can no longer use the device. Before an implementation is
timed, a line says which: if it crashes, it is known.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from andfast.ops import dispatch
from andfast.ops.examples import EXAMPLES, Draw, Example

#: (B, H, W) for the verification: several tiles of every kernel, and odd.
_TINY = (2, 19, 37)
#: So many networks are verified at most.
_NETWORKS = 3
#: Structures that begin with the number of networks.
_BANKS = ("degradation_block", "degradation_forward")
#: A result may be so many times as far from the exact one as plain PyTorch's in the same type, plus its precision.
_FACTOR, _LARGE_TILES_FACTOR = 4, 64
#: Timing takes about so many seconds an implementation, in at least and at most so many rounds.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.3, 3, 30


def answer(request: dict[str, Any], send: Callable[..., None]) -> None:
    """Verify the implementation request["verify"], or time those of request["time"]: "ms" is name -> milliseconds."""
    device, dtype = torch.device(request["device"]), getattr(torch, request["dtype"])
    operation, sizes = request["operation"], request["sizes"]
    torch.set_num_threads(request["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if "verify" in request:
            send(problem=verify(operation, request["verify"], device, dtype, sizes))
        else:
            send(problem=None, ms=milliseconds(operation, request["time"], device, dtype, sizes, send))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        send(problem=None)  # right, as far as could be seen, and nothing is known of its speed
    except Exception as error:
        lines = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
        send(problem=problem, lost=device.type == "cuda" and _is_lost())


def _is_lost() -> bool:
    """Whether the device cannot be used any more by this process, as after an illegal access."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


@dispatch.use_backend("reference")  # for what an example calls beside
def verify(operation: str, name: str, device: torch.device, dtype: torch.dtype, sizes: list[int]) -> str | None:
    """What is wrong with an implementation's results or gradients, on a small input; None if nothing is.

    Memory that a kernel does not write holds NaN. The exact results are the reference's in float64.
    """
    structure = list(sizes[:-3])
    if operation in _BANKS:
        structure[0] = min(structure[0], _NETWORKS)
    example = EXAMPLES[operation]
    exact, plain = (
        _results(example(Draw(device, compute, dtype), *structure, *_TINY)) for compute in (torch.float64, dtype)
    )
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with dispatch.use_implementation(operation, name):
            made = example(Draw(device, dtype, dtype), *structure, *_TINY)
            results, again = _results(made), _results(made)
            with torch.no_grad(), dispatch.allow_large_tiles():
                inference = made.call()
    finally:
        torch.use_deterministic_algorithms(False)
    what = ["result", *(f"gradient {k}" for k in range(1, len(results)))]
    eps = torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps
    problem = _compare(what, results, exact, plain, _FACTOR, eps)
    if problem is None:
        what = ["result without gradients"]
        problem = _compare(what, [inference], exact[:1], plain[:1], _LARGE_TILES_FACTOR, eps)
    repeatable = name != "cudnn"  # whose weight gradients are summed in any order
    if problem is None and repeatable and not all(map(torch.equal, results, again)):
        return "it gives other bits when it is repeated"
    return problem


def _results(example: Example) -> list[Tensor]:
    """The result, and the gradients of all of an example's tensors."""
    tensors = [*example.trained, *example.others]
    for tensor in tensors:
        tensor.requires_grad_()
    y = example.call()
    if not tensors:
        return [y.detach()]
    # A gradient that no two pixels share, in the type of the result.
    rng = torch.Generator().manual_seed(2)
    dy = torch.randn(y.shape, generator=rng).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


def _compare(
    what: list[str],
    results: list[Tensor],
    exact: list[Tensor],
    plain: list[Tensor],
    factor: float,
    eps: float,
) -> str | None:
    """The first result that is too far from the exact one, in words."""
    for name, result, right, usual in zip(what, results, exact, plain, strict=True):
        if result.shape != right.shape or result.dtype != usual.dtype:
            return f"its {name} is {result.dtype} {tuple(result.shape)}, not {usual.dtype} {tuple(right.shape)}"
        norm = right.double().norm().clamp(min=1e-30)
        error, allowed = (((tensor.double() - right).norm() / norm).item() for tensor in (result, usual))
        allowed = factor * (allowed + eps)
        if result.isnan().any():
            return f"its {name} holds NaN or memory that was never written"
        if not error <= allowed:
            return (
                f"its {name} differs from the exact one by {error:.1e} of its norm (at most {allowed:.1e} is allowed)"
            )
    return None


@dispatch.use_backend("reference")
def milliseconds(
    operation: str,
    names: list[str],
    device: torch.device,
    dtype: torch.dtype,
    sizes: list[int],
    send: Callable[..., None],
) -> dict[str, float]:
    """The shortest time of a forward and backward pass of each implementation, measured in turn.

    On CPUs this is the time of all threads together: unlike the time on the clock, other processes do not add to it.
    """
    example = EXAMPLES[operation](Draw(device, dtype, dtype), *sizes)
    for tensor in example.trained:
        tensor.requires_grad_()
    on_gpu = device.type == "cuda"
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if on_gpu else (lambda: None, time.process_time)

    def seconds(name: str) -> float:
        backward = torch.set_grad_enabled(bool(example.trained))
        with dispatch.use_implementation(operation, name), backward, dispatch.allow_large_tiles():
            send(running=name)
            wait()
            begin = clock()
            y = example.call()
            if example.trained:
                torch.autograd.grad(y, example.trained, y.detach())
            wait()
            return clock() - begin

    for name in names:
        seconds(name)  # compiles, and fills caches
    best = dict.fromkeys(names, float("inf"))
    end, rounds = time.perf_counter() + _SECONDS * len(names), 0
    while rounds < _LEAST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() < end):
        for name in names:
            best[name] = min(best[name], seconds(name))
        rounds += 1
    return {name: round(1e3 * value, 4) for name, value in best.items()}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers

    def send(**content: object) -> None:
        print(json.dumps(content), file=answers, flush=True)

    for line in sys.stdin:
        answer(json.loads(line), send)


if __name__ == "__main__":
    main()

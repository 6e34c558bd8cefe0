"""The process that verifies and times implementations for `andfast.ops.selection`.

It reads requests from standard input, a line of JSON each, and answers with lines of JSON that repeat the request's
"number". The last has one of

* "problem": what is wrong with the implementation, null if nothing is;
* "times": implementation -> milliseconds, as `kernel_table.Time`;
* "unknown": why neither could be found out.

Before an implementation runs, a line names it as "running": if it crashes, it is known. "lost" says that this process
can no longer use the device.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from andfast.ops import dispatch, kernel_table
from andfast.ops.examples import EXAMPLES, Draw, Example
from andfast.ops.selection import TIMEOUT
from andfast.utils.memory import is_out_of_memory

#: (B, H, W) for the verification: several tiles of every kernel, and odd.
_SMALL = (2, 19, 37)
#: A result may be so many times as far from the exact one as plain PyTorch's in the same type, plus its precision.
#: Winograd's tiles round more.
_FACTOR, _TILES_FACTOR = 4, 64
#: Timing takes about so many seconds an implementation, in at least and at most so many rounds.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.3, 3, 30

Send = Callable[..., None]


def answer(request: dict[str, Any], send: Send) -> None:
    """Verify the implementation request["verify"], or time those of request["time"]."""
    device, dtype = torch.device(request["device"]), getattr(torch, request["dtype"])
    running = False

    def run(name: str) -> None:
        nonlocal running
        running = True
        send(running=name)

    try:
        torch.set_num_threads(request["threads"])
        kernel_table.apply_settings(request["settings"])
        if device.type == "cuda":
            device = _device(request["uuid"])
            torch.cuda.set_device(device)
        if "verify" in request:
            send(problem=verify(request["operation"], request["verify"], device, dtype, request["structure"], run))
        else:
            send(times=measure(request["operation"], request["time"], device, dtype, request["sizes"], run))
    except Exception as error:
        lines = str(error).strip().splitlines()
        words = f"{type(error).__name__}: {lines[0] if lines else ''}"[:500]
        kind = "problem" if running and not is_out_of_memory(error) else "unknown"
        send(**{kind: words, "lost": device.type == "cuda" and _is_lost()})
    if device.type == "cuda" and not _is_lost():
        torch.cuda.empty_cache()  # the memory is the other process's to use


def _device(uuid: str) -> torch.device:
    """The same GPU as in the process that asks, which may see others, or see them in another order."""
    for index in range(torch.cuda.device_count()):
        if kernel_table.uuid(torch.device("cuda", index)) == uuid:
            return torch.device("cuda", index)
    raise RuntimeError("a new process does not see this device: was CUDA_VISIBLE_DEVICES changed?")


def _is_lost() -> bool:
    """Whether the device cannot be used any more by this process, as after an illegal access."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


@dispatch.use_backend("reference")  # for what an example calls beside
def verify(
    operation: str,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    structure: list[int],
    run: Callable[[str], None],
) -> str | None:
    """What is wrong with an implementation's results or gradients, on a small input; None if nothing is.

    Memory that a kernel does not write holds NaN. The exact results are the reference's in float64.
    """
    example = EXAMPLES[operation]
    exact, plain = (
        _results(example(Draw(device, compute, dtype), *structure, *_SMALL)) for compute in (torch.float64, dtype)
    )
    run(name)
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with dispatch.use_implementation(operation, name):
            made = example(Draw(device, dtype, dtype), *structure, *_SMALL)
            results, again = _results(made), _results(made)
            with torch.no_grad(), dispatch.allow_large_tiles():
                inference = made.call()
    finally:
        torch.use_deterministic_algorithms(False)
    eps = torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps
    checks = [("result", results[0], exact[0], plain[0])]
    checks += [(f"gradient {k}", *tensors) for k, tensors in enumerate(zip(results, exact, plain, strict=True)) if k]
    checks.append(("result without gradients", inference, exact[0], plain[0]))
    factor = _TILES_FACTOR if name == "winograd" else _FACTOR
    for what, result, right, usual in checks:
        problem = _compare(what, result, right.double(), usual, factor, eps)
        if problem is not None:
            return problem
    # cuDNN sums weight gradients in any order.
    if name not in ("cudnn", "library") and not all(map(torch.equal, results, again)):
        return "it gives other bits when it is repeated"
    return None


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


def _compare(what: str, result: Tensor, right: Tensor, usual: Tensor, factor: float, eps: float) -> str | None:
    """How a result is too far from the exact one, in words; None if it is near enough."""
    if result.shape != right.shape or result.dtype != usual.dtype:
        return f"its {what} is {result.dtype} {tuple(result.shape)}, not {usual.dtype} {tuple(right.shape)}"
    if result.isnan().any():
        return f"its {what} holds NaN or memory that was never written"
    differences = [(tensor.double() - right).abs() for tensor in (result, usual)]
    scales = [(torch.linalg.vector_norm, "norm")]
    if not what.startswith("gradient"):  # a sign that rounding turns changes a gradient by much, in few places
        scales.append((torch.amax, "largest value"))
    for scale, words in scales:
        unit = scale(right.abs()).clamp(min=1e-30)
        error, allowed = ((scale(difference) / unit).item() for difference in differences)
        allowed = factor * (allowed + eps)
        if not error <= allowed:
            return f"its {what} differs from the exact one by {error:.1e} of its {words} (allowed: {allowed:.1e})"
    return None


@dispatch.use_backend("reference")
def measure(
    operation: str,
    names: list[str],
    device: torch.device,
    dtype: torch.dtype,
    sizes: list[int],
    run: Callable[[str], None],
) -> dict[str, list[float]]:
    """The shortest times of a forward and backward pass of each implementation, measured in turn."""
    example = EXAMPLES[operation](Draw(device, dtype, dtype), *sizes)
    for tensor in example.trained:
        tensor.requires_grad_()
    on_gpu = device.type == "cuda"

    def seconds(name: str) -> tuple[float, float]:
        backward = torch.set_grad_enabled(bool(example.trained))
        with dispatch.use_implementation(operation, name), backward:
            run(name)
            if on_gpu:
                torch.cuda.synchronize()
            clock, threads = time.perf_counter(), time.process_time()
            y = example.call()
            if example.trained:
                torch.autograd.grad(y, example.trained, y.detach())
            if on_gpu:
                torch.cuda.synchronize()
            clock, threads = time.perf_counter() - clock, time.process_time() - threads
            return clock, clock if on_gpu else threads

    for name in names:
        seconds(name)  # compiles, and fills caches
    best = dict.fromkeys(names, (float("inf"), float("inf")))
    end, rounds = time.perf_counter() + _SECONDS * len(names), 0
    while rounds < _LEAST_ROUNDS or (rounds < _MOST_ROUNDS and time.perf_counter() < end):
        for name in names:
            best[name] = tuple(map(min, best[name], seconds(name)))  # type: ignore[assignment]
        rounds += 1
    return {name: [round(1e3 * value, 4) for value in times] for name, times in best.items()}


def main() -> None:
    """Answer requests until standard input ends, or the process that asks."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for line in sys.stdin:
        request = json.loads(line)

        def send(number: int = request["number"], **content: object) -> None:
            content |= {"number": number, "sources": kernel_table.sources()}
            print(json.dumps(content), file=answers, flush=True)

        faulthandler.dump_traceback_later(2 * TIMEOUT, exit=True)
        answer(request, send)
        faulthandler.cancel_dump_traceback_later()


def _end_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()

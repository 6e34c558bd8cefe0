"""How all benches measure: on the device's own clock, with a cold cache, next to what the device can do at most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from bench.peak_memory import peak_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: ANDFAST_BENCH_SMALL=1: the smallest sizes and few rounds, to see whether everything runs.
SMALL = os.environ.get("ANDFAST_BENCH_SMALL") == "1"

_FLUSH_BYTES = 256 * 2**20  # several times a GPU's L2 cache
_started: list[torch.cuda.Event] = []


def clock() -> float:
    """Seconds, for pytest-benchmark's `timer`: the first call of a round begins it, the second ends it.

    On a GPU by events in the stream, so that what the host does before the first kernel runs is hidden behind the
    flush, as it would be behind other work.
    """
    if DEVICE.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    if not _started:
        _started.append(event)
        return 0.0
    event.synchronize()
    return _started.pop().elapsed_time(event) / 1000


@lru_cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=DEVICE)


def before_round() -> None:
    """Empty the GPU's L2 cache; a CPU's caches are left as the operation before left them."""
    if DEVICE.type == "cuda":
        _started.clear()
        _flush_buffer().zero_()


def measure(
    benchmark: Any,
    function: Callable[[], object],
    *,
    group: str,
    variant: str,
    dtype: torch.dtype,
    flops: int = 0,
    moved: int,
    rounds: int | None = None,
    tf32: bool = False,
) -> None:
    """Time `function` and note in `extra_info` what belongs to the time.

    Args:
        benchmark: pytest-benchmark's fixture, whose timer must be `clock`.
        function: what to time; it has run once already. It is called before, too, to see what memory it takes.
        group, variant: what is compared with what.
        dtype: the type of the products, for the device's limit; `tf32` says that float32 is multiplied so.
        flops: how many floating-point operations it takes at least.
        moved: how many bytes must move at least.
        rounds: how often; None for what long operations want.
    """
    on_gpu = DEVICE.type == "cuda"
    benchmark.group = group
    benchmark.extra_info |= {
        "variant": variant,
        "device": torch.cuda.get_device_name(DEVICE) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "flops": flops,
        "bytes": moved,
        "peak_memory": peak_memory(function, DEVICE),
    }
    rounds = 2 if SMALL else rounds or (20 if on_gpu else 5)
    benchmark.pedantic(function, setup=before_round, rounds=rounds, warmup_rounds=1 + 2 * on_gpu)
    if on_gpu and not SMALL and benchmark.stats is not None:  # None under --benchmark-disable
        limit = max(moved / copy_rate(), flops / matmul_rate(dtype, tf32))
        benchmark.extra_info |= {
            "limit_seconds": limit,
            "percent_of_limit": 100 * limit / benchmark.stats.stats.median,
            "copy_bytes_per_second": copy_rate(),
            "matmul_flops_per_second": matmul_rate(dtype, tf32),
        }


@lru_cache
def copy_rate() -> float:
    """Bytes a second, read and written, of a large copy within the device's memory."""
    source = torch.empty(2**31, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / _median_seconds(lambda: target.copy_(source))


@lru_cache
def matmul_rate(dtype: torch.dtype, tf32: bool = False) -> float:
    """Floating-point operations a second of a large matrix product of random numbers."""
    size = 8192
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return 2 * size**3 / _median_seconds(lambda: a @ b)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _median_seconds(function: Callable[[], object]) -> float:
    """The median of nine runs after two."""
    times = []
    for _ in range(11):
        before_round()
        start = clock()
        function()
        times.append(clock() - start)
    return sorted(times[2:])[4]

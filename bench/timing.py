"""Measuring, for all benches: with the device's own clock, a cold cache, and beside the device's limits."""

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
    """Seconds, for pytest-benchmark's `timer`: called at the beginning and at the end of a round.

    On a GPU by events in the stream: the host's work before the first kernel is hidden behind the flush, as it would be
    behind other work.
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
    """Empty the GPU's L2 cache; a CPU's caches are not emptied."""
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
    """Time `function`, and record its memory and the device's limit in `extra_info`.

    Args:
        benchmark: pytest-benchmark's fixture, whose timer must be `clock`.
        function: has run once already; is called before the timing, too, to measure its memory.
        group, variant: variants of a group are compared.
        dtype: the type of the products, for the device's limit; with `tf32` float32 products are TF32.
        flops: the least number of floating-point operations.
        moved: the least number of bytes read and written.
        rounds: None: few, for long operations.
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
    """Bytes a second, read and written, of a large copy in the device's memory."""
    size = 2**20 if SMALL else 2**31 if DEVICE.type == "cuda" else 2**28
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / _median_seconds(lambda: target.copy_(source))


@lru_cache
def matmul_rate(dtype: torch.dtype, tf32: bool = False) -> float:
    """Floating-point operations a second of a large matrix product of random numbers."""
    size = 256 if SMALL else 8192 if DEVICE.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return 2 * size**3 / _median_seconds(lambda: a @ b)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _median_seconds(function: Callable[[], object]) -> float:
    """The median of nine runs after two for warming up."""
    times = []
    for _ in range(11):
        before_round()
        start = clock()
        function()
        times.append(clock() - start)
    return sorted(times[2:])[4]

"""The peak memory of a computation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate

import torch


def peak_memory(function: Callable[[], object], device: torch.device | None = None) -> int:
    """The peak memory of `function` in bytes, above that held before the call; it must have run once already.

    Counts the memory of torch's allocators, not that of libraries, such as oneDNN's scratch memory. On a CUDA device if
    `device` is None and there is one.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _without_notices():
        profile.start()
    try:
        function()
    finally:
        with _without_notices():
            profile.stop()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)


@contextmanager
def _without_notices() -> Iterator[None]:
    """Drop the messages that torch's profiler (2.13) writes to the error stream at any log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

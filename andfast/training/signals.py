"""Signals that stop a run: Ctrl-C, a scheduler's SIGTERM before it takes a machine away, a closed terminal's SIGHUP."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""


class StopSignal:
    """Inside, `STOPPING` signals only set `number`, so that the step can be finished and saved.

    A second signal ends the process at once, by the system: Python would wait until the current operation is done.
    One that is ignored, as nohup does with SIGHUP, stays ignored. With `verbose` a line is printed when a signal comes.
    """

    def __init__(self, verbose: bool = True) -> None:
        self.number = 0
        self._verbose = verbose
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        if not self._verbose:
            return
        # Not print: the signal may have interrupted one, and streams are not reentrant.
        with suppress(OSError):  # a pipe's reader may have ended by the same signal
            os.write(2, b"\nfinishing this step, then saving; a second signal ends the run at once\n")

"""Being told to stop: Ctrl-C, and the SIGTERM that a scheduler sends before it takes a machine away."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType


class StopSignal:
    """SIGINT and SIGTERM inside only set `number`, for the step to be finished and saved.

    A second one ends the process, whatever it waits for: the system does that, for Python would wait until the current
    operation is done. Files are written whole, and data workers end with the process.

    Args:
        tells: whether to say so when one comes.
    """

    def __init__(self, tells: bool = True) -> None:
        self.number = 0
        self._tells = tells
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        if not self._tells:
            return
        # Not print: the signal may have come in the midst of one, and streams do not take two at a time.
        with suppress(OSError):  # a pipe's reader may have got the same signal
            os.write(2, b"\nfinishing this step, then saving; a second signal ends the run at once\n")

"""Commands and the terminal: what they print never costs what they have done, and Ctrl-C is heeded."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO


class _Stream:
    """A text stream that writes characters that its encoding lacks as escapes, and leaves out what it cannot write.

    Args:
        stream: where to.
        passes: the errors that are raised nevertheless.
    """

    def __init__(self, stream: TextIO, passes: tuple[type[OSError], ...] = ()) -> None:
        self._stream, self._passes = stream, passes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding, getattr(self._stream, "errors", None) or "strict")
        except UnicodeEncodeError:
            text = printable(text, encoding)
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except self._passes:
            raise
        except (OSError, ValueError):  # a ValueError: it is closed
            self.discard()

    def discard(self) -> None:
        """Empty its buffer into nowhere: else it would be tried again, at the latest by the interpreter at its end."""
        with suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, descriptor)
                self._stream.flush()
            finally:
                os.dup2(kept, descriptor)
                os.close(kept)
                os.close(nowhere)


def printable(text: str, encoding: str = "utf-8") -> str:
    """A text with the characters that an encoding lacks, and in file names bytes that are no UTF-8, as escapes."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def console(*passes: type[OSError]) -> Iterator[None]:
    """Let nothing that is printed inside end the work: for the commands' `main`, as a decorator.

    A name that the terminal's encoding does not know is printed with escapes. What nobody reads any more (`| head`),
    what a full disk has no room for, and what goes to a closed stream is left out. A second Ctrl-C ends the process at
    once, whatever it waits for; the first lets it put things in order.

    Args:
        *passes: errors of writing that are raised nevertheless.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # where a process began without, it is None
        usable = (nowhere if stream is None or getattr(stream, "closed", False) else stream for stream in before)
        streams = [_Stream(stream, passes) for stream in usable]
        sys.stdout, sys.stderr = streams
        try:
            with _heeded():
                yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in streams:
                try:
                    stream._stream.flush()
                except (OSError, ValueError):
                    stream.discard()


@contextmanager
def _heeded() -> Iterator[None]:
    """Let the system end the process at a second Ctrl-C: Python would wait until the current operation is done."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # whoever called the command has its own way
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

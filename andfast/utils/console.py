"""The terminal of commands: the log is printed, errors of printing are ignored, a second Ctrl-C ends the process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm


class _Stream:
    """A text stream that escapes characters that its encoding lacks, and drops what it cannot write.

    Errors in `passes` are raised nevertheless.
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
        """Discard its buffer, which would be written again later, at the latest when the interpreter ends."""
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


class _LogLines(logging.Handler):
    """Prints messages of andfast's log on stderr, beside progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _log_printed() -> Iterator[None]:
    """Print what andfast's modules log; in other programs `logging` decides about that."""
    logger, handler = logging.getLogger("andfast"), _LogLines()
    if any(isinstance(each, _LogLines) for each in logger.handlers):  # a command that another one calls
        yield
        return
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def printable(text: str, encoding: str = "utf-8") -> str:
    """A text with escapes for characters that an encoding lacks, and for bytes of file names that are not UTF-8."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def console(*passes: type[OSError]) -> Iterator[None]:
    """A decorator for the commands' `main`: errors of printing, except `passes`, do not end the work.

    What andfast's modules log is printed on stderr, from INFO on.
    Characters that the terminal's encoding lacks are printed as escapes. Output to a pipe without a reader (`| head`),
    a full disk or a closed stream is dropped. The first Ctrl-C raises KeyboardInterrupt; a second one ends the process
    at once.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # stdout and stderr may be None
        usable = (nowhere if stream is None or getattr(stream, "closed", False) else stream for stream in before)
        streams = [_Stream(stream, passes) for stream in usable]
        sys.stdout, sys.stderr = streams
        try:
            with _log_printed(), _second_interrupt_kills():
                yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in streams:
                try:
                    stream._stream.flush()
                except (OSError, ValueError):
                    stream.discard()


@contextmanager
def _second_interrupt_kills() -> Iterator[None]:
    """Let a second Ctrl-C end the process at once: Python would wait until the current operation is done."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # the caller handles it
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

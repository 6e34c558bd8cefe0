"""Processes that read and decode images ahead of their use.

They send results through socket pairs, which need neither shared memory (containers have little) nor temporary files,
and whose end shows that a worker has died. torch's DataLoader puts tensors into shared memory, and waits forever for a
batch that does not fit.
"""

from __future__ import annotations

import ctypes
import io
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from andfast.data.images import DataError

logger = logging.getLogger(__name__)

_AHEAD = 4  # items that each worker makes before they are asked for

# Seconds without a message from a worker that is waited for, before a warning and before an error: a network folder
# may be away for a while.
_PATIENCE, _LIMIT = 30, 300
_GRACE = 5.0  # seconds that workers have to end by themselves

# The signals that stop a run. Windows cannot block them.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "pthread_sigmask") else ()

_PR_SET_PDEATHSIG = 1  # Linux's prctl.h

# The kinds of messages that workers send.
_READING, _ITEM, _ERROR = range(3)


class Named(Protocol):
    """Has a name for messages."""

    @property
    def name(self) -> str: ...


class SourceDataset(Dataset):
    """A dataset made from named sources, which reports what it is reading.

    Attributes:
        sources: what is read.
        on_reading: called with the index of a source before it is read, and with -1 after; so a message about a dead
            worker can name the file.
    """

    def __init__(self, sources: Sequence[Named]) -> None:
        self.sources = list(sources)
        self.on_reading: Callable[[int], object] = _ignore

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Report that source `index` is read inside the context."""
        self.on_reading(index)
        try:
            yield
        finally:
            self.on_reading(-1)


def _ignore(index: int) -> None:
    """Report nothing."""


class Each(SourceDataset):
    """Item `index` is `function(sources[index])`."""

    def __init__(self, function: Callable[[Any], Any], sources: Sequence[Named]) -> None:
        super().__init__(sources)
        self.function = function

    def __getitem__(self, index: int) -> Any:
        with self.reading(index):
            return self.function(self.sources[index])


class SourceLoader:
    """Yields the items `order` of `dataset` in that order.

    `workers` processes load ahead, four items each; with 0 this process loads each item when it is needed. With
    `pin_memory` tensors are pinned, so that a CUDA device can fetch them while it computes.

    Raises:
        DataError: when iterated: the dataset raised it; or the workers cannot be started, one died, or one is silent
            for minutes: the message names the file that it was reading. Other errors of the dataset are passed on.
    """

    def __init__(self, dataset: SourceDataset, order: Sequence[int], workers: int, pin_memory: bool = False) -> None:
        self.dataset, self.order, self.workers, self.pin_memory = dataset, order, workers, pin_memory

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        if self.workers == 0:
            for number in self.order:
                yield _pinned(self.dataset[number]) if self.pin_memory else self.dataset[number]
            return
        workers: list[_Worker] = []
        asked = 0
        try:
            self._start(workers)
            for place in range(len(self.order)):
                while asked < min(len(self.order), place + _AHEAD * self.workers):
                    workers[asked % self.workers].ask(self.order[asked])
                    asked += 1
                yield workers[place % self.workers].next_item()
        finally:
            _end(workers)

    def _start(self, workers: list[_Worker]) -> None:
        with _signals_blocked():
            try:
                for _ in range(self.workers):
                    workers.append(_Worker(self.dataset, workers, self.pin_memory))
            except OSError as error:  # too many processes or open files, or too little memory
                raise DataError(
                    f"data worker {len(workers) + 1} of {self.workers} could not be started ({error}); fewer "
                    "data.workers need less, and with 0 there is none"
                ) from error
            for worker in workers:  # not before: it is safer to fork a process that has few threads
                worker.listener.start()


class _Worker:
    """The parent's side of a process that makes items; `others` are the workers that were started before."""

    def __init__(self, dataset: SourceDataset, others: Sequence[_Worker], pin_memory: bool) -> None:
        self.dataset, self.pin_memory, self.number = dataset, pin_memory, len(others)
        self.socket, theirs = socket.socketpair()
        # A forked process closes what it inherits: the end of this process shows only when all copies are closed.
        context = multiprocessing.get_context()
        inherited = [self.socket, *(other.socket for other in others)] if context.get_start_method() == "fork" else []
        name = f"data worker {self.number}"
        with theirs:
            try:
                self.process = context.Process(target=_work, args=(dataset, theirs, inherited), name=name, daemon=True)
                self.process.start()
            except BaseException:
                self.socket.close()
                raise
        self.listener = threading.Thread(target=self._listen, name=name, daemon=True)
        self._arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._messages = 0
        self._reading = -1

    def ask(self, number: int) -> None:
        """Request an item. If the process has ended, `next_item` raises the error."""
        with suppress(OSError):
            self.socket.sendall(struct.pack("<q", number))

    def next_item(self) -> Any:
        """Wait for the earliest item requested and not returned yet."""
        silent, messages = 0, self._messages
        while True:
            try:
                kind, value = self._arrived.get(timeout=1)
                break
            except queue.Empty:
                # Counted, not taken from a clock: this process may be stopped for a while, too.
                silent = silent + 1 if messages == self._messages else 0
                messages = self._messages
            where = self._source(", which is reading ")
            if silent == _PATIENCE:
                logger.warning(f"waiting for data worker {self.number}{where}")
            if silent >= _LIMIT:
                raise DataError(f"nothing came from data worker {self.number} for {silent} s{where}")
        if kind == _ERROR:
            raise value
        return value

    def _source(self, words: str) -> str:
        """`words` and the name of the source being read, or nothing."""
        return words + self.dataset.sources[self._reading].name if self._reading >= 0 else ""

    def _listen(self) -> None:
        """Receive what the process sends, in a thread."""
        try:
            while True:
                kind, value = _receive(self.socket)
                self._messages += 1
                if kind == _READING:
                    self._reading = value
                    continue
                if self.pin_memory and kind == _ITEM:
                    value = _pinned(value)
                self._arrived.put((kind, value))
        except (OSError, EOFError):
            self._arrived.put((_ERROR, DataError(self._death_message())))
        except Exception as error:  # of memory that cannot be pinned, or an error that cannot be unpickled
            self._arrived.put((_ERROR, error))

    def _death_message(self) -> str:
        self.process.join(_GRACE)
        status = self.process.exitcode
        how = f"ended with status {status}"
        if status is not None and status < 0:
            names = {number.value: number.name for number in signal.Signals}
            how = f"was killed by {names.get(-status, f'signal {-status}')}"
            if names.get(-status) == "SIGKILL":
                how += ", as happens where memory runs out"
        return f"data worker {self.number} {how}{self._source(' while reading: ')}"


def _end(workers: Sequence[_Worker]) -> None:
    """End workers; those that are writing a file may finish it."""
    for worker in workers:
        with suppress(OSError):  # it may have ended
            worker.socket.shutdown(socket.SHUT_RDWR)
    try:
        until = time.monotonic() + _GRACE
        for worker in workers:
            worker.process.join(max(until - time.monotonic(), 0))
    finally:  # also where waiting is interrupted
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            if worker.listener.ident is not None:
                worker.listener.join(_GRACE)
            worker.socket.close()


def _work(dataset: SourceDataset, requests: socket.socket, inherited: Sequence[socket.socket]) -> None:
    """Run a worker: make the items that are requested until the other end is closed."""
    # Ctrl-C, a scheduler's SIGTERM and a closed terminal's SIGHUP go to the whole process group. The training loop
    # answers them, and still wants its batches.
    for number in _STOPPING or (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if _STOPPING:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    for each in inherited:
        each.close()
    _end_with_parent()
    torch.set_num_threads(1)
    dataset.on_reading = lambda index: _send(requests, (_READING, index))
    with suppress(OSError, EOFError), requests:
        while True:
            (number,) = struct.unpack("<q", _receive_exactly(requests, 8))
            try:
                message = _ITEM, dataset[number]
            except (BrokenPipeError, ConnectionResetError):
                return
            except DataError as error:  # the user's affair, without a traceback
                message = _ERROR, error
            except Exception as error:
                message = _ERROR, _portable(error)
            _send(requests, message)


def _end_with_parent() -> None:
    """End this process at once when its parent is killed, even while it hangs in a read."""
    parent = multiprocessing.parent_process()
    if sys.platform.startswith("linux") and os.getppid() == parent.pid:  # a process that is stopped runs no thread
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _portable(error: Exception) -> Any:
    """An error with its traceback as text, to be pickled; one that cannot be pickled becomes a RuntimeError."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    return ExceptionWithTraceback(error, error.__traceback__)


class _Pickler(pickle.Pickler):
    """Pickles tensors as the arrays that they share their memory with, which are sent without a copy."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _send(to: socket.socket, message: Any) -> None:
    """Pickle and send `message`; arrays and tensors are sent as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    text = io.BytesIO()
    _Pickler(text, protocol=5, buffer_callback=buffers.append).dump(message)
    parts = [text.getbuffer(), *(buffer.raw() for buffer in buffers)]
    to.sendall(struct.pack(f"<Q{len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        to.sendall(part)


def _receive(source: socket.socket) -> Any:
    """What `_send` sent at the other end; EOFError if that end is closed."""
    (count,) = struct.unpack("<Q", _receive_exactly(source, 8))
    sizes = struct.unpack(f"<{count}Q", _receive_exactly(source, 8 * count))
    text, *buffers = (_receive_exactly(source, size) for size in sizes)
    return pickle.loads(text, buffers=buffers)


def _receive_exactly(source: socket.socket, count: int) -> np.ndarray:
    content = np.empty(count, np.uint8)  # which, unlike a bytearray, is not set to zero first
    missing = memoryview(content)
    while len(missing):
        received = source.recv_into(missing)
        if not received:
            raise EOFError
        missing = missing[received:]
    return content


def _pinned(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.pin_memory()
    return tuple(_pinned(part) for part in item) if isinstance(item, tuple) else item


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals that stop a run: in the workers until they ignore them, and in threads started inside."""
    if not _STOPPING:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

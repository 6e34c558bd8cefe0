"""Processes that read and decode images ahead of their use.

They send results through socket pairs, which need neither shared memory (containers have little) nor temporary files. A
message either arrives or the socket's end is noticed. torch's DataLoader puts tensors into shared memory, and waits
forever for a batch that does not fit.
"""

from __future__ import annotations

import ctypes
import io
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
from tqdm import tqdm

from andfast.data.images import DataError

_AHEAD = 4  # items that each worker makes before they are asked for

# Seconds without a word from a worker that is waited for, after which that is said, and after which it is an error:
# a folder on another machine may be away for a while.
_PATIENCE, _LIMIT = 30, 300
# Seconds that workers have to end by themselves.
_GRACE = 5.0

# Windows has no masks of signals.
_HELD = (signal.SIGINT, signal.SIGTERM) if hasattr(signal, "pthread_sigmask") else ()

_PR_SET_PDEATHSIG = 1  # Linux's prctl.h

# The kinds of messages that workers send.
_READING, _ITEM, _ERROR = range(3)


class Named(Protocol):
    """What a message can name."""

    @property
    def name(self) -> str: ...


class SourceDataset(Dataset):
    """A dataset made from named sources, which says at any time what it is reading.

    Attributes:
        sources: what is read.
        on_reading: is called with the index of a source when its reading begins, and with -1 when it has ended. Whoever
            finds a worker dead learns from it where.
    """

    def __init__(self, sources: Sequence[Named]) -> None:
        self.sources = list(sources)
        self.on_reading: Callable[[int], object] | None = None

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Around the reading of a source."""
        if self.on_reading is None:
            yield
            return
        self.on_reading(index)
        try:
            yield
        finally:
            self.on_reading(-1)


class Each(SourceDataset):
    """Item `index` is `function(sources[index])`."""

    def __init__(self, function: Callable[[Any], Any], sources: Sequence[Named]) -> None:
        super().__init__(sources)
        self.function = function

    def __getitem__(self, index: int) -> Any:
        with self.reading(index):
            return self.function(self.sources[index])


class SourceLoader:
    """Yields the items `order` of `dataset`, one by one and in that order.

    Args:
        dataset: what to load.
        order: the items' numbers.
        workers: processes that load ahead, four items each; 0 does it in this process, when asked.
        pin_memory: put tensors where a CUDA device can fetch them while it computes.

    Raises:
        DataError: when iterated: the dataset raised it; or the workers cannot be started, one died, or none is heard of
            for minutes: the message names the files that were being read. Other errors of the dataset as they are.
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
        context = multiprocessing.get_context()
        with _signals_held():
            try:
                for _ in range(self.workers):
                    workers.append(_Worker(self.dataset, context, workers, self.pin_memory))
            except OSError as error:  # too many processes or open files, or too little memory
                raise DataError(
                    f"data worker {len(workers) + 1} of {self.workers} could not be started ({error}); fewer "
                    "data.workers need less, and with 0 there is none"
                ) from error
            for worker in workers:  # not before: it is safer to fork a process that has few threads
                worker.listener.start()


class _Worker:
    """A process that makes items, seen from the one that asks for them.

    Args:
        dataset: what makes them.
        context: how processes are started.
        others: the workers that were started before.
        pin_memory: see `SourceLoader`.

    Raises:
        OSError: it could not be started.
    """

    def __init__(
        self,
        dataset: SourceDataset,
        context: multiprocessing.context.BaseContext,
        others: Sequence[_Worker],
        pin_memory: bool,
    ) -> None:
        self.dataset, self.pin_memory = dataset, pin_memory
        self.number = len(others)
        self.socket, theirs = socket.socketpair()
        # What a forked process inherits it must close: the end of this process is only seen when all copies are.
        inherited = [self.socket, *(other.socket for other in others)] if context.get_start_method() == "fork" else []
        with theirs:
            try:
                self.process = context.Process(
                    target=_work, args=(dataset, theirs, inherited), name=f"data worker {self.number}",
                    daemon=True,
                )  # fmt: skip
                self.process.start()
            except BaseException:
                self.socket.close()
                raise
        self.listener = threading.Thread(target=self._listen, name=self.process.name, daemon=True)
        self._arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._heard = 0  # messages, all kinds
        self._reading = -1

    def ask(self, number: int) -> None:
        """Have an item made. That the process has ended is noticed when the item is wanted."""
        with suppress(OSError):
            self.socket.sendall(struct.pack("<q", number))

    def next_item(self) -> Any:
        """The first item that was asked for and not taken yet; errors are those of `SourceLoader`."""
        silent, heard = 0, self._heard
        while True:
            try:
                kind, value = self._arrived.get(timeout=1)
                break
            except queue.Empty:
                # Counted, not taken from a clock: this process may be stopped for a while, too.
                silent = silent + 1 if heard == self._heard else 0
                heard = self._heard
            if silent == _PATIENCE:
                tqdm.write(f"waiting for data worker {self.number}{self._place()}", file=sys.stderr)
            if silent >= _LIMIT:
                raise DataError(f"nothing came from data worker {self.number} for {silent} s{self._place()}")
        if kind == _ERROR:
            raise value
        return value

    def _place(self) -> str:
        index = self._reading
        return f", which is reading {self.dataset.sources[index].name}" if index >= 0 else ""

    def _listen(self) -> None:
        """Take what the process sends, in a thread."""
        try:
            while True:
                kind, value = receive(self.socket)
                self._heard += 1
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
            how = f"was killed by {_signal_name(-status)}"
            if -status == getattr(signal, "SIGKILL", None):
                how += ", as happens where memory runs out"
        index = self._reading
        where = f" while reading: {self.dataset.sources[index].name}" if index >= 0 else ""
        return f"data worker {self.number} {how}{where}"


def _end(workers: Sequence[_Worker]) -> None:
    """End workers, whatever they do; those that write may finish."""
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


def _work(dataset: SourceDataset, asked: socket.socket, inherited: Sequence[socket.socket]) -> None:
    """Make the items that are asked for, in a process of its own, until the asking ends."""
    # Ctrl-C and a scheduler's SIGTERM go to the whole process group. The training loop answers them, and still wants
    # its batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _HELD:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    for one in inherited:
        one.close()
    _end_with_parent()
    torch.set_num_threads(1)
    dataset.on_reading = lambda index: send(asked, (_READING, index))
    with suppress(OSError, EOFError), asked:  # nobody asks any more
        while True:
            (number,) = struct.unpack("<q", _exactly(asked, 8))
            try:
                message = _ITEM, dataset[number]
            except (BrokenPipeError, ConnectionResetError):
                return
            except DataError as error:  # it is the user's affair, the traceback is not
                message = _ERROR, error
            except Exception as error:
                message = _ERROR, _portable(error)
            send(asked, message)


def _end_with_parent() -> None:
    """Have this process end when the one that started it has ended, however that came, and not after the next item."""
    parent = multiprocessing.parent_process()
    if sys.platform.startswith("linux") and os.getppid() == parent.pid:  # a process that is stopped runs no thread
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _portable(error: Exception) -> Any:
    """An error with its traceback as text, to be pickled; one that cannot be becomes a RuntimeError."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    return ExceptionWithTraceback(error, error.__traceback__)


class _Pickler(pickle.Pickler):
    """Pickles tensors as the arrays that they share their memory with, which travel without a copy."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def send(to: socket.socket, message: Any) -> None:
    """Send anything that can be pickled; its arrays and tensors on the CPU as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    text = io.BytesIO()
    _Pickler(text, protocol=5, buffer_callback=buffers.append).dump(message)
    parts = [memoryview(text.getvalue()), *(buffer.raw() for buffer in buffers)]
    to.sendall(struct.pack(f"<Q{len(parts)}Q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        to.sendall(part)


def receive(source: socket.socket) -> Any:
    """What `send` sent at the other end.

    Raises:
        EOFError: that end is closed.
    """
    (count,) = struct.unpack("<Q", _exactly(source, 8))
    sizes = struct.unpack(f"<{count}Q", _exactly(source, 8 * count))
    text, *buffers = (_exactly(source, size) for size in sizes)
    return pickle.loads(text, buffers=buffers)


def _exactly(source: socket.socket, count: int) -> np.ndarray:
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


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keeps signals that stop a run until later, also from the processes started inside, until they ignore them, and
    from the threads, for the main one to notice them while it waits."""
    if not _HELD:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Processes that read images ahead of whoever needs them, and name the file when one of them dies."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from andfast.data.images import DataError

# Windows has no masks of signals.
_HELD = (signal.SIGINT, signal.SIGTERM) if hasattr(signal, "pthread_sigmask") else ()


class Named(Protocol):
    """What a message can name."""

    @property
    def name(self) -> str: ...


class SourceDataset(Dataset):
    """A dataset made from named sources, which says at any time what it is reading.

    Attributes:
        sources: what is read.
        reading: int64 (1,): the index of the source being read, or -1. Whoever finds a worker dead learns from it
            where.
    """

    def __init__(self, sources: Sequence[Named]) -> None:
        self.sources = list(sources)
        self.reading = torch.full((1,), -1)


class Each(SourceDataset):
    """Item `index` is `function(sources[index])`."""

    def __init__(self, function: Callable[[Any], Any], sources: Sequence[Named]) -> None:
        super().__init__(sources)
        self.function = function

    def __getitem__(self, index: int) -> Any:
        self.reading[0] = index
        try:
            return self.function(self.sources[index])
        finally:
            self.reading[0] = -1


class SourceLoader(DataLoader):
    """Yields the items `order` of `dataset`, one by one and in that order, as they are.

    Args:
        dataset: what to load.
        order: the items' numbers.
        workers: processes that load ahead, four items each; 0 does it in this process, when asked.
        pin_memory: put tensors where a CUDA device can fetch them while it computes.

    Raises:
        DataError: when iterated: the dataset raised it, or a worker died; the message names the files.
    """

    def __init__(self, dataset: SourceDataset, order: Sequence[int], workers: int, pin_memory: bool = False) -> None:
        reading = torch.full((max(workers, 1),), -1).share_memory_()
        super().__init__(
            dataset,
            batch_size=None,  # an item is whole already
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=partial(_start_worker, reading),
        )
        self.reading = reading

    def __iter__(self) -> Iterator[Any]:
        try:
            with _signals_held():
                items = super().__iter__()
            yield from items
        except Exception as error:
            if self.num_workers == 0:
                raise
            # What a worker raised has its traceback as text. The traceback from here to torch's loader is a
            # reference cycle, which would keep the workers alive and make their end wait for a time-out.
            error.__traceback__ = None
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> Exception:
        """`error`, as torch passes it on from a worker, in the user's terms."""
        if isinstance(error, DataError):  # it is the user's affair, the worker's traceback is not
            return DataError(str(error).rpartition("DataError: ")[2].strip())
        busy = [self.dataset.sources[index].name for index in self.reading.tolist() if index >= 0]
        if isinstance(error, RuntimeError) and busy:
            return DataError(f"{str(error).rstrip('. ')} while reading: {', '.join(busy)}")
        return error


@contextmanager
def _signals_held() -> Iterator[None]:
    """Keeps signals that stop a run until later, also from the processes started inside, until they ignore them."""
    if not _HELD:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(reading: Tensor, worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM go to the whole process group. The training loop answers them, and still wants
    # its batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _HELD:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    get_worker_info().dataset.reading = reading[worker : worker + 1]


def _as_it_is(item: Any) -> Any:
    return item

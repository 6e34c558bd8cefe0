"""Processes that load ahead: everything in order, and errors in the words of who raised them."""

import errno
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import tempfile
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch

from andfast.data import workers as workers_module
from andfast.data.images import DataError
from andfast.data.workers import Each, SourceLoader


class Number(NamedTuple):
    value: int

    @property
    def name(self) -> str:
        return f"number {self.value}"


def refuse(number: Number) -> int:
    if number.value == 3:
        raise DataError("three is refused")
    if number.value == 5:
        raise ZeroDivisionError("a defect at five")
    return number.value**2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_items_come_in_the_order_asked_for(workers):
    dataset = Each(refuse, [Number(value) for value in (7, 8, 9)])
    assert list(SourceLoader(dataset, [2, 0, 0, 1], workers)) == [81, 49, 49, 64]
    assert list(SourceLoader(dataset, [], workers)) == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("value", "error", "message"), [(3, DataError, r"^three is refused$"), (5, ZeroDivisionError, "a defect at five")]
)
def test_errors_are_passed_on(workers, value, error, message):
    items = iter(SourceLoader(Each(refuse, [Number(1), Number(value)]), range(2), workers))
    assert next(items) == 1
    with pytest.raises(error, match=message):
        next(items)


def test_what_is_being_read_is_known():
    seen = []
    dataset = Each(lambda number: seen.append(number.value), [Number(1), Number(2)])
    dataset.on_reading = seen.append
    assert list(SourceLoader(dataset, [1, 0], 0)) == [None, None]
    assert seen == [1, 2, -1, 0, 1, -1]


ITEMS = [
    (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), ["a failure"]),
    np.zeros((0, 3), np.float64),
    np.asfortranarray(np.arange(6.0).reshape(2, 3))[:, ::2],
    torch.arange(6, dtype=torch.int16).reshape(2, 3).T,
    torch.rand(3, 1 << 18),  # more than a socket holds
    {"none": None},
]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_of_any_kind_arrive_as_they_were(workers):
    found = list(
        SourceLoader(Each(lambda number: ITEMS[number.value], [Number(i) for i in range(6)]), range(6), workers)
    )
    for item, expected in zip(found, ITEMS, strict=True):
        assert type(item) is type(expected)
        if isinstance(item, tuple):
            assert item[1] == expected[1]
            item, expected = item[0], expected[0]
        if isinstance(item, dict):
            assert item == expected
            continue
        assert item.shape == expected.shape
        assert item.dtype == expected.dtype
        assert bool((item == expected).all())
        item[:1] = 0  # and can be written to


@pytest.fixture
def closed_off(monkeypatch, tmp_path):
    """No shared memory, no semaphores, and no folder for temporary files."""

    def refuse(*values, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_filename_cpu", refuse)
    monkeypatch.setattr(multiprocessing.synchronize, "SemLock", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30) / "gone"))


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_shared_memory_nor_a_temporary_folder_is_needed(workers, closed_off):
    dataset = Each(lambda number: torch.full((100, 1000), number.value), [Number(i) for i in range(9)])
    for number, item in enumerate(SourceLoader(dataset, range(9), workers)):
        assert bool((item == number).all())
    with pytest.raises(OSError, match="No space"):  # what torch's own loader would have met
        torch.zeros(1).share_memory_()


def test_a_worker_that_is_killed_while_it_waits_blames_no_source(tmp_path):
    def make(number):
        with (tmp_path / "made").open("a") as file:
            file.write("x")
        return os.getpid()

    items = iter(SourceLoader(Each(make, [Number(i) for i in range(20)]), range(20), 1))
    worker = next(items)
    while (tmp_path / "made").stat().st_size < 4:  # as many as it makes ahead
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(worker, signal.SIGKILL)
    message = "^data worker 0 was killed by SIGKILL, as happens where memory runs out$"
    with pytest.raises(DataError, match=message):
        list(items)
    assert not multiprocessing.active_children()


def test_a_worker_that_says_nothing_is_named_and_then_given_up(monkeypatch, caplog):
    monkeypatch.setattr(workers_module, "_PATIENCE", 1)
    monkeypatch.setattr(workers_module, "_LIMIT", 2)
    monkeypatch.setattr(workers_module, "_GRACE", 0.1)
    dataset = Each(lambda number: time.sleep(60 * number.value), [Number(0), Number(1)])
    items = iter(SourceLoader(dataset, range(2), 1))
    next(items)
    with pytest.raises(DataError, match=r"^nothing came from data worker 0 for 2 s, which is reading number 1$"):
        next(items)
    assert caplog.messages == ["waiting for data worker 0, which is reading number 1"]
    assert not multiprocessing.active_children()


class UnportableError(Exception):
    """Cannot be made again from what it is pickled as."""

    def __init__(self, one, two):
        super().__init__(one)


def test_an_error_that_does_not_travel_is_told_as_text():
    def fail(number):
        raise UnportableError("the cause", 2)

    with pytest.raises(RuntimeError, match=r"^UnportableError: the cause$") as caught:
        next(iter(SourceLoader(Each(fail, [Number(0)]), range(1), 1)))
    assert "in fail" in str(caught.value.__cause__)  # where it was raised


def test_workers_that_cannot_be_started_say_how_many_could(monkeypatch):
    start, started = multiprocessing.get_context().Process.start, []

    def limited(process):
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.get_context().Process, "start", limited)
    with pytest.raises(
        DataError, match=r"^data worker 3 of 4 could not be started \(.*unavailable.*\); fewer data.workers"
    ):
        next(iter(SourceLoader(Each(refuse, [Number(1)] * 9), range(9), 4)))
    assert len(started) == 2
    assert not multiprocessing.active_children()


def test_a_loader_that_is_given_up_lets_a_write_be_finished(tmp_path):
    def write(number):
        if number.value:
            (tmp_path / "half").touch()
            time.sleep(0.3)
            (tmp_path / "half").rename(tmp_path / "whole")

    items = iter(SourceLoader(Each(write, [Number(0), Number(1), Number(0), Number(1)]), range(4), 1))
    next(items)
    while not (tmp_path / "half").exists():
        time.sleep(0.01)
    items.close()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert not multiprocessing.active_children()

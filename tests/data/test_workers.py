"""Processes that load ahead: everything in order, and errors in the words of who raised them."""

from typing import NamedTuple

import pytest

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

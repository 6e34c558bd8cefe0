"""The share of the time that a run waits for data."""

import pytest

from andfast.training.config import DataConfig
from andfast.training.data_wait import DataWait


def waiting(share: float, steps: int, wait: DataWait | None = None) -> DataWait:
    wait = wait or DataWait()
    for _ in range(steps):
        wait.add(2 * share, 2.0)
    return wait


def test_the_shares_are_of_time_not_of_steps() -> None:
    wait = DataWait(window=3)
    assert wait.recent == 0
    waiting(0.5, 10, wait)
    assert wait.recent == 0  # the steps at the start do not count
    for waited, seconds in ((9.0, 10.0), (1.0, 2.0), (0.0, 4.0), (1.0, 4.0)):
        wait.add(waited, seconds)
    assert wait.recent == pytest.approx(2 / 10)


def test_the_hint_comes_once_and_only_where_much_is_waited_for_long() -> None:
    data = DataConfig(hr=["photographs"], workers=3)
    assert waiting(0.09, 200).hint(data) is None
    wait = waiting(0.9, 109)
    assert wait.hint(data) is None
    waiting(0.9, 1, wait)
    assert wait.hint(data) == (
        "90% of the time of the last 100 steps was waiting for data; try more data.workers than 3 or data.cache, a "
        "folder to keep images decoded in"
    )
    assert waiting(0.9, 200, wait).hint(data) is None


@pytest.mark.parametrize("data", [DataConfig(), DataConfig(hr=["photographs"], cache="cache")])
def test_the_hint_names_no_cache_where_there_is_one_or_nothing_to_cache(data: DataConfig) -> None:
    assert waiting(0.9, 200).hint(data).endswith("; try more data.workers than 1")

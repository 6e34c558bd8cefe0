"""The time left of a run."""

import io

import pytest

from andfast.training import progress
from andfast.training.progress import TimeLeft, TrainingBar


def after(left: TimeLeft, steps: range, seconds: float) -> None:
    for step in steps:
        left.add(step, seconds)


def test_attacked_updates_count_as_what_they_took() -> None:
    left = TimeLeft(warmup=10, iterations=30)
    left.add(1, 100.0)  # it compiles
    assert left.after(1) is None
    assert left.at_least(1) is None
    after(left, range(2, 11), 1.0)
    assert left.after(10) is None  # no attacked update was measured
    assert left.at_least(10) == pytest.approx(20 * 1)
    left.add(11, 200.0)
    after(left, range(12, 14), 7.0)
    assert left.after(13) is None
    left.add(14, 7.0)
    assert left.after(14) == pytest.approx(16 * 7)
    assert left.after(30) == 0


def test_the_time_of_warm_up_is_added_to_that_of_attacked_updates() -> None:
    """As for a run whose validation has gone back: both kinds are measured, both are to come."""
    left = TimeLeft(warmup=10, iterations=30)
    after(left, range(1, 11), 1.0)
    after(left, range(11, 16), 7.0)
    assert left.after(4) == pytest.approx(6 * 1 + 20 * 7)


def test_the_last_updates_count() -> None:
    left = TimeLeft(warmup=0, iterations=1000, window=10)
    after(left, range(1, 100), 5.0)
    after(left, range(100, 110), 2.0)
    assert left.after(109) == pytest.approx(2 * (1000 - 109))


@pytest.mark.parametrize("warmup", [20, 50])
def test_a_run_without_attacked_updates_does_not_wait_for_them(warmup: int) -> None:
    left = TimeLeft(warmup, iterations=20)
    after(left, range(1, 6), 3.0)
    assert left.after(5) == pytest.approx(15 * 3)


def test_a_resumed_run_measures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", shown)
    with TrainingBar(warmup=5, iterations=70, step=8, shown=True) as bar:
        for step in range(9, 13):
            assert "8/70 [00:00, time left not yet known, " in str(bar)
            bar.time_left.add(step, 2.0)
        bar.update(2)
        assert "10/70 [00:00, 02:00 left, " in str(bar)
    assert "time left not yet known" in shown.getvalue()


def test_before_the_first_attacked_updates_a_run_takes_more_than_at_the_speed_of_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    with TrainingBar(warmup=10, iterations=70, step=0, shown=True) as bar:
        for step in range(1, 6):
            bar.time_left.add(step, 2.0)
        bar.update(10)
        assert "10/70 [00:00, more than 02:00 left, " in str(bar)

"""Axes: where values lie, at which of them there are lines and numbers, and drawing these."""

from __future__ import annotations

import math
from collections.abc import Sequence

from andfast.chart.sheet import FAINT, GRID, INK, Sheet, font


class Axis:
    """A range of values along a run of pixels.

    Args:
        low, high: the values at its ends, low < high; 0 < low where it is logarithmic.
        start, end: the pixels there.
        log: whether equal ratios, not equal differences, are equally long.
        marks: about how many values to mark at most.
        ticks: the values to mark; None: round ones.
    """

    def __init__(
        self,
        low: float,
        high: float,
        start: float,
        end: float,
        log: bool = False,
        marks: int = 10,
        ticks: Sequence[float] | None = None,
    ) -> None:
        self.start, self.end = start, end
        self._of = math.log if log else float
        self._low, self._high = self._of(low), self._of(high)
        self.ticks = (_log_ticks if log else _linear_ticks)(low, high, marks) if ticks is None else ticks

    def __call__(self, value: float) -> float:
        """The pixel that a value lies at."""
        return self.start + (self._of(value) - self._low) / (self._high - self._low) * (self.end - self.start)


def round_step(span: float, marks: int = 10) -> float:
    """1, 2 or 5 times a power of ten, for at most `marks` steps, and more than a third of them, over the span."""
    rough = max(span, 1e-9) / marks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)


def multiples(step: float, low: float, high: float) -> list[float]:
    """Those of `step` from `low` to `high`."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A number as it stands beside an axis."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 and value == round(value) else f"{value:g}"


def label_width(ticks: Sequence[float], size: float) -> float:
    """The width of the widest of these numbers."""
    return max((font(size).getlength(tick_label(tick)) for tick in ticks), default=0.0)


def draw_grid(sheet: Sheet, x: Axis, y: Axis) -> None:
    """Lines at the marked values, and the lower edge."""
    for tick in y.ticks:
        sheet.line([(x.start, y(tick)), (x.end, y(tick))], GRID)
    for tick in x.ticks:
        sheet.line([(x(tick), y.start), (x(tick), y.end)], GRID)
    sheet.line([(x.start, y.start), (x.end, y.start)], FAINT)


def draw_numbers(sheet: Sheet, x: Axis, y: Axis, title: str, size: float) -> None:
    """The marked values, left of the lines and below them, and below these what x is."""
    for tick in y.ticks:
        sheet.text(x.start - 8, y(tick), tick_label(tick), FAINT, size, "rm")
    for tick in x.ticks:
        sheet.text(x(tick), y.start + 10, tick_label(tick), FAINT, size, "ma")
    sheet.text((x.start + x.end) / 2, y.start + 16 + 1.4 * size, title, INK, size, "ma")


def _linear_ticks(low: float, high: float, marks: int) -> list[float]:
    return multiples(round_step(high - low, marks), low, high)


def _log_ticks(low: float, high: float, marks: int) -> list[float]:
    """Of each decade 1, 2 and 5, or 1 alone, or that of some decades; where these are too few, as on a linear axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= marks:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / marks)]
    return ticks if len(ticks) > 2 else _linear_ticks(low, high, marks)

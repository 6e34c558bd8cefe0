"""Lines over a common x, in panels beside and below each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from PIL import Image

from andfast.chart.axes import Axis, draw_grid, draw_numbers, label_width
from andfast.chart.sheet import FAINT, INK, MARGIN, WIDTH, Sheet, font

_LEGEND, _ROW = MARGIN + 82, 36
# A panel: its title, its axes and what stands below them, the gap to the next one beside it.
_TITLE, _BELOW, _GAP = 40, 80, 48
_SIZE = 18

Place = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
        label: its name in the legend, where lines of equal names stand once; empty: not there.
        colour: a name or three numbers.
        x, y: its points, of ascending x; where y is no number, the line is broken.
        dashed: whether it is drawn in dashes.
        width: its thickness in pixels.
        dots: whether its points are marked; one that stands alone always is.
    """

    label: str
    colour: str | tuple[int, ...]
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    width: float = 3
    dots: bool = False

    def stretches(self) -> Iterator[list[Place]]:
        """The points of each unbroken part."""
        points = zip(self.x, self.y, strict=True)
        for broken, stretch in groupby(points, key=lambda point: math.isnan(point[1])):
            if not broken:
                yield list(stretch)


@dataclass(frozen=True)
class Panel:
    """A pair of axes, on scales of their own.

    Attributes:
        title: what stands above: what y is.
        x_axis: what x is.
        lines: what is drawn, the first ones below the others.
        x_range: the least and the greatest x; None: those of the lines.
        log: whether y is logarithmic; all y are positive then.
        from_zero: whether y begins at 0.
        empty: what stands in the panel if there is nothing to draw.
    """

    title: str
    x_axis: str
    lines: Sequence[Line]
    x_range: tuple[float, float] | None = None
    log: bool = False
    from_zero: bool = False
    empty: str = ""


def lines(title: str, subtitle: str, panels: Sequence[Panel], columns: int, height: int = 410) -> Image.Image:
    """Panels in `columns`, row by row, below one legend of all lines.

    Args:
        title, subtitle: what stands above.
        panels: what to draw.
        columns: panels beside each other.
        height: of the axes, in pixels.
    """
    legend = list(_legend(panels))
    top = _LEGEND + _ROW * (legend[-1][1] + 1 if legend else 0) + 8
    rows, whole = -(-len(panels) // columns), _TITLE + height + _BELOW
    sheet = Sheet(top + rows * whole + MARGIN // 2, title, subtitle)
    for x, row, size, line in legend:
        y = _LEGEND + _ROW * row
        _stroke(sheet, [(x, y), (x + 44, y)], line)
        sheet.text(x + 54, y, line.label, INK, size, "lm")
    across = (WIDTH - 2 * MARGIN + _GAP) / columns
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left = MARGIN + column * across
        _draw_panel(sheet, panel, left, left + across - _GAP, top + row * whole + _TITLE, height)
    return sheet.done()


def _legend(panels: Sequence[Panel]) -> Iterator[tuple[float, int, float, Line]]:
    """Where each name stands, from the left in a row, how large, and its line."""
    named: dict[str, Line] = {}
    for line in (line for panel in panels for line in panel.lines if line.label):
        named.setdefault(line.label, line)
    room = WIDTH - 2 * MARGIN
    x, row = 0.0, 0
    for line in named.values():
        size = 20 * min(1.0, (room - 54) / font(20).getlength(line.label))
        length = 54 + font(size).getlength(line.label)
        if x and x + length > room:
            x, row = 0.0, row + 1
        yield MARGIN + x, row, size, line
        x += length + _ROW


def _draw_panel(sheet: Sheet, panel: Panel, left: float, right: float, top: float, height: float) -> None:
    stretches = [(line, stretch) for line in panel.lines for stretch in line.stretches()]
    sheet.text(left, top - 20, panel.title, INK, 20, "ls")
    if not stretches:
        sheet.text((left + right) / 2, top + height / 2, panel.empty, FAINT, 20, "mm")
        return
    points = [point for _, stretch in stretches for point in stretch]
    low, high = panel.x_range or _ends([x for x, _ in points])
    y = Axis(*_reach(panel, [y for _, y in points]), top + height, top, panel.log, marks=7)
    start = left + label_width(y.ticks, _SIZE) + 8
    x = Axis(low, high, start, right, marks=round((right - start) / 110))
    draw_grid(sheet, x, y)
    draw_numbers(sheet, x, y, panel.x_axis, _SIZE)
    for line, stretch in stretches:
        places = list(_thinned([(x(point[0]), y(point[1])) for point in stretch]))
        _stroke(sheet, places, line)
        if line.dots or len(places) == 1:
            for place in places:
                sheet.dot(*place, line.colour, line.width + 2)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, or a little around them if they are the same."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _reach(panel: Panel, values: Sequence[float]) -> tuple[float, float]:
    """From where to where y goes: a little beyond the values, but for a zero."""
    low, high = min(values), max(values)
    if panel.from_zero:
        return 0.0, 1.05 * high or 1.0
    if panel.log:
        margin = max((high / low) ** 0.05, 1.01)
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _thinned(places: Sequence[Place]) -> Iterator[Place]:
    """The highest and the lowest place of each column of pixels: more would not be seen."""
    for _, column in groupby(places, key=lambda place: round(place[0])):
        here = list(column)
        ends = {min(here, key=lambda place: place[1]), max(here, key=lambda place: place[1])}
        yield from sorted(ends)


def _stroke(sheet: Sheet, places: Sequence[Place], line: Line) -> None:
    if not line.dashed:
        sheet.line(places, line.colour, line.width)
        return
    for (x, y), (right, down) in pairwise(places):
        count = max(round(math.dist((x, y), (right, down)) / 14), 1)
        for index in range(count):
            ends = [(index + part) / count for part in (0.0, 0.6)]
            sheet.line([(x + (right - x) * end, y + (down - y) * end) for end in ends], line.colour, line.width)

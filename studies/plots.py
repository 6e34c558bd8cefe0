"""Two kinds of figures, drawn with Pillow alone: lines side by side, and intervals below each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from andfast.chart import FAINT, GRID, INK, MARGIN, PAPER, WIDTH, font

_FINE = 2  # drawn so many times larger and then reduced, for smooth edges


@dataclass(frozen=True)
class Line:
    """A line of a panel: its name in the legend, its colour, its values, and whether it is broken into dashes."""

    label: str
    colour: str
    values: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A pair of axes: what stands above, what x is, its values, and the lines over them."""

    title: str
    x_axis: str
    x: Sequence[float]
    lines: Sequence[Line]


@dataclass(frozen=True)
class Column:
    """A column of `intervals`: what is measured, the range that is shaded, and for each row its five quantiles."""

    title: str
    shaded: tuple[float, float]
    rows: Sequence[Sequence[float]]


class _Sheet:
    """A drawing in fine pixels."""

    def __init__(self, height: int, title: str, subtitle: str) -> None:
        self.height = height
        self.image = Image.new("RGB", (_FINE * WIDTH, _FINE * height), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.text(MARGIN, MARGIN - 10, title, INK, 28)
        self.text(MARGIN, MARGIN + 30, subtitle, FAINT, 20)

    def text(self, x: float, y: float, text: str, colour: str = INK, size: int = 18, anchor: str = "la") -> None:
        self.pen.text((_FINE * x, _FINE * y), text, colour, font(_FINE * size), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        self.pen.line([(_FINE * x, _FINE * y) for x, y in points], colour, round(_FINE * width), joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self.pen.rectangle([_FINE * value for value in (left, top, right, bottom)], colour)

    def dot(self, x: float, y: float, colour: str, radius: float = 6) -> None:
        ends = [_FINE * value for value in (x - radius, y - radius, x + radius, y + radius)]
        self.pen.ellipse(ends, colour, PAPER, _FINE)

    def done(self) -> Image.Image:
        return self.image.resize((WIDTH, self.height), Image.Resampling.LANCZOS)


def lines(title: str, subtitle: str, panels: Sequence[Panel]) -> Image.Image:
    """Panels side by side, on scales from zero of their own; the first one's lines make the legend below."""
    sheet = _Sheet(760, title, subtitle)
    width = (WIDTH - MARGIN - 20) / len(panels)
    for index, panel in enumerate(panels):
        _draw_panel(sheet, panel, MARGIN + 40 + index * width, width - 90, 150, 560)
    x, y = MARGIN, 650
    for line in panels[0].lines:
        length = font(20).getlength(line.label) + 90
        if x + length > WIDTH - MARGIN / 2:
            x, y = MARGIN, y + 36
        _stroke(sheet, [(x, y), (x + 44, y)], line)
        sheet.text(x + 54, y, line.label, INK, 20, "lm")
        x += length
    return sheet.done()


def _draw_panel(sheet: _Sheet, panel: Panel, left: float, width: float, top: float, bottom: float) -> None:
    highest = max(max(line.values) for line in panel.lines)
    step = next(step for step in (0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 100, 1e9) if highest / step <= 6)
    ceiling = step * (int(highest / step) + 1)
    low, high = panel.x[0], panel.x[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - low) / (high - low) * width, bottom - y / ceiling * (bottom - top)

    sheet.text(left - 30, top - 36, panel.title, INK, 20)
    for index in range(round(ceiling / step) + 1):
        y = place(low, index * step)[1]
        sheet.line([(left, y), (left + width, y)], GRID if index else FAINT)
        sheet.text(left - 8, y, f"{index * step:g}", FAINT, 18, "rm")
    for x in panel.x:
        sheet.text(place(x, 0)[0], bottom + 8, f"{x:.2g}", FAINT, 16, "ma")
    sheet.text(left + width / 2, bottom + 34, panel.x_axis, INK, 18, "ma")
    for line in panel.lines:
        _stroke(sheet, [place(x, y) for x, y in zip(panel.x, line.values, strict=True)], line)


def _stroke(sheet: _Sheet, points: Sequence[tuple[float, float]], line: Line) -> None:
    if not line.dashed:
        sheet.line(points, line.colour, 3)
        return
    for (x, y), (right, down) in pairwise(points):
        count = max(round(((right - x) ** 2 + (down - y) ** 2) ** 0.5 / 14), 1)
        for index in range(count):
            ends = [(index + part) / count for part in (0.0, 0.6)]
            sheet.line([(x + (right - x) * end, y + (down - y) * end) for end in ends], line.colour, 3)


def intervals(
    title: str, subtitle: str, labels: Sequence[tuple[str, str]], columns: Sequence[Column], tall: int = 34
) -> Image.Image:
    """For each row and column a line from the 10 to the 90% quantile, a box from 25 to 75%, a dot at the median.

    Args:
        title, subtitle: what stands above.
        labels: name and colour of each row.
        columns: what is drawn, each on a scale of its own.
        tall: height of a row.
    """
    sheet = _Sheet(200 + tall * len(labels) + 40, title, subtitle)
    left = MARGIN + max(font(18).getlength(label) for label, _ in labels) + 30
    width = (WIDTH - left - 20) / len(columns)
    top, bottom = 170, 170 + tall * len(labels)
    for index, (label, _) in enumerate(labels):
        sheet.text(MARGIN, top + tall * (index + 0.5), label, INK, 18, "lm")
    for number, column in enumerate(columns):
        start, end = left + number * width, left + (number + 1) * width - 26
        low = min(column.shaded[0], *(row[0] for row in column.rows))
        high = max(column.shaded[1], *(row[-1] for row in column.rows))

        def across(value: float, low: float = low, high: float = high, start: float = start, end: float = end) -> float:
            return start + (value - low) / ((high - low) or 1) * (end - start)

        for line, part in enumerate(reversed(column.title.split("\n"))):
            sheet.text(start, top - 14 - 22 * line, part, INK, 18, "ls")
        sheet.box(across(column.shaded[0]), top, across(column.shaded[1]), bottom, "#e8eff7")
        for edge, anchor in ((low, "la"), (high, "ra")):
            sheet.text(across(edge), bottom + 8, f"{edge:.2g}", FAINT, 16, anchor)
        for index, ((_, colour), row) in enumerate(zip(labels, column.rows, strict=True)):
            y = top + tall * (index + 0.5)
            sheet.line([(across(row[0]), y), (across(row[-1]), y)], colour, 2)
            sheet.box(across(row[1]), y - 6, across(row[-2]), y + 6, colour)
            sheet.dot(across(row[len(row) // 2]), y, colour)
    return sheet.done()

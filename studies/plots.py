"""Intervals below each other, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from andfast.chart import FAINT, INK, MARGIN, WIDTH, Sheet, font


@dataclass(frozen=True)
class Column:
    """A column of `intervals`: what is measured, the range that is shaded, and for each row its five quantiles."""

    title: str
    shaded: tuple[float, float]
    rows: Sequence[Sequence[float]]


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
    sheet = Sheet(200 + tall * len(labels) + 40, title, subtitle)
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

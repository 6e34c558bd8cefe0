"""Points on two axes, with labels that lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image

from andfast.chart.axes import Axis, draw_grid, draw_numbers, multiples, round_step
from andfast.chart.sheet import FAINT, GROUPS, INK, MARGIN, OLD, PAPER, WIDTH, Sheet, font, paler

_HEIGHT, _RADIUS = 1000, 8
# Of the labels of points.
_SIZE = 18


@dataclass(frozen=True)
class Point:
    """A point of a `scatter`.

    Attributes:
        label: what is written beside it.
        group: which colour it has.
        x, y: where it lies; x > 0.
        spread: half the height of its error bar.
        on_line: whether the line through the marked points passes it.
    """

    label: str
    group: str
    x: float
    y: float
    spread: float = 0.0
    on_line: bool = False


def scatter(
    title: str,
    subtitle: str,
    x_axis: str,
    y_axis: str,
    line: str,
    points: Sequence[Point],
    least: float | None = None,
) -> Image.Image:
    """Points with labels; x on a logarithmic scale in powers of two.

    Args:
        title, subtitle: what stands above.
        x_axis, y_axis: what the axes are.
        line: what the line through the points marked `on_line` is.
        points: what to draw, at least one.
        least: where y begins; points below are drawn as arrows at the lower edge, with their y beside the label. None:
            at zero, or below the lowest point.
    """
    return _Scatter(points, least, title, subtitle).draw(x_axis, y_axis, line)


class _Scatter:
    """The drawing of a `scatter`."""

    left, right = MARGIN + 60, WIDTH - MARGIN - 40
    top, bottom = MARGIN + 150, _HEIGHT - MARGIN - 60

    def __init__(self, points: Sequence[Point], least: float | None, title: str, subtitle: str) -> None:
        self.points = points
        self.sheet = Sheet(_HEIGHT, title, subtitle)
        groups = dict.fromkeys(point.group for point in points)
        self.colours = {group: GROUPS[index % len(GROUPS)] for index, group in enumerate(groups)}
        exponents = [math.log2(point.x) for point in points]
        margin = 0.08 * (max(exponents) - min(exponents)) + 0.15
        low, high = min(exponents) - margin, max(exponents) + margin
        powers = [2.0**exponent for exponent in range(math.ceil(low), math.floor(high) + 1)]
        self.x = Axis(2.0**low, 2.0**high, self.left, self.right, log=True, ticks=powers)
        highest = max(point.y + point.spread for point in points)
        lowest = min(0.0, *(point.y - point.spread for point in points)) if least is None else least
        step = round_step(highest - lowest)
        floor, ceiling = math.floor(lowest / step) * step, highest + 0.3 * step
        self.y = Axis(floor, ceiling, self.bottom, self.top, ticks=multiples(step, floor, ceiling))
        self.places = [(self.x(point.x), min(self.y(point.y), self.bottom)) for point in points]
        self.below = [point.y < floor for point in points]

    def draw(self, x_axis: str, y_axis: str, line: str) -> Image.Image:
        sheet = self.sheet
        self._legend(line)
        draw_grid(sheet, self.x, self.y)
        for (x, _), point in zip(self.places, self.points, strict=True):
            if point.spread:
                self._error_bar(x, point)
        marked = sorted((self.x(point.x), self.y(point.y)) for point in self.points if point.on_line)
        if len(marked) > 1:
            sheet.line(marked, INK, 2)
        # What lies below the axis is not to be seen.
        sheet.box(0, self.bottom + 1, WIDTH, _HEIGHT, PAPER)
        draw_numbers(sheet, self.x, self.y, x_axis, 20)
        sheet.text(MARGIN, self.top - 14, y_axis, INK, 20, "lb")
        for index in range(len(self.points)):
            self._mark(index)
        self._labels(marked)
        return sheet.done()

    def _mark(self, index: int) -> None:
        (x, y), point, radius = self.places[index], self.points[index], _RADIUS
        colour, edge = self.colours[point.group], INK if point.on_line else PAPER
        if self.below[index]:
            self.sheet.polygon([(x - radius, y - 2 * radius), (x + radius, y - 2 * radius), (x, y)], colour, edge)
        else:
            self.sheet.dot(x, y, colour, radius, edge, 2)

    def _error_bar(self, x: float, point: Point) -> None:
        colour = paler(self.colours[point.group])
        ends = [self.y(point.y + sign * point.spread) for sign in (1, -1)]
        self.sheet.line([(x, ends[0]), (x, ends[1])], colour, 2)
        for end in ends:
            self.sheet.line([(x - _RADIUS / 2, end), (x + _RADIUS / 2, end)], colour, 2)

    def _legend(self, line: str) -> None:
        x, y = MARGIN + _RADIUS, MARGIN + 80
        for group, colour in self.colours.items():
            self.sheet.dot(x, y, colour, _RADIUS, width=2)
            self.sheet.text(x + 2 * _RADIUS, y, group, INK, 20, "lm")
            x += 6 * _RADIUS + font(20).getlength(group)
        self.sheet.line([(x, y), (x + 5 * _RADIUS, y)], INK, 2)
        self.sheet.text(x + 6 * _RADIUS, y, line, INK, 20, "lm")

    def _labels(self, line: Sequence[tuple[float, float]]) -> None:
        """Write each label where it covers little, and near its point."""
        sheet, radius = self.sheet, _RADIUS
        taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in self.places]
        taken += [box for start, end in pairwise(line) for box in _along(start, end, 2)]
        sides = [(1, 0, "lm"), (-1, 0, "rm"), (0, -1, "mb"), (0, 1, "mt")]
        sides += [(0.7, -0.7, "lb"), (0.7, 0.7, "lt"), (-0.7, -0.7, "rb"), (-0.7, 0.7, "rt")]
        # Points on the line first: they are what is looked for.
        for index in sorted(range(len(self.points)), key=lambda index: not self.points[index].on_line):
            (x, y), point = self.places[index], self.points[index]
            label = f"{point.label} ({point.y:.3g})" if self.below[index] else point.label
            best: tuple = (math.inf,)
            for distance in range(2 * radius, 18 * radius, radius):
                for side, (across, down, anchor) in enumerate(sides):
                    spot = (x + across * distance, y + down * distance)
                    box = sheet.bounds(*spot, label, _SIZE, anchor)
                    inside = self.left <= box[0] and box[2] <= WIDTH and self.top <= box[1] and box[3] <= self.bottom
                    cost = 8 * sum(_overlap(box, other) for other in taken) + distance * radius
                    best = min(best, (cost if inside else math.inf, side, spot, anchor, box, distance))
            _, _, spot, anchor, box, distance = best
            if distance > 2 * radius:
                sheet.line([(x, y), spot], OLD)
                self._mark(index)
            sheet.text(*spot, label, INK if point.on_line else FAINT, _SIZE, anchor)
            taken.append(box)


def _along(start: tuple[float, float], end: tuple[float, float], half: float) -> Iterator[tuple[float, ...]]:
    """Boxes along a line."""
    count = max(round(math.dist(start, end) / (2 * half)), 1)
    for index in range(count + 1):
        x, y = (a + (b - a) * index / count for a, b in zip(start, end, strict=True))
        yield x - half, y - half, x + half, y + half


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)

"""Drawing with Pillow alone: what charts have in common, and points on two axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageColor, ImageDraw, ImageFont

WIDTH, MARGIN = 1400, 48
INK, FAINT, PAPER, GRID = "#1f2328", "#59636e", "#ffffff", "#e4e8ec"
OWN, OLD, OTHER, PALE = "#2f6fb2", "#9aa4af", "#c9a26b", "#c8ced5"
#: Colours of groups, told apart in gray, too.
GROUPS = (OWN, "#c2571a", "#2e8b57", "#7d4fa8", "#b03060", OLD)

_HEIGHT, _RADIUS = 1000, 8
# Drawn so many times larger and then reduced, for smooth edges.
_FINE = 2


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


def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


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
    return _Scatter(points, least).draw(title, subtitle, x_axis, y_axis, line)


class _Scatter:
    """The drawing of a `scatter`, in fine pixels."""

    left, right = _FINE * (MARGIN + 60), _FINE * (WIDTH - MARGIN - 40)
    top, bottom = _FINE * (MARGIN + 150), _FINE * (_HEIGHT - MARGIN - 60)
    radius = _FINE * _RADIUS

    def __init__(self, points: Sequence[Point], least: float | None) -> None:
        self.points = points
        self.image = Image.new("RGB", (_FINE * WIDTH, _FINE * _HEIGHT), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        groups = dict.fromkeys(point.group for point in points)
        self.colours = {group: GROUPS[index % len(GROUPS)] for index, group in enumerate(groups)}
        exponents = [math.log2(point.x) for point in points]
        margin = 0.08 * (max(exponents) - min(exponents)) + 0.15
        self.low, self.high = min(exponents) - margin, max(exponents) + margin
        highest = max(point.y + point.spread for point in points)
        lowest = min(0.0, *(point.y - point.spread for point in points)) if least is None else least
        self.step = _round_step(highest - lowest)
        self.floor, self.ceiling = math.floor(lowest / self.step) * self.step, highest + 0.3 * self.step
        self.places = [(self._across(point.x), min(self._up(point.y), self.bottom)) for point in points]
        self.below = [point.y < self.floor for point in points]

    def draw(self, title: str, subtitle: str, x_axis: str, y_axis: str, line: str) -> Image.Image:
        self._text((_FINE * MARGIN, _FINE * (MARGIN - 10)), title, INK, 28)
        self._text((_FINE * MARGIN, _FINE * (MARGIN + 30)), subtitle, FAINT, 20)
        self._legend(line)
        self._grid()
        for (x, _), point in zip(self.places, self.points, strict=True):
            if point.spread:
                self._error_bar(x, point)
        marked = sorted((self._across(point.x), self._up(point.y)) for point in self.points if point.on_line)
        if len(marked) > 1:
            self.pen.line(marked, INK, 2 * _FINE)
        # What lies below the axis is not to be seen.
        self.pen.rectangle((0, self.bottom + _FINE, _FINE * WIDTH, _FINE * _HEIGHT), PAPER)
        self._axes(x_axis, y_axis)
        for index in range(len(self.points)):
            self._mark(index)
        self._labels(marked)
        return self.image.resize((WIDTH, _HEIGHT), Image.Resampling.LANCZOS)

    def _across(self, x: float) -> int:
        return round(self.left + (math.log2(x) - self.low) / (self.high - self.low) * (self.right - self.left))

    def _up(self, y: float) -> int:
        return round(self.bottom - (y - self.floor) / (self.ceiling - self.floor) * (self.bottom - self.top))

    def _text(self, spot: tuple[float, float], text: str, colour: str, size: int, anchor: str = "la") -> None:
        self.pen.text(spot, text, colour, font(_FINE * size), anchor=anchor)

    def _mark(self, index: int) -> None:
        (x, y), point, radius = self.places[index], self.points[index], self.radius
        colour, edge = self.colours[point.group], INK if point.on_line else PAPER
        if self.below[index]:
            self.pen.polygon([(x - radius, y - 2 * radius), (x + radius, y - 2 * radius), (x, y)], colour, edge)
        else:
            self._dot(x, y, colour, edge)

    def _dot(self, x: float, y: float, colour: str, edge: str) -> None:
        radius = self.radius
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour, edge, 2 * _FINE)

    def _error_bar(self, x: int, point: Point) -> None:
        colour = ImageColor.getrgb(self.colours[point.group])
        pale = tuple((value + 2 * 255) // 3 for value in colour)
        ends = [self._up(point.y + sign * point.spread) for sign in (1, -1)]
        self.pen.line((x, ends[0], x, ends[1]), pale, 2 * _FINE)
        for end in ends:
            self.pen.line((x - self.radius // 2, end, x + self.radius // 2, end), pale, 2 * _FINE)

    def _legend(self, line: str) -> None:
        x, y = _FINE * MARGIN + self.radius, _FINE * (MARGIN + 80)
        for group, colour in self.colours.items():
            self._dot(x, y, colour, PAPER)
            self._text((x + 2 * self.radius, y), group, INK, 20, "lm")
            x += 6 * self.radius + int(font(_FINE * 20).getlength(group))
        self.pen.line((x, y, x + 5 * self.radius, y), INK, 2 * _FINE)
        self._text((x + 6 * self.radius, y), line, INK, 20, "lm")

    def _grid(self) -> None:
        for value in self._ticks():
            y = self._up(value)
            self.pen.line((self.left, y, self.right, y), FAINT if value == self.floor else GRID, _FINE)
        for exponent in self._powers():
            x = self._across(2.0**exponent)
            self.pen.line((x, self.top, x, self.bottom), GRID, _FINE)

    def _axes(self, x_axis: str, y_axis: str) -> None:
        for value in self._ticks():
            self._text((self.left - self.radius, self._up(value)), f"{value:g}", FAINT, 20, "rm")
        for exponent in self._powers():
            self._text((self._across(2.0**exponent), self.bottom + _FINE * 10), f"{2.0**exponent:g}", FAINT, 20, "ma")
        self._text(((self.left + self.right) / 2, self.bottom + _FINE * 44), x_axis, INK, 20, "ma")
        self._text((_FINE * MARGIN, self.top - _FINE * 14), y_axis, INK, 20, "lb")

    def _ticks(self) -> list[float]:
        count = math.floor((self.ceiling - self.floor) / self.step)
        return [self.floor + index * self.step for index in range(count + 1)]

    def _powers(self) -> range:
        return range(math.ceil(self.low), math.floor(self.high) + 1)

    def _labels(self, line: Sequence[tuple[int, int]]) -> None:
        """Write each label where it covers little, and near its point."""
        text, radius = font(_FINE * 18), self.radius
        taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in self.places]
        taken += [box for start, end in pairwise(line) for box in _along(start, end, 2 * _FINE)]
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
                    box = self.pen.textbbox(spot, label, text, anchor=anchor)
                    inside = self.left <= box[0] and box[2] <= _FINE * WIDTH and self.top <= box[1]
                    inside = inside and box[3] <= self.bottom
                    cost = 8 * sum(_overlap(box, other) for other in taken) + distance * radius
                    best = min(best, (cost if inside else math.inf, side, spot, anchor, box, distance))
            _, _, spot, anchor, box, distance = best
            if distance > 2 * radius:
                self.pen.line((x, y, *spot), OLD, _FINE)
                self._mark(index)
            self.pen.text(spot, label, INK if point.on_line else FAINT, text, anchor=anchor)
            taken.append(box)


def _along(start: tuple[int, int], end: tuple[int, int], half: int) -> Iterator[tuple[float, ...]]:
    """Boxes along a line."""
    count = max(round(math.dist(start, end) / (2 * half)), 1)
    for index in range(count + 1):
        x, y = (a + (b - a) * index / count for a, b in zip(start, end, strict=True))
        yield x - half, y - half, x + half, y + half


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, for five to ten lines over the span."""
    rough = max(span, 1e-9) / 10
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)

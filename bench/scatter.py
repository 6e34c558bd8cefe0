"""A scatter plot of labelled points over a logarithmic x axis, with a line through some of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from andfast.utils.charts import COLOURS, FAINT, INK, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox


@dataclass(frozen=True)
class Point:
    """A point of a `scatter`.

    Attributes:
        label: the text beside it.
        group: points of one group have one colour.
        x, y: coordinates, x > 0.
        spread: half the height of the error bar.
        on_line: whether the line goes through the point.
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
    x_label: str,
    y_label: str,
    line: str,
    points: Sequence[Point],
    least: float | None = None,
) -> Figure:
    """Draw labelled points; x is logarithmic with marks at powers of two.

    Args:
        title, subtitle, x_label, y_label: text.
        line: the name of the line through the points with `on_line`.
        points: at least one.
        least: the lower end of y. Lower points are triangles at the edge, with their y in the label. None: zero, or
            below the lowest point.

    Raises:
        ChartError: matplotlib cannot be imported.
    """
    groups = dict.fromkeys(point.group for point in points)
    colours = {group: COLOURS[index % len(COLOURS)] for index, group in enumerate(groups)}
    lowest = min(0.0, *(point.y - point.spread for point in points)) if least is None else least
    highest = max(point.y + point.spread for point in points)
    floor, ceiling = lowest, highest + 0.05 * ((highest - lowest) or 1.0)
    figure = new_figure(title, subtitle, 6.47, _legend(colours, line))  # 1400 x 1000 pixels
    axes = figure.subplots()
    plain_axes(axes, x_label=x_label, y_label=y_label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(floor, ceiling)
    marked = sorted((point.x, point.y) for point in points if point.on_line)
    if marked:
        axes.plot(*zip(*marked, strict=True), color=INK, linewidth=1.2)
    for point in points:
        below = point.y < floor
        colour, edge = colours[point.group], INK if point.on_line else "white"
        axes.errorbar(point.x, point.y, point.spread or None, color=colour, alpha=0.4, capsize=3, fmt="none")
        axes.plot(
            point.x, floor if below else point.y, "v" if below else "o", color=colour, markeredgecolor=edge,
            markersize=8, clip_on=False, zorder=3, gid="point",
        )  # fmt: skip
    _label(axes, points, floor)
    return figure


def _legend(colours: dict[str, str], line: str) -> list[Line2D]:
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], color=colour, marker="o", linestyle="", label=group) for group, colour in colours.items()]
    return [*dots, Line2D([], [], color=INK, linewidth=1.2, label=line)]


def _label(axes: Axes, points: Sequence[Point], floor: float) -> None:
    """Write each label near its point, where it covers the fewest points and labels; those on the line first."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()  # lays the axes out
    places = [axes.transData.transform((point.x, max(point.y, floor))) for point in points]
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in places]
    for index in sorted(range(len(points)), key=lambda index: not points[index].on_line):
        point = points[index]
        text = f"{point.label} ({point.y:.3g})" if point.y < floor else point.label
        label = axes.annotate(
            text, (point.x, max(point.y, floor)), xytext=(0, 0), textcoords="offset points", fontsize=9, zorder=4,
            color=INK if point.on_line else FAINT,
        )  # fmt: skip
        best = (math.inf, (0.0, 0.0), None)
        for distance in (8, 14, 20, 28, 38):
            for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7)):
                _place(label, across, down, distance)
                box = label.get_window_extent()
                inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0
                covered = sum(_overlap(box, other) for other in taken)
                cost = covered + 10 * distance if inside else math.inf
                if cost < best[0]:
                    best = (cost, (across, down, distance), box)
        if best[2] is not None:
            _place(label, *best[1])
            taken.append(best[2])


def _place(label: Annotation, across: float, down: float, distance: float) -> None:
    label.set_position((across * distance, down * distance))
    label.set_horizontalalignment("left" if across > 0 else "right" if across < 0 else "center")
    label.set_verticalalignment("bottom" if down > 0 else "top" if down < 0 else "center")


def _overlap(box: Bbox, other: Bbox) -> float:
    """The area that two boxes share."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return max(width, 0) * max(height, 0)

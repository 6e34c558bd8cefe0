"""Scatter plots of benchmarks: points are at their values, labels do not cover each other."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from andfast.utils.charts import COLOURS, INK
from bench.scatter import Point, scatter


def draw(points: list[Point], least: float | None = None) -> Axes:
    (axes,) = scatter("title", "subtitle", "x axis", "y axis", "line", points, least).axes
    axes.figure.draw_without_rendering()
    return axes


def markers(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_gid() == "point"]


def annotations(axes: Axes) -> list[Annotation]:
    return [child for child in axes.get_children() if isinstance(child, Annotation)]


def test_points_are_at_their_values_in_their_group_s_colour():
    points = [Point("p", "a", 1.0, 30.0), Point("q", "b", 2.0, 20.0, spread=3.0), Point("r", "a", 4.0, 10.0)]
    axes = draw(points)
    assert [(*line.get_xdata(), *line.get_ydata()) for line in markers(axes)] == [(1, 30), (2, 20), (4, 10)]
    assert [to_hex(line.get_color()) for line in markers(axes)] == [COLOURS[0], COLOURS[1], COLOURS[0]]
    assert axes.get_xscale() == "log"
    bars = [np.asarray(segment) for bar in axes.containers for part in bar[2] for segment in part.get_segments()]
    np.testing.assert_allclose(bars, [[(2, 17), (2, 23)]])
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.texts] == ["a", "b", "line"]
    assert {label.get_text() for label in annotations(axes)} == {"p", "q", "r"}


def test_a_point_below_the_axis_is_a_triangle_at_its_edge():
    """The line goes on to where the point would be; its value is in the label."""
    points = [Point("low", "a", 1, 2.0, on_line=True), Point("high", "b", 4, 100.0, on_line=True)]
    axes = draw([*points, Point("other", "b", 8, 90.0)], least=80.0)
    low, high, other = markers(axes)
    assert axes.get_ylim()[0] == 80
    assert (low.get_marker(), *low.get_ydata()) == ("v", 80)
    assert [line.get_marker() for line in (high, other)] == ["o", "o"]
    assert "low (2)" in [label.get_text() for label in annotations(axes)]
    (line,) = (line for line in axes.lines if line.get_gid() != "point" and to_hex(line.get_color()) == INK)
    np.testing.assert_array_equal(line.get_xydata(), [(1, 2), (4, 100)])
    assert line.get_clip_on()


def test_labels_are_apart_though_points_are_not():
    """Three points within three pixels."""
    axes = draw([Point(name, "a", 1 + index / 1000, 50) for index, name in enumerate(["first", "second", "third"])])
    boxes = [label.get_window_extent() for label in annotations(axes)]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    assert all(axes.figure.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    "points",
    [
        [Point("alone", "a", 0.001, 0.0)],
        [Point("below", "a", 1, -5.0, spread=2), Point("above", "a", 1000, 0.5, on_line=True)],
        [Point("far", "a", 1, 1e9), Point("near", "a", 1, 1e-9)],
    ],
)
def test_all_values_can_be_drawn(points):
    axes = draw(points)
    for line in markers(axes):
        x, y = axes.transData.transform(line.get_xydata()[0])
        assert axes.bbox.x0 <= x <= axes.bbox.x1
        assert axes.bbox.y0 - 1 <= y <= axes.bbox.y1
    assert len(annotations(axes)) == len(points)

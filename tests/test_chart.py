"""Charts: that points and lines lie where their values say, in colours that the legend explains."""

import math
from itertools import pairwise

import numpy as np
import pytest
from chart_pixels import centres, heights, of_colour
from PIL import Image, ImageColor

from andfast.chart import GROUPS, PAPER, Line, Panel, Point, lines, scatter
from andfast.chart.axes import Axis, tick_label


def draw(points: list[Point]) -> Image.Image:
    return scatter("title", "subtitle", "x axis", "y axis", "line", points)


def test_points_lie_where_their_values_say():
    """Twice the x is always as far to the right; y is linear."""
    points = [Point(f"p{index}", "a", 2.0**index, 30.0 * index) for index in range(4)]
    _legend, *dots = centres(draw(points), GROUPS[0])
    assert len(dots) == 4
    steps = np.diff(np.array(dots), axis=0)
    assert np.abs(steps[:, 0] - steps[0, 0]).max() < 2
    assert np.abs(steps[:, 1] - steps[0, 1]).max() < 2
    assert steps[0, 0] > 100
    assert steps[0, 1] < -100


def test_every_group_has_its_colour_and_its_place_in_the_legend():
    image = draw([Point("one", "a", 1, 10), Point("two", "b", 2, 20), Point("three", "c", 4, 15, spread=3)])
    for colour in GROUPS[:3]:
        assert len(centres(image, colour)) == 2  # the point and the legend's
    assert not centres(image, GROUPS[3])


def test_what_lies_below_the_axis_is_an_arrow_at_its_edge():
    """The line goes on to where the point would be, and what follows of it below is not seen."""
    points = [Point("low", "a", 1, 2.0, on_line=True), Point("high", "b", 4, 100.0, on_line=True)]
    points += [Point("other", "b", 8, 90.0)]
    whole = scatter("title", "subtitle", "x", "y", "line", points)
    cut = scatter("title", "subtitle", "x", "y", "line", points, least=80.0)
    _, low = centres(whole, GROUPS[0])
    _, arrow = centres(cut, GROUPS[0])
    assert abs(arrow[0] - low[0]) < 2
    assert abs(arrow[1] - low[1]) < 60  # both near the lower edge, though y means other things
    spans = [np.diff([y for _, y in centres(image, GROUPS[1])[1:]])[0] for image in (whole, cut)]
    assert spans[1] > 3 * spans[0]
    pixels = np.asarray(cut.convert("L"))[895:901, 120:1300]  # between the axis and its numbers
    assert pixels.min() > 200


def test_labels_lie_apart_though_points_do_not():
    """Three points within three pixels: the ink of their labels is that of the labels one by one."""

    def ink(points: list[Point]) -> int:
        return int((np.asarray(draw(points).convert("L")) < 128).sum())

    names = ["first", "second", "third"]
    crowded = [Point(name, "a", 1 + index / 1000, 50, on_line=False) for index, name in enumerate(names)]
    apart = [Point(name, "a", 2.0**index, 50) for index, name in enumerate(names)]
    assert ink(crowded) == pytest.approx(ink(apart), rel=0.1)


@pytest.mark.parametrize(
    "points",
    [
        [Point("alone", "a", 0.001, 0.0)],
        [Point("below", "a", 1, -5.0, spread=2), Point("above", "a", 1000, 0.5, on_line=True)],
        [Point("far", "a", 1, 1e9), Point("near", "a", 1, 1e-9)],
    ],
)
def test_all_values_can_be_drawn(points):
    image = draw(points)
    assert image.size == (1400, 1000)
    dots = centres(image, GROUPS[0])
    assert len(dots) == 1 + len(points)
    for x, y in dots[1:]:
        assert 0 < x < 1400
        assert 190 < y < 960
    assert image.getpixel((1399, 999)) == ImageColor.getrgb(PAPER)


def alone(line: Line, **options) -> Image.Image:
    """A line in a panel of its own."""
    return lines("title", "subtitle", [Panel("y", "x", [line], **options)], columns=1)


@pytest.mark.parametrize(("log", "curve"), [(False, lambda x: 3 - 0.5 * x), (True, lambda x: 10 * 0.5**x)])
def test_a_line_is_straight_on_its_scale_and_as_wide_as_its_axis(log, curve):
    x = np.linspace(0, 4, 9)
    columns, rows = heights(alone(Line("", GROUPS[0], x, curve(x)), log=log), GROUPS[0])
    assert columns[-1] - columns[0] > 1150
    slope, start = np.polyfit(columns, rows, 1)
    assert slope > 0.2  # down
    assert np.abs(rows[5:-5] - (slope * columns + start)[5:-5]).max() < 1


def test_a_line_passes_its_points():
    """On an axis from zero to a known height: against the pixels of the axis itself, which a flat line shows."""
    flat = [Line("", GROUPS[1], [0, 10], [0, 0]), Line("", GROUPS[2], [0, 10], [8, 8])]
    bent = Line("", GROUPS[0], [0, 2, 3, 10], [1, 7, 2, 6])
    image = lines("t", "s", [Panel("y", "x", [*flat, bent], from_zero=True)], columns=1)
    (left, *_, right), rows = heights(image, GROUPS[1])
    zero, eight = rows.mean(), heights(image, GROUPS[2])[1].mean()
    found = dict(zip(*heights(image, GROUPS[0]), strict=True))
    for x, y in zip(np.linspace(0.2, 9.8, 25), np.interp(np.linspace(0.2, 9.8, 25), bent.x, bent.y), strict=True):
        if min(abs(x - corner) for corner in bent.x) > 0.15:
            row = zero + (eight - zero) * y / 8
            assert abs(found[round(left + (right - left) * x / 10)] - row) < 4, (x, y)


def test_a_line_is_broken_where_there_is_no_number_and_a_lone_point_is_a_dot():
    y = [1.0, 1.2, math.nan, 1.5, math.nan, 1.1, 1.3]
    columns, _ = heights(alone(Line("", GROUPS[0], range(7), y)), GROUPS[0])
    unit = (columns[-1] - columns[0]) / 6
    gaps = [(a, b) for a, b in pairwise(columns) if b - a > 3]
    assert [(round((a - columns[0]) / unit), round((b - columns[0]) / unit)) for a, b in gaps] == [(1, 3), (3, 5)]
    assert 6 <= gaps[1][0] - gaps[0][1] <= 12


def test_of_more_points_than_pixels_the_extremes_are_drawn():
    values = np.ones(100_000)
    values[12_345], values[77_777] = 9.0, -7.0
    image = alone(Line("", GROUPS[0], range(len(values)), values, width=2))
    pixels = of_colour(image, GROUPS[0], within=40)
    columns = np.nonzero(pixels.any(0))[0]
    top, bottom = pixels.argmax(0), len(pixels) - pixels[::-1].argmax(0)
    width = columns[-1] - columns[0]
    high, low = columns[top[columns].argmin()], columns[bottom[columns].argmax()]
    assert (high - columns[0]) / width == pytest.approx(0.12345, abs=0.002)
    assert (low - columns[0]) / width == pytest.approx(0.77777, abs=0.002)
    assert (bottom[low] - top[high]) > 340  # of 410


def test_the_legend_has_every_name_once_and_nothing_leaves_the_sheet():
    names = [f"a name that is long enough for a row to hold two of it, {index}" for index in range(5)] + ["x" * 255]
    colours = [*GROUPS[:5], "#ff0000"]
    own = [Line(name, colour, [0, 1e6], [1, 1e5]) for name, colour in zip(names, colours, strict=True)]
    image = lines("t", "s", [Panel("y", "x", own), Panel("y", "x", own[::-1])], columns=2)
    above = image.height - (40 + 410 + 80) - 24
    for colour in colours:
        columns, strokes = heights(image.crop((0, 0, image.width, above)), colour)
        assert 40 < columns[-1] - columns[0] < 48
        assert np.ptp(strokes) < 1
    pixels = np.asarray(image.convert("L"))
    assert (pixels[:, -4:] > 250).all()
    assert (pixels[:, :30] > 250).all()


def test_a_panel_without_a_line_says_so():
    empty, other = (
        lines("t", "s", [Panel("y", "x", [Line("", GROUPS[0], [0.0], [math.nan])], empty=text)], columns=1)
        for text in ("nothing yet", "")
    )
    pixels = np.asarray(empty.convert("L")).astype(int) - np.asarray(other.convert("L"))
    rows, columns = np.nonzero(pixels)
    assert 690 < columns.mean() < 710
    assert not of_colour(empty, GROUPS[0]).any()
    assert np.ptp(rows) < 25


@pytest.mark.parametrize(
    ("low", "high", "log", "marks", "wanted"),
    [
        (0.0, 10.0, False, 10, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]),
        (28.1, 29.3, False, 7, ["28.2", "28.4", "28.6", "28.8", "29", "29.2"]),
        (-0.3, 0.3, False, 7, ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]),
        (0.0, 2e5, False, 5, ["0", "50,000", "100,000", "150,000", "200,000"]),
        (0.017, 0.3, True, 7, ["0.02", "0.05", "0.1", "0.2"]),
        (1.25, 1.9, True, 7, ["1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9"]),
        (1e-4, 1e3, True, 8, ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
        (1e-9, 1e9, True, 7, ["1e-09", "1e-06", "0.001", "1", "1000", "1,000,000", "1e+09"]),
    ],
)
def test_round_values_are_marked(low, high, log, marks, wanted):
    axis = Axis(low, high, 100, 500, log, marks)
    assert [tick_label(tick) for tick in axis.ticks] == wanted
    assert all(100 - 1e-6 <= axis(tick) <= 500 + 1e-6 for tick in axis.ticks)
    assert (axis(low), axis(high)) == (100, 500)

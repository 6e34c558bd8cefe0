"""Charts: that points lie where their values say, in colours that the legend explains."""

import math

import numpy as np
import pytest
from PIL import Image, ImageColor

from andfast.chart import GROUPS, PAPER, Point, scatter


def centres(image: Image.Image, colour: str) -> list[tuple[float, float]]:
    """The middles of the dots of a colour, the legend's among them, from left to right."""
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - ImageColor.getrgb(colour)).max(axis=2) < 6)
    found: list[list[tuple[int, int]]] = []
    for x, y in sorted(zip(columns, rows, strict=True)):
        near = [dot for dot in found if math.dist(dot[0], (x, y)) < 20]
        near[0].append((x, y)) if near else found.append([(x, y)])
    return [tuple(np.mean(dot, axis=0)) for dot in found if len(dot) > 50]


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

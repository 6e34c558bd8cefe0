"""A figure of what a comparing study found: gains over the reference with their intervals, drawn with Pillow alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from andfast.chart import FAINT, GRID, INK, MARGIN, OLD, OWN, PAPER, WIDTH, font
from studies.intervals import Interval
from studies.outcome import ALL_STRENGTHS, BICUBIC, START, Outcome, column_titles
from studies.testsets import CLEAN, REPORTING

# Drawn so many times larger and then reduced, for smooth edges.
_FINE = 2
_LINE, _HEADER, _FOOTER, _NAMES = 40, 140, 70, 230


@dataclass(frozen=True)
class _Panel:
    """A column of the figure: a kind of test, and where its scale begins and ends."""

    title: str
    gains: dict[str, Interval | None]
    low: float
    high: float


def draw(outcome: Outcome, budget: str, budget_name: str) -> Image.Image:
    """How much every row gains over the reference in PSNR-Y, with 95% intervals.

    Args:
        outcome: what was found.
        budget: which of its comparisons.
        budget_name: what stands for that in the heading.

    Returns:
        A line a row, a panel for each of: the real pairs (reporting part) by camera, clean LR images, all strengths of
        the unseen degradations.
    """
    titles = [*column_titles(outcome.columns, REPORTING), *(t for t in (CLEAN, ALL_STRENGTHS) if t in outcome.columns)]
    rows = [row for row in outcome.lines(budget) if row not in (outcome.reference, START)]
    panels = [_panel(outcome, budget, title, rows) for title in titles]
    height = _HEADER + _LINE * len(rows) + _FOOTER
    image = Image.new("RGB", (_FINE * WIDTH, _FINE * height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_FINE * MARGIN, _FINE * 30), outcome.content["title"], INK, font(_FINE * 28))
    what = f"PSNR on Y over {outcome.reference}'s, dB, with 95% intervals paired by image; {budget_name}"
    pen.text((_FINE * MARGIN, _FINE * 68), what, FAINT, font(_FINE * 20))
    for index, row in enumerate(rows):
        colour = OWN if row == outcome.subject else INK
        pen.text((_FINE * MARGIN, _row_y(index)), row, colour, font(_FINE * 18), anchor="lm")
    width = (WIDTH - 2 * MARGIN - _NAMES) / len(panels)
    for index, panel in enumerate(panels):
        left = MARGIN + _NAMES + index * width
        _draw_panel(pen, panel, rows, outcome.subject, _FINE * (left + 10), _FINE * (left + width - 10))
    return image.resize((WIDTH, height), Image.Resampling.LANCZOS)


def _panel(outcome: Outcome, budget: str, title: str, rows: list[str]) -> _Panel:
    gains = {row: outcome.difference(row, outcome.reference, budget, "psnr_y", title) for row in rows}
    # Bicubic interpolation and a row that breaks down would take up all of the scale.
    shown = [gain for row, gain in gains.items() if gain is not None and row != BICUBIC and gain.mean > -2]
    ends = [end for gain in shown for end in (gain.low, gain.mean, gain.high) if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    margin = 0.08 * max(high - low, 0.1)
    return _Panel(title, gains, min(low, 0) - margin, max(high, 0) + margin)


def _row_y(index: int) -> float:
    return _FINE * (_HEADER + _LINE * (index + 0.5))


def _draw_panel(
    pen: ImageDraw.ImageDraw, panel: _Panel, rows: list[str], subject: str, left: float, right: float
) -> None:
    def across(value: float) -> float:
        return left + (right - left) * (min(max(value, panel.low), panel.high) - panel.low) / (panel.high - panel.low)

    top, bottom = _FINE * _HEADER, _FINE * (_HEADER + _LINE * len(rows))
    title = panel.title
    while pen.textlength(title, font(_FINE * 15)) > right - left and " " in title:
        title = title.partition(" ")[2]  # the set's name goes before the camera's
    pen.text(((left + right) / 2, top - _FINE * 16), title, INK, font(_FINE * 15), anchor="mm")
    for value in (panel.low + (panel.high - panel.low) * share for share in (0.08, 0.92)):
        pen.line((across(value), top, across(value), bottom), GRID, _FINE)
        pen.text((across(value), bottom + _FINE * 14), f"{value:+.2f}", FAINT, font(_FINE * 14), anchor="mm")
    pen.line((across(0), top, across(0), bottom), OLD, 2 * _FINE)
    for index, row in enumerate(rows):
        gain, y = panel.gains[row], _row_y(index)
        if gain is None:
            continue
        colour = OWN if row == subject else INK
        if not panel.low <= gain.mean <= panel.high:
            side, anchor = (left, "lm") if gain.mean < panel.low else (right, "rm")
            pen.text((side, y), f"{gain.mean:+.2f}", FAINT, font(_FINE * 14), anchor=anchor)
            continue
        if math.isfinite(gain.half):
            pen.line((across(gain.low), y, across(gain.high), y), colour, 2 * _FINE)
        x, radius = across(gain.mean), 6 * _FINE
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

"""Drawing with Pillow alone: points on two axes, lines over them, and what all charts have in common."""

from andfast.chart.lines import Line, Panel, lines
from andfast.chart.scatter import Point, scatter
from andfast.chart.sheet import (
    FAINT,
    GRID,
    GROUPS,
    INK,
    MARGIN,
    OLD,
    OTHER,
    OWN,
    PALE,
    PAPER,
    WIDTH,
    Sheet,
    font,
    paler,
)

__all__ = [
    "FAINT",
    "GRID",
    "GROUPS",
    "INK",
    "MARGIN",
    "OLD",
    "OTHER",
    "OWN",
    "PALE",
    "PAPER",
    "WIDTH",
    "Line",
    "Panel",
    "Point",
    "Sheet",
    "font",
    "lines",
    "paler",
    "scatter",
]

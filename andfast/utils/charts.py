"""Shared by all charts: matplotlib without a display, colours, headings, and files written whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andfast.utils.files import written_whole
from andfast.utils.optional import NOT_INSTALLED, install_command, problem_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, GRAY, PALE = "#1f2328", "#59636e", "#e4e8ec", "#9aa4af", "#c8ced5"
#: Colours of runs and groups; they differ in lightness, too.
COLOURS = ("#2f6fb2", "#c2571a", "#2e8b57", "#7d4fa8", "#b03060", GRAY)

# Inches; with the resolution, images are 1400 pixels wide.
_WIDTH, _DPI, _LEGEND_ROW = 10.5, 400 / 3, 0.28


class ChartError(ValueError):
    """Charts cannot be drawn: matplotlib is missing."""


def new_figure(title: str, subtitle: str, height: float, legend: Sequence[Any] = ()) -> Figure:
    """Make a figure with a title, a subtitle and a legend of artists, and below them `height` inches for axes.

    Raises:
        ChartError: matplotlib cannot be imported.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    longest = max((len(artist.get_label()) for artist in legend), default=0)
    columns = max(1, int((_WIDTH - 0.4) / (0.7 + 0.085 * longest)))
    header = 0.75 + _LEGEND_ROW * math.ceil(len(legend) / columns)
    total = height + header
    figure = Figure(figsize=(_WIDTH, total), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(  # type: ignore[union-attr,call-arg]
        rect=(0.015, 0.01, 0.97, height / total - 0.01)
    )
    figure.text(0.02, 1 - 0.15 / total, title, va="top", fontsize=15, color=INK)
    figure.text(0.02, 1 - 0.48 / total, subtitle, va="top", fontsize=9.5, color=FAINT)
    if legend:
        anchor = (0.012, 1 - 0.68 / total)
        size = min(10.0, 10 * (_WIDTH - 1) / (0.085 * longest))
        figure.legend(
            handles=list(legend), loc="upper left", bbox_to_anchor=anchor, ncols=columns, fontsize=size, frameon=False
        )
    return figure


def plain_axes(axes: Axes, title: str = "", x_label: str = "", y_label: str = "", grid: str = "both") -> None:
    """Give axes a title, labels, a pale grid ("x", "y" or "both") and no frame."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(which="both", length=0, colors=FAINT)
    axes.grid(color=GRID, axis=grid)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, whole or not at all."""
    import matplotlib

    with written_whole(path) as temporary, matplotlib.rc_context({"agg.path.chunksize": 10_000}):
        figure.savefig(temporary, format="png")


def require_matplotlib() -> None:
    """Raise a ChartError if matplotlib cannot be imported."""
    problem = problem_of("matplotlib")
    if problem is not None:
        cause = "" if problem == NOT_INSTALLED else f" ({problem})"
        raise ChartError(f"charts need matplotlib: {install_command('plot')}{cause}")

"""Tables of studies' results: `python -m studies.report RESULT... [--figure FILE] [--metric ssim_y]`.

RESULTs are files that `studies.compare` wrote. Prints Markdown; with --figure also draws how much the rows gain over
the reference, a panel a kind of test. With --page prints the few tables that docs/results.md shows.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from andfast.evaluation.models import BICUBIC
from andfast.utils.charts import COLOURS, FAINT, GRAY, INK, ChartError, new_figure, plain_axes, save_figure
from andfast.utils.console import console
from andfast.utils.formatting import markdown_table
from studies.intervals import Interval
from studies.outcome import (
    ALL_STRENGTHS,
    BUDGETS,
    METRICS,
    START,
    TIME,
    UPDATES,
    Outcome,
    OutcomeError,
    column_titles,
    read_outcome,
)
from studies.testsets import CLEAN, REPORTING, TUNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BUDGET_NAMES = dict(zip(BUDGETS, ("equal updates", "equal time"), strict=True))
_METRIC_NAMES = {"psnr_y": "PSNR on Y, dB", "ssim_y": "SSIM on Y"}
_DIGITS = {"psnr_y": 2, "ssim_y": 4}


def report(outcome: Outcome, metrics: Sequence[str] = METRICS) -> str:
    """A study's tables as Markdown.

    For each budget: means on the real pairs by camera and on photographs by strength, with the worst strength; then
    differences to the reference and of the subject, with their 95% intervals. At the end what updates cost.

    Args:
        outcome: the result.
        metrics: which of METRICS.
    """
    parts = [f"## {outcome.content['title']}", _origin(outcome)]
    for budget in outcome.budgets():
        for metric in metrics:
            parts.append(f"### {_METRIC_NAMES[metric]}, {_BUDGET_NAMES[budget]}")
            for part, title in (
                (REPORTING, "Real pairs, reporting part"),
                (CLEAN, "Held-out photographs: clean LR images and unseen degradations"),
                (TUNING, "Real pairs, tuning part: settings were chosen by these, and the oracle trained on them"),
            ):
                titles = column_titles(outcome.columns, part)
                if titles:
                    parts += [f"{title}:", means(outcome, budget, metric, titles)]
                    parts.append(differences(outcome, budget, metric, titles))
    return "\n\n".join([*parts, "### Cost", costs(outcome)]) + "\n"


def page(name: str, outcome: Outcome) -> str:
    """The tables of docs/results.md, each under its marker in the page.

    Args:
        name: of the result file, in studies/results.
        outcome: its content.
    """
    return "\n\n".join(f"<!-- studies/results/{name}: {title} -->\n{table(outcome)}" for title, table in PAGE.items())


def means(outcome: Outcome, budget: str, metric: str, titles: Sequence[str]) -> str:
    """A line a row, a column a title; with all strengths among them also the worst of them."""
    digits = _DIGITS[metric]
    worst = ALL_STRENGTHS in titles
    lines = []
    for row in outcome.lines(budget):
        found = [f"{outcome.mean(row, budget, metric, title).mean:.{digits}f}" for title in titles]
        if worst:
            name, value = outcome.worst(row, budget, metric)
            found.append(f"{value:.{digits}f} ({name})")
        lines.append([_line_name(outcome, row), *found])
    counts = [f"{title} ({len(outcome.columns[title][0][1])})" for title in titles]
    return markdown_table(["", *counts, *(["worst strength"] if worst else [])], lines)


def differences(outcome: Outcome, budget: str, metric: str, titles: Sequence[str]) -> str:
    """Two tables: every row's mean over the reference's, and the subject's over every row's; 95% intervals."""
    parts = []
    for caption, pair in (
        (f"Over {outcome.reference}:", lambda row: (row, outcome.reference)),
        (f"{outcome.subject} over the others:", lambda row: (outcome.subject, row)),
    ):
        lines = [
            [
                row,
                *(_signed(outcome.difference(*pair(row), budget, metric, title), _DIGITS[metric]) for title in titles),
            ]
            for row in outcome.lines(budget)
            if len(set(pair(row))) == 2
        ]
        parts += [caption, markdown_table(["", *titles], lines)]
    return "\n\n".join(parts)


def summary(outcome: Outcome, budget: str) -> str:
    """A line a row: what it reaches in PSNR-Y on real pairs (reporting part) by camera, on clean LR images and under
    all strengths, and what of that is gained over the reference, with half the 95% interval's width."""
    reporting = column_titles(outcome.columns, REPORTING)
    everything = [title for title in (*reporting[-1:], ALL_STRENGTHS) if title in outcome.columns]
    titles = [*reporting, *(title for title in (CLEAN, ALL_STRENGTHS) if title in outcome.columns)]
    lines = []
    for row in outcome.lines(budget):
        line = [_line_name(outcome, row)]
        for title in titles:
            line.append(f"{outcome.mean(row, budget, 'psnr_y', title).mean:.2f}")
            if title in everything:
                gain = outcome.difference(row, outcome.reference, budget, "psnr_y", title)
                line.append("" if row == outcome.reference else _signed(gain, 2))
        worst, value = outcome.worst(row, budget, "psnr_y")
        lines.append([*line, f"{value:.2f} ({worst})"])
    heads = []
    for title in titles:
        heads.append("real pairs" if title in reporting[-1:] else title.removeprefix(REPORTING).strip())
        if title in everything:
            heads.append(f"over {outcome.reference}")
    return markdown_table(["", *heads, "worst strength"], lines)


def lead(outcome: Outcome, budget: str) -> str:
    """A line for each other row: by how much the subject is above it, with half the 95% interval's width."""
    columns = [
        (metric, title, name)
        for metric, unit in (("psnr_y", "PSNR"), ("ssim_y", "SSIM"))
        for title, name in (
            (column_titles(outcome.columns, REPORTING)[-1], f"real pairs, {unit}"),
            (CLEAN, f"{CLEAN}, {unit}"),
            (ALL_STRENGTHS, f"{ALL_STRENGTHS}, {unit}"),
        )
        if title in outcome.columns
    ]
    lines = [
        [
            row,
            *(
                _signed(outcome.difference(outcome.subject, row, budget, metric, title), _DIGITS[metric])
                for metric, title, _ in columns
            ),
        ]
        for row in outcome.lines(budget)
        if row not in (outcome.subject, START)
    ]
    return markdown_table([f"{outcome.subject} over", *(name for *_, name in columns)], lines)


def costs(outcome: Outcome) -> str:
    """A line a row and budget: updates, what an update takes, and what a run took; means over seeds."""
    lines = []
    reference = [run["seconds_per_update"] for run in outcome.runs(outcome.reference, BUDGETS[0]).values()]
    for budget in outcome.budgets():
        for row in outcome.rows:
            runs = list(outcome.runs(row, budget).values())
            if not runs:
                continue
            per_update = fmean(run["seconds_per_update"] for run in runs)
            updates = fmean(run["updates"] for run in runs)
            times = f"{per_update / fmean(reference):.2f}" if reference else ""
            minutes = fmean(run["seconds"] for run in runs) / 60
            seeds = ", ".join(map(str, outcome.seeds(row, budget)))
            lines.append(
                [row, _BUDGET_NAMES[budget], seeds, f"{updates:.0f}", f"{per_update:.4f}", times, f"{minutes:.1f}"]
            )
    titles = ["", "", "seeds", "updates", "seconds an update", f"{outcome.reference}'s updates", "minutes a run"]
    return markdown_table(titles, lines)


PAGE: dict[str, Callable[[Outcome], str]] = {
    "equal updates": lambda outcome: summary(outcome, UPDATES),
    "lead, equal updates": lambda outcome: lead(outcome, UPDATES),
    "equal time": lambda outcome: summary(outcome, TIME),
    "lead, equal time": lambda outcome: lead(outcome, TIME),
    "cost": costs,
}
"""The tables of docs/results.md by the names in its markers."""


def draw(outcome: Outcome, budget: str) -> Figure:
    """Draw how much every row gains over the reference in PSNR-Y, with 95% intervals.

    A line a row; panels for the real pairs (reporting part) by camera, clean LR images, and all strengths of the unseen
    degradations. A row that is far below the others is written as a number at the edge.
    """
    columns = [*column_titles(outcome.columns, REPORTING), *(t for t in (CLEAN, ALL_STRENGTHS) if t in outcome.columns)]
    rows = [row for row in outcome.lines(budget) if row not in (outcome.reference, START)]
    what = f"PSNR on Y over {outcome.reference}'s, dB, with 95% intervals paired by image; {_BUDGET_NAMES[budget]}"
    figure = new_figure(outcome.content["title"], what, 0.3 * len(rows) + 0.8)
    colours = [COLOURS[0] if row == outcome.subject else INK for row in rows]
    all_axes = figure.subplots(1, len(columns), sharey=True, squeeze=False).flat
    for axes, title in zip(all_axes, columns, strict=True):
        gains = [outcome.difference(row, outcome.reference, budget, "psnr_y", title) for row in rows]
        _draw_gains(axes, title, rows, gains, colours)
    all_axes[0].set_yticks(range(len(rows)), rows)
    for label, colour in zip(all_axes[0].get_yticklabels(), colours, strict=True):
        label.set_color(colour)
    all_axes[0].invert_yaxis()
    return figure


def _draw_gains(
    axes: Axes, title: str, rows: Sequence[str], gains: Sequence[Interval | None], colours: Sequence[str]
) -> None:
    plain_axes(axes, grid="x")
    axes.set_title(title.replace(f"{REPORTING} ", ""), fontsize=10, color=INK)
    # Bicubic interpolation and a row that fails would take up most of the scale.
    shown = [gain for row, gain in zip(rows, gains, strict=True) if gain and row != BICUBIC and gain.mean > -2]
    ends = [end for gain in shown for end in (gain.low, gain.mean, gain.high) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.08 * max(high - low, 0.1)
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=4)
    axes.axvline(0, color=GRAY, linewidth=1.5)
    for index, (gain, colour) in enumerate(zip(gains, colours, strict=True)):
        if gain is None:
            continue
        if low - margin <= gain.mean <= high + margin:
            axes.errorbar(gain.mean, index, xerr=gain.half if math.isfinite(gain.half) else None, color=colour, fmt="o")
        else:
            side = 0.0 if gain.mean < low else 1.0
            axes.text(
                side, index, f"{gain.mean:+.2f}", transform=axes.get_yaxis_transform(), color=FAINT, fontsize=9,
                va="center", ha="right" if side else "left",
            )  # fmt: skip


def _line_name(outcome: Outcome, row: str) -> str:
    if row == START:
        return "where all rows start"
    description = outcome.content["rows"].get(row, {}).get("description")
    return f"{row}: {description}" if description else row


def _signed(found: Interval | None, digits: int) -> str:
    """A difference and half its interval's width, if it has one; in bold where the interval is on one side of zero."""
    if found is None:
        return ""
    if math.isinf(found.half):
        return f"{found.mean:+.{digits}f}"
    text = f"{found.mean:+.{digits}f} ± {found.half:.{digits}f}"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def _origin(outcome: Outcome) -> str:
    content = outcome.content
    device = next((value["name"] for name, value in content["machine"]["devices"].items() if name != "cpu"), None)
    missing = f" Runs that failed are missing: {', '.join(content['failed'])}." if content["failed"] else ""
    return (
        f"{content['date'][:10]}, commit {content['commit']}, on {device or content['machine']['processor']}, "
        f"{content['jobs']} at once: `{content['command']}`. Differences are paired by image and seed; "
        f"intervals hold 95%, over images after a mean over seeds, and bold ones do not hold zero.{missing}"
    )


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = argparse.ArgumentParser(prog="python -m studies.report", description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="written by studies.compare")
    parser.add_argument("--metric", choices=METRICS, action="append", help="only this one (default: all)")
    parser.add_argument("--page", action="store_true", help="the tables of docs/results.md alone, with their markers")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="where to draw the first result, PNG")
    parser.add_argument("--budget", choices=BUDGETS, default=BUDGETS[0], help="what the figure is about")
    options = parser.parse_args(arguments)
    try:
        outcomes = [read_outcome(path) for path in options.results]
    except (OutcomeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, outcome in zip(options.results, outcomes, strict=True):
        print(page(path.name, outcome) if options.page else report(outcome, options.metric or METRICS))
    if options.figure is not None:
        try:
            save_figure(draw(outcomes[0], options.budget), options.figure)
        except (ChartError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

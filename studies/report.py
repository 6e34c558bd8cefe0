"""Tables of studies' results: `python -m studies.report RESULT... [--figure FILE] [--front FILE]`.

RESULTs are files that `studies.compare` wrote. Prints Markdown; with --figure also draws the rows' gains over the
reference, with a panel for each kind of test, and with --front the worst case against averages. With --page prints only
the tables of docs/results.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from andfast.evaluation.models import BICUBIC
from andfast.utils.charts import COLOURS, FAINT, GRAY, INK, ChartError, new_figure, plain_axes, save_figure
from andfast.utils.command_line import as_path, make_parser
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
    WORST,
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
    """A study's tables as Markdown: for each budget and metric, means and differences; then what updates cost."""
    parts = [f"## {outcome.content['title']}", _origin(outcome)]
    for budget in outcome.budgets():
        for metric in metrics:
            parts.append(f"### {_METRIC_NAMES[metric]}, {_BUDGET_NAMES[budget]}")
            for part, title in (
                (REPORTING, "Real pairs, reporting part"),
                (CLEAN, "Held-out photographs: clean LR images and unseen degradations"),
                (WORST, "Crops of held-out photographs: the worst LR image that an adversary finds within a budget"),
                (TUNING, "Real pairs, tuning part: settings were chosen by these, and the oracle trained on them"),
            ):
                titles = column_titles(outcome.columns, part)
                if titles:
                    parts += [f"{title}:", means(outcome, budget, metric, titles)]
                    parts.append(differences(outcome, budget, metric, titles))
    parts += ["### Cost", costs(outcome)] if TIME in outcome.budgets() else []
    return "\n\n".join(parts) + "\n"


def page(name: str, outcome: Outcome) -> str:
    """The tables of docs/results.md for the result file `name`, each under its marker."""
    tables = page_tables(outcome).items()
    return "\n\n".join(f"<!-- studies/results/{name}: {title} -->\n{table}" for title, table in tables)


def page_tables(outcome: Outcome) -> dict[str, str]:
    """The tables of `page` by the names in their markers."""
    tables: dict[str, Callable[[Outcome], str]] = {
        "equal updates": lambda outcome: summary(outcome, UPDATES),
        "worst case, equal updates": lambda outcome: worst_case(outcome, UPDATES),
        "trade-off, equal updates": lambda outcome: trade_off(outcome, UPDATES),
        "lead, equal updates": lambda outcome: lead(outcome, UPDATES),
        "equal time": lambda outcome: summary(outcome, TIME),
        "lead, equal time": lambda outcome: lead(outcome, TIME),
        "cost": costs,
    }
    missing = set() if WORST in outcome.columns else {"worst case, equal updates", "trade-off, equal updates"}
    if UPDATES not in outcome.budgets():
        missing |= {title for title in tables if title.endswith(_BUDGET_NAMES[UPDATES])}
    if TIME not in outcome.budgets():
        # Rows are timed, one after the other, only for equal time.
        missing |= {"equal time", "lead, equal time", "cost"}
    return {title: table(outcome) for title, table in tables.items() if title not in missing}


def means(outcome: Outcome, budget: str, metric: str, titles: Sequence[str]) -> str:
    """A line for each row, a column for each title; with all strengths also the worst of them."""
    digits, worst = _DIGITS[metric], ALL_STRENGTHS in titles
    lines = []
    for row in outcome.lines(budget):
        lines.append([_line_name(outcome, row)])
        lines[-1] += [f"{outcome.mean(row, budget, metric, title).mean:.{digits}f}" for title in titles]
        lines[-1] += [_worst(outcome, row, budget, metric)] if worst else []
    counts = [f"{title} ({len(outcome.columns[title][0][1])})" for title in titles]
    return markdown_table(["", *counts, *(["worst strength"] if worst else [])], lines)


def differences(outcome: Outcome, budget: str, metric: str, titles: Sequence[str]) -> str:
    """Two tables: every row's mean minus the reference's, and the subject's minus every row's; 95% intervals."""
    reference, subject, rows = outcome.reference, outcome.subject, outcome.lines(budget)
    over = {row: (row, reference) for row in rows if row != reference}
    under = {row: (subject, row) for row in rows if row != subject}
    parts = []
    for caption, pairs in ((f"Over {reference}:", over), (f"{subject} over the others:", under)):
        lines = _gains(outcome, budget, pairs, [(metric, title) for title in titles])
        parts += [caption, markdown_table(["", *titles], lines)]
    return "\n\n".join(parts)


def _gains(
    outcome: Outcome, budget: str, pairs: Mapping[str, tuple[str, str]], columns: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Lines with the differences of pairs of rows, in columns of a metric and a title."""
    return [
        [name, *(_signed(outcome.difference(*pair, budget, *column), _DIGITS[column[0]]) for column in columns)]
        for name, pair in pairs.items()
    ]


def summary(outcome: Outcome, budget: str) -> str:
    """A line for each row: PSNR-Y on real pairs (reporting part) by camera, on clean LR images, under all strengths,
    and in the worst case.

    Beside the means over all pairs, all strengths and the worst cases, the gain over the reference.
    """
    reporting, over = column_titles(outcome.columns, REPORTING), f"over {outcome.reference}"
    titles = [*reporting, *(title for title in (CLEAN, ALL_STRENGTHS, WORST) if title in outcome.columns)]
    with_gain = {*reporting[-1:], ALL_STRENGTHS, WORST}
    heads = []
    for title in titles:
        heads.append("real pairs" if title in reporting[-1:] else title.removeprefix(REPORTING).strip())
        heads += [over] if title in with_gain else []
    lines = []
    for row in outcome.lines(budget):
        line = [_line_name(outcome, row)]
        for title in titles:
            line.append(f"{outcome.mean(row, budget, 'psnr_y', title).mean:.2f}")
            if title in with_gain:
                gain = outcome.difference(row, outcome.reference, budget, "psnr_y", title)
                line.append("" if row == outcome.reference else _signed(gain, 2))
        lines.append([*line, _worst(outcome, row, budget, "psnr_y")])
    return markdown_table(["", *heads, "worst strength"], lines)


def worst_case(outcome: Outcome, budget: str) -> str:
    """A line for each row: PSNR-Y in the worst case by adversary and budget, its mean, and the subject's lead."""
    titles = column_titles(outcome.columns, WORST)
    lines = []
    for row in outcome.lines(budget):
        means = [f"{outcome.mean(row, budget, 'psnr_y', title).mean:.2f}" for title in titles]
        lead = outcome.difference(outcome.subject, row, budget, "psnr_y", WORST)
        lines.append([_line_name(outcome, row), *means, "" if row == outcome.subject else _signed(lead, 2)])
    return markdown_table(["", *titles, f"{outcome.subject} over it"], lines)


def trade_off(outcome: Outcome, budget: str) -> str:
    """A line for each row: PSNR-Y on real pairs, under all strengths and in the worst case, and which rows dominate it.

    A row dominates another that is above it in none of the three; rows that none dominates are the Pareto front.
    """
    points = _points(outcome, budget)
    lines = []
    for row, point in points.items():
        above = [name for name, other in points.items() if _dominates(other, point)]
        lines.append([row, *(f"{value:.2f}" for value in point), "; ".join(above)])
    return markdown_table(["", "real pairs", ALL_STRENGTHS, WORST, "dominated by"], lines)


def _points(outcome: Outcome, budget: str) -> dict[str, tuple[float, ...]]:
    """Each row's PSNR-Y on real pairs, under all strengths and in the worst case, without where all rows start."""
    titles = (column_titles(outcome.columns, REPORTING)[-1], ALL_STRENGTHS, WORST)
    return {
        row: tuple(outcome.mean(row, budget, "psnr_y", title).mean for title in titles)
        for row in outcome.lines(budget)
        if row != START
    }


def _dominates(point: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return point != other and all(mine >= its for mine, its in zip(point, other, strict=True))


def lead(outcome: Outcome, budget: str) -> str:
    """A line for each other row: the subject's lead over it, with half the 95% interval's width."""
    pairs_column = column_titles(outcome.columns, REPORTING)[-1]
    columns = {
        f"{name}, {unit}": (metric, title)
        for metric, unit in (("psnr_y", "PSNR"), ("ssim_y", "SSIM"))
        for title, name in ((pairs_column, "real pairs"), *((title, title) for title in (CLEAN, ALL_STRENGTHS, WORST)))
        if title in outcome.columns
    }
    pairs = {row: (outcome.subject, row) for row in outcome.lines(budget) if row not in (outcome.subject, START)}
    lines = _gains(outcome, budget, pairs, list(columns.values()))
    return markdown_table([f"{outcome.subject} over", *columns], lines)


def costs(outcome: Outcome) -> str:
    """A line for each row and budget: updates, and the time of an update and of a run; means over seeds."""
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


def draw(outcome: Outcome, budget: str) -> Figure:
    """Draw how much every row gains over the reference in PSNR-Y, with 95% intervals.

    A line for each row; panels for the real pairs (reporting part) by camera, clean LR images, all strengths of the
    unseen degradations, and the worst case. A gain far from the others' is a number at the edge.
    """
    photographs = (CLEAN, ALL_STRENGTHS, WORST)
    columns = [*column_titles(outcome.columns, REPORTING), *(t for t in photographs if t in outcome.columns)]
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


def draw_front(outcome: Outcome, budget: str) -> Figure:
    """Draw the worst case against the averages on real pairs and under all strengths, with their Pareto fronts.

    Rows that bicubic interpolation dominates would take up most of the scale; they are only named.
    """
    from matplotlib.transforms import offset_copy

    points = _points(outcome, budget)
    left_out = [row for row, point in points.items() if BICUBIC in points and _dominates(points[BICUBIC], point)]
    what = f"PSNR on Y, dB; the line joins rows that no other beats in both; {_BUDGET_NAMES[budget]}"
    what += f"; below bicubic interpolation in all: {', '.join(left_out)}" if left_out else ""
    figure = new_figure(outcome.content["title"], what, 4.2)
    panels = zip(figure.subplots(1, 2, sharey=True), ("real pairs", ALL_STRENGTHS), strict=True)
    for index, (axes, title) in enumerate(panels):
        plain_axes(axes, x_label=title, y_label="" if index else WORST)
        placed = {row: (point[index], point[2]) for row, point in points.items() if row not in left_out}
        front = sorted(xy for xy in placed.values() if not any(_dominates(other, xy) for other in placed.values()))
        axes.plot(*zip(*front, strict=True), color=GRAY, linewidth=1, zorder=1)
        low, high = min(y for _, y in placed.values()), max(y for _, y in placed.values())
        gap = 0.06 * (high - low)
        # Names of what is on a front stand to the right of it, those of the others to the left.
        for side, shift in (("left", 9), ("right", -9)):
            rows = sorted((xy[1], row) for row, xy in placed.items() if (xy in front) == (side == "left"))
            for (_, row), height in zip(rows, _spread([y for y, _ in rows], gap), strict=True):
                x, y = placed[row]
                colour = COLOURS[0] if row == outcome.subject else INK if side == "left" else FAINT
                axes.plot(x, y, "o", color=colour, markersize=5)
                beside = offset_copy(axes.transData, figure, shift, 0, "points")
                axes.text(x, height, row, transform=beside, ha=side, va="center", color=colour, fontsize=8)
        axes.margins(x=0.35, y=0.1)
    return figure


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved until they are at least `gap` apart."""
    moved = list(heights)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    excess = (moved[-1] - heights[-1]) / 2 if moved else 0.0
    return [height - excess for height in moved]


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


def _worst(outcome: Outcome, row: str, budget: str, metric: str) -> str:
    name, value = outcome.worst(row, budget, metric)
    return f"{value:.{_DIGITS[metric]}f} ({name})"


def _signed(found: Interval | None, digits: int) -> str:
    """A difference and half its interval's width, if it has one; bold if the interval does not contain zero."""
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
    parser = make_parser("studies.report", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("results", nargs="+", type=as_path, metavar="RESULT", help="written by studies.compare")
    add("--metric", action="append", metavar="METRIC", help=f"only this one, of {', '.join(METRICS)} (default: all)")
    add("--page", action="store_true", help="only the tables of docs/results.md, with their markers")
    add("--figure", type=as_path, metavar="FILE", help="draw the first result, PNG")
    add("--front", type=as_path, metavar="FILE", help="draw its worst case against its averages, PNG")
    add("--budget", choices=BUDGETS, default=BUDGETS[0], help="of the figures")
    options = parser.parse_args(arguments)
    metrics = options.metric or METRICS
    if not set(metrics) <= set(METRICS):
        parser.error(f"--metric {' '.join(metrics)}: choose of {', '.join(METRICS)}")
    try:
        outcomes = [read_outcome(path) for path in options.results]
        for path, outcome in zip(options.results, outcomes, strict=True):
            print(page(path.name, outcome) if options.page else report(outcome, metrics))
        if options.figure is not None:
            save_figure(draw(outcomes[0], options.budget), options.figure)
        if options.front is not None:
            if WORST not in outcomes[0].columns or options.budget not in outcomes[0].budgets():
                raise OutcomeError(
                    f"{options.results[0]} has no worst case after {_BUDGET_NAMES[options.budget]} to draw"
                )
            save_figure(draw_front(outcomes[0], options.budget), options.front)
    except (OutcomeError, ChartError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

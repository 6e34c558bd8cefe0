"""Draw what training runs recorded: `python -m andfast.plot RUN... [--output FILE] [--smooth STEPS]`.

Draws loss, gain, the discriminator's loss if there is one, and the PSNR-Y of the validations over the steps, of one run
or of several, in one PNG. Needs matplotlib, the extra `plot`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from andfast.training.records import METRICS_FILE, lr_name, read_records
from andfast.utils.charts import COLOURS, FAINT, new_figure, plain_axes, require_matplotlib, save_figure
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By default the mean is over the longest run's steps divided by this.
_SMOOTH = 50
_PANEL_HEIGHT = 3.3  # inches
# By the metrics of steps that are drawn, the titles of their panels, and what an empty one says.
_BY_STEP = {
    "loss": ("loss", "no loss is a number"),
    "gain": ("gain: loss after / before the attack", "no step has met an adversary"),
    "loss_d": ("loss of the discriminator", ""),
}


class PlotError(ValueError):
    """Runs that cannot be drawn; the message names them."""


@dataclass
class Validations:
    """The validations of a run with one kind of LR images: steps, PSNR-Y, and that of bicubic interpolation, in dB."""

    steps: list[int] = field(default_factory=list)
    psnr_y: list[float] = field(default_factory=list)
    bicubic: float = math.nan


@dataclass
class Curves:
    """What is drawn of a run: the metrics of `_BY_STEP`, (n,) as `steps`, and validations by the kind of LR images."""

    steps: np.ndarray
    metrics: dict[str, np.ndarray]
    validations: dict[str, Validations]


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not done."""
    parser = make_parser("andfast.plot", description=__doc__.partition("\n\n")[2])
    parser.add_argument("runs", nargs="+", type=as_path, metavar="RUN", help=f"folders of runs, at most {len(COLOURS)}")
    parser.add_argument(
        "--output", type=as_path, metavar="FILE", help="a .png; of a single run by default RUN/plot.png"
    )
    parser.add_argument(
        "--smooth", type=int, metavar="STEPS",
        help="how many steps to take the mean over; default: a fiftieth of the longest run; 1: not",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        output = _output(options.runs, options.output)
        runs = dict(zip(labels(options.runs), map(read_curves, options.runs), strict=True))
        save_figure(draw(runs, options.smooth), output)
    except (ValueError, OSError) as error:  # among them PlotError, RunRecordError and ChartError
        print(f"error: {error}", file=sys.stderr)
        return 2
    for label, curves in runs.items():
        if not curves.validations:
            print(f"{label}: no validation yet")
    print(f"written: {output}")
    return 0


def _output(runs: Sequence[Path], output: Path | None) -> Path:
    if len(runs) > len(COLOURS):
        raise PlotError(f"{len(runs)} runs are too many to be told apart; give at most {len(COLOURS)}")
    if output is None:
        if len(runs) > 1:
            raise PlotError("--output FILE is needed where several runs are drawn")
        return runs[0] / "plot.png"
    if output.suffix.lower() != ".png":
        raise PlotError(f"--output {output}: its name must end in .png")
    return output


def labels(runs: Sequence[Path]) -> list[str]:
    """The last names of the runs' folders, with as many of the folders above as make them different.

    Raises:
        PlotError: a folder was given twice.
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        twice = next(run for run, own in zip(runs, parts, strict=True) if parts.count(own) > 1)
        raise PlotError(f"{twice} was given twice")
    names = (["/".join(own[-depth:]) for own in parts] for depth in range(1, max(map(len, parts)) + 1))
    return next(each for each in names if len(set(each)) == len(each))


def read_curves(run: Path) -> Curves:
    """Read a run's `metrics.jsonl`; of a run that has not ended, its lines so far.

    Raises:
        PlotError: there is no such file, nothing in it yet, or something other than a run's records.
        RunRecordError: a line of it is damaged; see `read_records`.
    """
    path = run / METRICS_FILE
    if not path.is_file():
        raise PlotError(f"{path}: no such file; {run} is not the folder of a run")
    steps: list[int] = []
    rows: list[list[float]] = []
    validations: dict[str, Validations] = {}
    for record in read_records(path):
        try:
            if "loss" in record:
                steps.append(record["step"])
                rows.append([_number(record.get(name)) for name in _BY_STEP])
            for name, result in record.get("validation", {}).items():
                validation = validations.setdefault(name, Validations())
                validation.steps.append(record["step"])
                validation.psnr_y.append(_number(result["psnr_y"]))
                validation.bicubic = _number(result["bicubic_psnr_y"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlotError(f"{path}: a line of step {record['step']} is not one that andfast.train writes") from error
    if not steps:
        raise PlotError(f"{path}: no step is recorded there yet")
    return Curves(np.array(steps), dict(zip(_BY_STEP, np.array(rows).T, strict=True)), validations)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each, an odd number, without NaN; NaN where the value itself is NaN."""
    there = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(column)]) for column in (np.where(there, values, 0), there))
    places = np.arange(len(values))
    low, high = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(values))
    return np.where(there, (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1), np.nan)


def draw(runs: dict[str, Curves], smooth: int | None = None) -> Figure:
    """Draw 1 to 6 runs by their names: a panel for each of loss, gain, discriminator's loss, and kind of validation.

    The mean is over `smooth` steps, made odd; None: over a fiftieth of the longest run's.

    Raises:
        PlotError: `smooth` is less than 1.
        ChartError: matplotlib cannot be imported.
    """
    if smooth is not None and smooth < 1:
        raise PlotError(f"--smooth is {smooth}; it must be at least 1")
    require_matplotlib()
    from matplotlib.lines import Line2D

    window = max(len(run.steps) for run in runs.values()) // _SMOOTH if smooth is None else smooth
    window += 1 - window % 2
    with_d = any(np.isfinite(run.metrics["loss_d"]).any() for run in runs.values())
    names = [name for name in _BY_STEP if name != "loss_d" or with_d]
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in run.validations))
    colours = dict(zip(runs, COLOURS, strict=False))
    legend = [Line2D([], [], color=colour, linewidth=2, label=label) for label, colour in colours.items()]
    if kinds:
        legend.append(Line2D([], [], color=FAINT, linestyle="--", label="bicubic interpolation"))
    subtitle = "Losses and gain: each step, not smoothed."
    if window > 1:
        subtitle = f"Losses and gain: mean of the {window:,} steps around each."
        subtitle += " The pale line is each step." if len(runs) == 1 else ""
    panels = len(names) + max(len(kinds), 1)
    rows = math.ceil(panels / 2)
    title = f"{len(runs)} training runs" if len(runs) > 1 else "A training run"
    figure = new_figure(title, subtitle, _PANEL_HEIGHT * rows, legend)
    all_axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, name in zip(all_axes, names, strict=False):
        _draw_metric(axes, runs, name, window, colours)
    for axes, kind in zip(all_axes[len(names) :], kinds or [None], strict=False):
        _draw_validations(axes, runs, kind, colours)
    steps = [run.steps.max() for run in runs.values()]
    steps += [validation.steps[-1] for run in runs.values() for validation in run.validations.values()]
    for axes in all_axes[:panels]:
        axes.set_xlim(0, max(steps))
    for axes in all_axes[panels:]:
        axes.set_axis_off()
    return figure


def _draw_metric(axes: Axes, runs: dict[str, Curves], name: str, window: int, colours: dict[str, str]) -> None:
    """Draw smoothed values over the steps; behind a single run's, each step's own."""
    title, empty = _BY_STEP[name]
    plain_axes(axes, title, "step")
    lowest = math.inf
    for label, run in runs.items():
        values = run.metrics[name]
        finite = np.isfinite(values)
        if not finite.any():
            continue
        if len(runs) == 1 and window > 1:
            axes.plot(run.steps, values, color=colours[label], alpha=1 / 3, linewidth=0.7)
        # A value without neighbours is a dot: a line through it would not show.
        beside = np.pad(finite, 1)
        lone = np.flatnonzero(finite & ~beside[:-2] & ~beside[2:])
        _plot(axes, run.steps, smoothed(values, window), colours[label], lone)
        lowest = min(lowest, np.nanmin(values))
    if not axes.lines:
        _write(axes, empty)
    elif lowest > 0:
        _log_scale(axes)


def _draw_validations(axes: Axes, runs: dict[str, Curves], kind: str | None, colours: dict[str, str]) -> None:
    """Draw PSNR-Y on one kind of LR images, and bicubic interpolation's: one line if it is the same for all runs."""
    plain_axes(axes, "PSNR-Y of the validations, dB" if kind is None else f"PSNR-Y on {lr_name(kind)}, dB", "step")
    validations = {label: run.validations[kind] for label, run in runs.items() if kind in run.validations}
    levels = {label: round(validation.bicubic, 2) for label, validation in validations.items()}
    for label, level in levels.items():
        colour = FAINT if len(set(levels.values())) == 1 else colours[label]
        if math.isfinite(level):
            axes.axhline(level, color=colour, linestyle="--", linewidth=1.5)
    finite = False
    for label, validation in validations.items():
        values = np.array(validation.psnr_y)
        dots = np.flatnonzero(np.isfinite(values))
        _plot(axes, validation.steps, values, colours[label], dots if len(values) <= 40 else ())
        finite = finite or len(dots) > 0
    if not finite and not any(map(math.isfinite, levels.values())):
        _write(axes, "no validation yet" if kind is None else "no result is a number")


def _plot(axes: Axes, steps: Sequence[int], values: np.ndarray, colour: str, dots: Sequence[int]) -> None:
    axes.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=4, markevery=list(dots))


def _log_scale(axes: Axes) -> None:
    """A logarithmic scale with plain numbers at 1, 2 and 5, or at evenly spaced values over less than two octaves."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    locator = (
        MaxNLocator(8, steps=(1, 2, 5, 10))
        if decades < 0.7
        else LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=8)
    )
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _write(axes: Axes, text: str) -> None:
    """Write why nothing is drawn, in the middle of empty axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.grid(False)
    axes.set_yticks([])


if __name__ == "__main__":
    sys.exit(main())

"""Draw what training runs recorded: `python -m andfast.plot RUN... [--output FILE] [--smooth STEPS]`.

Draws loss, gain, the discriminator's loss if there is one, and the PSNR-Y of the validations over the steps, of one run
or of several, in one PNG. Needs matplotlib: `pip install 'andfast[plot]'`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.charts import COLOURS, FAINT, new_figure, plain_axes, require_matplotlib, save_figure
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# By default the mean is over the longest run's steps divided by this.
_SMOOTH = 50
_REFERENCE = "bicubic interpolation"
_PANEL_HEIGHT = 3.3  # inches
_BY_STEP = {
    "loss": ("loss", "no loss is a number"),
    "gain": ("gain: loss after / before the attack", "no step has met an adversary"),
    "loss_d": ("loss of the discriminator", ""),
}


class PlotError(ValueError):
    """Runs that cannot be drawn; the message names them."""


@dataclass
class Validation:
    """The validations of a run with one kind of LR images: steps, PSNR-Y, and that of bicubic interpolation, in dB."""

    steps: list[int]
    psnr_y: list[float]
    bicubic: float


@dataclass
class Curves:
    """What is drawn of a run.

    Attributes:
        steps: the numbers of its steps.
        loss, gain, loss_d: of each of them; NaN marks values that do not apply.
        validations: by the kind of LR images.
    """

    steps: np.ndarray
    loss: np.ndarray
    gain: np.ndarray
    loss_d: np.ndarray
    validations: dict[str, Validation]

    @property
    def last(self) -> int:
        """Its last step."""
        return max([int(self.steps.max(initial=0)), *(found.steps[-1] for found in self.validations.values())])


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
        require_matplotlib()
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
    return next(found for found in names if len(set(found)) == len(found))


def read_curves(run: Path) -> Curves:
    """Read a run's `metrics.jsonl`; of a run that has not ended, its lines so far.

    Raises:
        PlotError: there is no such file, nothing in it yet, or something other than a run's records.
        RunRecordError: a line of it is damaged; see `read_records`.
    """
    path = run / METRICS_FILE
    if not path.is_file():
        raise PlotError(f"{path}: no such file; {run} is not the folder of a run")
    steps: list[tuple[float, ...]] = []
    validations: dict[str, Validation] = {}
    for record in read_records(path):
        try:
            if "loss" in record:
                numbers = (_number(value) for value in (record["loss"], record.get("gain"), record.get("loss_d")))
                steps.append((record["step"], *numbers))
            for name, found in record.get("validation", {}).items():
                validation = validations.setdefault(name, Validation([], [], math.nan))
                validation.steps.append(record["step"])
                validation.psnr_y.append(_number(found["psnr_y"]))
                validation.bicubic = _number(found["bicubic_psnr_y"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlotError(f"{path}: a line of step {record['step']} is not one that andfast.train writes") from error
    if not steps:
        raise PlotError(f"{path}: no step is recorded there yet")
    return Curves(*np.array(steps).T, validations)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each, of those that are numbers; NaN where the value itself is NaN.

    Args:
        values: (n,), some may be NaN.
        window: an odd number.
    """
    there = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(column)]) for column in (np.where(there, values, 0), there))
    places = np.arange(len(values))
    low, high = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(values))
    return np.where(there, (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1), np.nan)


def draw(runs: dict[str, Curves], smooth: int | None = None) -> Figure:
    """Draw runs by their names: a panel for each of loss, gain, discriminator's loss, and kind of validation.

    Args:
        runs: 1 to 6 of them.
        smooth: how many steps to take the mean over, made odd; None: a fiftieth of the longest run's.

    Raises:
        PlotError: `smooth` is less than 1.
        ChartError: matplotlib cannot be imported.
    """
    if smooth is not None and smooth < 1:
        raise PlotError(f"--smooth is {smooth}; it must be at least 1")
    window = max(len(run.steps) for run in runs.values()) // _SMOOTH if smooth is None else smooth
    window += 1 - window % 2
    colours = dict(zip(runs, COLOURS, strict=False))
    names = [name for name in _BY_STEP if name != "loss_d" or any(_has(run.loss_d) for run in runs.values())]
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in run.validations))
    panels = len(names) + max(len(kinds), 1)
    rows = -(-panels // 2)
    title = f"{len(runs)} training runs" if len(runs) > 1 else "A training run"
    legend = _legend(colours, bicubic=bool(kinds))
    figure = new_figure(title, _subtitle(window, len(runs)), _PANEL_HEIGHT * rows, legend)
    all_axes = figure.subplots(rows, 2, squeeze=False).flat
    for axes, name in zip(all_axes, names, strict=False):
        _draw_by_step(axes, runs, name, window, colours)
    for axes, kind in zip(all_axes[len(names) :], kinds or [None], strict=False):
        _draw_validations(axes, runs, kind, colours)
    last = max(run.last for run in runs.values())
    for axes in all_axes[:panels]:
        axes.set_xlim(0, last)
    for axes in all_axes[panels:]:
        axes.set_axis_off()
    return figure


def _legend(colours: dict[str, str], bicubic: bool) -> list[Line2D]:
    from matplotlib.lines import Line2D

    reference = [Line2D([], [], color=FAINT, linestyle="--", label=_REFERENCE)] if bicubic else []
    return [Line2D([], [], color=colour, linewidth=2, label=label) for label, colour in colours.items()] + reference


def _subtitle(window: int, runs: int) -> str:
    if window == 1:
        return "Losses and gain: each step, not smoothed."
    single = " The pale line is each step." if runs == 1 else ""
    return f"Losses and gain: mean of the {window:,} steps around each.{single}"


def _draw_by_step(axes: Axes, runs: dict[str, Curves], name: str, window: int, colours: dict[str, str]) -> None:
    """Draw smoothed values over the steps; behind a single run's, each step's own."""
    title, empty = _BY_STEP[name]
    plain_axes(axes, title, "step")
    drawn = []
    for label, run in runs.items():
        values = getattr(run, name)
        if not _has(values):
            continue
        if len(runs) == 1 and window > 1:
            axes.plot(run.steps, values, color=colours[label], alpha=1 / 3, linewidth=0.7)
        axes.plot(run.steps, smoothed(values, window), color=colours[label], linewidth=2, **_dots(values, lone=True))
        drawn.append(values)
    if not drawn:
        _say(axes, empty)
    elif all(np.nanmin(values) > 0 for values in drawn):
        _log_scale(axes)


def _draw_validations(axes: Axes, runs: dict[str, Curves], kind: str | None, colours: dict[str, str]) -> None:
    """Draw PSNR-Y on one kind of LR images, and bicubic interpolation's: one line if it is the same for all runs."""
    plain_axes(axes, "PSNR-Y of the validations, dB" if kind is None else f"PSNR-Y on {kind} LR, dB", "step")
    validations = {label: run.validations[kind] for label, run in runs.items() if kind in run.validations}
    levels = {label: round(validation.bicubic, 2) for label, validation in validations.items()}
    for label, level in levels.items():
        colour = FAINT if len(set(levels.values())) == 1 else colours[label]
        if math.isfinite(level):
            axes.axhline(level, color=colour, linestyle="--", linewidth=1.5)
    for label, validation in validations.items():
        values = np.array(validation.psnr_y)
        axes.plot(validation.steps, values, color=colours[label], linewidth=2, **_dots(values))
    if not axes.lines or not any(_has(np.asarray(line.get_ydata(), dtype=float)) for line in axes.lines):
        _say(axes, "no validation yet" if kind is None else "no result is a number")


def _has(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _dots(values: np.ndarray, lone: bool = False) -> dict[str, Any]:
    """Mark the points of a short line; with `lone`, only those without a neighbour, of which no line would show."""
    finite = np.isfinite(values)
    if lone:
        beside = np.concatenate([[False], finite, [False]])
        marked = np.nonzero(finite & ~beside[:-2] & ~beside[2:])[0]
    else:
        marked = np.nonzero(finite)[0] if len(values) <= 40 else []
    return {"marker": "o", "markersize": 4, "markevery": list(marked)}


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


def _say(axes: Axes, text: str) -> None:
    """Write why nothing is drawn, in the middle of empty axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.grid(False)
    axes.set_yticks([])


if __name__ == "__main__":
    sys.exit(main())

"""Draw what training runs recorded: `python -m andfast.plot RUN... [--output FILE] [--smooth STEPS]`.

Loss, gain, the discriminator's loss where there is one, and the PSNR-Y of the validations over the steps, of one run or
of several beside each other, in one PNG.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from andfast.chart import FAINT, GROUPS, Line, Panel, lines, paler
from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console
from andfast.utils.files import written_whole

# Where nobody says over how many steps to smooth: the longest run's, divided by this.
_SMOOTH = 50
_REFERENCE = "bicubic interpolation"


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
        loss, gain, loss_d: of each of them; not a number where there is none.
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
    parser.add_argument("runs", nargs="+", type=as_path, metavar="RUN", help=f"folders of runs, at most {len(GROUPS)}")
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
        image = draw(runs, options.smooth)
        with written_whole(output) as temporary:
            image.save(temporary)
    except (ValueError, OSError) as error:  # among them PlotError and RunRecordError
        print(f"error: {error}", file=sys.stderr)
        return 2
    for label, curves in runs.items():
        if not curves.validations:
            print(f"{label}: no validation yet")
    print(f"written: {output}")
    return 0


def _output(runs: Sequence[Path], output: Path | None) -> Path:
    if len(runs) > len(GROUPS):
        raise PlotError(f"{len(runs)} runs are too many to be told apart; give at most {len(GROUPS)}")
    if output is None:
        if len(runs) > 1:
            raise PlotError("--output FILE is needed where several runs are drawn")
        return runs[0] / "plot.png"
    if output.suffix.lower() != ".png":
        raise PlotError(f"--output {output}: its name must end in .png")
    return output


def labels(runs: Sequence[Path]) -> list[str]:
    """The last names of the runs' folders, with as many of those above as it takes to tell them apart.

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
    """Read a run's `metrics.jsonl`; of a run that is on its way, what is there so far.

    Raises:
        PlotError: there is no such file, nothing in it yet, or something else than a run's records.
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
            raise PlotError(f"{path}: a line of step {record['step']} is none that andfast.train writes") from error
    if not steps:
        raise PlotError(f"{path}: no step is recorded there yet")
    return Curves(*np.array(steps).T, validations)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each, of those that there are; not a number where there was none.

    Args:
        values: (n,), some may be no numbers.
        window: an odd number.
    """
    there = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(column)]) for column in (np.where(there, values, 0), there))
    places = np.arange(len(values))
    low, high = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(values))
    return np.where(there, (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1), np.nan)


def draw(runs: dict[str, Curves], smooth: int | None = None) -> Image.Image:
    """The chart of runs, by their names.

    Args:
        runs: 1 to 6 of them.
        smooth: how many steps to take the mean over, made odd; None: a fiftieth of the longest run's.

    Raises:
        PlotError: `smooth` is less than 1.
    """
    if smooth is not None and smooth < 1:
        raise PlotError(f"--smooth is {smooth}; it must be at least 1")
    window = max(len(run.steps) for run in runs.values()) // _SMOOTH if smooth is None else smooth
    window += 1 - window % 2
    colours = dict(zip(runs, GROUPS, strict=False))
    reach = (0.0, float(max(run.last for run in runs.values())))

    def panel(title: str, of: list[Line], empty: str, log: bool = False) -> Panel:
        return Panel(title, "step", of, reach, log, empty=empty)

    def by_step(name: str) -> list[Line]:
        found = [(label, run.steps, getattr(run, name), colours[label]) for label, run in runs.items()]
        each = [Line("", paler(colour), steps, values, width=1) for _, steps, values, colour in found]
        means = [Line(label, colour, steps, smoothed(values, window)) for label, steps, values, colour in found]
        return [*each, *means] if len(runs) == 1 and window > 1 else means

    loss, gain = by_step("loss"), by_step("gain")
    panels = [
        panel("loss", loss, "no loss is a number", _positive(loss)),
        panel("gain: loss after / before the attack", gain, "no step has met an adversary", _positive(gain)),
    ]
    if any(np.isfinite(run.loss_d).any() for run in runs.values()):
        loss_d = by_step("loss_d")
        panels.append(panel("loss of the discriminator", loss_d, "", _positive(loss_d)))
    kinds = dict.fromkeys(kind for run in runs.values() for kind in run.validations)
    panels += [
        panel(f"PSNR-Y on {kind} LR, dB", _validated(runs, kind, colours, reach), "no result is a number")
        for kind in kinds
    ]
    if not kinds:
        panels.append(panel("PSNR-Y of the validations, dB", [], "no validation yet"))
    return lines(_title(runs), _subtitle(window, len(runs)), panels, columns=2, height=340)


def _title(runs: dict[str, Curves]) -> str:
    return f"{len(runs)} training runs" if len(runs) > 1 else "A training run"


def _subtitle(window: int, runs: int) -> str:
    if window == 1:
        return "Losses and gain: each step, not smoothed."
    single = " The pale line is each step." if runs == 1 else ""
    return f"Losses and gain: mean of the {window:,} steps around each.{single}"


def _positive(found: Sequence[Line]) -> bool:
    """Whether a logarithmic scale can show it."""
    return all(y > 0 for line in found for y in line.y if not math.isnan(y))


def _validated(runs: dict[str, Curves], kind: str, colours: dict[str, str], reach: tuple[float, float]) -> list[Line]:
    """What bicubic interpolation reaches, once if it is the same for all runs, and what these do."""
    found = {label: run.validations[kind] for label, run in runs.items() if kind in run.validations}
    levels = {label: round(validation.bicubic, 2) for label, validation in found.items()}
    if len(set(levels.values())) == 1:
        references = [Line(_REFERENCE, FAINT, reach, [next(iter(levels.values()))] * 2, dashed=True, width=2)]
    else:
        references = [Line(_REFERENCE, FAINT, [], [], dashed=True, width=2)]
        references += [Line("", colours[label], reach, [y] * 2, dashed=True, width=2) for label, y in levels.items()]
    return references + [
        Line(label, colours[label], validation.steps, validation.psnr_y, dots=len(validation.steps) <= 40)
        for label, validation in found.items()
    ]


if __name__ == "__main__":
    sys.exit(main())

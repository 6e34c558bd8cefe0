"""Compare variants side by side: `python -m bench.report FILE... [--output DIR]`.

FILEs are results of pytest-benchmark. Prints a Markdown table for each group; with --output also writes the tables to
report.md, and bars to report.png. Training steps are compared with andfast's own plain step and with plain PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andfast.utils.charts import COLOURS, GRAY, INK, PALE, ChartError, new_figure, plain_axes, save_figure
from andfast.utils.console import console
from andfast.utils.files import write_text
from andfast.utils.formatting import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By the first word of a variant's name; all others are andfast. (a) and (b) are plain and compiled PyTorch.
_BAR_COLOURS = {"eager": GRAY, "(a)": GRAY, "torch.compile": "#c9a26b", "(b)": "#c9a26b", "reference": PALE}


class ReportError(Exception):
    """A file is no result of pytest-benchmark."""


@dataclass(frozen=True)
class Step:
    """A training step's images and updates, and the variants that it is compared with.

    Attributes:
        dtype: the type that it computes in.
        plain: the name of andfast's own plain step.
        written: the name of plain PyTorch's step of the same kind.
        first_step_seconds: time of the first step, if it includes compiling.
    """

    images: int
    updates: int
    dtype: str
    plain: str
    written: str
    first_step_seconds: float | None


@dataclass(frozen=True)
class Result:
    """The measurements of a variant, in seconds and bytes."""

    variant: str
    median: float
    best: float
    peak_memory: int | None = None
    percent_of_limit: float | None = None
    step: Step | None = None


@dataclass(frozen=True)
class Group:
    """Variants of the same work on the same machine."""

    name: str
    machine: str
    results: list[Result]

    @property
    def baseline(self) -> Result:
        """The first variant called eager, else the first."""
        return next((result for result in self.results if result.variant.startswith("eager")), self.results[0])

    def update_seconds(self, variant: str) -> float | None:
        """The median time of an update in the training step of that name; None if it is missing."""
        return next((one.median / one.step.updates for one in self.results if one.variant == variant), None)

    def times_plain(self, result: Result) -> float | None:
        """An update's time, relative to andfast's plain step."""
        plain = self.update_seconds(result.step.plain)
        return plain and self.update_seconds(result.variant) / plain

    def over_written(self, result: Result) -> float | None:
        """An update's speed, relative to plain PyTorch."""
        written = self.update_seconds(result.step.written)
        return written and written / self.update_seconds(result.variant)


def read(path: Path) -> list[Group]:
    """The groups of a file, in its order.

    Raises:
        ReportError: the file cannot be read, or is not a result of pytest-benchmark.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        processor = content["machine_info"].get("cpu", {}).get("brand_raw", "unknown processor")
        found = groups(content["benchmarks"], processor)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        if isinstance(error, json.JSONDecodeError):
            reason = f"it is not JSON ({error})"
        raise ReportError(f"{path} is not a result of pytest-benchmark: {reason}") from error
    if not found:
        raise ReportError(f"{path} holds no benchmark")
    return found


def groups(benchmarks: Iterable[dict[str, Any]], processor: str) -> list[Group]:
    """The groups of pytest-benchmark's records, in their order; `processor` names the CPU."""
    results: dict[tuple[str, str], list[Result]] = {}
    for benchmark in benchmarks:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        device = info.get("device", "cpu")
        name = benchmark["group"] or benchmark["name"].partition("[")[0]
        step = Step(**{key: info.get(key) for key in Step.__dataclass_fields__}) if "updates" in info else None
        results.setdefault((name, processor if device == "cpu" else device), []).append(
            Result(
                str(info.get("variant") or benchmark["param"] or benchmark["name"]),
                float(stats["median"]),
                float(stats["min"]),
                info.get("peak_memory"),
                info.get("percent_of_limit"),
                step,
            )
        )
    return [Group(*key, values) for key, values in results.items()]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{3 if seconds < 0.01 else 1}f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def step_table(group: Group) -> str:
    """A group of training steps as a Markdown section."""
    titles = ["variant", "type", "ms", "images/s", "x plain", "gain over (a)", "peak MiB", "% of limit", "first step s"]
    rows = [
        (
            result.variant,
            result.step.dtype,
            _milliseconds(result.median / result.step.updates),
            f"{result.step.images / result.median:.3g}",
            _number(group.times_plain(result), ".2f"),
            _number(group.over_written(result), ".2f"),
            _number(result.peak_memory and result.peak_memory / 2**20, ".0f"),
            _number(result.percent_of_limit, ".0f"),
            _number(result.step.first_step_seconds, ".1f"),
        )
        for result in group.results
    ]
    about = f"On {group.machine}; times an update of the generator."
    return f"## {group.name}\n\n{about}\n\n{markdown_table(titles, rows, words=2)}"


def table(group: Group) -> str:
    """A group as a Markdown section."""
    if all(result.step for result in group.results):
        return step_table(group)
    baseline = group.baseline
    titles = ["variant", "median ms", "min ms", "speed", "peak MiB", "memory", "% of limit"]
    rows = [
        (
            result.variant,
            _milliseconds(result.median),
            _milliseconds(result.best),
            f"{baseline.median / result.median:.2f}x",
            _number(result.peak_memory and result.peak_memory / 2**20, ".1f"),
            _number(result.peak_memory and baseline.peak_memory and result.peak_memory / baseline.peak_memory, ".2f"),
            _number(result.percent_of_limit, ".0f"),
        )
        for result in group.results
    ]
    about = f"On {group.machine}; speed and memory as multiples of those of {baseline.variant}."
    return f"## {group.name}\n\n{about}\n\n{markdown_table(titles, rows)}"


def markdown(groups: Iterable[Group]) -> str:
    """All groups as Markdown."""
    return "# Benchmarks\n\n" + "\n\n".join(map(table, groups)) + "\n"


def draw(groups: Sequence[Group]) -> Figure:
    """Draw bars of median times; each group has its own scale."""
    heights = [0.3 * len(group.results) + 0.6 for group in groups]
    figure = new_figure("Benchmarks", "Median times, and the speed as a multiple of the baseline's.", sum(heights))
    all_axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights).flat
    for axes, group in zip(all_axes, groups, strict=True):
        plain_axes(axes, f"{group.name}   ({group.machine})", grid="x")
        names = [result.variant for result in group.results]
        medians = [result.median for result in group.results]
        colours = [_BAR_COLOURS.get(name.split()[0], COLOURS[0]) for name in names]
        bars = axes.barh(range(len(names)), medians, height=0.65, color=colours)
        speeds = [f"{_milliseconds(median)} ms   {group.baseline.median / median:.2f}x" for median in medians]
        axes.bar_label(bars, speeds, padding=6, color=INK, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_xlim(0, 1.3 * max(medians))
        axes.spines["bottom"].set_visible(False)
    return figure


@console()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written by --benchmark-json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write report.md and report.png")
    options = parser.parse_args(arguments)
    try:
        found = [group for path in options.files for group in read(path)]
    except ReportError as error:
        sys.exit(f"error: {error}")
    text = markdown(found)
    print(text, end="")
    if options.output is not None:
        write_text(options.output / "report.md", text)
        try:
            save_figure(draw(found), options.output / "report.png")
        except ChartError as error:
            sys.exit(f"error: report.png is not drawn: {error}")


if __name__ == "__main__":
    main()

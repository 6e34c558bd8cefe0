"""Compare variants side by side: `python -m bench.report FILE... [--output DIR]`.

FILEs are results of pytest-benchmark. Prints a Markdown table a group; with --output also writes it as report.md, and
bars as report.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.chart import draw


class ReportError(Exception):
    """A file is not what the report can be made of."""


@dataclass(frozen=True)
class Result:
    """What was measured of one variant; seconds and bytes."""

    variant: str
    median: float
    best: float
    peak_memory: int | None
    percent_of_limit: float | None


@dataclass(frozen=True)
class Group:
    """Variants of the same work on the same machine, and the one that the others are measured by."""

    name: str
    machine: str
    results: list[Result]

    @property
    def baseline(self) -> Result:
        """The first variant called eager, else the first."""
        return next((result for result in self.results if result.variant.startswith("eager")), self.results[0])


def read(path: Path) -> list[Group]:
    """The groups of a file, in its order.

    Raises:
        ReportError: the file cannot be read, or is not a result of pytest-benchmark.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{path} is not a result of pytest-benchmark: it is not JSON ({error})") from error
    try:
        machine = content["machine_info"].get("cpu", {}).get("brand_raw", "unknown processor")
        results: dict[tuple[str, str], list[Result]] = {}
        for benchmark in content["benchmarks"]:
            info = benchmark["extra_info"]
            device = info.get("device", "cpu")
            name = benchmark["group"] or benchmark["name"].partition("[")[0]
            results.setdefault((name, machine if device == "cpu" else device), []).append(
                Result(
                    str(info.get("variant") or benchmark["param"] or benchmark["name"]),
                    float(benchmark["stats"]["median"]),
                    float(benchmark["stats"]["min"]),
                    info.get("peak_memory"),
                    info.get("percent_of_limit"),
                )
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ReportError(f"{path} is not a result of pytest-benchmark: {reason}") from error
    if not results:
        raise ReportError(f"{path} holds no benchmark")
    return [Group(*key, values) for key, values in results.items()]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{3 if seconds < 0.01 else 1}f}"


def _memory(result: Result, baseline: Result) -> tuple[str, str]:
    """MiB, and how often the baseline's."""
    if result.peak_memory is None:
        return "", ""
    ratio = f"{result.peak_memory / baseline.peak_memory:.2f}" if baseline.peak_memory else ""
    return f"{result.peak_memory / 2**20:.1f}", ratio


def table(group: Group) -> str:
    """A group as a Markdown section."""
    baseline = group.baseline
    lines = [
        f"## {group.name}",
        "",
        f"On {group.machine}; speed and memory as multiples of those of {baseline.variant}.",
        "",
        "| variant | median ms | min ms | speed | peak MiB | memory | % of limit |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for result in group.results:
        percent = "" if result.percent_of_limit is None else f"{result.percent_of_limit:.0f}"
        cells = (
            result.variant,
            _milliseconds(result.median),
            _milliseconds(result.best),
            f"{baseline.median / result.median:.2f}x",
            *_memory(result, baseline),
            percent,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(groups: Iterable[Group]) -> str:
    """All groups; a limit is what the device's copy bandwidth and matrix products allow, measured in the same run."""
    return "# Benchmarks\n\n" + "\n\n".join(map(table, groups)) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written by --benchmark-json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write report.md and report.png")
    options = parser.parse_args(arguments)
    try:
        groups = [group for path in options.files for group in read(path)]
    except ReportError as error:
        sys.exit(f"error: {error}")
    text = markdown(groups)
    print(text, end="")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.md").write_text(text)
        charts = [
            (
                f"{group.name}   ({group.machine})",
                [
                    (
                        result.variant,
                        result.median,
                        f"{_milliseconds(result.median)} ms   {group.baseline.median / result.median:.2f}x",
                    )
                    for result in group.results
                ],
            )
            for group in groups
        ]
        draw(charts).save(options.output / "report.png")


if __name__ == "__main__":
    main()

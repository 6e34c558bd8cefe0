"""Additions to a result file of pytest-benchmark, and the table of the training steps at the end."""

from __future__ import annotations

from typing import Any

import pytest

from andfast.evaluation.environment import collect
from bench.report import Group, groups, step_table


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info |= {key: value for key, value in collect().items() if key in ("versions", "devices")}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Remove single rounds and the machine's name; add the command, and the relative costs of training steps."""
    output_json["machine_info"].pop("node")
    output_json["command"] = " ".join(["python -m pytest", *map(_without_path, config.invocation_params.args)])
    for group in _step_groups(output_json["benchmarks"]):
        ratios = {
            result.variant: {"times_plain": group.times_plain(result), "over_written": group.over_written(result)}
            for result in group.results
        }
        for benchmark in output_json["benchmarks"]:
            if benchmark["group"] == group.name:
                benchmark["extra_info"] |= ratios[benchmark["extra_info"]["variant"]]
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    measured = [one.as_dict(include_data=False) for one in session.benchmarks if one] if session else []
    for group in _step_groups(measured):
        terminalreporter.write_line(f"\n{step_table(group)}")


def _step_groups(benchmarks: list[dict[str, Any]]) -> list[Group]:
    return [group for group in groups(benchmarks, "this CPU") if all(result.step for result in group.results)]


def _without_path(argument: str) -> str:
    """An option without the path of the result file."""
    name, equals, _ = argument.partition("=")
    return "--benchmark-json=FILE" if equals and name == "--benchmark-json" else argument

"""What a result file of pytest-benchmark says besides the times: the versions; and leaves out: every single round."""

from typing import Any

from andfast.info import collect


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info |= {key: value for key, value in collect().items() if key in ("versions", "devices")}


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["machine_info"].pop("node")
    output_json["command"] = "python -m pytest bench/ --benchmark-json=FILE"
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)

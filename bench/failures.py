"""What went wrong on a machine, for people who will not see it again: kinds of failures, each with one traceback.

    python -m bench.failures RESULT.xml ... --output FILE
    python -m bench.failures --kernels FILE

The first reads pytest's results (--junitxml), the second what `andfast.info --verify --json` found.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from andfast.utils.files import write_text

_LONGEST = 200  # characters of a reason in a line


@dataclass
class Failure:
    """Tests that failed for the same reason.

    Attributes:
        reason: the exception's first line.
        traceback: of the first of them.
        tests: their names.
    """

    reason: str
    traceback: str
    tests: list[str] = field(default_factory=list)


def failures(results: Iterable[Path]) -> list[Failure]:
    """The failures in files of pytest's --junitxml, what failed most tests first; numbers do not tell reasons apart."""
    found: dict[str, Failure] = {}
    for path in results:
        for case in ElementTree.parse(path).iter("testcase"):
            for outcome in [*case.iter("failure"), *case.iter("error")]:
                reason = (outcome.get("message") or "").strip().partition("\n")[0]
                kind = re.sub(r"0x[0-9a-f]+|[0-9.]+(e[-+]?[0-9]+)?", "#", reason)
                failure = found.setdefault(kind, Failure(reason, (outcome.text or "").strip()))
                failure.tests.append(f"{case.get('classname')}::{case.get('name')}")
    return sorted(found.values(), key=lambda failure: -len(failure.tests))


def as_lines(found: list[Failure]) -> list[str]:
    """A line for each kind."""
    return [f"  {len(failure.tests):>4} x {failure.reason[:_LONGEST]} (first: {failure.tests[0]})" for failure in found]


def as_markdown(found: list[Failure]) -> str:
    """All kinds with their tests and a traceback."""
    parts = ["# Failures", *([] if found else ["None."])]
    for failure in found:
        tests = "\n".join(f"- {test}" for test in failure.tests)
        parts.append(f"## {failure.reason[:_LONGEST]}\n\n{tests}\n\n```\n{failure.traceback}\n```")
    return "\n\n".join(parts) + "\n"


def kernels(content: dict) -> list[str]:
    """A line for each kernel that was verified, and for each that is not used."""
    lines = []
    for device, found in content["kernels"].items():
        lines += [f"  {device}: {key}: {times}" for key, times in found["kernels"].items()]
        lines += [f"  {device}: not used: {name}: {problem[:_LONGEST]}" for name, problem in found["problems"].items()]
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.failures", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT.xml")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tracebacks there, as Markdown")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="print a line for each kernel instead")
    options = parser.parse_args(arguments)
    if options.kernels is not None:
        print("\n".join(kernels(json.loads(options.kernels.read_text(encoding="utf-8")))))
        return
    found = failures(options.results)
    if options.output is not None:
        write_text(options.output, as_markdown(found))
    print("\n".join(["failures:", *as_lines(found)] if found else ["no test failed"]))


if __name__ == "__main__":
    main()

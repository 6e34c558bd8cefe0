"""Training steps on cores that other processes use as well: `python -m bench.shared_cores --output FILE`.

Times the same steps alone, by two processes at once, and beside a process that computes without end; once as andfast's
commands set OpenMP's threads, which sleep while they wait, and once as they are by themselves, where they spin.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from andfast.utils.console import console
from andfast.utils.files import write_text
from andfast.utils.formatting import markdown_table
from bench.record import origin

#: What idle threads do -> the environment that makes them do it.
IDLE = {"sleep": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}  # the latter as libgomp does when nothing is set
SITUATIONS = ("alone", "two at once", "beside a busy loop")

# Waits for a line of input when it is ready, and prints the seconds of each step.
_STEPS = """
import sys, time
import andfast  # before torch, whose threads it sets
from bench.steps import EXACT_5, Case, Variant, own_program
name, (batch, patch, depth, steps) = sys.argv[1], map(int, sys.argv[2:])
program = own_program(Case(name, batch, patch, depth=depth), Variant("andfast", EXACT_5))
program.first()
program.step()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(steps):
    begin = time.perf_counter()
    program.step()
    print(time.perf_counter() - begin, flush=True)
"""
_BUSY = "while True: pass"


def measure(situation: str, idle: str, options: argparse.Namespace) -> list[float]:
    """The seconds of each step, of all processes that take steps."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | IDLE[idle]
    sizes = (options.batch, options.patch, options.depth, options.steps)
    arguments = [options.generator, *map(str, sizes)]
    count = 2 if situation == "two at once" else 1
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _STEPS, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    busy = None
    try:
        for process in started:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a process that takes steps ended with status {process.wait()}")
        if situation == "beside a busy loop":
            busy = subprocess.Popen([sys.executable, "-c", _BUSY])
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        return [float(line) for process in started for line in process.stdout]
    finally:
        for process in [*started, *([] if busy is None else [busy])]:
            process.kill()
            process.wait()


@console()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.shared_cores", description=__doc__.splitlines()[0])
    parser.add_argument("--generator", choices=("rrdbnet", "compact"), default="compact")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="to take the median of")
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    seconds: dict[str, dict[str, list[float]]] = {}
    for idle in IDLE:
        seconds[idle] = {situation: measure(situation, idle, options) for situation in SITUATIONS}
    print(table(seconds))
    if options.output is not None:
        given = ["FILE" if word == str(options.output) else word for word in arguments or sys.argv[1:]]
        record = {**origin("bench.shared_cores", given), "seconds": seconds}
        write_text(options.output, json.dumps(record, indent=1) + "\n")


def table(seconds: dict[str, dict[str, list[float]]]) -> str:
    """Median seconds a step, and times that alone; in Markdown."""
    rows = []
    for situation in SITUATIONS:
        medians = {idle: statistics.median(of[situation]) for idle, of in seconds.items()}
        alone = {idle: statistics.median(of["alone"]) for idle, of in seconds.items()}
        rows.append([situation, *(f"{medians[idle]:.2f} ({medians[idle] / alone[idle]:.2f}x)" for idle in seconds)])
    return markdown_table(["seconds a step", *(f"idle threads {idle}" for idle in seconds)], rows)


if __name__ == "__main__":
    main()

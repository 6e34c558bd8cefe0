"""Shared by the commands: the `andfast` script, the parser, common options, and error lines."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andfast.utils.devices import TYPES

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

#: The commands, each a module `andfast.NAME`, and what they do.
COMMANDS = {
    "train": "train a blind super-resolution model",
    "upscale": "upscale images with a trained model",
    "evaluate": "measure models on benchmarks",
    "robustness": "measure the worst case of models by adversaries",
    "degrade": "make LR images from HR images, as pairs for other trainers",
    "export": "write a trained model for other programs",
    "plot": "draw what training runs recorded",
    "info": "show versions, devices, and which backend can run which operation",
    "demo": "upscale and attack images in a browser",
}


class UsageError(Exception):
    """The command cannot begin; the message says why in one line."""


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run `andfast COMMAND ...` as `python -m andfast.COMMAND ...`; without a command or with --help, list them.

    Returns the exit status, 2 without a known command; a command itself ends in SystemExit with its own status.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in COMMANDS:
        sys.argv[1:] = rest
        # As the main module, so that processes which it starts find it under its own name.
        runpy.run_module(f"andfast.{name}", run_name="__main__", alter_sys=True)
        return 0
    wrong = name not in ("-h", "--help")
    out = sys.stderr if wrong else sys.stdout
    print("usage: andfast COMMAND ...\n\ncommands (andfast COMMAND --help shows the options of one):", file=out)
    for command, text in COMMANDS.items():
        print(f"  {command:<12}{text}", file=out)
    if wrong:
        print(f"error: {name} is no command" if name else "error: give a command", file=out)
    return 2 if wrong else 0


def make_parser(command: str, **options: Any) -> ArgumentParser:
    """Make the parser of a command without a configuration file (`andfast.training.options` has the other).

    `command` is the name of the module, as "andfast.upscale"; `options` are those of `argparse.ArgumentParser`.
    """
    from jsonargparse import ArgumentParser

    # jsonargparse would describe types and defaults again, which the help texts do.
    formatter = argparse.HelpFormatter
    return ArgumentParser(prog=f"python -m {command}", formatter_class=formatter, allow_abbrev=True, **options)


def as_path(text: str) -> Path:
    """The type of an option that is a file or a folder: jsonargparse would read it as YAML for `Path` itself."""
    return Path(text)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def failure_line(path: Path, reason: str) -> str:
    """The line that says that something failed for a file, which `reason` may name already."""
    return f"failed: {reason}" if str(path) in reason else f"failed: {path}: {reason}"


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is an integer of at least `least` and at most `most`."""

    allowed = f"at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    parse.__name__ = "whole number"  # what messages call it
    return parse


def add_upscaling(parser: argparse.ArgumentParser, max_pixels: int) -> None:
    """Add the options of commands that upscale images; `max_pixels` is the default of --max-pixels."""
    add = parser.add_argument
    add(
        "--tile", type=whole(0), metavar="PIXELS",
        help="compute in squares of this size, to bound the memory; 0: all at once (default: what fits into it)",
    )  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    add(
        "--precision", choices=("auto", *TYPES), default="auto",
        help="auto: float32, but on CUDA float16 for images of 8 bits",
    )  # fmt: skip
    add(
        "--max-pixels", type=whole(1), default=max_pixels, metavar="N",
        help="refuse images of more pixels before they are decoded (default: %(default)s)",
    )  # fmt: skip

"""What the commands on argparse share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from andfast.utils.devices import TYPES


class UsageError(Exception):
    """The command cannot begin; the message says why in one line."""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; the name of its kind, if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number in that range, for argparse."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text} is not {'at least' if most is None else 'from'} {least}"
                                             + ("" if most is None else f" to {most}"))  # fmt: skip
        return value

    parse.__name__ = "whole number"  # what argparse calls it
    return parse


def add_upscaling(parser: argparse.ArgumentParser, max_pixels: int) -> None:
    """Add the options of what upscales images of any size; `max_pixels` is the default of one of them."""
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

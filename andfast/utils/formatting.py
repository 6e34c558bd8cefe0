"""Text and JSON of results: Markdown tables, names of types, plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> str:
    """A table in Markdown whose first `words` columns hold words and the others numbers."""
    rule = "|" + "---|" * words + "--:|" * (len(titles) - words)
    head, *lines = ("| " + " | ".join(map(str, row)) + " |" for row in [titles, *rows])
    return "\n".join([head, rule, *lines])


def counted(number: int, noun: str) -> str:
    """(1, "image") -> "1 image", (2000, "image") -> "2,000 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> "float32"."""
    return str(dtype).removeprefix("torch.")


def to_json(value: Any, digits: int | None = None) -> Any:
    """Convert nested dataclasses, dictionaries and sequences to JSON's types, floats rounded to `digits` decimals.

    Infinity and NaN, which JSON does not have, become the texts "inf", "-inf" and "nan".
    """
    if hasattr(value, "__dataclass_fields__"):
        return to_json(vars(value), digits)
    if isinstance(value, dict):
        return {key: to_json(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, digits) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return round(value, digits) if isinstance(value, float) and digits is not None else value

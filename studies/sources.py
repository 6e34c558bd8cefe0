"""The collections that training photographs are from, by their file names, and their licences for model cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from andfast.data.images import DataError
from andfast.data.listing import listed


class ImageSource(NamedTuple):
    """A collection of photographs; its files' names begin with `prefix`."""

    prefix: str
    name: str
    licence: str
    url: str


SOURCES = (
    ImageSource(
        "cid22_",
        "Cloudinary Image Dataset '22 (CID22)",
        "CC BY-SA 4.0",
        "https://creativecommons.org/licenses/by-sa/4.0/",
    ),
    ImageSource("clic", "CLIC 2025", "Unsplash licence", "https://unsplash.com/license"),
    ImageSource("gb82_", "gb82", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
)


def count_sources(trained: Sequence[str], held_out: Sequence[str]) -> list[dict[str, str | int]]:
    """How many images of which collection: SOURCES' fields with "trained" and "held_out", where there are any.

    Args:
        trained, held_out: file names.

    Raises:
        DataError: images from no known collection; the message names them.
    """
    unknown = [name for name in [*trained, *held_out] if not any(_from(source, name) for source in SOURCES)]
    if unknown:
        raise DataError(
            f"images of unknown licence, which a model's card must name: {listed(unknown)}; "
            f"known are {', '.join(f'{source.prefix}*' for source in SOURCES)}; add others to studies/sources.py"
        )
    counts = [
        {
            **source._asdict(),
            "trained": sum(_from(source, name) for name in trained),
            "held_out": sum(_from(source, name) for name in held_out),
        }
        for source in SOURCES
    ]
    return [count for count in counts if count["trained"] or count["held_out"]]


def _from(source: ImageSource, name: str) -> bool:
    return Path(name).name.startswith(source.prefix)

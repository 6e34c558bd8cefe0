"""Paired benchmarks: folders of HR images and of the LR images that a camera took of the same scenes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from andfast.data.images import DataError, image_size
from andfast.data.listing import list_images

_NAMED_AT_MOST = 5  # how many pairs an error message names


class Pair(NamedTuple):
    """Two files of one scene; `name` is their path below `HR/` or `LR/` without the suffix."""

    name: str
    hr: Path
    lr: Path


def find_pairs(folder: str | os.PathLike[str], scale: int) -> list[Pair]:
    """The pairs in `folder`, sorted by name: `HR/x.png` with `LR/x.png`, where the suffixes may differ.

    Only the files' headers are read.

    Args:
        folder: holds the folders `HR` and `LR`.
        scale: height and width of every HR image must be exactly `scale` times those of its LR image.

    Raises:
        DataError: a folder is missing or empty, an image has no partner or two, or cannot be read, or the
            sizes of a pair do not fit; the message names the pairs.
    """
    folder = Path(folder)
    if not (folder / "HR").is_dir() or not (folder / "LR").is_dir():
        raise DataError(f"{folder}: a folder of pairs holds HR/ and LR/ with files of the same names")
    hr, lr = by_name(folder / "HR"), by_name(folder / "LR")
    if not hr and not lr:
        raise DataError(f"{folder}: HR/ and LR/ hold no images")
    return make_pairs(folder, hr, lr, scale)


def make_pairs(folder: Path, hr: Mapping[str, Path], lr: Mapping[str, Path], scale: int) -> list[Pair]:
    """The pairs of files by the names of their scenes, sorted by these.

    Only the files' headers are read.

    Args:
        folder: holds all of the files, and is what messages name.
        hr, lr: the files by name.
        scale: height and width of every HR image must be exactly `scale` times those of its LR image.

    Raises:
        DataError: an image has no partner, or cannot be read, or the sizes of a pair do not fit; the message names the
            pairs.
    """
    alone = [
        path.relative_to(folder).with_suffix("").as_posix()
        for own, others in ((hr, lr), (lr, hr))
        for name, path in own.items()
        if name not in others
    ]
    if alone:
        raise DataError(f"{folder}: without a partner: {listed(sorted(alone))}")
    pairs = [Pair(name, hr[name], lr[name]) for name in sorted(hr)]
    misfits = [text for pair in pairs if (text := _misfit(pair, scale))]
    if misfits:
        raise DataError(f"{folder}: HR is not {scale} times LR in: {listed(misfits)}")
    return pairs


def by_name(folder: Path) -> dict[str, Path]:
    """The images in a folder by their path below it, without the suffix.

    Raises:
        DataError: two have the same name, or `folder` is no folder.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {path.name} have the same name")
        found[name] = path
    return found


def _misfit(pair: Pair, scale: int) -> str | None:
    (height, width), (low_height, low_width) = image_size(pair.hr), image_size(pair.lr)
    if (height, width) == (scale * low_height, scale * low_width):
        return None
    return f"{pair.name} (HR {height} x {width}, LR {low_height} x {low_width})"


def listed(items: list[str]) -> str:
    """The first few of `items`, and how many more there are: for an error message."""
    more = len(items) - _NAMED_AT_MOST
    return ", ".join(items[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")

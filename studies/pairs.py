"""Camera-captured pairs in studies: which camera, and which half they may be tuned on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from andfast.data.images import DataError
from andfast.data.pairs import Pair

_T = TypeVar("_T")


def camera_of(name: str) -> str:
    """The camera that a pair's name begins with: "realsr_Canon_001" -> "realsr_Canon"; a bare number has none, "".

    Data sets number the scenes of a camera; what stands before the last number and its separator is the camera.
    """
    return re.sub(r"[_\-./ ]*\d+$", "", name)


def split_pairs(pairs: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """The tuning and the reporting part of a folder's pairs, sorted by name as `find_pairs` gives them.

    Every second pair, from the first on, may be looked at to choose settings and trained on; nothing is ever chosen
    by the others, which results are reported on.
    """
    return list(pairs[0::2]), list(pairs[1::2])


def link_pairs(pairs: Sequence[Pair], folder: Path) -> None:
    """Make `folder` hold these pairs, and no others, as links in `HR/` and `LR/`: a folder for `find_pairs`.

    Raises:
        DataError: two pairs have the same name, or the folder holds something else.
        OSError: it cannot be written.
    """
    wanted: dict[Path, Path] = {}
    for pair in pairs:
        for kind, source in (("HR", pair.hr), ("LR", pair.lr)):
            link = folder / kind / (pair.name + source.suffix)
            if link in wanted:
                raise DataError(f"{wanted[link]} and {source} have the same name; rename one")
            wanted[link] = Path(os.path.abspath(source))
    found = {path for path in folder.rglob("*") if not path.is_dir()}
    if strangers := sorted(found - wanted.keys()):
        raise DataError(f"{folder} is for links to {len(pairs)} pairs and holds others, as {strangers[0]}; remove it")
    for link, source in wanted.items():
        if link.is_symlink() and Path(os.readlink(link)) == source:
            continue
        if link.is_symlink() or link.exists():
            raise DataError(f"{link}: not a link to {source}; remove it")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)

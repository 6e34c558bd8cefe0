"""What models are tested on: camera-captured pairs, and held-out photographs degraded in ways no training uses."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from andfast.data.images import DataError
from andfast.data.pairs import Pair, find_pairs, read_pair
from andfast.degradation.camera import CameraSettings, bicubic_lr, camera_like
from andfast.evaluation.degrading import name_seed
from andfast.training.config import Config
from andfast.training.images import Skipped, find_images

_T = TypeVar("_T")

#: Blur in HR pixels, noise in 8-bit units and JPEG quality of the unseen degradations, by name.
STRENGTHS = {
    "mild": CameraSettings(1, 2, 90),
    "moderate": CameraSettings(2, 4, 80),
    "strong": CameraSettings(2, 10, 60),
    "severe": CameraSettings(3, 15, 40),
    "noise": CameraSettings(0, 15, 95),
    "blur": CameraSettings(3, 0, 95),
    "JPEG": CameraSettings(0, 0, 30),
}
REPORTING, TUNING, CLEAN = "reporting", "tuning", "clean"


@dataclass(frozen=True)
class Case:
    """One test: an LR image and the HR image to restore, uint8 (h, w, 3) and (scale * h, scale * w, 3).

    Attributes:
        image: the image's name; a held-out photograph has the same one in every set.
        group: results are averaged by it: the camera of a pair, or "photographs".
    """

    image: str
    group: str
    lr: np.ndarray = field(repr=False)
    hr: np.ndarray = field(repr=False)


TestSets = dict[str, list[Case]]
"""The tests by the names of their sets: REPORTING and TUNING pairs, CLEAN LR images, and those of STRENGTHS."""


def pair_sets(folders: Sequence[str | os.PathLike[str]], scale: int) -> TestSets:
    """Camera-captured pairs, every folder split into its tuning and its reporting part.

    Of pairs of twice the scale the HR images are reduced: there are few pairs x2.

    Raises:
        DataError: as `find_pairs`; a folder has a single pair; or two pairs have the same name.
    """
    sets: TestSets = {REPORTING: [], TUNING: []}
    for folder in folders:
        pairs, reduction = _find_reducible_pairs(folder, scale)
        if len(pairs) < 2:
            raise DataError(f"{folder}: {len(pairs)} pair; two at least are needed to tune on one and report the other")
        for name, part in zip((TUNING, REPORTING), split_pairs(pairs), strict=True):
            sets[name] += [_pair_case(pair, Path(folder), scale, reduction) for pair in part]
    if twice := _twice([case.image for cases in sets.values() for case in cases]):
        raise DataError(f"pairs are told apart by their names, and there are two of {', '.join(twice)}")
    return sets if folders else {}


def _find_reducible_pairs(folder: str | os.PathLike[str], scale: int) -> tuple[list[Pair], int]:
    """The pairs in `folder`, and how many times larger than `scale` theirs is: 1 or 2."""
    try:
        return find_pairs(folder, scale), 1
    except DataError as error:
        try:
            return find_pairs(folder, 2 * scale), 2
        except DataError:
            raise error from None


def _pair_case(pair: Pair, folder: Path, scale: int, reduction: int) -> Case:
    hr, lr = read_pair(pair.hr, pair.lr, scale * reduction)
    group = camera_of(pair.name) or folder.resolve().name
    if reduction > 1:
        return Case(pair.name, f"{group}, HR reduced x{reduction}", lr, bicubic_lr(hr, reduction))
    return Case(pair.name, group, lr, hr)


def photograph_sets(photographs: Sequence[tuple[str, np.ndarray]], scale: int) -> TestSets:
    """Photographs (name, uint8 (H, W, 3), H and W multiples of `scale`) under every degradation.

    The seed of an image's noise is made of its name, so that the noise does not depend on the other images.
    """
    sets: TestSets = {CLEAN: []} | {strength: [] for strength in STRENGTHS}
    for name, hr in photographs:
        sets[CLEAN].append(Case(name, "photographs", bicubic_lr(hr, scale), hr))
        for strength, settings in STRENGTHS.items():
            seed = name_seed(f"{name} {strength}")
            sets[strength].append(Case(name, "photographs", camera_like(hr, scale, seed, **vars(settings)), hr))
    return sets


def held_out_photographs(config: Config) -> list[tuple[str, np.ndarray]]:
    """The photographs that training with `config` validates on and never trains on: (file name, HR image).

    Raises:
        DataError: there are no photographs, or two of the same name.
    """
    images = [(Path(name).name, image) for name, image in find_images(config, Skipped()).held_out]
    if twice := _twice([name for name, _ in images]):
        raise DataError(f"photographs are told apart by their names, and two held-out ones are {', '.join(twice)}")
    return images


def study_sets(folders: Sequence[str | os.PathLike[str]], config: Config) -> TestSets:
    """The pairs in `folders`, and the photographs that training with `config` holds out.

    Raises:
        DataError: as `pair_sets` and `held_out_photographs`.
    """
    return pair_sets(folders, config.scale) | photograph_sets(held_out_photographs(config), config.scale)


def groups(sets: TestSets) -> dict[str, list[str]]:
    """The group of every test, by the name of its set."""
    return {name: [case.group for case in cases] for name, cases in sets.items()}


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def digest(sets: TestSets) -> str:
    """A hash of the tests' pixels, names and order."""
    state = hashlib.sha256()
    for name, cases in sets.items():
        for case in cases:
            state.update(f"{name}/{case.group}/{case.image}/{case.lr.shape}/{case.hr.shape}".encode())
            state.update(case.lr.tobytes())
            state.update(case.hr.tobytes())
    return state.hexdigest()[:16]


def reduced(sets: TestSets, images: int | None) -> TestSets:
    """The first `images` tests of every group; None: all."""
    if images is None:
        return sets
    return {
        name: [case for group in dict.fromkeys(members) for case in _of(group, sets[name])[:images]]
        for name, members in groups(sets).items()
    }


def _of(group: str, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.group == group]


def camera_of(name: str) -> str:
    """A pair's camera: its name without the number at the end, "realsr_Canon_001" -> "realsr_Canon", "001" -> ""."""
    return re.sub(r"[_\-./ ]*\d+$", "", name)


def split_pairs(pairs: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """The tuning and the reporting part of a folder's pairs, sorted by name as `find_pairs` gives them.

    Every second pair, from the first on, may be used to choose settings and to train; the others only for results.
    """
    return list(pairs[0::2]), list(pairs[1::2])


def link_pairs(pairs: Sequence[Pair], folder: Path) -> None:
    """Make a folder for `find_pairs` that holds these pairs, and no others, as links in `HR/` and `LR/`.

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

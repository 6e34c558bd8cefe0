"""Pairs of HR and LR images: files of the same scenes, taken by a camera or made small."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from andfast.data.images import DataError, image_size, read_image
from andfast.data.listing import list_images, listed, no_images_message
from andfast.data.paired_folders import paired_folders, scene_name


class Pair(NamedTuple):
    """Two files of one scene.

    `name` is the path of the HR file below its folder without the suffix, or of the LR file, where one HR file has
    several. `cut` says that their sizes do not fit exactly: see `fitted`.
    """

    name: str
    hr: Path
    lr: Path
    cut: bool = False


def find_pairs(folder: str | os.PathLike[str], scale: int) -> list[Pair]:
    """The pairs in `folder`, sorted by name: `HR/x.png` with `LR/x.png`, or named as data sets are published.

    Only the files' headers are read.

    Args:
        folder: holds the folders `HR` and `LR`, or others that `andfast.data.paired_folders` knows by their names; or
            holds a folder that does.
        scale: how many times as high and wide as its LR image every HR image is, up to less than `scale` pixels.

    Raises:
        DataError: a folder is missing or empty, an image has no partner or two, or cannot be read, or the
            sizes of a pair do not fit; the message names the pairs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    folders = paired_folders(folder, scale, below=True)
    if folders is None:
        raise DataError(f"{folder}: a folder of pairs holds HR/ and LR/ with files of the same names")
    hr, lr = (images_by_name(each) for each in folders)
    if not hr and not lr:
        raise DataError(f"{folder}: {' and '.join(f'{each.name}/' for each in folders)} hold {no_images_message()}")
    return make_pairs(folder, hr, lr, scale)


def make_pairs(folder: Path, hr: Mapping[str, Path], lr: Mapping[str, Path], scale: int) -> list[Pair]:
    """The pairs of files by the names of their scenes, sorted by these.

    What has no partner of exactly its name finds that of its scene (`scene_name`); there several LR images may have one
    HR image. Only the files' headers are read.

    Args:
        folder: what messages name.
        hr, lr: the files by name.
        scale: as for `find_pairs`.

    Raises:
        DataError: an image has no partner, or cannot be read, or the sizes of a pair do not fit; the message names the
            pairs.
    """
    partners = {name: name for name in lr if name in hr}
    scenes: dict[str, list[str]] = {}
    for name in hr.keys() - partners.keys():
        scenes.setdefault(scene_name(name), []).append(name)
    for name in lr.keys() - partners.keys():
        if len(own := scenes.get(scene_name(name), [])) == 1:
            partners[name] = own[0]
    used = Counter(partners.values())
    alone = [path for name, path in hr.items() if name not in used]
    alone += [path for name, path in lr.items() if name not in partners]
    if alone:
        names = [Path(os.path.relpath(path.with_suffix(""), folder)).as_posix() for path in alone]
        raise DataError(f"{folder}: without a partner: {listed(sorted(names))}")
    pairs, misfits = [], []
    for low, high in partners.items():
        name = high if used[high] == 1 else low
        sizes = image_size(hr[high]), image_size(lr[low])
        if common_size(*sizes, scale) is None:
            misfits.append("{} (HR {} x {}, LR {} x {})".format(name, *sizes[0], *sizes[1]))
        pairs.append(Pair(name, hr[high], lr[low], sizes[0] != tuple(scale * length for length in sizes[1])))
    if misfits:
        raise DataError(f"{folder}: HR is not {scale} times LR in: {listed(sorted(misfits))}")
    return sorted(pairs)


def common_size(hr: Sequence[int], lr: Sequence[int], scale: int) -> tuple[int, int] | None:
    """Height and width in LR pixels of what both images of a pair show; None: they differ by more than a rounding."""
    if any(abs(large - scale * small) >= scale for large, small in zip(hr, lr, strict=True)):
        return None
    height, width = (min(large // scale, small) for large, small in zip(hr, lr, strict=True))
    return (height, width) if height and width else None


def fitted(hr: np.ndarray, lr: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a pair, (H, W, 3) and (h, w, 3), cut at the bottom and right so that H = `scale` h, W = `scale` w.

    Data sets are made with h = H / `scale`, rounded down or up.

    Raises:
        DataError: they differ by more than that.
    """
    size = common_size(hr.shape[:2], lr.shape[:2], scale)
    if size is None:
        raise DataError(f"HR {hr.shape[:2]} is not {scale} times LR {lr.shape[:2]}")
    height, width = size
    return np.ascontiguousarray(hr[: scale * height, : scale * width]), np.ascontiguousarray(lr[:height, :width])


def read_pair(hr: str | os.PathLike[str], lr: str | os.PathLike[str], scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a pair, uint8 (H, W, 3) and (h, w, 3), `fitted`.

    Raises:
        DataError: one cannot be read, or they do not fit.
    """
    return fitted(read_image(hr), read_image(lr), scale)


def cut_to_fit(cut: int, count: int, scale: int) -> str:
    """In words, how many of `count` pairs are cut."""
    return f"{cut} of {count} pairs are cut at the bottom and right, so that HR is {scale} times LR"


def images_by_name(folder: Path, paths: Sequence[Path] | None = None) -> dict[str, Path]:
    """The images in a folder by their path below it, without the suffix.

    Args:
        folder: the folder.
        paths: its images, where they were listed before; None: lists them.

    Raises:
        DataError: two have the same name, or `folder` is no folder.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder) if paths is None else paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {path.name} have the same name")
        found[name] = path
    return found

"""Pairs of HR and LR images: files of the same scenes, taken by a camera or downsampled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from andfast.data.images import DataError, image_size, read_image
from andfast.data.listing import check_folder, list_images, listed, no_images_message
from andfast.data.paired_folders import paired_folders, scene_name
from andfast.utils.formatting import counted


class Pair(NamedTuple):
    """Two files of one scene; `cut` says that their sizes do not fit exactly and `fitted` cuts them.

    `name` is the path of the HR file below its folder without the suffix, or of the LR file if an HR file has several.
    """

    name: str
    hr: Path
    lr: Path
    cut: bool = False


def find_pairs(folder: str | os.PathLike[str], scale: int) -> list[Pair]:
    """The pairs in `folder`, sorted by name: `HR/x.png` with `LR/x.png`, or named as in published data sets.

    `folder` holds the two folders (see `paired_folders`). Every HR image is `scale` times as high and wide as its LR
    image, up to less than `scale` pixels. Only the files' headers are read.

    Raises:
        DataError: a folder is missing or empty, an image has no partner or two, or cannot be read, or the sizes of a
            pair do not fit; the message names the pairs.
    """
    folder = check_folder(folder)
    folders = paired_folders(folder, scale)
    if folders is None:
        raise DataError(f"{folder}: a folder of pairs holds HR/ and LR/ with files of the same names")
    hr, lr = (images_by_name(each) for each in folders)
    if not hr and not lr:
        raise DataError(f"{folder}: {' and '.join(f'{each.name}/' for each in folders)} hold {no_images_message()}")
    return make_pairs(folder, hr, lr, scale)


def make_pairs(folder: Path, hr: Mapping[str, Path], lr: Mapping[str, Path], scale: int) -> list[Pair]:
    """The pairs of `hr` and `lr`, files by name, sorted; messages name `folder`. Errors are those of `find_pairs`.

    A file without a partner of exactly its name is paired by the name of its scene (`scene_name`); several LR images
    may then share one HR image.
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
    """Height and width in LR pixels of the part that both images of a pair show; None if the sizes do not fit."""
    if any(abs(large - scale * small) >= scale for large, small in zip(hr, lr, strict=True)):
        return None
    height, width = (min(large // scale, small) for large, small in zip(hr, lr, strict=True))
    return (height, width) if height and width else None


def fitted(hr: np.ndarray, lr: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a pair, (H, W, 3) and (h, w, 3), cut at the bottom and right so that H = `scale` h, W = `scale` w.

    Raises:
        DataError: h or w is not H / `scale` or W / `scale`, rounded down or up.
    """
    size = common_size(hr.shape[:2], lr.shape[:2], scale)
    if size is None:
        raise DataError(f"HR {hr.shape[:2]} is not {scale} times LR {lr.shape[:2]}")
    height, width = size
    return np.ascontiguousarray(hr[: scale * height, : scale * width]), np.ascontiguousarray(lr[:height, :width])


def read_pair(hr: str | os.PathLike[str], lr: str | os.PathLike[str], scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair as uint8 (H, W, 3) and (h, w, 3), `fitted`; DataError if one cannot be read or they do not fit."""
    return fitted(read_image(hr), read_image(lr), scale)


def cut_to_fit(cut: int, count: int, scale: int) -> str:
    """A message: `cut` of `count` pairs are cut."""
    return f"{cut} of {counted(count, 'pair')} cut at the bottom and right, so that HR is {scale} times LR"


def images_by_name(folder: Path, paths: Sequence[Path] | None = None, end: str = "") -> dict[str, Path]:
    """The images in a folder by their path below it, without the suffix; DataError if two have the same name.

    Args:
        folder: the folder.
        paths: its images, if they are listed already.
        end: only images whose names end so, in any case, are included; their names are cut by it.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder) if paths is None else paths:
        if not path.stem.lower().endswith(end.lower()):
            continue
        name = (path.parent.relative_to(folder) / path.stem[: len(path.stem) - len(end)]).as_posix()
        if name in found:
            raise DataError(f"{folder}: {found[name].name} and {path.name} have the same name")
        found[name] = path
    return found

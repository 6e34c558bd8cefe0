"""The folder layouts of published benchmarks: which HR and LR images belong together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from andfast.data.images import DataError, image_size
from andfast.data.listing import SkippedFile, check_folder, list_folder, list_images, no_images_message
from andfast.data.paired_folders import hr_folder, is_hr_folder, levels_below, paired_folders, scene_name_across_scales
from andfast.data.pairs import images_by_name, make_pairs
from andfast.utils.formatting import counted

_Files = tuple[dict[str, Path], dict[str, Path]]  # HR and LR by the names of their scenes


class Scene(NamedTuple):
    """An LR image with its original, or one of the two alone."""

    name: str
    lr: Path | None
    hr: Path | None


@dataclass(frozen=True)
class DataSet:
    """The images of a folder.

    Attributes:
        layout: the name of one of `LAYOUTS`; "HR" for originals alone, "LR" for LR images alone.
        scenes: sorted by name.
        passed_over: files and folders that were skipped, and why.
        cut: how many pairs do not fit exactly, and are cut.
    """

    folder: Path
    layout: str
    scenes: list[Scene]
    passed_over: list[SkippedFile]
    cut: int = 0


class Layout(NamedTuple):
    """A layout of folders.

    Attributes:
        shape: how it looks at scale s, for messages.
        find: (folder, scale) -> the files, or None if the folder has another layout.
    """

    name: str
    shape: str
    find: Callable[[Path, int], _Files | None]


def find_benchmark(folder: str | os.PathLike[str], scale: int) -> DataSet:
    """The pairs in a folder of one of `LAYOUTS`, or the LR images of one that holds only images.

    Of benchmarks with several scales, `scale` is taken. Only the files' headers are read.

    Raises:
        DataError: the folder does not exist, has another layout, no images, or HR images alone; an image has no
            partner, or cannot be read, or the sizes of a pair do not fit. The message names them.
    """
    folder = check_folder(folder)
    name, files = _recognised(folder, scale)
    if files is not None:
        hr, lr = files
        if not hr and not lr:
            raise DataError(f"{folder}: as {name} it holds no images at scale {scale}")
        pairs = make_pairs(folder, hr, lr, scale)
        scenes = [Scene(pair.name, pair.lr, pair.hr) for pair in pairs]
        return DataSet(folder, name, scenes, list_folder(folder).passed_over, sum(pair.cut for pair in pairs))
    strangers = sorted(
        {path.name for path in _folders(folder) if is_hr_folder(path) or path.name.lower() in ("lr", "lq")}
    )
    listing = list_folder(folder)
    found, passed_over = images_by_name(folder, listing.paths), listing.passed_over
    if strangers or not found:
        known = "; ".join(f"{layout.name}: {layout.shape}" for layout in LAYOUTS)
        what = (
            f"with {', '.join(strangers)} of none of the known layouts" if strangers else no_images_message(passed_over)
        )
        raise DataError(f"{folder}: {what} ({known}; or LR images alone; HR images alone with --degrade)")
    _refuse_mixture(folder, found, scale)
    return DataSet(folder, "LR", [Scene(name, found[name], None) for name in sorted(found)], passed_over)


def find_originals(folder: str | os.PathLike[str], scale: int) -> DataSet:
    """The HR images of a folder of one of `LAYOUTS`, or all images of another; DataError if there are none."""
    folder = check_folder(folder)
    place = hr_folder(folder, scale) if _drealsr(folder, scale) is None else None
    if place is not None:
        found = images_by_name(place)
    else:
        _, files = _recognised(folder, scale)
        found = images_by_name(folder) if files is None else files[0]
    passed_over = list_folder(folder).passed_over
    if not found:
        raise DataError(f"{folder}: no HR images; {no_images_message(passed_over)}")
    return DataSet(folder, "HR", [Scene(name, None, found[name]) for name in sorted(found)], passed_over)


def _recognised(folder: Path, scale: int) -> tuple[str, _Files | None]:
    for layout in LAYOUTS:
        if (files := layout.find(folder, scale)) is not None:
            return layout.name, files
    return "LR", None


def _refuse_mixture(folder: Path, found: dict[str, Path], scale: int) -> None:
    """Refuse images of which one is `scale` times as large as another of its scene: they are not all LR images."""
    scenes: dict[str, list[Path]] = {}
    if scale == 1:  # both could be LR images
        return
    for name, path in found.items():
        scenes.setdefault(scene_name_across_scales(name), []).append(path)
    for paths in scenes.values():
        sizes = {image_size(path): path for path in paths} if len(paths) > 1 else {}
        for (height, width), low in sizes.items():
            if high := sizes.get((scale * height, scale * width)):
                both = " and ".join(path.relative_to(folder).as_posix() for path in (high, low))
                raise DataError(
                    f"{folder}: {both} show one scene, {scale} times as large and as small; put pairs into HR/ and "
                    "LR/, or give the folder of the LR images"
                )


def _pairs(folder: Path, scale: int) -> _Files | None:
    """HR/ and LR/ with files of the same names, or the folders of `paired_folders`."""
    folders = paired_folders(folder, scale)
    return None if folders is None else (images_by_name(folders[0]), images_by_name(folders[1]))


def _drealsr(folder: Path, scale: int) -> _Files | None:
    """test_HR/ and test_LR/; there may be one of each scale, in Test_x2/, Test_x3/, Test_x4/.

    The published names end in the scale: Canon_10_x4.png is the original of Canon_10_x1.png.
    """
    parents = sorted({path.parent for path in _folders(folder) if path.name in ("test_HR", "test_LR")})
    if not parents:
        return None
    others = {f"Test_x{other}" for other in range(2, 9) if other != scale}
    hr: dict[str, Path] = {}
    lr: dict[str, Path] = {}
    for parent in parents:
        inside = parent.relative_to(folder)
        if others & set(inside.parts):
            continue
        for files, kind, suffix in ((hr, "test_HR", f"_x{scale}"), (lr, "test_LR", "_x1")):
            for name, path in images_by_name(parent / kind).items():
                files[(inside / name.removesuffix(suffix)).as_posix()] = path
    return hr, lr


def _srf(folder: Path, scale: int) -> _Files | None:
    """NAME_SRF_4_HR.png beside NAME_SRF_4_LR.png, among results of other methods and files of other scales."""
    images = list_images(folder)
    if not any(re.search(r"_SRF_\d_HR$", path.stem) for path in images):
        return None
    return tuple(images_by_name(folder, images, f"_SRF_{scale}_{kind}") for kind in ("HR", "LR"))


def _realsr(folder: Path, scale: int) -> _Files | None:
    """NAME_HR.png beside NAME_LR4.png or NAME_LR.png, in any case; only Test/ and the folder of the scale, if any."""
    ends = {path: end[1] for path in list_images(folder) if (end := re.search(r"(?i)_(hr|lr\d?)$", path.stem))}
    images, kinds = list(ends), {end[:2] for end in ends.values()}
    if "HR" not in kinds and not {"hr", "lr"} <= kinds:  # hr in lower case alone says too little
        return None
    parts = {path: path.relative_to(folder).parent.parts for path in images}
    if any("Test" in each for each in parts.values()):
        images = [path for path in images if "Test" in parts[path]]
    if any(each and each[-1].isdecimal() for each in parts.values()):
        images = [path for path in images if parts[path][-1:] == (str(scale),)]
    lr = images_by_name(folder, images, "_LR") | images_by_name(folder, images, f"_LR{scale}")
    return images_by_name(folder, images, "_HR"), lr


def _imagepairs(folder: Path, scale: int) -> _Files | None:
    """NAME_gt.png beside NAME.png, in ImagePairs_Test/ if there is one."""
    images = list_images(folder)
    if not any(path.stem.endswith("_gt") for path in images):
        return None
    images = [path for path in images if "ImagePairs_Test" in path.relative_to(folder).parts] or images
    lr = [path for path in images if not path.stem.endswith("_gt")]
    return images_by_name(folder, images, "_gt"), images_by_name(folder, lr)


def _super(folder: Path, scale: int) -> _Files | None:
    """Bin1/ beside Bin2/, Bin3/ and Bin4/ in SCENE/MOTION/, frame by frame in the order of their names."""
    parents = sorted({path.parent for path in _folders(folder) if path.name == "Bin1"})
    if not parents:
        return None
    hr: dict[str, Path] = {}
    lr: dict[str, Path] = {}
    if scale == 1:  # Bin1/ are the originals
        return hr, lr
    for parent in parents:
        frames = [list_images(parent / kind) for kind in ("Bin1", f"Bin{scale}")]
        if len(frames[0]) != len(frames[1]):
            raise DataError(
                f"{parent}: {counted(len(frames[0]), 'frame')} in Bin1/ and {len(frames[1])} in Bin{scale}/; "
                "they belong together in the order of their names"
            )
        for own, other in zip(*frames, strict=True):
            name = (parent.relative_to(folder) / own.stem).as_posix()
            hr[name], lr[name] = own, other
    return hr, lr


LAYOUTS = (
    Layout("DRealSR", "Test_xs/test_HR/NAME_xs.png and Test_xs/test_LR/NAME_x1.png", _drealsr),
    Layout(
        "pairs", "HR/NAME.png and LR/NAME.png, DIV2K_valid_HR/NAME.png and DIV2K_valid_LR_bicubic/Xs/NAMExs.png", _pairs
    ),
    Layout("SelfExSR", "image_SRF_s/NAME_SRF_s_HR.png and NAME_SRF_s_LR.png", _srf),
    Layout("RealSR", "CAMERA/Test/s/NAME_HR.png and NAME_LRs.png", _realsr),
    Layout("ImagePairs", "ImagePairs_Test/NAME_gt.png and NAME.png", _imagepairs),
    Layout("SupER", "SCENE/MOTION/Bin1/ and Bins/", _super),
)
"""The known layouts, in the order in which they are tried."""


def _folders(folder: Path) -> list[Path]:
    """The folders below this one, to some depth."""
    return [path for level in levels_below(folder) for path in level]

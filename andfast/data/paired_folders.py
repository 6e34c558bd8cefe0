"""Folders of HR images and of their LR images, recognised by the names that published data sets use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from andfast.data.images import DataError
from andfast.data.listing import Listing, SkippedFile, list_folder, list_images, listed

# Before these words: nothing, DIV2K_valid_, or, before capitals, train.
_BEFORE = r"(?i)(|.*[_\-. ]|.*(?-i:[a-z\d](?=HR|HQ|GT|LR|LQ)))"
# After high and low: nothing, res, _resolution, Resx4.
_RESOLUTION = r"(?:[_\-. ]?res(?:olution)?)?(?=[_\-. ]?(?:x?\d+)?$)"
# HR, gt, GTmod12, DIV2K_valid_HR, DIV2K_train_HR_sub, trainHR, original, high_resolution.
_HR = re.compile(_BEFORE + rf"(hr|hq|gt|gtmod\d+|originals?|high{_RESOLUTION})(|x?\d|[_\-. ].*)")
# LR, lq, LRbicx4, LR_bicubic, DIV2K_valid_LR_unknown, trainLR, low_resolution.
_LR = re.compile(_BEFORE + rf"(l[rq]|low{_RESOLUTION})(.*)")
_SCALE = re.compile(r"(?i)x(\d{1,2})(?!\d)|(?<!\d)(\d)x")
# Folders inside those, of one scale each.
_SCALE_FOLDER = re.compile(r"(?i)(?:x\d{1,2}|\dx)(?:_sub)?")
# The ends of file names that are not the scene's name: 0801x4, 0801x4m, 0801x4w2, baby_LRBI_x4, img_001_SRF_4_HR.
_NAME_END = re.compile(r"(?i)(?:[_\-. ]?x(?:\d|16)(?:m|d|w\d?)?|[_\-. ](?:\dx|srf[_\-]?\d|hr|hq|gt|l[rq][a-z]*\d?))$")
_DEPTH = 6  # levels below the given folder that are searched


class Role(NamedTuple):
    """What a folder's name says: the kind of its images, "HR" or "LR", and the series to which both kinds belong.

    Of several HR folders, the LR images were made of that with the lowest `rank`. A name of rank 1 is only a weak sign.
    """

    kind: str
    series: str
    rank: int = 0


def role(name: str) -> Role | None:
    """The role of a folder of that name, or None."""
    for kind, pattern in (("HR", _HR), ("LR", _LR)):
        if match := pattern.fullmatch(name):
            before, word, _ = (part.lower() for part in match.groups())
            weak = word.startswith(("original", "high"))
            rank = 1 if weak else -int(word.removeprefix("gtmod")) if "mod" in word else 0
            return Role(kind, before, rank)
    return None


def is_hr_folder(folder: Path) -> bool:
    """Whether a folder's name says that it holds HR images."""
    whole = _named(folder)
    names = [whole.name, whole.parent.name] if _SCALE_FOLDER.fullmatch(whole.name) else [whole.name]
    return any(found.kind == "HR" and found.rank < 1 for name in names if (found := role(name)))


def scene_name(name: str) -> str:
    """The lower-case name of the scene of a file: "0801x4" -> "0801", "img_1_SRF_4_HR" -> "img_1"."""
    place, slash, stem = name.rpartition("/")
    while (shorter := _NAME_END.sub("", stem)) not in ("", stem):
        stem = shorter
    return f"{place}{slash}{stem}".lower()


def list_hr_folder(folder: str | os.PathLike[str]) -> Listing:
    """The images of `list_folder`, without those of LR folders that have an HR folder beside them."""
    top, listing = Path(folder), list_folder(folder)
    above = {home: [home, *home.parents] for home in {path.relative_to(top).parent for path in listing.paths}}
    roles = {each: own for folders in above.values() for each in folders if (own := role(each.name)) is not None}
    hr = {(each.parent, own.series): each.name for each, own in sorted(roles.items()) if own.kind == "HR"}
    found, passed_over = [], []
    for path in listing.paths:
        lr = [each for each in above[path.relative_to(top).parent] if each in roles and roles[each].kind == "LR"]
        beside = [name for each in lr if (name := hr.get((each.parent, roles[each].series))) is not None]
        if beside:
            passed_over.append(SkippedFile(path, f"of LR images, beside {beside[0]}"))
        else:
            found.append(path)
    return Listing(found, listing.passed_over + passed_over)


def scene_name_across_scales(name: str) -> str:
    """As `scene_name`, for a path, without folders like X4: the same for files of all scales."""
    *places, stem = scene_name(name).split("/")
    return "/".join([*(place for place in places if not _SCALE_FOLDER.fullmatch(place)), stem])


def paired_folders(folder: Path, scale: int) -> tuple[Path, Path] | None:
    """The folder of HR images and that of their LR images, or None.

    `folder` holds both, at its top or further down, or is the LR folder with the HR folder beside it. Of LR folders of
    several scales, that of `scale` is taken.

    Raises:
        DataError: there is one of the two alone, or several could be meant; the message names them.
    """
    found = _pairs_in(folder, scale)
    if not found:
        given = _named(folder)
        parent = given.parent.parent if _SCALE_FOLDER.fullmatch(given.name) else given.parent
        found = [(hr, lr) for hr, lr in _pairs_in(parent, scale) if given in (lr, *lr.parents)]
    if not found:
        for level in levels_below(folder):
            if holders := [each for each in level if _pairs_in(each, scale)]:
                if len(holders) > 1:
                    raise DataError(f"{folder}: holds several data sets; give one of {_names(holders, folder)}")
                _refuse_others(folder, holders[0])
                found = _pairs_in(holders[0], scale)
                break
    if len(found) > 1:
        these = _names([path for pair in found for path in pair], folder)
        raise DataError(f"{folder}: several folders could be meant, {these}; give the one of the LR images")
    if not found:
        _refuse_one_alone(folder, scale)
        return None
    return found[0]


def hr_folder(folder: Path, scale: int) -> Path | None:
    """The folder of HR images in `folder` or below it, or None; DataError if there are several."""
    for level in ([folder], *levels_below(folder)):
        found = [(each, path) for each in level for paths in _best_hr(each, scale).values() for path in paths]
        if len(found) > 1:
            names = _names([path for _, path in found], folder)
            raise DataError(f"{folder}: several folders hold HR images; give one of {names}")
        for holder, path in found:
            _refuse_others(folder, holder if _called(holder, "LR") else path)
            return path
    return None


def levels_below(folder: Path) -> Iterator[list[Path]]:
    """The folders in `folder`, then the folders in these, and so on to `_DEPTH`: no hidden ones, each once."""
    level, seen = [folder], {os.path.realpath(folder)}
    for _ in range(_DEPTH):
        below = {os.path.realpath(path): path for each in level for path in reversed(_folders_in(each))}
        level = sorted(path for real, path in below.items() if real not in seen)
        seen.update(below)
        yield level


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and os.path.isdir(path))
    except OSError:  # the listing of images reports it
        return []


def _named(folder: Path) -> Path:
    """A path of the folder that ends in its name."""
    return folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))


def _names(folders: Iterable[Path], folder: Path) -> str:
    return listed(list(dict.fromkeys(os.path.relpath(path, folder) for path in folders)))


def _pairs_in(folder: Path, scale: int) -> list[tuple[Path, Path]]:
    """All (HR, LR) folders directly in `folder` that may belong together."""
    hr = _best_hr(folder, scale)
    return [(own, lr) for series, _, lr in _of_kind(folder, "LR", scale) for own in hr.get(series, [])]


def _best_hr(folder: Path, scale: int) -> dict[str, list[Path]]:
    """The HR folders directly in `folder` of which LR images were made, by series."""
    by_series: dict[str, list[tuple[int, Path]]] = {}
    for series, rank, path in _of_kind(folder, "HR", scale):
        if rank < 1 or _called(folder, "LR"):
            by_series.setdefault(series, []).append((rank, path))
    return {series: [path for rank, path in own if rank == min(own)[0]] for series, own in by_series.items()}


def _of_kind(folder: Path, kind: str, scale: int) -> list[tuple[str, int, Path]]:
    """(series, rank, folder) of the folders in `folder` with images of that kind and scale."""
    return [
        (own.series + ("_sub" if path.name.lower().endswith("_sub") else ""), own.rank, path)
        for child, own in _called(folder, kind).items()
        for path in _at_scale(child, scale)
    ]


def _called(folder: Path, kind: str) -> dict[Path, Role]:
    """The folders directly in `folder` whose names say that they hold images of that kind."""
    return {path: own for path in _folders_in(folder) if (own := role(path.name)) is not None and own.kind == kind}


def _at_scale(folder: Path, scale: int) -> list[Path]:
    """The folder or, if it has a folder for each scale, that of this scale."""
    if (folder / folder.name).is_dir():  # as archives unpack
        folder /= folder.name
    inside = [path for path in _folders_in(folder) if _SCALE_FOLDER.fullmatch(path.name)]
    scales = [(path, _SCALE.search(path.name)) for path in inside or [folder]]
    return [path for path, named in scales if named is None or int(named[1] or named[2]) == scale]


def _refuse_others(folder: Path, holder: Path) -> None:
    """Refuse a folder that has images outside of `holder`, which would be left out silently."""
    for path in list_images(folder):
        if holder not in path.parents:
            raise DataError(f"{folder}: {os.path.relpath(path, folder)} does not lie in {holder}; give that folder")


def _refuse_one_alone(folder: Path, scale: int) -> None:
    hr, lr = _called(folder, "HR"), _called(folder, "LR")
    sure = [path for path in hr if is_hr_folder(path)]
    together = "pairs stand in HR/ and LR/ or the like"
    alone = "HR images alone are measured with andfast.evaluate --degrade"
    if sure and not lr:
        names = _names(sure, folder)
        raise DataError(
            f"{folder / 'LR'}: no such folder, nor another of LR images beside {names}; {together}; {alone}"
        )
    if not hr and (exact := [path for path in lr if len(path.name) == 2]):
        names = _names(exact, folder)
        raise DataError(f"{folder / 'HR'}: no such folder, nor another of HR images beside {names}; {together}")
    if {own.series for own in hr.values()} & {own.series for own in lr.values()}:
        raise DataError(
            f"{folder}: no LR images of scale {scale} in {_names(lr, folder)} that belong to {_names(hr, folder)}; "
            + alone
        )

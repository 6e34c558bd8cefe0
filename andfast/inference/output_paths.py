"""Which file each result is written to."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from andfast.data.heif import avif_problem
from andfast.data.images import ImageError, image_size
from andfast.data.listing import Listing, SkippedFile, list_folder, no_images_message
from andfast.data.suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from andfast.inference.formats import SUFFIXES
from andfast.inference.tiles import resized_size
from andfast.utils.command_line import UsageError
from andfast.utils.files import comparison, write_json

#: The choices of `--format` and their suffixes.
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "avif": ".avif", "tiff": ".tif"}
# The result's suffix under `--format same`; PNG for all others.
_SAME = {suffix: suffix for suffix in (".avif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")}
_SAME |= dict.fromkeys((".jfif", ".jfi", ".jif", ".jpe", ".mpo"), ".jpg")

#: Lists the results in a folder that holds inputs, too.
RECORD_FILE = ".andfast_upscaled.json"


@dataclass(frozen=True)
class OutputPlan:
    """The images and the files of their results.

    Attributes:
        pairs: (image, result), each once.
        passed_over: files in the input folders that are skipped, and why.
        beside: the results that are written to folders of images.
    """

    pairs: list[tuple[Path, Path]]
    passed_over: list[SkippedFile]
    beside: set[Path]


def plan_outputs(
    inputs: Sequence[Path],
    output: Path,
    kind: str = "png",
    factor: float | None = None,
    overwrite: bool = False,
    listing_of: Callable[[Path], Listing] = list_folder,
) -> OutputPlan:
    """Choose the file of each result, in the order of `inputs`.

    A file goes to `output`/NAME with the suffix of the format; images in a folder keep their sub-folders. If `output`
    is inside an input folder, the images in it are skipped as earlier results. If results are written beside images, a
    file with the path and the size of a result is an earlier result.

    Args:
        inputs: files and folders.
        output: a folder.
        kind: a key of `FORMATS`, or "same": the format of each image, PNG for those that are not written.
        factor: size of the results relative to the images; None: do not look for earlier results beside images.
        overwrite: whether earlier results are overwritten. Beside images only those listed by `record_results` are, as
            others could be originals.
        listing_of: finds the images in a folder.

    Raises:
        UsageError: an input does not exist or holds no image, the format is not written here, two results have the
            same file, or a result would overwrite an input or another file beside it.
    """
    if kind == "avif" and (problem := avif_problem()):
        raise UsageError(f"--format avif: {problem}")
    pairs: list[tuple[Path, Path]] = []
    passed_over: list[SkippedFile] = []
    inside = output.resolve()
    for given in inputs:
        if given.is_dir():
            listing = listing_of(given)
            found = listing.paths
            if given.resolve() in inside.parents:
                found = [path for path in found if inside not in path.resolve().parents]
            if not found:
                raise UsageError(f"{given}: {no_images_message(listing.passed_over)}")
            passed_over += listing.passed_over
            pairs += [(path, output / path.relative_to(given).with_suffix(_suffix(path, kind))) for path in found]
        elif given.exists():
            pairs.append((given, output / f"{given.stem}{_suffix(given, kind)}"))
        else:
            raise UsageError(f"{given}: no such file or folder")
    homes = {path.resolve() for path in {source.parent for source, _ in pairs}}
    targets = {path: path.resolve() for path in {target.parent for _, target in pairs}}
    beside = {target for _, target in pairs if targets[target.parent] in homes}
    if factor is not None:
        known = set().union(*(_recorded(folder) for folder in {output, *inputs}))
        earlier = _earlier_results([pair for pair in pairs if pair[1] in beside], factor, overwrite, known)
        earlier |= _known_results([source for source, _ in pairs], factor, known)
        taken = [source for source, _ in pairs if source.resolve() in earlier - known]
        passed_over += [SkippedFile(path, "with the place and the size of an earlier result") for path in taken]
        pairs = [(source, target) for source, target in pairs if source.resolve() not in earlier]
    sources: dict[Path, Path] = {}  # by destination
    for source, target in pairs:
        other = sources.setdefault(target, source)
        if other.resolve() != source.resolve():
            raise UsageError(f"{other} and {source} would both be written to {target}; rename one")
    _check_alike(sources, output)
    originals = {source.resolve() for source in sources.values()}
    for target in sources:
        if target.resolve() in originals:
            raise UsageError(f"{target} is an input and would be overwritten; choose another --output")
    return OutputPlan([(source, target) for target, source in sources.items()], passed_over, beside)


def is_file_name(output: Path) -> bool:
    """Whether `--output` names an image file to write, not a folder; UsageError if that format is not written."""
    suffix = output.suffix.lower()
    if suffix == ".avif" and not output.is_dir() and (problem := avif_problem()):
        raise UsageError(f"--output {output}: {problem}")
    if suffix in IMAGE_SUFFIXES | UNREAD_SUFFIXES and suffix not in SUFFIXES and not output.is_dir():
        raise UsageError(
            f"--output {output}: {suffix} is not written; give a folder, or a file of {', '.join(SUFFIXES)}"
        )
    return suffix in SUFFIXES and not output.is_dir()


def plan_file(inputs: Sequence[Path], output: Path, overwrite: bool = False) -> OutputPlan:
    """The plan for one image and the file of its result.

    Raises:
        UsageError: there are several images or a folder, the image does not exist, or the file does, unless it is to be
            overwritten and is not the image itself.
    """
    if len(inputs) > 1 or inputs[0].is_dir():
        what = f"there are {len(inputs)} inputs" if len(inputs) > 1 else f"{inputs[0]} is a folder"
        raise UsageError(f"--output {output} names the file of one result, and {what}; give a folder")
    if not inputs[0].exists():
        raise UsageError(f"{inputs[0]}: no such file or folder")
    if output.resolve() == inputs[0].resolve():
        raise UsageError(f"{output} is an input and would be overwritten; choose another --output")
    if os.path.lexists(output) and not overwrite:
        raise UsageError(f"--output {output}: there already; --overwrite replaces it")
    return OutputPlan([(inputs[0], output)], [], set())


def record_results(targets: Iterable[Path], output: Path) -> None:
    """Add results that are written beside images to the list in the output folder."""
    known, results = _recorded(output), {target.resolve() for target in targets}
    if results - known:
        names = [Path(os.path.relpath(path, output.resolve())).as_posix() for path in results | known]
        write_json(output / RECORD_FILE, {"results": sorted(names)})


def _earlier_results(pairs: Sequence[tuple[Path, Path]], factor: float, overwrite: bool, known: set[Path]) -> set[Path]:
    """The resolved results that exist already; raises UsageError if an existing file may be an original."""
    found = set()
    for source, target in pairs:
        real = target.resolve()
        if not target.exists() or real == source.resolve():
            continue
        what = f"{source} would be written to {target}, which is there and may be an original"
        if not _is_result(source, target, factor):
            raise UsageError(f"{what}: it is not {factor:g} times the size; rename one or choose another --output")
        # At a factor of 1 every original has the size of a result.
        if (overwrite or factor == 1) and real not in known:
            raise UsageError(f"{what}; remove it, or choose another --output")
        found.add(real)
    return found


def _known_results(images: Sequence[Path], factor: float, known: set[Path]) -> set[Path]:
    """The resolved images that are listed as results and have the size of the result of another one beside them."""
    by_name: dict[Path, list[Path]] = {}
    for path in images:
        by_name.setdefault(path.with_suffix(""), []).append(path)
    return {
        path.resolve()
        for same in by_name.values()
        for path in same
        if len(same) > 1 and path.resolve() in known and any(_is_result(other, path, factor) for other in same)
    }


def _is_result(source: Path, target: Path, factor: float) -> bool:
    """Whether `target` has the size of the result of `source`."""
    try:
        return image_size(target) == resized_size(image_size(source), factor)
    except ImageError:
        return False


def _recorded(folder: Path) -> set[Path]:
    """The resolved results that a folder's list names."""
    try:
        names = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))["results"]
        return {(folder / name).resolve() for name in names}
    except (OSError, ValueError, TypeError, KeyError):  # no list, or a damaged one
        return set()


def _check_alike(sources: Mapping[Path, Path], output: Path) -> None:
    """Refuse results whose names the file system of `output` takes for the same, such as `A.png` and `a.png`.

    `sources` has the images by result.
    """
    if len({unicodedata.normalize("NFC", str(target)).casefold() for target in sources}) == len(sources):
        return
    compared = comparison(output)
    first: dict[str, Path] = {}
    for target in sources:
        other = first.setdefault(compared(str(target)), target)
        if other != target:
            both = f"{sources[other]} and {sources[target]}"
            raise UsageError(f"{both} would both be written to {target}, whose folder takes them for one; rename one")


def _suffix(path: Path, kind: str) -> str:
    if kind != "same":
        return FORMATS[kind]
    suffix = _SAME.get(path.suffix.lower(), ".png")
    return path.suffix if suffix == path.suffix.lower() else suffix

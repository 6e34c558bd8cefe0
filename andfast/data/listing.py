"""The images in a folder, and what is no image there though it looks like one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from andfast.data.images import DataError

_READ = "apng bmp dib jfi jfif jif jpe jpeg jpg mpo pbm pgm png pnm ppm tif tiff webp"
# Images, too, but of formats that are not read. Others (.txt, .db) are no images, and nothing is said of them.
_UNREAD = (
    "avif avifs dds eps exr flif gif hdr heic heics heif hif icns ico j2c j2k jp2 jpc jpf jpx jxl jxr pam pcx pfm psb "
    "psd qoi ras sgi svg svgz tga wdp xbm xcf xpm 3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw "
    "orf pef raf raw rw2 rwl sr2 srf srw x3f"
)
IMAGE_SUFFIXES, _UNREAD_SUFFIXES = (frozenset(f".{name}" for name in names.split()) for names in (_READ, _UNREAD))
"""What the names of images end in that are read, in lower case; upper case counts, too."""

_NOT_READ, _NO_TARGET = "of a format that is not read", "whose link leads nowhere"

_NAMED_AT_MOST = 5


class SkippedFile(NamedTuple):
    """What a listing left out though one may have meant it, and why: what follows its number in `skipped_message`."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """The images of a folder, sorted by their paths, and what was passed over."""

    paths: list[Path]
    passed_over: list[SkippedFile]


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images in `folder` and below it, sorted: the paths of `list_folder`.

    Raises:
        DataError: as `list_folder`.
    """
    return list_folder(folder).paths


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """The image files in `folder` and below it, by suffix (`IMAGE_SUFFIXES`).

    Hidden files and folders (a leading dot) are passed over without a word. Links are followed. A folder that can be
    reached in several ways is looked through once: where it lies, if that is below `folder`, else at the first of the
    links to it. So loops end, too. Links to files are files of their own. Those with an image's suffix that lead
    nowhere are listed, so that whoever reads them can name them.

    Raises:
        DataError: `folder` is no folder, or cannot be opened.
    """
    top = Path(folder)
    if not os.path.isdir(top):
        raise DataError(f"{top}: {'not a folder' if os.path.exists(top) else 'no such folder'}")
    found: list[Path] = []
    passed_over: list[SkippedFile] = []
    # A link to what holds `top` is a loop, too.
    seen = {str(parent) for parent in Path(os.path.realpath(top)).parents}
    folders, links = [top], []
    while folders or links:
        # Linked folders come last, so that one that lies below `top` as well is found where it lies.
        here = folders.pop() if folders else links.pop(links.index(min(links)))
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(here) as entries:
                entries = list(entries)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if here == top:
                raise DataError(f"{top}: {reason}") from error
            passed_over.append(SkippedFile(here, f"that cannot be opened: {reason}"))
            continue
        for entry in entries:
            path, suffix = here / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(path):
                if suffix in IMAGE_SUFFIXES:
                    found.append(path)
                else:
                    passed_over.append(SkippedFile(path, _NO_TARGET))
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif entry.is_file() and suffix in IMAGE_SUFFIXES:
                found.append(path)
            elif entry.is_file() and suffix in _UNREAD_SUFFIXES:
                passed_over.append(SkippedFile(path, _NOT_READ))
    return Listing(
        sorted(found, key=lambda path: path.relative_to(top).as_posix()),
        sorted(passed_over, key=lambda each: each.path.relative_to(top).as_posix()),
    )


def skipped_message(passed_over: Sequence[SkippedFile]) -> str:
    """How many files and folders were passed over and why, by the names of the first of them: a line; "" for none."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in dict.fromkeys(passed_over):
        by_reason.setdefault(reason, []).append(path.name)
    parts = [f"{len(names)} {reason} ({listed(names)})" for reason, names in by_reason.items()]
    return f"passed over: {'; '.join(parts)}" if parts else ""


def no_images_message(passed_over: Sequence[SkippedFile] = ()) -> str:
    """That there are no images, what would be some, and what was passed over: for a message that names the folder."""
    return "; ".join(
        filter(None, [f"no images ({' '.join(sorted(IMAGE_SUFFIXES))} are read)", skipped_message(passed_over)])
    )


def listed(items: Sequence[str]) -> str:
    """The first few of `items`, and how many more there are: for a message."""
    more = len(items) - _NAMED_AT_MOST
    return ", ".join(items[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")

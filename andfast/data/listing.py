"""The images in a folder, and what is skipped there though it may be meant as an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from andfast.data.images import DataError
from andfast.data.suffixes import IMAGE_SUFFIXES, why_unread

_NO_TARGET = "whose link leads nowhere"

_NAMED_AT_MOST = 5


class SkippedFile(NamedTuple):
    """A file or folder that a listing left out, and why: the words after the number in `skipped_message`."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """The images of a folder and what was skipped, sorted by path."""

    paths: list[Path]
    passed_over: list[SkippedFile]


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The paths of `list_folder`."""
    return list_folder(folder).paths


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """The image files in `folder` and below it, by suffix: those of `IMAGE_SUFFIXES` that are read here.

    Hidden files and folders (a leading dot) are ignored. Links are followed, but each folder is listed once: at its own
    place, if that is below `folder`, else at the first link to it; so loops end. Links to files are files of their own.
    Dangling links with an image's suffix are listed, so that reading them reports them.

    Raises:
        DataError: `folder` does not exist or cannot be opened.
    """
    top = check_folder(folder)
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
            elif entry.is_file() and (reason := why_unread(suffix)):
                passed_over.append(SkippedFile(path, reason))
            elif entry.is_file() and suffix in IMAGE_SUFFIXES:
                found.append(path)
    return Listing(
        sorted(found, key=lambda path: path.relative_to(top).as_posix()),
        sorted(passed_over, key=lambda each: each.path.relative_to(top).as_posix()),
    )


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder's path; DataError if there is no such folder."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: {'not a folder' if os.path.exists(folder) else 'no such folder'}")
    return Path(folder)


def skipped_message(passed_over: Sequence[SkippedFile]) -> str:
    """A line that says what was skipped and why, with the first names; "" for nothing."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in dict.fromkeys(passed_over):
        by_reason.setdefault(reason, []).append(path.name)
    parts = [f"{len(names)} {reason} ({listed(names)})" for reason, names in by_reason.items()]
    return f"passed over: {'; '.join(parts)}" if parts else ""


def no_images_message(passed_over: Sequence[SkippedFile] = ()) -> str:
    """The end of an error message: no images, which suffixes are read, and what was skipped."""
    message, skipped = f"no images ({' '.join(sorted(IMAGE_SUFFIXES))} are read)", skipped_message(passed_over)
    return f"{message}; {skipped}" if skipped else message


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first five of `items`, and how many more there are, for a message."""
    more = len(items) - _NAMED_AT_MOST
    return separator.join(items[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")

"""The images in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from andfast.data.images import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files in `folder` and below it, by suffix (`IMAGE_SUFFIXES`, upper or lower case), sorted.

    Hidden files and folders (a leading dot) and folders with an image suffix are passed over. Links that lead
    nowhere are listed, so that whoever reads them can name them.

    Raises:
        DataError: `folder` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and (path.is_file() or path.is_symlink()):
            found.append((inside.as_posix(), path))
    return [path for _, path in sorted(found)]

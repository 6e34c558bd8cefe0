"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# What `mkstemp` puts between the two is eight characters long.
_MARK = "-unfinished-"
_UNFINISHED = re.compile(rf"\..*{_MARK}[a-z0-9_]{{8}}(\.[^.]*)?")


@contextmanager
def written_whole(path: str | os.PathLike[str], previous: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place, else it is removed.

    A reader, or a run that is killed half-way, sees the old file or the new one, never a part; and so does who comes
    after a power failure. The temporary name keeps `path`'s suffix, so that libraries that choose a format by it
    write the right one. What a process that was killed leaves behind, `remove_unfinished` removes.

    Args:
        path: the file.
        previous: in the same folder; becomes what `path` was before. For a moment there is no `path` then, but
            `previous` is whole.

    Raises:
        OSError: the folder cannot be made or written; it names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}{_MARK}", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        # mkstemp makes files private; a finished file gets the rights any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        # What a write raises names no file, and the temporary one tells nobody anything.
        if error.errno is not None and error.filename in (None, name):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what `written_whole` left in `folder` when its process was killed; nobody may be writing there."""
    for path in Path(folder).glob(f".*{_MARK}*"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Return when the content of a file is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Return when the names in a folder are on the disk; on Windows, where a folder cannot be synced, at once."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON that people can read, lists and objects of plain values on a line each, whole or not at all.

    Raises:
        ValueError: there is NaN or infinity in it, which JSON has not.
        OSError: it cannot be written.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    # JSON's strings hold no line breaks, so these are all between values.
    for inner in (r"\[\n[^\[\]{}]*\]", r"\{\n[^\[\]{}]*\}"):
        text = re.sub(inner, lambda found: re.sub(r"\n *", " ", found[0]), text)
    with written_whole(path) as temporary:
        temporary.write_text(text + "\n")


def write_torch(value: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save`, but for an error of the disk, which is an OSError here.

    Given a path, torch says no more than that a write failed; of a file object's error it makes one about positions.
    """
    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            cause = error.__cause__ or error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None

"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

# Marks in the names of temporary files, and of files moved aside where a file cannot be renamed over another.
_UNFINISHED, _REPLACED = "-unfinished-", "-replaced-"
_TEMPORARY = re.compile(rf"\..*{_UNFINISHED}[a-z0-9_]{{8}}(\.[^.]*)?", re.DOTALL)
# Bytes of a name and of its suffix that a temporary name keeps: it fits where names have at most 143 bytes.
_STEM, _SUFFIX = 90, 20

# Errors by which mounted shares say that they do not support a call; no data is lost.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS}
_CANNOT_REPLACE = {errno.EEXIST, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Errors that mean lost data. For folders, shares refuse a sync with still more errors than the above.
_LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextmanager
def written_whole(path: str | os.PathLike[str], previous: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place, else it is removed.

    Readers see the old file or the new one, never a part, also after a kill or a power failure. The temporary name has
    `path`'s suffix, as libraries choose formats by it. If the process is killed the file remains, and
    `remove_unfinished` removes it. With `previous`, a path in the same folder, or on a share that cannot rename a file
    over another, there is no `path` for a moment, but the old file exists under another name.

    Args:
        path: the file.
        previous: where the old file is kept.

    Raises:
        OSError: the folder cannot be made or written, or the name is too long; it names `path`.
    """
    path = Path(path)
    _made(path.parent)
    temporary = _new_file(path)
    try:
        yield temporary
        sync(temporary)
        if previous is not None and path.exists():
            _rename(path, Path(previous))
        _rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # Errors of writing name no file, or the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder and those above it; raises an OSError that names it if files cannot be written there."""
    folder = _made(Path(folder))
    with _errors_name(folder):
        _new_file(folder / "probe").unlink()


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if a name is too long for the file system, or its folder cannot be read."""
    path = Path(path)
    with _errors_name(path):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)
        # Only existing folders check the length of names.
        folder = next(parent for parent in path.parents if parent.is_dir())
        for part in path.relative_to(folder).parts:
            with suppress(FileNotFoundError):
                os.lstat(folder / part)


def comparison(folder: str | os.PathLike[str]) -> Callable[[str], str]:
    """Return a function that maps names to the same text if they are the same file in a folder, which need not exist.

    Windows and macOS do not distinguish capital letters, and macOS not the two forms of an accent.
    """
    folder = Path(folder)
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    try:
        probe = _new_file(existing / "a\u00e9")
    except (OSError, UnicodeEncodeError):  # later writes report it; an ASCII locale has no such names
        return str
    try:
        cases = os.path.lexists(probe.with_name(probe.name.upper()))
        forms = os.path.lexists(probe.with_name(unicodedata.normalize("NFD", probe.name)))
    finally:
        probe.unlink()

    def compared(name: str) -> str:
        name = unicodedata.normalize("NFC", name) if forms else name
        return name.casefold() if cases else name

    return compared


def shortened(name: str, most: int) -> str:
    """The first characters of a name that take at most `most` bytes on disk."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what `written_whole` left in `folder` when its process was killed; no process may be writing there."""
    for path in Path(folder).glob(f".*{_UNFINISHED}*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until the content of a file is on disk, where the file system supports it; raises OSError if it fails."""
    with open(path, "r+b") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Wait until the names in a folder are on disk, where the system supports it; raises OSError if it fails."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON with lists and objects of plain values on one line each, whole or not at all.

    Raises:
        ValueError: the content holds NaN or infinity.
        OSError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    # JSON's strings hold no line breaks, so these are all between values.
    for inner in (r"\[\n[^\[\]{}]*\]", r"\{\n[^\[\]{}]*\}"):
        text = re.sub(inner, lambda found: re.sub(r"\n *", " ", found[0]), text)
    write_text(path, text + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write a text in UTF-8, whole or not at all; bytes of file names that are not UTF-8 become `\udcXX`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_torch(value: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save`, but errors of the disk are OSErrors; torch raises RuntimeErrors that do not say the cause."""
    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            cause = error.__cause__ or error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Raise OSErrors again with the name of `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file, or a link that leads nowhere
        why = "a link that leads nowhere" if os.path.islink(error.filename) else os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, why, error.filename) from error
    return folder


def _new_file(path: Path) -> Path:
    """Make an empty file beside `path` with a new name."""
    while True:
        name = _beside(path, _UNFINISHED)
        with _errors_name(path), suppress(FileExistsError):
            # Not mkstemp, whose files are private: here the umask applies, or the folder's defaults.
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            return name


def _beside(path: Path, mark: str) -> Path:
    """A new name beside `path`, with as much of its name as fits, and its suffix."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _SUFFIX else ""  # longer ones name no format
    return path.with_name(f".{shortened(path.stem, _STEM)}{mark}{secrets.token_hex(4)}{suffix}")


def _rename(file: Path, path: Path) -> None:
    """Rename a file to `path`, in the same folder, and replace what was there."""
    try:
        os.replace(file, path)
    except OSError as error:
        if error.errno not in _CANNOT_REPLACE or not path.is_file():
            raise
        aside = _beside(path, _REPLACED)
        try:
            os.rename(path, aside)
        except OSError:
            raise error from None
        try:
            os.rename(file, path)
        except BaseException:
            os.rename(aside, path)
            raise
        with suppress(OSError):
            aside.unlink()

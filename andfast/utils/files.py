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

# Beside a file, what is being written, and what is moved out of its way where no file can be renamed over another.
_UNFINISHED, _REPLACED = "-unfinished-", "-replaced-"
_TEMPORARY = re.compile(rf"\..*{_UNFINISHED}[a-z0-9_]{{8}}(\.[^.]*)?", re.DOTALL)
# So many bytes of a name stay in a temporary one, and of its suffix: all of it fits where names have 143 bytes at most.
_STEM, _SUFFIX = 90, 20

# With what mounted shares answer what they cannot do. Nothing of this says that anything was lost.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS}
_CANNOT_REPLACE = {errno.EEXIST, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# What says that: of folders, shares refuse the sync, or to be opened, in still more ways.
_LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextmanager
def written_whole(path: str | os.PathLike[str], previous: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place, else it is removed.

    A reader, or a run that is killed half-way, sees the old file or the new one, never a part; and so does who comes
    after a power failure. The temporary name keeps `path`'s suffix, so that libraries that choose a format by it
    write the right one. The file gets the rights that any new one would have. What a process that was killed leaves
    behind, `remove_unfinished` removes.

    Shares that cannot sync are written to without; where a share renames over no other file, there is no `path` for a
    moment, but the old file and the new one are both whole.

    Args:
        path: the file.
        previous: in the same folder; becomes what `path` was before. For a moment there is no `path` then, but
            `previous` is whole.

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
        # What a write raises names no file, and the temporary one tells nobody anything.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, that files can be written to; refuse one that they cannot, before any work.

    Raises:
        OSError: it cannot be made or written, or is none; it names the folder.
    """
    folder = _made(Path(folder))
    try:
        _new_file(folder / "probe").unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that the file system has no room for, before anything is computed for it.

    Raises:
        OSError: it is too long, or the folder cannot be looked into; it names `path`.
    """
    path = Path(path)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)
        # Names are looked at in folders that there are alone.
        folder = next(parent for parent in path.parents if parent.is_dir())
        for part in path.relative_to(folder).parts:
            with suppress(FileNotFoundError):
                os.lstat(folder / part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def comparison(folder: str | os.PathLike[str]) -> Callable[[str], str]:
    """How names are compared in a folder, which need not exist: gives names that would be one file the same text.

    Windows and macOS take capital letters for small ones, and macOS both forms of an accent for one.
    """
    folder = Path(folder)
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    try:
        probe = _new_file(there / "a\u00e9")
    except (OSError, UnicodeEncodeError):  # who writes there will say so; an ASCII locale has no such names
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
    """As much of a name as takes `most` bytes on the disk, in whole characters."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what `written_whole` left in `folder` when its process was killed; nobody may be writing there."""
    for path in Path(folder).glob(f".*{_UNFINISHED}*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Return when the content of a file is on the disk, or at once where it cannot be asked for.

    Raises:
        OSError: it is not, and will not be.
    """
    with open(path, "r+b") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Return when the names in a folder are on the disk, or at once where it cannot be asked for, as on Windows.

    Raises:
        OSError: they are not, and will not be.
    """
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
    """Write JSON that people can read, lists and objects of plain values on a line each, whole or not at all.

    Raises:
        ValueError: there is NaN or infinity in it, which JSON has not.
        OSError: it cannot be written.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    # JSON's strings hold no line breaks, so these are all between values.
    for inner in (r"\[\n[^\[\]{}]*\]", r"\{\n[^\[\]{}]*\}"):
        text = re.sub(inner, lambda found: re.sub(r"\n *", " ", found[0]), text)
    write_text(path, text + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write a text in UTF-8, whole or not at all; what is no UTF-8 in the name of a file becomes `\udcXX`.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file, or a link that leads nowhere
        why = "a link that leads nowhere" if os.path.islink(error.filename) else os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, why, error.filename) from error
    return folder


def _new_file(path: Path) -> Path:
    """An empty file beside `path`, of a new name."""
    while True:
        name = _beside(path, _UNFINISHED)
        try:
            # Not mkstemp, whose files are private: so the system itself applies the umask, or what the folder says.
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        return name


def _beside(path: Path, mark: str) -> Path:
    """A name beside `path` with as much of its own as fits, whole characters of it, and its suffix."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _SUFFIX else ""  # longer, it names no format
    return path.with_name(f".{shortened(path.stem, _STEM)}{mark}{secrets.token_hex(4)}{suffix}")


def _rename(file: Path, path: Path) -> None:
    """Give a file the name `path`, whatever has it; the two are in one folder."""
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

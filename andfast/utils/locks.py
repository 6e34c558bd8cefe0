"""Folders that one process at a time works in."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"

_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
# Errors of file systems without locks: some network file systems, and some in user space.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY}

# The locked byte: on Windows other processes cannot read it, so it is beyond the text of the file.
_BYTE = 2**30


class LockedError(ValueError):
    """Another process works in the folder; the message names both."""


@contextmanager
def locked(folder: str | os.PathLike[str], wait: bool = False) -> Iterator[None]:
    """Hold the lock of an existing folder, which the operating system releases when the process ends.

    The lock is on a file in the folder, which names its holder meanwhile and remains, empty: if it were removed, two
    processes could hold locks of the same name. Forked processes do not inherit it. It excludes other processes, not
    other threads. A file system without locks is no error, but costs a warning in the log.

    Args:
        folder: the folder.
        wait: wait for a process that holds it, instead of raising an error.

    Raises:
        LockedError: another process holds it.
        OSError: the file cannot be made.
    """
    path = Path(folder) / LOCK_FILE
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logger.warning(
                    f"{path.parent}: cannot be locked ({error.strerror}); let no other process work in it meanwhile"
                )
                yield
                return
            if error.errno not in _HELD:
                raise
            others = f"{path.parent}: {_holder(file)} works in this folder"
            if not wait:
                raise LockedError(f"{others}; wait for its end, or give another folder") from None
            logger.warning(f"{others}; waiting until it is done there")
            while not _is_free(file):
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},\n")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                file.truncate(0)


def _lock(file: IO[str]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # of Windows
    else:
        import fcntl

        # Not flock: forked processes would inherit it, and keep it when this one is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_free(file: IO[str]) -> bool:
    """Try to take the lock; return whether that succeeded."""
    try:
        _lock(file)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _holder(file: IO[str]) -> str:
    with suppress(OSError, ValueError):
        file.seek(0)
        return file.readline().strip() or "another process"
    return "another process"

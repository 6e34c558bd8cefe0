"""A checksum inside a file that torch wrote: torch reads the file as any other, and looks at no checksum of its own.

`torch.save` writes a zip archive. What ends it, after all else, can bear a comment; here it is the SHA-256 of all bytes
before it. Zip's own checksums are of 32 bits, not of all bytes, and `torch.load` leaves them out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

# The record that ends an archive begins so and is so long; its last two bytes are the length of the comment.
_END, _END_LENGTH = b"PK\x05\x06", 22
_MARK = b"sha256 "
_SEAL_LENGTH = len(_MARK) + 2 * hashlib.sha256().digest_size


class SealError(ValueError):
    """A file that is not as it was when it was sealed; the message says what is wrong, not with which file."""


def seal(path: Path) -> None:
    """Add its checksum to an archive without a comment."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 2)
        file.write(_SEAL_LENGTH.to_bytes(2, "little"))
        file.seek(0)
        digest = _sha256(file, size)
        file.seek(size)
        file.write(_MARK + digest)


def check_seal(path: Path) -> bool:
    """Whether a file is sealed; if it is, all of it is as it was then.

    Raises:
        SealError: it is not, or the file ends neither as a sealed archive nor as one without a comment.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _SEAL_LENGTH, 0))
        tail = file.read()
        end = tail[-_END_LENGTH:]
        if end.startswith(_END) and end.endswith(b"\0\0"):
            return False
        if not tail.startswith(_MARK):
            raise SealError("it does not end with a checksum")
        file.seek(0)
        if tail[len(_MARK) :] != _sha256(file, size - _SEAL_LENGTH):
            raise SealError("its checksum is wrong")
    return True


def _sha256(file: BinaryIO, length: int) -> bytes:
    """The hexadecimal digits of the SHA-256 of the next bytes."""
    digest = hashlib.sha256()
    while length and (block := file.read(min(length, 2**20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()

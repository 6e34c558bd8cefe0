"""The hash that ties a built extension to its sources. Free of imports from andfast: setup.py runs it too."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def source_files(csrc: Path) -> list[Path]:
    """The C++ and CUDA files under the folder `csrc`, sorted by path."""
    return sorted(path for path in csrc.rglob("*") if path.suffix in _SUFFIXES)


def source_hash(csrc: Path) -> str:
    """SHA-256, in hexadecimal, over the names and contents of `csrc`'s source files."""
    digest = hashlib.sha256()
    for path in source_files(csrc):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(csrc).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()

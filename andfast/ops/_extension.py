"""Find and load the compiled extension, once, when andfast is imported.

If that fails, `problem` says why and how to fix it, an `ExtensionWarning` is issued once, and the operations run on
their reference implementations.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import sys
import warnings
from pathlib import Path

import torch

from andfast.ops._source_hash import source_hash


class ExtensionWarning(RuntimeWarning):
    """The C++ extension cannot be used; slower reference implementations take its place."""


PACKAGE = Path(__file__).resolve().parents[1]

_beside = PACKAGE.parent
# The folder of the checkout that this package runs from; None for a package installed by itself.
CHECKOUT = _beside if (_beside / "setup.py").is_file() and (_beside / "csrc").is_dir() else None


def _text(library: ctypes.CDLL, function: str) -> str:
    """Call the library's `const char* function()`."""
    entry = getattr(library, function)
    entry.restype = ctypes.c_char_p
    return entry().decode()


def _truncated(path: Path) -> bool:
    """Whether an ELF file ends before its section table, its last part: loading it would crash Python."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02"):
        return False  # the loader itself rejects this
    offset, entry_size, entries = struct.unpack("<40xQ10xHH2x", header)
    return path.stat().st_size < offset + entry_size * entries


def _load() -> tuple[str | None, str | None, str, str]:
    """Load the package's newest `_C*.so`.

    Returns:
        The problem or None, its compiler, if known, the architectures of its CUDA part, if any, and the hash of its
        sources.
    """
    if sys.platform == "win32":
        return "it is not made for Windows", None, "", ""
    found = sorted(PACKAGE.glob("_C*.so"), key=lambda path: path.stat().st_mtime)
    if not found:
        return f"it is not built (there is no {PACKAGE / '_C*.so'})", None, "", ""
    path = found[-1]
    if _truncated(path):
        return f"{path} is truncated", None, "", ""
    try:
        torch.ops.load_library(path)
        library = ctypes.CDLL(str(path))
        built_from, compiler = _text(library, "andfast_source_hash"), _text(library, "andfast_compiler")
        archs = _text(library, "andfast_cuda_archs")
    except (OSError, AttributeError) as error:
        reason = error.__cause__ or error  # torch wraps the loader's own message
        return f"{path} does not load in torch {torch.__version__}: {reason}", None, "", ""
    if CHECKOUT is not None and built_from != source_hash(CHECKOUT / "csrc"):
        return (
            f"{path} is stale: it was built from other sources than those in {CHECKOUT / 'csrc'}",
            compiler,
            "",
            built_from,
        )
    return None, compiler, archs, built_from


def _remedy() -> str:
    """The command that builds or installs the extension again."""
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = any(shutil.which(name) for name in compilers)
    first = "" if found else f"install a C++ compiler ({' or '.join(compilers)} was not found), then "
    if sys.platform == "darwin":  # which has a c++ that only asks for Apple's tools
        first = "if Apple's compiler is not installed, run `xcode-select --install`; then "
    command = "`pip install .` in a clone of andfast" if CHECKOUT is None else f"`pip install -e .` in {CHECKOUT}"
    return f"{first}run {command} (with -v it shows what fails)"


problem, compiler, cuda_archs, built_from = _load()
if problem is not None and sys.platform != "win32":  # there the reference is all there is
    problem = f"{problem}. To fix it: {_remedy()}"
    warnings.warn(
        f"andfast's C++ extension cannot be used; the slower reference implementation takes over: {problem}",
        ExtensionWarning,
        stacklevel=2,
    )

"""Optional packages, which may be missing or broken."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata

NOT_INSTALLED = "it is not installed"


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed or damaged."""
    try:
        return metadata.version(package)
    except Exception:  # PackageNotFoundError, or any error of a damaged installation
        return None


def problem_of(package: str) -> str | None:
    """Import a package; return None, or why it cannot be imported: `NOT_INSTALLED` or the error."""
    try:
        if importlib.util.find_spec(package) is None:
            return NOT_INSTALLED
        importlib.import_module(package)
    except Exception as error:  # ImportError, or any error of a package that does not fit its dependencies
        return f"it cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    return None

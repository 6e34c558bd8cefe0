"""Packages that andfast can do without; they may be there and broken, for reasons of all kinds."""

from __future__ import annotations

import importlib
import importlib.util

NOT_INSTALLED = "it is not installed"


def problem_of(package: str) -> str | None:
    """Why a package cannot be imported: `NOT_INSTALLED`, or what it raises. None: it can, and now is."""
    try:
        if importlib.util.find_spec(package) is None:
            return NOT_INSTALLED
        importlib.import_module(package)
    except Exception as error:  # ImportError, or whatever a package of another time meets in its dependencies
        return f"it cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    return None

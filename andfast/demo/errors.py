"""The error messages of the page."""

from __future__ import annotations

from pathlib import Path

from andfast.inference.tiles import NonFiniteError
from andfast.utils.command_line import one_line
from andfast.utils.memory import is_out_of_memory


def explain(error: Exception, path: Path) -> str | None:
    """Describe an error in one line for visitors of the page, without the upload's folder; None: a bug, for the log."""
    if is_out_of_memory(error):
        reason = one_line(error)
        needs = f" ({reason})" if reason.startswith("needs about") else ""
        return (
            f"{path.name}: out of memory{needs}; try a smaller image or crop, or start the page with a smaller --tile"
        )
    if isinstance(error, NonFiniteError):
        return f"{path.name}: {error}; start the page with --precision float32"
    if isinstance(error, OSError) and error.strerror is not None:  # its text contains folders
        return f"{path.name}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)):  # among them DataError
        return one_line(error).replace(str(path), path.name).replace(f"{path.parent}/", "")
    return None

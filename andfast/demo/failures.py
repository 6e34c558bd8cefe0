"""What the page says when something cannot be done."""

from __future__ import annotations

from pathlib import Path

from andfast.inference.tiles import NonFiniteError
from andfast.utils.command_line import one_line
from andfast.utils.memory import is_out_of_memory


def explain(error: Exception, path: Path) -> str | None:
    """An error as one line for who looks at the page; None: it is a mistake of the program, for who runs it.

    Args:
        error: what was raised.
        path: the uploaded file, of whose place on this machine nothing is said.
    """
    if is_out_of_memory(error):
        reason = one_line(error)
        needs = f" ({reason})" if reason.startswith("needs about") else ""
        return (
            f"{path.name}: out of memory{needs}; try a smaller image or crop, or start the page with a smaller --tile"
        )
    if isinstance(error, NonFiniteError):
        return f"{path.name}: {error}; start the page with --precision float32"
    if isinstance(error, OSError) and error.strerror is not None:  # whose text tells of places, those of results too
        return f"{path.name}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)):  # among them DataError
        return one_line(error).replace(str(path), path.name).replace(f"{path.parent}/", "")
    return None

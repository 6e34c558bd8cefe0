"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(titles: Sequence[str], lines: Sequence[Sequence[object]], words: int = 1) -> str:
    """A table whose first `words` columns hold words, and the others numbers."""
    rule = ["---"] * words + ["--:"] * (len(titles) - words)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [titles, rule, *lines])

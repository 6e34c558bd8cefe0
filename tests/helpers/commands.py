"""Command lines as tests write them."""

from collections.abc import Mapping
from typing import Any


def as_options(settings: Mapping[str, Any], **changed: Any) -> list[str]:
    """`--key=value` for all settings, and for those in `changed`, whose dots are written as two underscores."""
    settings = dict(settings) | {key.replace("__", "."): value for key, value in changed.items()}
    return [f"--{key}={value}" for key, value in settings.items()]

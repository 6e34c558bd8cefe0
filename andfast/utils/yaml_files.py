"""YAML as people write it, and settings written as YAML."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# The encodings that Windows programs write, by their byte order marks; everything else is UTF-8.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_FLOAT, _TIME = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class YamlError(ValueError):
    """A file that is not YAML; the message names it and, if known, the line."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does, and dates as text; refuses duplicate keys.

    In Python, as libyaml refuses the escapes of file names that are not UTF-8.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's attribute)
        first: [(tag, form) for tag, form in forms if tag not in (_FLOAT, _TIME)]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep)


_DIGITS = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
_NUMBER = re.compile(rf"(?:{_DIGITS}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `_Loader` would read as numbers."""


for _kind in (_Loader, _Dumper):  # after PyYAML's resolver of integers
    _kind.add_implicit_resolver(_FLOAT, _NUMBER, list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """Parse YAML; raises yaml.YAMLError, also for duplicate keys and values that contain themselves."""
    try:
        value = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested without end") from None
    _refuse_cycles(value, set())
    return value


def _refuse_cycles(value: Any, checked: set[int], name: str = "", within: tuple[Any, ...] = ()) -> None:
    """`checked` has the ids of the values that were checked before: anchors can repeat them any number of times."""
    if any(value is outer for outer in within):
        raise yaml.YAMLError(f"{name} holds itself")
    if id(value) in checked:
        return
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _refuse_cycles(part, checked, f"{name}.{key}" if name else str(key), (*within, value))
    if isinstance(value, (dict, list)):
        checked.add(id(value))


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Write settings as YAML, in ASCII."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file; raises `YamlError` or OSError."""
    return parse(path, read_text(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark; raises `YamlError` or OSError."""
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(f"{path}: line {line}: no text in UTF-8; save the file as UTF-8") from error
    if "\0" in text:  # as UTF-16 without its mark, or UTF-32
        raise YamlError(f"{path}: not YAML in UTF-8 (there are zeros in it); save the file as UTF-8")
    return text


def parse(path: str | os.PathLike[str], text: str) -> Any:
    """Parse the text of a file as `load_yaml` does; raises `YamlError`, which names the file."""
    try:
        return load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{path}: {line}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow; a number such as 0x_
        raise YamlError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
